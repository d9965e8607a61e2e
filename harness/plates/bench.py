"""A live bucket and an archive bucket on one server, and short names for what tests and benchmarks do all the time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.plates import servers
from include.core.journal import JournalFor, journals_in
from include.plates.archive import archive_plate
from include.plates.layout import BROAD2018
from include.plates.models import ArchiveResult, ArchiveSettings, Layout, Plate, PlatePlan, Verdict
from include.plates.plan import plan_plate
from include.plates.verify import verify_archive
from include.s3.bucket import Bucket, S3Access

T = TypeVar("T")


_numbers = itertools.count(1)


SMALL = ArchiveSettings(compression="gzip", part_bytes=5 * 1024 * 1024, group_bytes=64 * 1024, volume_bytes=1 << 30)


@dataclass
class Bench:
    """A live bucket and an archive bucket on one server, and short names for what tests do all the time."""

    url: str
    access: S3Access
    live: str
    cold: str
    journals: Path
    layout: Layout = BROAD2018
    settings: ArchiveSettings = SMALL
    files: dict[str, bytes] = field(default_factory=dict)
    _opened: dict[tuple[int, str], Bucket] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> Bucket:
        return self._bucket(self.live)

    @property
    def archive(self) -> Bucket:
        return self._bucket(self.cold)

    def _bucket(self, name: str) -> Bucket:
        """Opened once by each access: it takes a hundredth of a second."""
        known = (id(self.access), name)
        if known not in self._opened:
            self._opened[known] = self.access.bucket(name)
        return self._opened[known]

    @property
    def client(self) -> Any:
        return self.access.client

    @property
    def journal_for(self) -> JournalFor:
        return journals_in(self.journals)

    def put(self, files: Mapping[str, bytes]) -> None:
        for key, data in files.items():
            self.client.put_object(Bucket=self.live, Key=key, Body=data)
        self.files |= files

    def get(self, key: str, bucket: str | None = None) -> bytes:
        return bytes(self.client.get_object(Bucket=bucket or self.cold, Key=key)["Body"].read())

    def keys(self, bucket: str) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {row["Key"] for page in pages for row in page.get("Contents", [])}

    async def plan(self, plate: Plate, **changes: Any) -> PlatePlan:
        options: dict[str, Any] = {"source": self.source, "archive": self.archive} | changes
        return await plan_plate(plate, self.layout, self.settings, **options)

    async def archive_it(self, plan: PlatePlan, **changes: Any) -> ArchiveResult:
        options: dict[str, Any] = {"source": self.source, "archive": self.archive, "journal_for": self.journal_for}
        return await archive_plate(plan, **(options | changes))

    async def verify(self, plate: Plate, **changes: Any) -> Verdict:
        options: dict[str, Any] = {"source": self.source, "archive": self.archive} | changes
        return await verify_archive(plate, self.layout, **options)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def new_bench(url: str, journals: Path) -> Bench:
    """A fresh pair of buckets on the server at `url`."""
    number = next(_numbers)
    bench = Bench(url, servers.access(url), f"live-{number}", f"cold-{number}", journals)
    for name in (bench.live, bench.cold):
        bench.client.create_bucket(Bucket=name)
    return bench
