"""Globus on a loopback socket, on a clock that a test moves, and Waybill's own client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from include.core.ledger import Ledger, Owner
from include.globus.batch import Batch, Item, batch_key
from include.globus.client import GlobusClient
from include.globus.moving import Underway, move
from include.globus.transfer import Outcome, Transfers
from simulators.common import Clock, serve
from simulators.common.server import RunningServer
from simulators.globus import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    DESTINATION_COLLECTION,
    JGI_COLLECTION,
    Collections,
    GlobusSimulator,
    Settings,
)

T = TypeVar("T")
START = 1_800_000_000.0
ROOT = "/73709/R1"


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class World:
    """The simulator runs in a thread: touch it through `on`."""

    def __init__(self, folder: Path, ledger: Ledger, stack: ExitStack, speed: float = 0.0, **settings: Any):
        self.clock = Clock(epoch=START, speed=speed)
        self.files = Collections(folder / "collections")
        chosen = {"accept_seconds": 0.0, "file_seconds": 0.0, "task_bytes_per_second": 100.0} | settings
        self.sim = GlobusSimulator(self.files, self.clock, Settings(**chosen))
        self.server: RunningServer = stack.enter_context(serve(self.sim.app))
        self.folder, self.ledger, self._stack = folder, ledger, stack
        self.mount = self.files.folder_of(DESTINATION_COLLECTION)
        self.mount.mkdir(parents=True, exist_ok=True)
        self.client = self.new_client()

    def new_client(self, secret: str = DEFAULT_CLIENT_SECRET, **options: Any) -> GlobusClient:
        options = {"name": "waybill_globus", "read_retries": 0, "base_url": self.server.url} | options
        return self._stack.enter_context(GlobusClient(DEFAULT_CLIENT_ID, secret, **options))

    def on(self, function: Callable[[], T]) -> T:
        return self.server.call(function)

    def advance(self, seconds: float) -> None:
        def push() -> None:
            self.clock.advance(seconds)
            self.sim.run_due()

        self.on(push)

    def fault(self, fault: str, **rule: Any) -> None:
        self.sim.faults.add(fault=fault, **rule)

    def afflict(self, fault: str, seconds: float = 0.0, **options: Any) -> None:
        """Something befalls the only task."""
        (task,) = self.sim.engine.tasks
        self.on(lambda: self.sim.afflict(task, fault, seconds, **options))

    def item(self, name: str, data: bytes | None = None, *, as_md5: str | None = None) -> Item:
        """A file at JGI, and where it shall go."""
        data = f"{name} ".encode() * 10 if data is None else data
        self.files.put(JGI_COLLECTION, f"{ROOT}/{name}", data=data, modified=START - 1000)
        return Item(f"{ROOT}/{name}", f"/staging/{name}", len(data), as_md5 or md5(data))

    def batch(self, *items: Item, hours: float = 48.0, label: str = "waybill") -> Batch:
        deadline = datetime.fromtimestamp(START + hours * 3600, UTC)
        key = batch_key(JGI_COLLECTION, DESTINATION_COLLECTION, items)
        return Batch(key, JGI_COLLECTION, DESTINATION_COLLECTION, items, deadline, label)

    def transfers(self, run_id: str = "run-1", client: GlobusClient | None = None) -> Transfers:
        return Transfers(client or self.client, self.ledger, Owner("dag", run_id, "move"))

    def step(self, batch: Batch, *, mounted: bool = True, **options: Any) -> list[Outcome] | Underway:
        return run(move(self.transfers(), batch, self.mount if mounted else None, **options))

    def done(self, batch: Batch, *, mounted: bool = True) -> list[Outcome]:
        """What became of the files, once the task has had its time."""
        found = self.step(batch, mounted=mounted)
        if isinstance(found, Underway):
            self.advance(3600)
            found = self.step(batch, mounted=mounted)
        assert isinstance(found, list), found
        return found

    def accepted(self) -> list[dict[str, Any]]:
        return [entry.details for entry in self.sim.journal.entries("task_accepted")]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def world(tmp_path: Path, ledger: Ledger, request: pytest.FixtureRequest) -> Iterator[World]:
    """Settings come from the marker `globus(…)`."""
    marker = request.node.get_closest_marker("globus")
    with ExitStack() as stack:
        yield World(tmp_path, ledger, stack, **(dict(marker.kwargs) if marker else {}))
