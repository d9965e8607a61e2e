"""ICAv2's demo scenario: both inputs of the written procedure, copied between simulated projects while jobs fail.

Invariant: `check` compares with what the simulator holds and did (its tree and its jobs), not with what Waybill says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from include.core.ledger import Ledger, State
from include.core.text import format_bytes
from rehearsal.api import Run, new_run_id
from rehearsal.scenes.scene import OnPoll, Progress, Receipt, ReceiptCounts
from rehearsal.stack import Stack

DATA = Path(__file__).resolve().parents[2] / "simulators" / "data" / "icav2"
API_KEY = "rehearsal-key"  # the simulator's own; opens nothing else
DAG_ID = "icav2_copy_batch"
TIMEOUT_SECONDS = 900


class ICAv2Scene:
    """Manifests are read from the published inputs."""

    dag_ids = (DAG_ID,)
    activity = "copying both inputs of the procedure"

    def __init__(self, stack: Stack, ledger: Ledger):
        self._api = stack.api
        self._http = httpx.Client(base_url=stack.addresses["icav2"], timeout=30, trust_env=False)
        self._ledger = ledger
        self._started: list[Run] = []
        self.manifests: list[dict[str, list[str]]] = [
            json.loads((DATA / "gen1_input_manifest.json").read_text())["manifest"],
            json.loads((DATA / "gen1_input_manifest_b64gz.decoded.json").read_text()),
        ]

    @staticmethod
    def simulators() -> Sequence[str]:
        return ()

    @staticmethod
    def connections(addresses: Mapping[str, str]) -> dict[str, str]:
        connection = {"conn_type": "http", "host": addresses["icav2"], "password": API_KEY}
        return {"AIRFLOW_CONN_WAYBILL_ICAV2": json.dumps(connection)}

    @staticmethod
    def command_environment(addresses: Mapping[str, str]) -> dict[str, str]:
        return {}  # its command line asks nobody

    def confs(self) -> dict[str, dict[str, Any]]:
        """Conf by a word for the run id."""
        plain = json.loads((DATA / "gen1_input_manifest.json").read_text())
        packed = json.loads((DATA / "gen1_input_manifest_b64gz.json").read_text())
        return {"manifest": {**plain, "poll_seconds": 5}, "manifest_b64gz": {**packed, "poll_seconds": 5}}

    def prepare(self) -> None:
        """Nothing: the simulator starts with the published inputs' sources and projects (scenario `sop`)."""

    def start(self) -> None:
        for name, conf in self.confs().items():
            self._started.append(self._api.trigger(DAG_ID, conf, new_run_id(name)))

    def finish(self, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        return self._api.wait_all(self._started, TIMEOUT_SECONDS, on_poll)

    def progress(self, runs: Sequence[Run]) -> Progress:
        wanted, there = self._wanted(), self._there()
        done = [size_bytes for path, size_bytes in wanted.items() if self._arrived(there.get(path), size_bytes)]
        rows = self._ledger.in_states(*State, system="icav2")
        count = {state: sum(1 for row in rows if row.state == state) for state in State}
        cells = {
            "runs": ", ".join(run.state for run in runs),
            "files": f"{len(done)} of {len(wanted)}",
            "bytes": f"{format_bytes(sum(done))} of {format_bytes(sum(wanted.values()))}",
            "jobs passed": str(count[State.DONE]),
            "running": str(count[State.SENT]),
            "failed": str(count[State.FAILED] + count[State.SUPERSEDED]),
            "attempts": str(len(rows)),
        }
        return Progress(DAG_ID, tuple(cells), (tuple(cells.values()),))

    def count(self, receipt: Receipt) -> ReceiptCounts:
        totals = receipt["totals"]
        return ReceiptCounts(
            totals.get("files proved", 0),
            totals.get("files", 0),
            totals.get("proved bytes", 0),
            totals.get("failed jobs sent again or given up", 0),
        )

    def check(self, receipts: Sequence[Receipt]) -> list[str]:
        """What is wrong by the simulator's tree and jobs, against what was asked for and what the ledger holds."""
        wanted, there = self._wanted(), self._there()
        problems = [
            f"{project}{path} is not there as it should be ({there.get((project, path), {}).get('status', 'missing')})"
            for (project, path), size_bytes in wanted.items()
            if not self._arrived(there.get((project, path)), size_bytes)
        ]
        unmanaged = there.keys() - wanted.keys()
        targets = {project for project, _ in wanted}
        problems += [f"{project}{path} is there, and nobody asked for it" for project, path in sorted(unmanaged)]
        accepted = {job["id"] for job in self._get("/_sim/jobs") if job["destination"].split("/")[0] in targets}
        rows = [r for r in self._ledger.in_states(*State, system="icav2") if _cut(r.business_key)[0] in targets]
        known = {row.external_id for row in rows if row.external_id}
        problems += [f"job {job_id} was accepted and is not in the ledger" for job_id in sorted(accepted - known)]
        problems += [f"job {job_id} is in the ledger and was never accepted" for job_id in sorted(known - accepted)]
        duplicates = [
            pair for pair in self._get("/_sim/counters")["duplicate_jobs"] if any(t in str(pair) for t in targets)
        ]
        return problems + [f"a job that nobody needed: {pair}" for pair in duplicates]

    def _wanted(self) -> dict[tuple[str, str], int]:
        """Bytes by (project, path) of every file that must be at a destination, from the sources the simulator holds."""
        sources = self._tree({_cut(uri)[0] for manifest in self.manifests for uri in manifest})
        return {
            (_cut(folder)[0], _cut(folder)[1] + uri.rsplit("/", 1)[1]): sources[_cut(uri)]["size_bytes"]
            for manifest in self.manifests
            for uri, folders in manifest.items()
            for folder in folders
        }

    def _there(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._tree({_cut(f)[0] for manifest in self.manifests for folders in manifest.values() for f in folders})

    def _tree(self, projects: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (project, node["path"]): node
            for project in projects
            for node in self._get(f"/_sim/projects/{project}/tree")
            if node["type"] == "FILE"
        }

    @staticmethod
    def _arrived(node: Mapping[str, Any] | None, size_bytes: int) -> bool:
        return node is not None and node["status"] == "AVAILABLE" and node["size_bytes"] == size_bytes

    def _get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()


def _cut(uri: str) -> tuple[str, str]:
    project, _, path = uri.removeprefix("icav2://").partition("/")
    return project, "/" + path
