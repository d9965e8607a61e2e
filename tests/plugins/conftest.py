"""An ICA simulator on a loopback socket, whose clock a test moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from harness.fixtures import Connect
from include.core.ledger import Ledger, State, Submission
from simulators.common import Clock, serve
from simulators.common.server import RunningServer
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Settings

SOURCE = "b23fb516-d852-4985-adcc-831c12e8cd22"
TARGET = "7595e8f2-32d3-4c76-a324-c6a85dae87b5"
SIZE_BYTES = 3_000_000


@dataclass
class Ica:
    """The simulated ICA of a test: `sim` may be touched through `call` only, since its server runs in a thread."""

    sim: IcaSimulator
    server: RunningServer

    def call(self, function: Callable[[IcaSimulator], Any]) -> Any:
        return self.server.call(lambda: function(self.sim))

    def pass_time(self, seconds: float) -> None:
        """Lets so many simulated seconds pass: jobs end."""
        self.call(lambda sim: sim.clock.advance(seconds))

    def change_settings(self, **changes: Any) -> None:
        self.call(lambda sim: sim.change_settings(**changes))

    def fault(self, **rule: Any) -> int:
        return int(self.call(lambda sim: sim.faults.add(**rule)))

    def clear_faults(self) -> None:
        self.call(lambda sim: sim.faults.clear())

    def jobs(self) -> list[dict[str, Any]]:
        """Every job ever accepted, oldest first."""
        return list(self.call(lambda sim: sim.job_truth()))

    def files(self) -> dict[str, dict[str, Any]]:
        """The files of the target project by path."""
        return {node["path"]: node for node in self.call(lambda sim: sim.dump(TARGET)) if node["type"] == "FILE"}

    def conf(self, destinations: int = 2, files: int = 2, root: str = "", **options: Any) -> dict[str, Any]:
        """A request to copy so many new files to each of so many folders; the sources are made."""
        manifest = {
            f"icav2://{SOURCE}{root}/run/s{d}/f{f}.fastq.gz": [f"icav2://{TARGET}{root}/cache/d{d}/"]
            for d in range(destinations)
            for f in range(files)
        }
        paths = [uri.removeprefix(f"icav2://{SOURCE}") for uri in manifest]
        self.call(lambda sim: [sim.seed_file(SOURCE, path, SIZE_BYTES) for path in paths])
        return {"manifest": manifest, **options}


@pytest.fixture
def ica(connect: Connect) -> Iterator[Ica]:
    """ICA with two projects; no job fails, and jobs last 10 s of a clock that stands still."""
    settings = Settings(failure_rate=0.0, duration_mean_seconds=10.0, duration_cv=0.0, folder_create_seconds=0.0)
    sim = IcaSimulator(Clock(speed=0.0), settings)
    for project in (SOURCE, TARGET):
        sim.seed_project(project)
    with serve(sim.app) as server:
        connect("waybill_icav2", json.dumps({"conn_type": "http", "host": server.url, "password": DEFAULT_API_KEY}))
        yield Ica(sim, server)


def rows_of(ledger: Ledger) -> list[Submission]:
    return ledger.in_states(*State)
