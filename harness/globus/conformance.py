"""Globus' transfers, declared for the conformance kit: two files as one batch, by the step that the operator runs.

Invariant: an effect is a task that Globus accepted for our pairs of paths, by its journal.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness.conformance import Process, Remote, Worker
from include.core.errors import RemoteError
from include.core.ledger import Submission
from include.globus.batch import Batch, Item, batch_key
from include.globus.client import GlobusClient
from include.globus.moving import Underway, move
from include.globus.transfer import Transfers, Verdict, cancel
from simulators.common import Clock, Simulator, serve
from simulators.globus import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    DESTINATION_COLLECTION,
    JGI_COLLECTION,
    Collections,
    GlobusSimulator,
    Settings,
)
from simulators.globus.model import Item as Moving
from simulators.globus.model import Options, Task

NAMES = ("reads.fastq.gz", "contigs.fna")
SOURCE, TARGET = "/73709/R1", "/staging"
TIMEOUT_SECONDS = 30.0


def _data(name: str) -> bytes:
    return f"{name} of a sample\n".encode() * 40


def _items() -> tuple[Item, ...]:
    return tuple(
        Item(f"{SOURCE}/{name}", f"{TARGET}/{name}", len(_data(name)), hashlib.md5(_data(name)).hexdigest())
        for name in NAMES
    )


KEY = batch_key(JGI_COLLECTION, DESTINATION_COLLECTION, _items())


class _World(GlobusSimulator):
    """Two files at JGI, and a socket before the service."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        collections = Collections(folder / "collections")
        super().__init__(collections, clock, Settings(accept_seconds=1.0, file_seconds=1.0))
        self.folder = folder
        self.url = ""
        for name in (*NAMES, "other.fna"):
            collections.put(JGI_COLLECTION, f"{SOURCE}/{name}", data=_data(name))

    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset((item.source, item.destination) for item in _items())

    def accept(self, label: str, pairs: frozenset[tuple[str, str]]) -> str:
        """A task that somebody else has submitted, with the same client. Its id."""
        now = self.agenda.time
        task = Task(
            id=self.ids.uuid(),
            submission_id=self.ids.uuid(),
            owner=DEFAULT_CLIENT_ID,
            source=self.endpoints[JGI_COLLECTION],
            destination=self.endpoints[DESTINATION_COLLECTION],
            options=Options(label=label, sync_level=3, verify_checksum=True),
            pairs=pairs,
            pairs_digest="by hand",
            items=[Moving(source, destination) for source, destination in sorted(pairs)],
            requested=now,
            deadline=now + 86_400.0,
            deadline_given=True,
        )
        self.engine.accept(task)
        return task.id


class TransferWorker(Worker):
    """One step of a batch at a time."""

    def __init__(self, transfers: Transfers, mount: Path):
        self._transfers = transfers
        self._mount = mount
        self._first = True

    async def ask(self) -> float | None:
        deadline = datetime.fromtimestamp(self._transfers.ledger.now() + 7 * 86_400.0, UTC)
        batch = Batch(KEY, JGI_COLLECTION, DESTINATION_COLLECTION, _items(), deadline)
        found = await move(self._transfers, batch, self._mount, first=self._first)
        self._first = False
        if isinstance(found, Underway):
            return min(found.seconds, 60.0 if found.borne else 5.0)
        bad = [f"{one.item.destination}: {one.verdict}: {one.why}" for one in found if one.verdict != Verdict.VERIFIED]
        if bad:
            raise RemoteError("; ".join(bad))
        return None

    async def watch(self) -> object:
        client = self._transfers.client
        rows = self._transfers.ledger.generations("globus", "transfer", KEY)
        return [await asyncio.to_thread(client.task, str(row.external_id)) for row in rows]

    async def cancel(self, row: Submission) -> object:
        def sleep(seconds: float) -> None:
            raise AssertionError("cancelled at once here")

        return await asyncio.to_thread(cancel, self._transfers.client, self._transfers.ledger, row, sleep)


