"""The deletion of a plate's objects on S3, declared for the conformance kit: one batch, by exact versions.

Invariant: an effect is that the store holds none of the batch's versions any more, and harm that it lacks any other.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from harness.conformance import Process, Remote, Worker
from harness.plates.servers import session
from include.core.objects import Objects
from include.plates.delete_ledger import HARMLESS, LedgeredBatches
from include.s3.bucket import Bucket, S3Access
from include.s3.guarded_delete import Batches, DeleteBatch, DeleteGuard, Deleter, Result, Target
from simulators.common import Clock, Simulator, serve
from simulators.s3 import S3Simulator

LIVE = "live"
KEYS = [f"projects/plate/{number}.tiff" for number in range(3)]
OVERWRITTEN, NEIGHBOUR = KEYS[0], "projects/plate2/0.tiff"
ANSWER_SECONDS = 20.0


class DeletionWorker(Worker):
    """The batch through the ledger, as the operator of the DAG sends it."""

    def __init__(self, batch: DeleteBatch, deleter: Deleter, through_ledger: LedgeredBatches):
        self._batch, self._deleter, self._through_ledger = batch, deleter, through_ledger

    async def ask(self) -> float | None:
        outcomes = await self._through_ledger(self._batch, lambda: self._deleter.send(self._batch))
        return None if all(one.result in (Result.DELETED, Result.ABSENT) for one in outcomes) else 1.0


class _World(S3Simulator):
    """A store with three archived objects, one overwritten since, and a neighbour."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        super().__init__(clock)
        self.folder = folder
        self.client: Any = None
        self.targets: list[Target] = []

    def fill(self, url: str) -> None:
        # One try per call: the SDK's own pauses between tries are in real time.
        self.client = S3Access(session=session(), endpoint_url=url)
        self.client.client = store = self.client._client(attempts=1)
        store.create_bucket(Bucket=LIVE)
        store.put_bucket_versioning(Bucket=LIVE, VersioningConfiguration={"Status": "Enabled"})
        for key in KEYS:
            put = store.put_object(Bucket=LIVE, Key=key, Body=key.encode())
            self.targets.append(Target(key, put["ETag"].strip('"'), len(key), put["VersionId"]))
        for key in (OVERWRITTEN, NEIGHBOUR):
            store.put_object(Bucket=LIVE, Key=key, Body=b"somebody else's")

    def left(self) -> tuple[set[tuple[str, str]], int]:
        """The batch's versions that are still there, and how many others."""
        archived = {(target.key, str(target.version_id)) for target in self.targets}
        there = set(self.dump(LIVE))
        return there & archived, len(there - archived)


class S3Deletion(Remote):
    name = "plates/delete"
    write: Mapping[str, Any] = {"method": "POST", "query": "^delete"}
    late_seconds = ANSWER_SECONDS - 1
    names_jobs = False  # a deletion has no id: the ledger's is its own
    repeats_do_no_harm = HARMLESS
    can_watch = False

    @contextmanager
    def world(self, clock: Clock) -> Iterator[Simulator]:
        with tempfile.TemporaryDirectory() as folder:
            sim = _World(clock, Path(folder))
            with serve(sim.app) as server:
                sim.fill(server.url)
                yield sim

    @asynccontextmanager
    async def worker(self, process: Process) -> AsyncIterator[DeletionWorker]:
        sim = _world(process.simulator)
        source: Bucket = sim.client.bucket(LIVE)
        (batch,) = Batches(sim.targets, 1000, "plate")
        through_ledger = LedgeredBatches(
            process.ledger,
            process.owner,
            source,
            "delete",
            Objects(sim.folder.as_uri()),
            "deletions",
            ANSWER_SECONDS,
            process.sleep,
        )
        yield DeletionWorker(batch, Deleter(source, DeleteGuard.VERSION), through_ledger)

    def effects(self, simulator: Simulator) -> Sequence[str]:
        return [] if _world(simulator).left()[0] else ["the versions are gone"]

    def present(self, simulator: Simulator) -> bool:
        return not _world(simulator).left()[0]

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        return {"its keys fail": _keys_fail}

    def harm(self, simulator: Simulator) -> Sequence[str]:
        others = _world(simulator).left()[1]
        return [] if others == 2 else [f"{2 - others} versions that are not the batch's are gone"]


def _keys_fail(simulator: Simulator) -> None:
    """The store answers 200, and of each key that it could not delete it."""
    failed = "".join(
        f"<Error><Key>{one.key}</Key><VersionId>{one.version_id}</VersionId><Code>InternalError</Code></Error>"
        for one in _world(simulator).targets
    )
    body = f"<DeleteResult>{failed}</DeleteResult>"
    simulator.faults.add(**S3Deletion.write, fault="status", code=200, body=body)


def _world(simulator: Simulator) -> _World:
    assert isinstance(simulator, _World)
    return simulator
