"""A live bucket and an archive bucket on the S3 simulator, which keeps checksums as S3 does, and its faults."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.plates.bench import Bench, new_bench
from simulators.common import serve
from simulators.common.server import RunningServer
from simulators.s3 import S3Simulator


@dataclass
class Simulated:
    """The two buckets as `bench`, and what they lie on."""

    sim: S3Simulator
    server: RunningServer
    bench: Bench

    def fault(self, fault: str, *, times: int | None = 1, **rule: Any) -> None:
        """Adds a rule to the fault script; `options` are the fault's own."""
        self.server.call(partial(self.sim.faults.add, fault=fault, times=times, **rule))

    def heal(self) -> None:
        self.server.call(self.sim.faults.clear)

    def advance(self, seconds: float) -> None:
        """Moves the clock by which the store dates what it keeps."""
        self.server.call(partial(self.sim.clock.advance, seconds))

    def forget_checksum(self, key: str) -> None:
        """Makes an object of the live bucket one from before 2025, which has none."""
        self.server.call(partial(self.sim.forget_checksum, self.bench.live, key))

    def counts(self) -> Counter[tuple[str, Any]]:
        """Requests so far, by method and status."""
        rows = [entry.details for entry in self.sim.journal.entries("request")]
        return Counter((str(row["method"]), row["status"]) for row in rows)

    def left_in_staging(self) -> list[str]:
        """What is left of pieces: versions, delete markers, and uploads that nobody completed."""
        client, where = self.bench.client, {"Bucket": self.bench.cold, "Prefix": "waybill-staging/"}
        answer = client.list_object_versions(**where)
        uploads = client.list_multipart_uploads(**where).get("Uploads", [])
        return [row["Key"] for row in (*answer.get("Versions", []), *answer.get("DeleteMarkers", []), *uploads)]


@contextlib.contextmanager
def simulated(journals: Path, *, versioned: bool = False) -> Iterator[Simulated]:
    """Fresh buckets on a simulator of their own."""
    sim = S3Simulator()
    with serve(sim.app) as server:
        bench = new_bench(server.url, journals)
        if versioned:
            for name in (bench.live, bench.cold):
                bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        try:
            yield Simulated(sim, server, bench)
        finally:
            bench.access.close()
            sim.reset()
