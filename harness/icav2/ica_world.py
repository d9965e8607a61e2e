"""A whole ICA world in one process on virtual time: simulator, client, ledger, engine. Shared by tests and benchmarks."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine import URL

from harness.core.mortal_ledger import MortalLedger
from harness.virtual_time import VirtualTimeLoop, run_virtual
from include.core.http import HttpPolicy
from include.core.ledger import Ledger, Owner, State, init, verify
from include.core.watch import WatchPolicy
from include.icav2.client import ICAv2Client
from include.icav2.credentials import ApiKey
from include.icav2.engine import CopyEngine, CopyProgress
from include.icav2.manifest import checked, flip
from include.icav2.models import CopyPlan
from include.icav2.plan import resolve
from include.icav2.rules import KIND, CopySettings
from include.icav2.small_files import STREAM_KIND
from simulators.common import Clock, InProcessTransport
from simulators.icav2 import IcaSimulator, Settings

T = TypeVar("T")
MEMORY = Path("/dev/shm")  # ledgers of tests need not survive the power; elsewhere each commit waits for a disk

SOURCE = "b23fb516-d852-4985-adcc-831c12e8cd22"
TARGET = "7595e8f2-32d3-4c76-a324-c6a85dae87b5"
Place = tuple[str, str]  # project id, path
NOT_DEFERRED = WatchPolicy(quiet_seconds=0.0)


def manifest(destinations: int, files: int = 2) -> dict[str, list[str]]:
    """`files` sources for each of so many destination folders."""
    return {
        f"icav2://{SOURCE}/run/s{d:04d}/f{f}.fastq.gz": [f"icav2://{TARGET}/cache/d{d:04d}/"]
        for d in range(destinations)
        for f in range(files)
    }


@dataclass
class World:
    """One simulated ICA and one ledger. `engine()` makes as many workers on them as a test needs."""

    loop: VirtualTimeLoop
    sim: IcaSimulator
    url: URL
    ledger: Ledger
    client: ICAv2Client

    @classmethod
    def make(cls, loop: VirtualTimeLoop, folder: Path | None = None, **settings: Any) -> World:
        clock = Clock(loop.time, epoch=loop.now())
        sim = IcaSimulator(clock, Settings(**settings), gzip=False)
        place = folder or Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        url = URL.create("sqlite", database=str(place / "ledger.db"))
        init(url)
        ledger = Ledger(url, clock=loop.now, monotonic=loop.time)
        return cls(loop, sim, url, ledger, cls.client_of(sim))

    @staticmethod
    def client_of(sim: IcaSimulator, **policy: Any) -> ICAv2Client:
        """A client of its own, as another process would have."""
        return ICAv2Client(
            "http://ica.test/ica/rest",
            ApiKey("rehearsal-key"),
            transport=InProcessTransport(sim.app),
            policy=HttpPolicy(**policy),
            rng=random.Random(3),
        )

    def close(self) -> None:
        self.ledger.close()
        folder = Path(str(self.url.database)).parent
        for file in folder.glob("ledger.db*"):
            file.unlink()
        folder.rmdir()

    def seed(self, what: Mapping[str, list[str]], size_bytes: int = 5_000_000_000) -> None:
        """Makes the projects and the source files of a manifest."""
        for source, destinations in what.items():
            for uri in (source, *destinations):
                project, _, path = uri.removeprefix("icav2://").partition("/")
                self.sim.seed_project(project)
                if uri == source and not uri.endswith("/"):
                    self.sim.seed_file(project, "/" + path, size_bytes)

    async def plan(self, what: Mapping[str, list[str]]) -> CopyPlan:
        return await resolve(self.client, flip(checked(dict(what), "manifest")))

    def engine(self, plan: CopyPlan, run_id: str = "run1", ledger: Ledger | None = None, **settings: Any) -> CopyEngine:
        owner = Owner("icav2_copy_batch", run_id, "copy")
        client = self.client if ledger is None else self.client_of(self.sim)
        return CopyEngine(client, ledger or self.ledger, plan, owner, CopySettings(**settings))

    def mortal(self) -> MortalLedger:
        """The ledger for a worker that will be killed."""
        return MortalLedger(self.url, clock=self.loop.now, monotonic=self.loop.time)

    async def run(self, engine: CopyEngine, policy: WatchPolicy = NOT_DEFERRED) -> CopyProgress:
        return await engine.run(policy, now=self.loop.now, rng=random.Random(7), say=lambda _line: None)

    async def copy(self, what: Mapping[str, list[str]], run_id: str = "run1", **settings: Any) -> CopyProgress:
        """Plans and runs a manifest to its end."""
        return await self.run(self.engine(await self.plan(what), run_id, **settings))

    def fault(self, fault: str, path: str | None = None, method: str | None = None, **more: Any) -> None:
        self.sim.faults.add(fault=fault, path=path, method=method, **more)

    def jobs(self) -> list[dict[str, Any]]:
        return self.sim.job_truth()

    def target(self) -> dict[str, dict[str, Any]]:
        """The files of the destination project by path, as ICA really holds them."""
        return {n["path"]: n for n in self.sim.dump(TARGET) if n["type"] == "FILE"}

    def submissions(self) -> list[Any]:
        rows = self.ledger.in_states(*State)
        return sorted(rows, key=lambda row: row.id)

    # -- the checker: the simulator's truth against the ledger's record -------------------------------------------

    def check(self, what: Mapping[str, list[str]], *, twins: bool = False) -> None:
        """The tree is right, no job is unknown to the ledger or twice at work, and the chain is whole.

        `twins`: a harmless second job is allowed (a job was invisible for longer than its horizon).
        """
        wrong = self.wrong_files(what)
        assert not wrong, wrong
        self.check_records(twins=twins)

    def check_records(self, *, twins: bool = False) -> None:
        rows = [row for row in self.submissions() if row.kind == KIND]
        streamed = {row.external_id for row in self.submissions() if row.kind == STREAM_KIND}
        uploaded = {entry.details["id"] for entry in self.sim.journal.entries("file_uploaded")}
        assert uploaded - streamed == set(), "files that the ledger does not know"
        known = {row.external_id for row in rows if row.external_id}
        known |= {late for row in rows for late in row.detail.get("late_answers", [])}
        at_ica = {job["id"] for job in self.jobs()}
        assert at_ica - known == set(), "jobs that the ledger does not know"
        assert known - at_ica == set(), "jobs that ICA does not know"
        if not twins:
            assert self.sim.counters()["duplicate_jobs"] == []
        assert verify(self.ledger).problems == []

    def wrong_files(self, what: Mapping[str, list[str]]) -> list[str]:
        """Every file that is not at its destination as its source is, or that nobody asked for."""
        there = {
            (project, node["path"]): node
            for project in self.sim.tree.projects
            for node in self.sim.dump(project)
            if node["type"] == "FILE"
        }
        problems, expected = [], {key for key in there if key[0] == SOURCE}
        for source, destinations in what.items():
            for destination in destinations:
                for origin, place in _copies(source, destination, list(there)):
                    expected.add(place)
                    copy, original = there.get(place), there[origin]
                    if copy is None or copy["status"] != "AVAILABLE" or copy["size_bytes"] != original["size_bytes"]:
                        problems.append(f"{place}: {copy}")
        return problems + [f"nobody asked for {place}" for place in there.keys() - expected]


def _copies(source: str, destination: str, paths: list[tuple[str, str]]) -> list[tuple[Place, Place]]:
    """(origin, place) of each file that a source and a destination mean."""
    from_project, _, path = source.removeprefix("icav2://").partition("/")
    to_project, _, folder = destination.removeprefix("icav2://").partition("/")
    folder = "/" + folder if folder.endswith("/") or not folder else f"/{folder}/"
    above = ("/" + path).rstrip("/").rsplit("/", 1)[0] + "/"
    files = [p for project, p in paths if project == from_project and (p == "/" + path or p.startswith(f"/{path}"))]
    chosen = [p for p in files if path.endswith("/") or p == "/" + path]
    return [((from_project, p), (to_project, folder + p[len(above) :])) for p in chosen]


def play(scene: Callable[[World], Awaitable[T]], **settings: Any) -> T:
    """Runs `scene(world)` on virtual time, in a world of its own."""

    async def main(loop: VirtualTimeLoop) -> T:
        world = World.make(loop, **settings)
        try:
            return await scene(world)
        finally:
            world.close()

    return run_virtual(main)
