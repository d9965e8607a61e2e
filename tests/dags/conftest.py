"""A whole run without a running Airflow: `dag.test()` on the session's metadata database, against an ICA on a socket.

Invariant: `dag.test()` runs triggers in line, one after another, and never wakes a task early:
so they look at once here, and the simulated hours pass fifty times as fast.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from include.core.ledger import Ledger, State, Submission, init, ledger_url
from include.core.watch import WatchPolicy
from simulators.common import Clock, serve
from simulators.common.server import RunningServer
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Settings, files_by_path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "icav2"
DAG_ID = "icav2_copy_batch"
SPEED = 50.0
MEAN_SECONDS = 10.0  # of a job, simulated

Connect = Callable[[str, str], None]


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text())


@dataclass
class World:
    """ICA, ledger and receipts of one test, and the runs in it."""

    sim: IcaSimulator
    server: RunningServer
    ledger: Ledger
    folder: Path

    def call(self, function: Callable[[IcaSimulator], Any]) -> Any:
        return self.server.call(lambda: function(self.sim))

    def run(self, conf: dict[str, Any], *, retries: int | None = None) -> Outcome:
        """One run from its trigger to its end. `poll_seconds` is 1, the least that a caller may ask for."""
        from airflow.dag_processing.dagbag import DagBag

        dag = DagBag(str(ROOT / "dags"), collect_dags=True).dags[DAG_ID]
        for task in dag.tasks:
            task.retries = task.retries if retries is None else retries
        return Outcome(self, dag.test(run_conf={"poll_seconds": 1, **conf}))

    def seed(self, manifest: dict[str, list[str]], size_bytes: int = 3_000_000) -> None:
        """Makes the projects and source files of a manifest."""

        def make(sim: IcaSimulator) -> None:
            for source, folders in manifest.items():
                for uri in (source, *folders):
                    sim.seed_project(cut(uri)[0])
                sim.seed_file(*cut(source), size_bytes)

        self.call(make)

    def missing(self, manifest: dict[str, list[str]]) -> list[str]:
        """Files that are not at their destination as they should be, by the simulator's own tree."""
        trees: dict[str, dict[str, Any]] = {}

        def at(uri: str) -> dict[str, Any]:
            project, path = cut(uri)
            if project not in trees:
                trees[project] = files_by_path(self.call(lambda sim: sim.dump(project)))
            return trees[project].get(path, {})

        wanted = [
            (source, folder + source.rsplit("/", 1)[1]) for source, folders in manifest.items() for folder in folders
        ]
        return [
            target
            for source, target in wanted
            if (at(target).get("status"), at(target).get("size_bytes")) != ("AVAILABLE", at(source)["size_bytes"])
        ]

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.call(lambda sim: sim.job_truth()))

    def rows(self) -> list[Submission]:
        return self.ledger.in_states(*State)

    def assert_one_effective_job_per_intent(self) -> None:
        assert sorted(job["id"] for job in self.jobs()) == sorted(str(row.external_id) for row in self.rows())
        assert self.call(lambda sim: sim.counters()["duplicate_jobs"]) == []


@dataclass
class Outcome:
    """A run that has ended."""

    world: World
    dag_run: Any

    @property
    def state(self) -> str:
        return str(self.dag_run.state)

    def task(self, task_id: str) -> Any:
        return self.dag_run.get_task_instance(task_id)

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        return self.task(task_id).xcom_pull(task_ids=task_id, key=key)

    def document(self, name: str) -> Any:
        folder = self.world.folder / "receipts" / DAG_ID / self.dag_run.run_id
        return json.loads((folder / name).read_text())

    @property
    def receipt(self) -> dict[str, Any]:
        return dict(self.document("receipt.json"))


def cut(uri: str) -> tuple[str, str]:
    project, _, path = uri.removeprefix("icav2://").partition("/")
    return project, "/" + path


@pytest.fixture
def world(
    metadata_database: Path, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """ICA without failures (a test turns them on), an empty ledger, and connections to both."""
    quick = partial(WatchPolicy, quiet_seconds=0.1, first_poll_seconds=0.2, growth=0.0)
    monkeypatch.setattr("triggers.watch.WatchPolicy", quick)
    settings = Settings(seed=5, failure_rate=0.0, duration_mean_seconds=MEAN_SECONDS, delete_seconds=0.5)
    sim = IcaSimulator(Clock(speed=SPEED), settings)
    ledger_connection = f"sqlite:///{tmp_path / 'ledger.db'}"
    init(ledger_url(ledger_connection))
    connect("waybill_ledger", ledger_connection)
    prefix = (tmp_path / "receipts").as_uri()
    connect("waybill_receipts", json.dumps({"conn_type": "generic", "extra": {"prefix": prefix}}))
    ledger = Ledger(ledger_url(ledger_connection))
    with serve(sim.app) as server:
        connect("waybill_icav2", json.dumps({"conn_type": "http", "host": server.url, "password": DEFAULT_API_KEY}))
        yield World(sim, server, ledger, tmp_path)
    ledger.close()
