"""What the ledger costs: writes per second, the chain's verification, and what `submit_once` adds to a submission.

The peer of `submit_once` is the bare call of a remote that answers at once: the difference is what safety costs. All
databases commit to the disk (SQLite `synchronous=FULL`, PostgreSQL `fsync=on`), as in production.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from harness import postgres
from include.core.ledger import (
    Intent,
    Ledger,
    Owner,
    Probe,
    RemoteSearch,
    SendFence,
    Submission,
    init,
    submit_once,
    verify,
)

ROOT = Path(__file__).resolve().parents[2]
BUDGET_SECONDS = 90
AIM_MILLISECONDS = 50.0  # what a submission may cost more than its bare call: little beside any remote's answer
Row = dict[str, Any]


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: a tenth of the submissions."""
    count = 50 if quick else 500
    print(f"ledger: {count} submissions on each database, time budget {10 if quick else BUDGET_SECONDS} s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix=".bench-ledger-", dir=Path(__file__).parent))  # a disk, not a memory disk
    programs = postgres.binaries()
    cluster = postgres.Cluster(programs, durable=True) if programs else None
    try:
        urls = {"SQLite": URL.create("sqlite", database=str(folder / "ledger.db"))}
        if cluster:
            urls["PostgreSQL"] = cluster.new_schema()
        return [row for name, url in urls.items() for row in _measure(name, url, count)] + _costs(quick)
    finally:
        if cluster:
            cluster.stop()
        shutil.rmtree(folder)


ROWS = 200_000
COSTS = {  # figure → (unit, aim)
    "CPU per copy job": ("ms", 6.0),
    "CPU per submission": ("ms", 6.0),
    "statements per submission": ("statements", 10.0),
    "of_run": ("ms", 50.0),
    "known": ("ms", 50.0),
    "in_states": ("ms", 50.0),
}


WORDS = {
    "CPU per copy job": "CPU per copy job of ICAv2 on virtual time, simulator included (10,000 jobs in 60 s: 6 ms)",
    "CPU per submission": "CPU per submission, intent to end of the job",
    "statements per submission": "statements per submission, intent to end of the job (besides BEGIN and COMMIT)",
}


def _costs(quick: bool) -> list[Row]:
    """What the ledger itself costs, beside the code of before where `WAYBILL_BEFORE` names its checkout; in turns."""
    count, rows, rounds = (50, 2_000, 1) if quick else (300, ROWS, 3)
    before = os.environ.get("WAYBILL_BEFORE")
    checkouts = [ROOT, *([Path(before).resolve()] if before else [])]
    found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for _ in range(rounds):
        for checkout in checkouts:
            found[checkout].append(_cost(checkout, count, rows))
    lines = []
    for figure, (unit, aim) in COSTS.items():
        ours, *theirs = (statistics.median(one[figure] for one in found[checkout]) for checkout in checkouts)
        name = WORDS.get(figure, f"{figure} at {rows:,} rows")
        peer = ("the code of before", theirs[0]) if theirs else (None, None)
        lines.append(_row(f"ledger: {name} (SQLite)", ours, unit, *peer, aim, ours <= aim))
    return lines


def _cost(checkout: Path, count: int, rows: int) -> dict[str, float]:
    program = Path(__file__).with_name("ledger_cost.py")
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    told = subprocess.run(
        [sys.executable, "-P", str(program), str(count), str(rows)],
        env=env, cwd=checkout, capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    return dict(json.loads(told.stdout))


def _measure(name: str, url: URL, count: int) -> list[Row]:
    init(url)
    ledger = Ledger(url)
    try:
        asyncio.run(_submit_all(ledger, "warm", 10))
        submitted = asyncio.run(_submit_all(ledger, "timed", count))
        bare = asyncio.run(_bare(count))
        row = ledger.open(_intent("notes", 0))
        writes = count / _seconds(lambda: [ledger.annotate(row, {"n": n}, why="figure") for n in range(count)])
        audits = [_seconds(lambda: _whole(ledger)) for _ in range(3)]
        events = ledger.head()[0] / statistics.median(audits)
    finally:
        ledger.close()
    cost = submitted - bare
    return [
        _row(
            f"submit_once, added per submission ({name})",
            cost,
            "ms",
            "bare call",
            bare,
            AIM_MILLISECONDS,
            cost <= AIM_MILLISECONDS,
        ),
        _row(f"ledger writes ({name}, one writer, on the disk)", writes, "per s"),
        _row(f"chain verification ({name}, {ledger.head()[0]} events)", events, "events per s"),
    ]


def _row(
    figure: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    aim: float | None = None,
    met: bool | None = None,
) -> Row:
    """`ratio` is left out: a bare call to a remote that does nothing takes no time to compare with."""
    names = ("figure", "value", "unit", "peer", "peer_value", "ratio", "aim", "met")
    return dict(zip(names, (figure, value, unit, peer, peer_value, None, aim, met), strict=True))


def _whole(ledger: Ledger) -> None:
    if verify(ledger).problems:
        raise RuntimeError("the ledger is broken")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _intent(kind: str, number: int) -> Intent:
    return Intent("null", kind, f"key-{number}", {"number": number}, Owner("bench", "run", "submit"))


async def _null(row: Submission, fence: SendFence) -> str:
    fence()
    return f"{row.kind}-{row.business_key}"


async def _search(_row: Submission) -> RemoteSearch:
    return RemoteSearch((), complete=True, remote_now=time.time())


async def _submit_all(ledger: Ledger, kind: str, count: int) -> float:
    """Milliseconds per submission (median)."""
    probe = Probe(_search, 60.0, 30.0, proves_absence=True)
    took = []
    for number in range(count):
        started = time.perf_counter()
        await submit_once(ledger, _intent(kind, number), send=_null, probe=probe)
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


async def _bare(count: int) -> float:
    async def call(number: int) -> str:
        return f"job-{number}"

    took = []
    for number in range(count):
        started = time.perf_counter()
        await call(number)
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


if __name__ == "__main__":
    import sys

    for row in run(quick="--quick" in sys.argv):
        print(json.dumps(row))
