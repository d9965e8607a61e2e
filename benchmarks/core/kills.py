"""Workers killed with SIGKILL at every step of a submission: duplicates and forgotten jobs, ours and Airflow's own pattern.

Ours: `submit_once` on SQLite (even seeds) and PostgreSQL (odd seeds). The peer: `ResumableJobMixin` of the Airflow SDK,
its `execute_resumable` as it is, on a task state store that commits to SQLite; killed at the same instants of the same
remote. A duplicate is a second job of one submission, a forgotten job one whose id is nowhere on our side.

Finished steps are kept under `.bench/kills`, so an interrupted run goes on where it was.
Invariant: they are kept by a digest of the code that they tried: a change of the ledger starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from harness import postgres
from harness.core.journal_server import JournalServer
from harness.core.kills import KILLS, SCENARIOS, Outcome, fork, in_parallel, must_end_well, reap, run_scenario
from include.core.ledger import init

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".bench" / "kills"
HARNESS = [ROOT / "harness/core" / name for name in ("journal_server.py", "kills.py")]
PEER = "Airflow ResumableJobMixin"
SEEDS, PEER_SEEDS = 200, 25
BUDGET_SECONDS = 1_500
PART = 25  # seeds in one child
Row = dict[str, Any]


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: a few seeds, to see that it works; its results are not kept."""
    seeds, peer_seeds = (4, 2) if quick else (SEEDS, PEER_SEEDS)
    budget = 60 if quick else BUDGET_SECONDS
    print(f"kills: {seeds} seeds for each of {len(SCENARIOS)} steps, time budget {budget} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="waybill-kills-"))
    server = JournalServer()
    programs = postgres.binaries()
    cluster = postgres.Cluster(programs) if programs else None
    try:
        urls = [URL.create("sqlite", database=str(folder / "ledger.db"))]
        urls += [cluster.new_schema()] if cluster else []
        for url in urls:
            init(url)
        ours = {s: _kept(f"{s} {seeds}", quick, lambda s=s: _ours(server, urls, s, seeds)) for s in SCENARIOS}
        peers = {
            s: _kept(f"peer {s} {peer_seeds}", quick, lambda s=s: _peer(server, folder, s, peer_seeds)) for s in KILLS
        }
    finally:
        if cluster:
            cluster.stop()
        server.stop()
        shutil.rmtree(folder)
    return _rows(ours, peers)


def _rows(ours: dict[str, list[Row]], peers: dict[str, list[Row]]) -> list[Row]:
    rows = []
    for scenario, outcomes in ours.items():
        peer = peers.get(scenario)
        for what, count in (("duplicates", _duplicates), ("forgotten jobs", _forgotten)):
            rows.append(_row(f"{what}, {_words(scenario)}", outcomes, peer, count))
        unproved = sum(1 for outcome in outcomes if outcome["problems"])
        figure = f"chain broken or worker stuck, {_words(scenario)}"
        rows.append(_figure(figure, unproved, f"submissions of {len(outcomes)}", None, None))
    everything = [outcome for outcomes in ours.values() for outcome in outcomes]
    survived = sum(1 for o in everything if (o["jobs"], o["forgotten"], list(o["problems"])) == (1, 0, []))
    share = 100.0 * survived / len(everything)
    theirs = [outcome for outcomes in peers.values() for outcome in outcomes]
    peer_share = 100.0 * sum(1 for o in theirs if (o["jobs"], o["forgotten"]) == (1, 0)) / len(theirs)
    figure = f"submissions with one job, known to the ledger ({len(everything)}; peer {len(theirs)})"
    rows.append(_figure(figure, share, "%", PEER, peer_share, aim=100.0))
    return rows


def _words(scenario: str) -> str:
    return f"killed at step '{scenario}'" if scenario in KILLS else scenario


def _row(figure: str, ours: list[Row], peer: list[Row] | None, count: Callable[[list[Row]], int]) -> Row:
    """Per 100 submissions, since the peer is killed less often."""
    tried = f" ({count(ours)} of {len(ours)}" + (f"; peer {count(peer)} of {len(peer)})" if peer else ")")
    peer_value = 100.0 * count(peer) / len(peer) if peer else None
    value = 100.0 * count(ours) / len(ours)
    return _figure(figure + tried, value, "per 100 submissions", PEER if peer else None, peer_value)


def _figure(
    figure: str, value: float, unit: str, peer: str | None, peer_value: float | None, *, aim: float = 0.0
) -> Row:
    ratio = value / peer_value if peer_value else None
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "aim": aim,
        "met": value == aim,
    }


def _duplicates(outcomes: list[Row]) -> int:
    return sum(max(0, outcome["jobs"] - 1) for outcome in outcomes)


