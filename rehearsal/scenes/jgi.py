"""JGI's demo scenario: three small projects, restored from simulated tape and moved by simulated Globus, run after run, while one
answer of JDP is lost. The window of a day is a minute long.

Invariant: `check` looks at what the simulators hold and what their journals say, not at what Waybill says.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from include.core.ledger import Ledger, State
from include.core.text import format_bytes
from rehearsal.api import Api, Run, new_run_id
from rehearsal.errors import StackError
from rehearsal.scenes.scene import OnPoll, Progress, Receipt, ReceiptCounts
from rehearsal.stack import Stack

DAG_ID, POOL = "jgi_staging", "waybill_globus"
PROJECTS = {"grow": 503568, "bioscales": 502924, "blue_hole": 505022}  # those of the simulators' scenario `sop`
JDP_SPEED, GLOBUS_SPEED = 1440.0, 60.0  # simulated seconds per second: a day of JDP is a minute
WINDOW_SECONDS, MARGIN_SECONDS = 86_400 / JDP_SPEED, 4_500 / JDP_SPEED
WINDOW_BYTES = 300_000
SPEEDS = ("--speed", f"gold={JDP_SPEED:g}", "--speed", f"jdp={JDP_SPEED:g}", "--speed", f"globus={GLOBUS_SPEED:g}")
JGI, DESTINATION = "65fa2422-e080-11ec-990f-3b4cfda38030", "9d6d994a-6d04-11e5-ba46-22000b92c6ec"
SOURCE_ROOT, ROOT = "/73709", "/staging"
MOST_RUNS, TIMEOUT_SECONDS = 12, 900
LEFT_OUT = ("img_nr.last.blasttab", "domtblout")  # by default (remove_files)


def connections(addresses: Mapping[str, str], window_bytes: int = WINDOW_BYTES) -> dict[str, str]:
    """The connections of the DAG but `waybill_globus`, whose mount is known once the simulators run (`make_ready`)."""
    mongo = urlsplit(addresses["mongo"])
    limits = {"window_bytes": window_bytes, "window_seconds": WINDOW_SECONDS, "margin_seconds": MARGIN_SECONDS}
    given = {
        "gold": {"conn_type": "http", "host": addresses["gold"], "password": "rehearsal-offline-token"},
        "jdp": {
            "conn_type": "http",
            "host": addresses["jdp"],
            "login": "nmdc",
            "password": "Bearer /api/sessions/0123456789abcdef0123456789abcdef",
            "extra": {"globus_user": "nmdc@globusid.org", **limits},
        },
        "mongo": {
            "conn_type": "mongo",
            "host": mongo.hostname,
            "port": mongo.port,
            "schema": "workflow",
            "extra": {"directConnection": True},
        },
    }
    return {f"AIRFLOW_CONN_WAYBILL_{name.upper()}": json.dumps(value) for name, value in given.items()}


def make_ready(api: Api, globus: httpx.Client) -> None:
    """The pool, and connection `waybill_globus` with the folder in which the simulator keeps the destination collection."""
    api.ensure_pool(POOL, 3, "Globus tasks at a time", include_deferred=True)
    folder = globus.get(f"/_sim/endpoints/{DESTINATION}/files").raise_for_status().json()["folder"]
    extra = {
        "source_collection": JGI,
        "source_root": SOURCE_ROOT,
        "destination_collection": DESTINATION,
        "destination_root": ROOT,
        "mount": folder,
    }
    api.ensure_connection(
        "waybill_globus",
        {
            "conn_type": "generic",
            "host": str(globus.base_url).rstrip("/"),
            "login": "1c0a9e3e-6f0a-4c86-9f3d-0c7de1a50001",
            "password": "rehearsal-client-secret",  # opens nothing but the simulator
            "extra": json.dumps(extra),
        },
    )


class JgiWorld:
    """What the simulators of JDP and Globus hold and did, with the questions that demo and tests ask of it."""

    def __init__(self, addresses: Mapping[str, str], window_bytes: int = WINDOW_BYTES):
        self.window_bytes = window_bytes
        self.jdp = httpx.Client(base_url=addresses["jdp"], timeout=60, trust_env=False)
        self.globus = httpx.Client(base_url=addresses["globus"], timeout=60, trust_env=False)

    def fault(self, service: str, **rule: Any) -> None:
        client = self.jdp if service == "jdp" else self.globus
        client.post("/_sim/faults", json=rule).raise_for_status()

    def wanted(self, proposals: Sequence[int]) -> list[dict[str, Any]]:
        """The files of these projects that are to be staged."""
        listed = [self._get(self.jdp, f"/files?proposal={proposal}") for proposal in proposals]
        return [file for files in listed for file in files if not any(mark in file["name"] for mark in LEFT_OUT)]

    def there(self) -> dict[str, dict[str, Any]]:
        """Every file at the destination but manifests, by path."""
        files = self._get(self.globus, f"/endpoints/{DESTINATION}/files")["files"]
        return {one["path"]: one for one in files if not one["path"].startswith(f"{ROOT}/manifests/")}

    def missing(self, projects: Mapping[str, int]) -> int:
        """How many files are not at their destinations yet, by their md5; one that two analyses share has two."""
        count = 0
        for project, proposal in projects.items():
            here = Counter(one["md5"] for path, one in self.there().items() if path.startswith(f"{ROOT}/{project}/"))
            wanted: Counter[str] = Counter()
            for file in self.wanted([proposal]):
                wanted[file["md5"]] += len(file["analyses"])
            count += (wanted - here).total()
        return count

    def problems(self, ledger: Ledger, projects: Mapping[str, int], *, asked_again: int = 0) -> list[str]:
        """What is wrong by the journals: files missing or changed, asked for twice, moved by two tasks, a window exceeded,
        requests and tasks that the ledger does not know."""
        wrong = [f"{self.missing(projects)} files are not at the destination"] if self.missing(projects) else []
        good = {file["md5"] for file in self.wanted(list(projects.values()))}
        mine = {path: one for path, one in self.there().items() if path.split("/")[2] in projects}
        wrong += [f"{path} has other bytes than JDP's file" for path, one in mine.items() if one["md5"] not in good]
        requests = [one for one in self._get(self.jdp, "/requests") if self._concerns(one, projects)]
        asked = Counter(file for one in requests for file in one["ids"])
        more = sum(asked.values()) - len(asked)
        if more > asked_again:
            wrong.append(f"{more} files were asked for again, and {asked_again} had to be")
        peak = self._get(self.jdp, "/window")
        if peak["bytes"] > self.window_bytes:
            wrong.append(f"a window held {peak['bytes']} bytes, and may hold {self.window_bytes}")
        wrong += self._unknown(ledger, {str(one["id"]) for one in requests})
        return wrong

    def spoilt(self) -> int:
        """How many files the requests had that a fault made ready without anything on disk."""
        faults = [one["details"] for one in self._get(self.jdp, "/journal?kind=restore_fault")["entries"]]
        numbers = {one["request_id"] for one in faults if one["fault"] == "ready_but_empty"}
        return sum(len(one["ids"]) for one in self._get(self.jdp, "/requests") if one["id"] in numbers)

    def _concerns(self, request: Mapping[str, Any], projects: Mapping[str, int]) -> bool:
        return not {file["id"] for file in self.wanted(list(projects.values()))}.isdisjoint(request["ids"])

    def _unknown(self, ledger: Ledger, requests: set[str]) -> list[str]:
        rows = ledger.in_states(*State, system="jdp")
        lost = requests - {row.external_id for row in rows if row.external_id}
        wrong = [f"restore request {one} was accepted and is not in the ledger" for one in sorted(lost)]
        tasks = {one["task_id"] for one in self._get(self.globus, "/tasks")}
        known = {row.external_id for row in ledger.in_states(*State, system="globus") if row.external_id}
        wrong += [f"task {one} was accepted and is not in the ledger" for one in sorted(tasks - known)]
        twice = [entry for entry in self._get(self.globus, "/journal")["entries"] if entry["kind"] == "duplicate_task"]
        return wrong + [f"a task that nobody needed: {entry['details']}" for entry in twice]

    @staticmethod
    def _get(client: httpx.Client, path: str) -> Any:
        return client.get(f"/_sim{path}").raise_for_status().json()


class JgiScene:
    """Each project by a run of its own; then runs without a conf, as the schedule makes them, until nothing is missing. Switching
    the DAG on starts a run of its schedule, too."""

    dag_ids: Sequence[str] = (DAG_ID,)
    activity = "staging projects from tape"
    projects: Mapping[str, int] = PROJECTS
    window_bytes = WINDOW_BYTES

    def __init__(self, stack: Stack, ledger: Ledger):
        self._api = stack.api
        self._ledger = ledger
        self._started: list[Run] = []
        self.world = JgiWorld(stack.addresses, self.window_bytes)

    @staticmethod
    def simulators() -> Sequence[str]:
        return SPEEDS

    @staticmethod
    def connections(addresses: Mapping[str, str], folder: Path) -> dict[str, str]:
        return connections(addresses)

    @staticmethod
    def command_environment(addresses: Mapping[str, str]) -> dict[str, str]:
        return {}  # its command line plans from a file, and asks nobody

    def prepare(self) -> None:
        make_ready(self._api, self.world.globus)
        self.world.fault(
            "jdp", method="POST", path="download_files|request_archived", after=1, fault="drop_after_commit"
        )

    def start(self) -> None:
        for project, proposal in self.projects.items():
            conf = {"project": project, "proposal_id": proposal}
            self._started.append(self._api.trigger(DAG_ID, conf, new_run_id(project)))

    def finish(self, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        runs = self._api.wait_all(self._started, TIMEOUT_SECONDS, on_poll)
        while self.world.missing(self.projects) and len(runs) < MOST_RUNS:
            say(f"{self.world.missing(self.projects)} files are the next run's")
            time.sleep(WINDOW_SECONDS / 4)  # a quarter of a simulated day
            started = self._api.trigger(DAG_ID, {}, new_run_id("daily"))
            runs += self._api.wait_all([started], TIMEOUT_SECONDS, on_poll)
        if self.world.missing(self.projects):
            raise StackError(f"after {len(runs)} runs {self.world.missing(self.projects)} files are still missing")
        return self._api.wait_all(self._api.runs(DAG_ID), TIMEOUT_SECONDS, on_poll)  # also the schedule's own first run

    def progress(self, runs: Sequence[Run]) -> Progress:
        wanted = self.world.wanted(list(self.projects.values()))
        rows = self._ledger.in_states(*State, system="jdp")
        there = self.world.there()
        cells = {
            "runs": ", ".join(run.state for run in runs),
            "files": f"{len(there)} of {sum(len(file['analyses']) for file in wanted)}",
            "bytes": format_bytes(sum(one["size"] for one in there.values())),
            "restore requests": str(len(rows)),
            "Globus tasks": str(len(self._ledger.in_states(*State, system="globus"))),
        }
        return Progress(DAG_ID, tuple(cells), (tuple(cells.values()),))

    def count(self, receipt: Receipt) -> ReceiptCounts:
        totals = receipt["totals"]
        return ReceiptCounts(totals.get("verified", 0), totals.get("files", 0), totals.get("verified bytes", 0))

    def check(self, receipts: Sequence[Receipt]) -> list[str]:
        return self.world.problems(self._ledger, self.projects)
