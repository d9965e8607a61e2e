"""A whole ICA world in one process on virtual time: simulator, client, ledger, engine. Shared by tests and benchmarks."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from include.core.http import HttpPolicy
from include.core.ledger import Ledger, Owner, init
from include.core.watching import WatchPolicy
from include.icav2.client import ICAv2Client
from include.icav2.credentials import ApiKey
from include.icav2.engine import CopyEngine, Progress
from include.icav2.flip import checked, flip
from include.icav2.models import CopyPlan
from include.icav2.resolve import resolve
from include.icav2.rules import CopySettings
from simulators.common import Clock, InProcessTransport
from simulators.icav2 import IcaSimulator, Settings
from tests.support.virtual_time import VirtualTimeLoop

SOURCE = "b23fb516-d852-4985-adcc-831c12e8cd22"
TARGET = "7595e8f2-32d3-4c76-a324-c6a85dae87b5"
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
    ledger: Ledger
    client: ICAv2Client

    @classmethod
    def make(cls, loop: VirtualTimeLoop, folder: Path | None = None, **knobs: Any) -> World:
        clock = Clock(loop.time, epoch=loop.now())
        sim = IcaSimulator(clock, Settings(**knobs), gzip=False)
        url = URL.create("sqlite", database=str(Path(folder or tempfile.mkdtemp()) / "ledger.db"))
        init(url)
        ledger = Ledger(url, clock=loop.now, monotonic=loop.time)
        return cls(loop, sim, ledger, cls._client(sim))

    @staticmethod
    def _client(sim: IcaSimulator, **policy: Any) -> ICAv2Client:
        key = ApiKey("rehearsal-key")
        return ICAv2Client("http://ica.test", key, transport=InProcessTransport(sim.app), policy=HttpPolicy(**policy))

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

    def engine(self, plan: CopyPlan, run_id: str = "run1", **settings: Any) -> CopyEngine:
        return CopyEngine(
            self.client, self.ledger, plan, Owner("icav2_copy_batch", run_id, "copy"), CopySettings(**settings)
        )

    async def run(self, engine: CopyEngine, policy: WatchPolicy = NOT_DEFERRED) -> Progress:
        return await engine.run(policy, now=self.loop.now, rng=random.Random(7), say=lambda _line: None)

    def jobs(self) -> list[dict[str, Any]]:
        return self.sim.job_truth()

    def target(self) -> dict[str, dict[str, Any]]:
        """The files of the destination project by path, as ICA really holds them."""
        return {n["path"]: n for n in self.sim.dump(TARGET) if n["type"] == "FILE"}
