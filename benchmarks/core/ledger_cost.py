"""One measurement of the ledger's cost, as JSON on standard output: run by `core.ledger` in this checkout and in one of before.

Uses only what both have. SQLite on a memory disk where there is one: durability is another figure.
Invariant: nothing of the checkout that is not measured is imported.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL

from include.core.ledger import (
    Intent,
    Ledger,
    Owner,
    Probe,
    RemoteSearch,
    SendFence,
    State,
    Submission,
    init,
    submit_once,
)

RUN_ROWS = 50


async def _send(row: Submission, fence: SendFence) -> str:
    fence()
    return f"job-{row.id}"


async def _search(_row: Submission) -> RemoteSearch:
    return RemoteSearch((), complete=True, remote_now=0.0)


PROBE = Probe(_search, visibility_window_seconds=60.0, request_timeout_seconds=30.0, proves_absence=True)


async def _submissions(ledger: Ledger, name: str, count: int) -> None:
    """From intent to the end of the job, as a copy of ICAv2 does."""
    for number in range(count):
        detail = {"names": [f"file-{number}"], "data_ids": [f"fil.{number}"]}
        intent = Intent(
            "tape", "restore", f"{name}-{number}", {"n": number}, Owner("dag", "run", "task"), detail=detail
        )
        row = await submit_once(ledger, intent, send=_send, probe=PROBE)
        ledger.move(row, State.DONE, why="ended", detail={"job_finished": 1.0})


def _fill(ledger: Ledger, rows: int) -> None:
    """Copies of one closed row under other names, as old runs leave them."""
    with ledger._engine.begin() as conn:
        names = [c[1] for c in conn.exec_driver_sql("PRAGMA table_info(waybill_submissions)").all() if c[1] != "id"]
        made = {
            "business_key": "'old-' || n.value",
            "external_id": "'old-' || n.value",
            "run_id": f"'run-' || (n.value / {RUN_ROWS})",
        }
        conn.exec_driver_sql(
            f"WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < {rows}) "
            f"INSERT INTO waybill_submissions ({', '.join(names)}) "
            f"SELECT {', '.join(made.get(name, f's.{name}') for name in names)} FROM waybill_submissions s, n WHERE s.id = 1"
        )


def _milliseconds(look: Callable[[], object]) -> float:
    look()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        look()
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _virtual(destinations: int) -> float:
    """Milliseconds of CPU for one copy job of ICAv2 on virtual time: engine, HTTP client, simulator and ledger together."""
    from benchmarks.icav2 import engine

    begun = time.process_time()
    piece = engine.makespan(destinations, 1, 200)
    return (time.process_time() - begun) / piece.submissions * 1000


def measure(count: int, rows: int) -> dict[str, float]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="waybill-cost-", dir=shared if shared.is_dir() else None))
    url = URL.create("sqlite", database=str(folder / "ledger.db"))
    try:
        init(url)
        ledger = Ledger(url)
        asked = [0]

        def note(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
            asked[0] += not statement.startswith("BEGIN")

        event.listen(ledger._engine, "before_cursor_execute", note)
        asyncio.run(_submissions(ledger, "warm", 20))
        asked[0], begun = 0, time.process_time()
        asyncio.run(_submissions(ledger, "timed", count))
        figures = {
            "CPU per submission": (time.process_time() - begun) / count * 1000,
            "statements per submission": asked[0] / count,
        }
        figures["CPU per copy job"] = _virtual(count)
        _fill(ledger, rows)
        middle = f"run-{rows // RUN_ROWS // 2}"
        figures["of_run"] = _milliseconds(lambda: ledger.of_run("dag", middle))
        figures["known"] = _milliseconds(lambda: ledger.known("tape", "restore", ["old-7", "job-none"]))
        figures["in_states"] = _milliseconds(lambda: ledger.in_states(State.SENT, State.HELD, State.IN_DOUBT))
        ledger.close()
        return figures
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
