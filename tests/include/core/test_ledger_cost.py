"""What a submission and a look cost in statements, and that no look reads the whole table. Seconds are the benchmarks' matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from include.core.ledger import Ledger, State
from tests.include.core.ledger_world import Remote, intent, owner, submit
from tests.include.core.test_ledger_states import at

# A table read from its begin to its end. (The head of the chain is the last entry of its primary key.)
WHOLE = re.compile(r"SCAN (s|a|waybill_(submissions|attachments|late_answers))( |$)(?!USING)|Seq Scan on")
BEGINS = ("BEGIN", "SET LOCAL")  # the transaction itself, and on PostgreSQL its lock


@contextmanager
def statements(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database, besides the begin of a transaction."""
    asked: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, values: Any, *_more: Any) -> None:
        if not statement.startswith(BEGINS):
            asked.append((statement, values))

    event.listen(ledger._engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(ledger._engine, "before_cursor_execute", note)


def test_a_submission_takes_at_most_ten_statements(ledger: Ledger):
    remote = Remote()
    submit(ledger, remote, intent("first"))  # PostgreSQL asks about its version once
    with statements(ledger) as asked:
        row = submit(ledger, remote)
        assert ledger.move(row, State.DONE, why="ended", detail={"job_finished": 1.0}).state == State.DONE
    assert len(asked) <= 10


LOOKS: dict[str, Callable[[Ledger], object]] = {
    "of_run": lambda ledger: ledger.of_run("copy", "run-1"),
    "of_owner": lambda ledger: ledger.of_owner(owner()),
    "known": lambda ledger: ledger.known("tape", "restore", ["job-1", "job-2"]),
    "in_states": lambda ledger: ledger.in_states(State.SENT, State.HELD),
    "in_states of a system": lambda ledger: ledger.in_states(State.SENT, system="tape"),
    "latest": lambda ledger: ledger.latest("tape", "restore", ["key-1", "key-2"]),
    "get": lambda ledger: ledger.get(1),
    "now": lambda ledger: ledger.now(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_no_look_reads_the_whole_table(ledger: Ledger, look: str):
    for number in range(3):
        at(ledger, State.SENT, intent(f"key-{number}"), job=f"job-{number}")
    with statements(ledger) as asked:
        LOOKS[look](ledger)
    assert 0 < len(asked) <= 2
    with ledger._engine.connect() as conn:
        lite = conn.dialect.name == "sqlite"
        if not lite:
            conn.exec_driver_sql("SET enable_seqscan = off")  # a small table is read whole, whatever indexes it has
        for statement, values in asked:
            how = "EXPLAIN QUERY PLAN" if lite else "EXPLAIN"
            plan = [" ".join(map(str, row)) for row in conn.exec_driver_sql(f"{how} {statement}", values)]
            assert [line for line in plan if WHOLE.search(line)] == []
