"""Restores from JDP's tapes, declared for the conformance kit: three files, by the steps that a run of jgi_staging takes.

Invariant: an effect is a restore request that JDP accepted for one of our files, by its journal.
"""

from __future__ import annotations

import random
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pymongo import MongoClient  # noqa: TID253

from harness.conformance import Process, Remote, Worker
from include.core.errors import Held
from include.core.ledger import State
from include.jgi.forecast import planned
from include.jgi.jdp import READY, JdpClient, SessionToken
from include.jgi.manifest import name_of, read_manifest
from include.jgi.models import FileState, Placement, StagedFile
from include.jgi.restoring import KIND, OPEN_REQUESTS, SYSTEM, JdpAccount, Restoring, believe
from include.jgi.take_up import take_up
from include.jgi.tracking import Tracking
from simulators.common import Clock, InProcessTransport, Simulator
from simulators.globus.collections import JGI_COLLECTION, JGI_ROOT, Collections
from simulators.jgi import DEFAULT_SESSION, ArchiveFile, Catalog, JdpSettings, JdpSimulator, add_random

PROPOSAL, FILES = 503568, 3
LOOK_SECONDS = 6 * 3600.0
INSTANT = {"new_seconds": 0.0, "wait_median_seconds": 0.0, "mount_seconds": 0.0, "seek_seconds": 0.0}


class Folders:
    """Our root on JGI's collection, as a listing of Globus shows it."""

    def __init__(self, simulator: JdpSimulator):
        self._simulator = simulator

    async def request_ids(self) -> list[int]:
        self._simulator.run_due()
        found = self._simulator.collections.children(JGI_COLLECTION, f"/{JGI_ROOT}")
        return [int(name[1:]) for name, is_folder, _ in found if is_folder]

    def manifest(self, request_id: int) -> bytes:
        path = f"/{JGI_ROOT}/R{request_id}/{name_of(request_id)}"
        entry = self._simulator.collections.entry(JGI_COLLECTION, path)
        return b"" if entry is None or entry.data is None else entry.data.read_bytes()


class RestoreWorker(Worker):
    """What a run does, as far as JDP is concerned: take up, plan, ask, look."""

    def __init__(self, restoring: Restoring, folders: Folders):
        self._restoring, self._folders = restoring, folders

    async def ask(self) -> float | None:
        restoring = self._restoring
        found = await take_up(restoring)
        for one in planned(restoring).requests:
            if one.send_at <= restoring.ledger.now():
                await restoring.ask(one.files)
        for request in restoring.tracking.requests(OPEN_REQUESTS):
            await self._look(request.key)
        files = list(restoring.tracking.files())
        if all(one.state == FileState.ON_DISK for one in files):
            return None
        held = [f"{one.jdp_file_id}: {one.why}" for one in files if one.state == FileState.HELD]
        if found.held or held:
            raise Held("; ".join(found.held + held))
        return LOOK_SECONDS

    async def _look(self, key: str) -> None:
        restoring = self._restoring
        row = restoring.ledger.generations(SYSTEM, KIND, key)[-1]
        number = int(row.external_id or 0)
        status = await restoring.jdp.status(number)
        if status is not None and status.status == READY:
            data = self._folders.manifest(number)
            rows = read_manifest(data, number) if data else []
            believe(restoring.tracking, restoring.ledger, row, rows, restoring.account.limits)

    async def watch(self) -> object:
        rows = self._restoring.ledger.in_states(State.SENT, system=SYSTEM)
        return [await self._restoring.jdp.status(int(row.external_id or 0)) for row in rows]


class _World(JdpSimulator):
    tracking: Tracking


