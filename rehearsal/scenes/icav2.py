"""The ICAv2 scene: both inputs of the written procedure, copied between simulated projects while jobs fail.

The one thing to know before changing it: `check` compares with what the simulator really holds and did (its tree and its
journal), not with what Waybill says of itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from include.core.ledger import Ledger, State
from include.core.ledger.audit import verify

DATA = Path(__file__).resolve().parents[2] / "simulators" / "data" / "icav2"
API_KEY = "rehearsal-key"  # the simulator's own; opens nothing else
DAG_ID = "icav2_copy_batch"


@dataclass(frozen=True)
class Progress:
    """How far all runs of a scene are."""

    files_done: int
    files: int
    bytes_done: int
    bytes: int
    passed: int
    running: int
    failed: int
    attempts: int


class ICAv2Scene:
    """`address` is the simulator's. Manifests are read from the published inputs."""

    dag_id = DAG_ID

    def __init__(self, address: str, ledger: Ledger):
        self._http = httpx.Client(base_url=address, timeout=30, trust_env=False)
        self._ledger = ledger
        self.manifests: list[dict[str, list[str]]] = [
            json.loads((DATA / "gen1_input_manifest.json").read_text())["manifest"],
            json.loads((DATA / "gen1_input_manifest_b64gz.decoded.json").read_text()),
        ]

    @staticmethod
    def connections(address: str) -> dict[str, str]:
        connection = {"conn_type": "http", "host": address, "password": API_KEY}
        return {"AIRFLOW_CONN_WAYBILL_ICAV2": json.dumps(connection)}

    def confs(self) -> dict[str, dict[str, Any]]:
        """Conf by a word for the run id."""
        plain = json.loads((DATA / "gen1_input_manifest.json").read_text())
        packed = json.loads((DATA / "gen1_input_manifest_b64gz.json").read_text())
        return {"manifest": {**plain, "poll_seconds": 5}, "manifest_b64gz": {**packed, "poll_seconds": 5}}

    def progress(self) -> Progress:
        wanted, there = self._wanted(), self._there()
        done = [size for path, size in wanted.items() if self._arrived(there.get(path), size)]
        rows = self._ledger.in_states(*State, system="icav2")
        count = {state: sum(1 for row in rows if row.state == state) for state in State}
        return Progress(
            len(done), len(wanted), sum(done), sum(wanted.values()),
            count[State.DONE], count[State.SENT], count[State.FAILED] + count[State.SUPERSEDED], len(rows),
        )  # fmt: skip

    def check(self, receipts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Everything that is wrong at the end, by the simulator's own journal and tree. Empty: all is well."""
        wanted, there = self._wanted(), self._there()
        problems = [
            f"{project}{path} is not there as it should be ({there.get((project, path), {}).get('status', 'missing')})"
            for (project, path), size in wanted.items()
            if not self._arrived(there.get((project, path)), size)
        ]
        strangers = there.keys() - wanted.keys()
        targets = {project for project, _ in wanted}
        problems += [f"{project}{path} is there, and nobody asked for it" for project, path in sorted(strangers)]
        journal = {job["id"] for job in self._get("/_sim/jobs") if job["destination"].split("/")[0] in targets}
        rows = [r for r in self._ledger.in_states(*State, system="icav2") if _cut(r.business_key)[0] in targets]
        known = {row.external_id for row in rows if row.external_id}
        problems += [f"job {job_id} was accepted and is not in the ledger" for job_id in sorted(journal - known)]
        problems += [f"job {job_id} is in the ledger and was never accepted" for job_id in sorted(known - journal)]
        twins = [twin for twin in self._get("/_sim/counters")["duplicate_jobs"] if any(t in str(twin) for t in targets)]
        problems += [f"two jobs at once: {twin}" for twin in twins]
        return problems + verify(self._ledger, receipts).problems

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
    def _arrived(node: Mapping[str, Any] | None, size: int) -> bool:
        return node is not None and node["status"] == "AVAILABLE" and node["size_bytes"] == size

    def _get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()


def _cut(uri: str) -> tuple[str, str]:
    project, _, path = uri.removeprefix("icav2://").partition("/")
    return project, "/" + path
