"""One real Airflow per test session: separate components that tests may kill, two triggerers, and the ICA simulator.

Invariant: it boots once (about 40 s) and is shared, so a test that kills a component waits
until it is healthy again, and every test copies to folders of its own. All waits, and how long simulated jobs take, are
multiplied by how slow the machine is now (`Stack.slowness`).
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from include.core.ledger import Ledger, State, Submission, init, ledger_url
from include.core.ledger.audit import verify
from rehearsal.demo import own_connections
from rehearsal.scenes import jgi, plates
from rehearsal.scenes.icav2 import ICAv2Scene
from rehearsal.stack import Stack

SOURCE = "b23fb516-d852-4985-adcc-831c12e8cd22"
TARGET = (
    "0d9e8f10-4a6b-4f0e-9d0c-3c1f6f2a7b55"  # not the published inputs' target, which one scenario checks as a whole
)
DAG_ID = "icav2_copy_batch"
SMALL_WINDOW_BYTES = 90_000  # of JDP: the two projects do not fit into one
HANG = pytest.mark.timeout(3600)  # every wait has a deadline of its own, which is longer on a slow machine


class Rehearsal:
    """The running stack, the simulator's side channel, and the ledger, with the questions that all tests ask."""

    def __init__(self, stack: Stack, ledger: Ledger):
        self.stack = stack
        self.api = stack.api
        self.ledger = ledger
        self.sim = httpx.Client(base_url=stack.addresses["icav2"], timeout=30, trust_env=False)
        self._fates: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def post(self, path: str, body: Any) -> Any:
        return self.sim.post(f"/_sim{path}", json=body).raise_for_status().json()

    def get(self, path: str) -> Any:
        return self.sim.get(f"/_sim{path}").raise_for_status().json()

    def folder(self, word: str) -> str:
        """A destination root of this test's own."""
        return f"/{word}-{secrets.token_hex(4)}"

    def conf(self, root: str, destinations: int, **options: Any) -> dict[str, Any]:
        """Two files to each of so many folders under `root`; the sources are made."""
        manifest = {
            f"icav2://{SOURCE}{root}/s{d}/f{f}.fastq.gz": [f"icav2://{TARGET}{root}/d{d}/"]
            for d in range(destinations)
            for f in range(2)
        }
        self.post(
            f"/projects/{SOURCE}/files",
            [{"path": uri.removeprefix(f"icav2://{SOURCE}"), "size_bytes": 3_000_000_000} for uri in manifest],
        )
        return {"manifest": manifest, "poll_seconds": 2, **options}

    def fate(self, *overrides: dict[str, Any]) -> None:
        """How long jobs take and how they end, by destination (simulator knob `overrides`)."""
        slowness = self.stack.slowness
        with self._lock:
            self._fates += [{**one, "duration_seconds": one["duration_seconds"] * slowness} for one in overrides]
            self.sim.patch("/_sim/settings", json={"overrides": self._fates}).raise_for_status()

    def document(self, run_id: str, name: str = "receipt.json") -> Any:
        """A document that a run left under the receipts prefix."""
        return json.loads((self.stack.home / "environment" / "receipts" / DAG_ID / run_id / name).read_text())

    def start(self, conf: dict[str, Any]) -> str:
        return self.api.trigger(DAG_ID, conf).run_id

    def until_waiting(self, run_id: str) -> None:
        """The copy task is deferred: its jobs run, and only a trigger watches."""
        self.api.wait_task(DAG_ID, run_id, "copy", 90, states={"deferred"})

    def until(self, reached: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        seconds *= self.stack.slowness
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            assert time.monotonic() < deadline, f"after {seconds:.0f} s not yet: {what}"
            time.sleep(0.2)
        return found

    def jobs(self, root: str) -> list[dict[str, Any]]:
        """Every job that the simulator ever accepted for a test's folders."""
        return [job for job in self.get("/jobs") if root in job["destination"]]

    def rows(self, root: str) -> list[Submission]:
        return [row for row in self.ledger.in_states(*State) if root in row.business_key]

    def assert_proved(self, conf: dict[str, Any], root: str) -> None:
        """Every file is right at its destination, no job was forgotten, no two jobs did the same, the chain holds."""
        tree = {node["path"]: node for node in self.get(f"/projects/{TARGET}/tree")}
        for uri, folders in conf["manifest"].items():
            for folder in folders:
                path = folder.removeprefix(f"icav2://{TARGET}") + uri.rsplit("/", 1)[1]
                assert path in tree, f"{path} is missing"
                assert (tree[path]["status"], tree[path]["size_bytes"]) == ("AVAILABLE", 3_000_000_000), path
        self.assert_one_effective_job_per_intent(root)

    def assert_one_effective_job_per_intent(self, root: str) -> None:
        jobs, rows = self.jobs(root), self.rows(root)
        assert sorted(job["id"] for job in jobs) == sorted(row.external_id for row in rows if row.external_id)
        assert [d for d in self.get("/counters")["duplicate_jobs"] if root in str(d)] == []
        assert verify(self.ledger).problems == []


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("stack")
    connections = own_connections(home / "environment")
    init(ledger_url(connections["AIRFLOW_CONN_WAYBILL_LEDGER"]))
    stack = Stack(
        home,
        components="separate",
        short_timings=True,
        triggerers=2,
        simulators=("--seed", "5", "--scenario", "sop", *jgi.SPEEDS),
        extra_env=lambda addresses: {
            **connections,
            **ICAv2Scene.connections(addresses),
            **plates.connections(addresses["s3"]),
            **jgi.connections(addresses, SMALL_WINDOW_BYTES),
        },
    )
    with stack:
        project = {"id": TARGET, "name": "targets of tests"}
        httpx.post(f"{stack.addresses['icav2']}/_sim/projects", json=project, trust_env=False).raise_for_status()
        plates.make_pool(stack.api)
        stack.api.unpause(DAG_ID)
        yield stack


@pytest.fixture(scope="package")
def ledger(stack: Stack) -> Ledger:
    return Ledger(ledger_url(stack.environment["AIRFLOW_CONN_WAYBILL_LEDGER"]))


@pytest.fixture(scope="package")
def shared(stack: Stack, ledger: Ledger) -> Rehearsal:
    return Rehearsal(stack, ledger)


@pytest.fixture
def rehearsal(shared: Rehearsal) -> Iterator[Rehearsal]:
    """For a test that kills components: what is dead is started again, before it and after it."""
    revive(shared.stack)
    yield shared
    revive(shared.stack)


def revive(stack: Stack) -> None:
    for name in stack.components:
        if not stack.is_running(name):
            stack.start(name)
    stack.wait_healthy(120)