def _forgotten(outcomes: list[Row]) -> int:
    return sum(outcome["forgotten"] for outcome in outcomes)


def _kept(name: str, quick: bool, play: Callable[[], list[Row]]) -> list[Row]:
    """The outcomes of one step: from an earlier run of the same code, else played now."""
    tried = [*(ROOT / "include/core/ledger").glob("*.py"), *HARNESS, Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(tried))).hexdigest()[:12]
    place = STATE / digest / f"{name.replace(' ', '-')}.json"
    if place.is_file():
        return list(json.loads(place.read_text()))
    started = time.monotonic()
    outcomes = play()
    print(f"  {name}: {time.monotonic() - started:.0f} s", flush=True)
    if not quick:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".partial").write_text(json.dumps(outcomes))
        place.with_suffix(".partial").replace(place)
    return outcomes


def _ours(server: JournalServer, urls: list[URL], scenario: str, seeds: int) -> list[Row]:
    """The even seeds on the first database, the odd ones on the second."""
    parts = []
    for start in range(0, seeds, PART):
        some = range(start, min(start + PART, seeds))
        for number, url in enumerate(urls):
            mine = some[number :: len(urls)]
            parts.append(lambda url=url, mine=mine: [asdict(o) for o in run_scenario(server, url, scenario, mine)])
    return [outcome for part in in_parallel(parts) for outcome in part]


# -- the peer ---------------------------------------------------------------------------------------------------------


class StateStore:
    """A task state store that survives the worker: one SQLite table, a commit per write."""

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, timeout=30)
        self._db.execute("CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value TEXT)")

    def get(self, key: str) -> str | None:
        found = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return str(found[0]) if found else None

    def set(self, key: str, value: str) -> None:
        with self._db:
            self._db.execute("REPLACE INTO state VALUES (?, ?)", (key, value))


def _operator(server: JournalServer, key: str, die_at: str, hold: float) -> Any:
    """An operator as the mixin's documentation writes it; its own steps die where ours do."""
    from airflow.sdk import BaseOperator
    from airflow.sdk.bases.resumablejobmixin import ResumableJobMixin

    class JournalJob(ResumableJobMixin, BaseOperator):
        def submit_job(self, context: Any) -> str:
            if die_at in ("before the intent", "intent", "sending"):  # it writes nothing before it submits
                os.kill(os.getpid(), signal.SIGKILL)
            job = server.submit(key, hold=hold)
            if die_at == "answered":
                os.kill(os.getpid(), signal.SIGKILL)
            return job

        def get_job_status(self, external_id: Any, context: Any) -> str:
            return "RUNNING"

        def is_job_active(self, status: str) -> bool:
            return status == "RUNNING"

        def is_job_succeeded(self, status: str) -> bool:
            return False

        def poll_until_complete(self, external_id: Any, context: Any) -> None:
            if die_at == "recorded":
                os.kill(os.getpid(), signal.SIGKILL)

        def get_job_result(self, external_id: Any, context: Any) -> Any:
            return None

    return JournalJob(task_id="submit")


def _execute(server: JournalServer, store: Path, key: str, *, die_at: str = "", hold: float = 0.0) -> None:
    _operator(server, key, die_at, hold).execute_resumable({"task_state_store": StateStore(store)})


def _play_peer(server: JournalServer, folder: Path, scenario: str, seed: int) -> Row:
    key, rng = f"peer {scenario} {seed}", random.Random(seed)
    store = folder / f"{key.replace(' ', '-')}.db"
    if scenario == "accepted":
        child = fork(lambda: _execute(server, store, key, hold=20.0))
        server.wait_for(key)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        reap(child, killed=True)
    elif scenario == "any instant":
        for _ in range(rng.randint(1, 3)):
            child = fork(lambda: _execute(server, store, key, hold=rng.random() * 0.01))
            time.sleep(rng.random() * 0.04)
            os.kill(child, signal.SIGKILL)
            reap(child)
    else:
        reap(fork(lambda: _execute(server, store, key, die_at=scenario)), killed=True)
    must_end_well(fork(lambda: _execute(server, store, key)))
    jobs, known = server.jobs_of(key), StateStore(store).get("remote_job_id")
    return asdict(Outcome(scenario, seed, len(jobs), len(set(jobs) - {known}), ()))


def _peer(server: JournalServer, folder: Path, scenario: str, seeds: int) -> list[Row]:
    _operator(server, "warm", "", 0.0)  # imported here once, so that no child pays for it
    return in_parallel([lambda seed=seed: _play_peer(server, folder, scenario, seed) for seed in range(seeds)])


if __name__ == "__main__":
    import sys

    for row in run(quick="--quick" in sys.argv):
        print(json.dumps(row))