class GlobusTransfers(Remote):
    name = "globus/transfer"
    write: Mapping[str, Any] = {"method": "POST", "path": "/transfer$"}
    late_seconds = TIMEOUT_SECONDS - 1
    hidden_seconds = 300.0
    hide = "hide_task"
    logins = ("/v2/oauth2/token",)
    can_cancel = True

    @contextmanager
    def world(self, clock: Clock) -> Iterator[Simulator]:
        with tempfile.TemporaryDirectory() as folder:
            sim = _World(clock, Path(folder))
            with serve(sim.app) as server:
                sim.url = server.url
                yield sim

    @asynccontextmanager
    async def worker(self, process: Process) -> AsyncIterator[TransferWorker]:
        sim = _world(process.simulator)
        client = GlobusClient(
            DEFAULT_CLIENT_ID,
            DEFAULT_CLIENT_SECRET,
            name="waybill_globus",
            timeout_seconds=TIMEOUT_SECONDS,
            read_retries=0,  # the SDK's own pauses are in real time
            base_url=sim.url,
        )
        try:
            mount = sim.collections.folder_of(DESTINATION_COLLECTION)
            yield TransferWorker(Transfers(client, process.ledger, process.owner), mount)
        finally:
            client.close()

    def effects(self, simulator: Simulator) -> Sequence[str]:
        tasks = [task for task in _world(simulator).engine.tasks.values() if task.pairs == _world(simulator).pairs()]
        return [task.id for task in tasks if task.owner == DEFAULT_CLIENT_ID]

    def harm(self, simulator: Simulator) -> Sequence[str]:
        return [f"task {one['tasks'][-1]} was not needed: {one['why']}" for one in _world(simulator).engine.duplicates]

    def present(self, simulator: Simulator) -> bool:
        there = {path: entry.md5 for path, entry in _world(simulator).collections.files(DESTINATION_COLLECTION)}
        return all(there.get(item.destination) == item.md5 for item in _items())

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        return {
            "it fails": partial(_befalls, "fail_task"),
            "an administrator cancels it": partial(_befalls, "cancel_by_admin"),
            "it is forgotten": partial(_befalls, "forget_task"),
            "a file is lost": partial(_befalls, "lose_file"),
            "a file is cut": partial(_befalls, "cut_file"),
            "a source is gone": _source_is_gone,
        }

    def add_alike(self, simulator: Simulator) -> Sequence[str]:
        sim = _world(simulator)
        elsewhere, further = (
            frozenset((source, f"/{where}{place}") for source, place in sim.pairs()) for where in ("else", "further")
        )
        other = frozenset({(f"{SOURCE}/other.fna", f"{TARGET}/other.fna")})
        return [
            sim.accept(f"waybill {KEY} 00000000", elsewhere),
            sim.accept(f"WAYBILL {KEY.upper()}", further),
            sim.accept(f"waybill {KEY}0 00000000", other),
        ]

    def add_namesake(self, simulator: Simulator) -> None:
        sim = _world(simulator)
        labels = [task.options.label for task in sim.engine.tasks.values()]
        number = len(labels)
        sim.accept(labels[-1] or "" if labels else KEY, frozenset({(f"{SOURCE}/other.fna", f"{TARGET}/{number}.fna")}))

    def cancelled(self, simulator: Simulator) -> Sequence[str]:
        return [
            task.id for task in _world(simulator).engine.tasks.values() if task.fatal and task.fatal[0] == "CANCELED"
        ]

    def secrets(self, simulator: Simulator) -> Sequence[str]:
        return [DEFAULT_CLIENT_SECRET, *_world(simulator).tokens.issued()]


def _befalls(fault: str, simulator: Simulator) -> None:
    simulator.faults.add(**GlobusTransfers.write, fault=fault, options={"times": 1})


def _source_is_gone(simulator: Simulator) -> None:
    _world(simulator).collections.remove(JGI_COLLECTION, _items()[0].source)


def _world(simulator: Simulator) -> _World:
    assert isinstance(simulator, _World)
    return simulator