class JdpRestores(Remote):
    name = "jdp/restore"
    write: Mapping[str, Any] = {"method": "POST", "path": "/download_files/"}
    late_seconds = 29.0
    hidden_seconds = 47 * 3600.0
    hide = "stuck_pending"
    finds_only = True

    def __init__(self, mongo_uri: str):
        self._mongo_uri = mongo_uri

    @contextmanager
    def world(self, clock: Clock) -> Iterator[Simulator]:
        catalog = Catalog()
        add_random(catalog, PROPOSAL, "grow", total_bytes=3000, biosamples=1, files_each=FILES, trap_rate=0.0)
        with tempfile.TemporaryDirectory() as folder, MongoClient[dict[str, Any]](self._mongo_uri) as client:
            sim = _World(catalog, Collections(Path(folder)), clock, settings=JdpSettings(**INSTANT))  # type: ignore[arg-type]
            database = client[f"conformance_{uuid.uuid4().hex[:12]}"]
            sim.tracking = Tracking(database)
            sim.tracking.ensure_indexes()
            ours = _ours(sim)
            sim.tracking.put_files(StagedFile(one.id, one.name, one.size, "grow", analyses=("Ga1",)) for one in ours)
            sim.tracking.put_placements(
                Placement(one.id, "Ga1", "grow", f"/staging/{one.id}", one.size) for one in ours
            )
            yield sim
            client.drop_database(database.name)

    @asynccontextmanager
    async def worker(self, process: Process) -> AsyncIterator[RestoreWorker]:
        sim = _world(process.simulator)
        async with JdpClient(
            "http://jdp.test",
            SessionToken(DEFAULT_SESSION),
            transport=InProcessTransport(sim.app),
            sleep=process.sleep,
            rng=random.Random(3),
        ) as client:
            account, folders = JdpAccount("nmdc", "nmdc@globusid.org"), Folders(sim)
            yield RestoreWorker(
                Restoring(client, process.ledger, sim.tracking, account, folders, process.owner), folders
            )

    def effects(self, simulator: Simulator) -> Sequence[str]:
        ours = {one.id for one in _ours(_world(simulator))}
        entries = simulator.journal.entries("restore_accepted")
        return [
            str(one.details["request_id"])
            for one in entries
            if ours & set(one.details["ids"]) and one.details["user"] != OTHERS
        ]

    def present(self, simulator: Simulator) -> bool:
        return all(one.on_disk for one in _ours(_world(simulator)))

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        rules = {"ready_but_empty": {}, "no_manifest": {}, "manifest_rows_missing": {"files": 1}}
        return {name: partial(_will_end, name, options) for name, options in rules.items()}

    def add_alike(self, simulator: Simulator) -> Sequence[str]:
        ours = _ours(_world(simulator))
        return [_somebodys(simulator, some) for some in (ours[:-1], [*ours, _other(simulator)], [_other(simulator)])]

    def add_twin(self, simulator: Simulator) -> None:
        sim = _world(simulator)
        sim.run_due()
        sim.engine.accept("by hand", "nmdc@globusid.org", _ours(sim))

    def secrets(self, simulator: Simulator) -> Sequence[str]:
        return [DEFAULT_SESSION.rpartition(" ")[2]]


OTHERS = "somebody else"


def _world(simulator: Simulator) -> _World:
    assert isinstance(simulator, _World)
    return simulator


def _ours(sim: _World) -> list[ArchiveFile]:
    return list(sim.catalog.files.values())[:FILES]


def _other(simulator: Simulator) -> ArchiveFile:
    sim = _world(simulator)
    if len(sim.catalog.files) == FILES:
        add_random(sim.catalog, PROPOSAL + 1, "other", total_bytes=1000, biosamples=1, files_each=1, trap_rate=0.0)
    return list(sim.catalog.files.values())[FILES]


def _somebodys(simulator: Simulator, files: Sequence[ArchiveFile]) -> str:
    """A request that somebody else has made, whose folder lies in our root."""
    sim = _world(simulator)
    sim.run_due()
    return str(sim.engine.accept(OTHERS, "nmdc@globusid.org", files).id)


def _will_end(fault: str, options: Mapping[str, Any], simulator: Simulator) -> None:
    simulator.faults.add(**JdpRestores.write, fault=fault, options=dict(options))
