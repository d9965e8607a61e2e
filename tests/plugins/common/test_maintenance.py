"""The daily maintenance: a ledger that was changed is seen, old doubts are told, and no wish to cancel ends more than it may."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hooks.waybill import receipts
from operators.common import maintenance
from operators.common.base import WaybillRetry
from operators.common.maintenance import CancellationsOperator, CheckLedgerOperator, ListInDoubtOperator

from include.core.errors import LedgerError, RemoteError, TransientError
from include.core.ledger import Intent, Ledger, Owner, State, Submission, ledger_url, upkeep
from include.core.receipt import LedgerHead, Receipt
from tests.plugins.conftest import Connect
from tests.plugins.doubles import Run

PATHS: dict[State, tuple[State, ...]] = {
    State.RESERVED: (),
    State.SENDING: (),
    State.IN_DOUBT: (State.IN_DOUBT,),
    State.HELD: (State.IN_DOUBT, State.HELD),
    State.SENT: (State.SENT,),
    State.FAILED: (State.SENT, State.FAILED),
}


def at(book: Ledger, state: State, key: str = "a", system: str = "icav2", *, wished: bool = False) -> Submission:
    """A submission in that state, with or without the wish to cancel it."""
    row = book.open(Intent(system, "copy_batch", key, {"to": key}, Owner("icav2_copy_batch", "run-1", "copy")))
    if state != State.RESERVED:
        begun = book.begin(row, response_deadline=60)
        assert begun is not None
        row = begun
    for step in PATHS[state]:
        if wished and step == State.FAILED:  # nobody can wish it any more once it has ended
            row = book.request_cancel(row, who="amy", why="not wanted")
        row = book.move(row, step, why="test", external_id=f"job-{key}" if step == State.SENT else None)
    if wished:
        row = book.request_cancel(row, who="amy", why="not wanted")
    assert row.state == state
    return row


@pytest.fixture
def ago(ledger: Ledger, tmp_path: Path) -> Iterator[Callable[[float], Ledger]]:
    """The same ledger, as it was written so many seconds ago."""
    with ExitStack() as opened:
        url = ledger_url(f"sqlite:///{tmp_path / 'ledger.db'}")
        yield lambda seconds: opened.enter_context(Ledger(url, clock=lambda: time.time() - seconds))


def execute(operator: type[Any]) -> tuple[Run, Any]:
    run = Run()
    return run, run.execute(operator(task_id="task"))


def receipt(book: Ledger, run_id: str, **head: Any) -> None:
    """A stored receipt that names the ledger's present head, or another."""
    number, digest = book.head()
    told = LedgerHead(**{"id": book.ledger_id, "number": number, "sha256": digest, **head})
    asyncio.run(
        receipts().write(
            Receipt(dag_id="icav2_copy_batch", run_id=run_id, state="complete", outcome="done", ledger=told)
        )
    )


def tamper(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute(statement)
    database.close()


# -- check_ledger ------------------------------------------------------------------------------------------------


def test_a_whole_ledger_is_told_with_what_was_compared(ledger: Ledger, receipts_folder: Path):
    at(ledger, State.FAILED)
    receipt(ledger, "one")
    at(ledger, State.HELD, "b")
    receipt(ledger, "two")
    run, outcome = execute(CheckLedgerOperator)
    assert outcome == f"Ledger {ledger.ledger_id} is whole: 8 events, 2 submissions, 2 receipts agree."
    assert ("task", "problems") not in run.xcoms


def test_a_ledger_without_any_receipt_is_checked_too(ledger: Ledger, receipts_folder: Path):
    assert "0 receipts agree" in execute(CheckLedgerOperator)[1]


def test_every_problem_of_a_tampered_ledger_is_named_and_the_task_is_not_tried_again(
    ledger: Ledger, receipts_folder: Path, tmp_path: Path
):
    at(ledger, State.FAILED, "a")
    at(ledger, State.FAILED, "b")
    tamper(tmp_path, "UPDATE waybill_submissions SET size_bytes = 7")
    run = Run()
    with pytest.raises(LedgerError, match="2 problems") as caught:
        run.execute(CheckLedgerOperator(task_id="task"))
    problems = run.xcoms["task", "problems"]
    assert problems == [
        "submission 1 differs from its last event: the row was changed by hand",
        "submission 2 differs from its last event: the row was changed by hand",
    ]
    assert all(problem in str(caught.value) for problem in problems)
    assert WaybillRetry().evaluate(caught.value, 1, 3).action.value == "fail"


def test_an_event_that_was_changed_is_seen(ledger: Ledger, receipts_folder: Path, tmp_path: Path):
    at(ledger, State.FAILED)
    tamper(tmp_path, "UPDATE waybill_events SET body = body || ' ' WHERE number = 2")
    with pytest.raises(LedgerError, match="event 2 does not fit the chain"):
        execute(CheckLedgerOperator)


def test_a_receipt_of_another_ledger_is_a_problem_and_so_is_one_of_lost_events(ledger: Ledger, receipts_folder: Path):
    at(ledger, State.FAILED)
    receipt(ledger, "elsewhere", id="another-ledger")
    receipt(ledger, "lost", number=99)
    run = Run()
    with pytest.raises(LedgerError, match="2 problems"):
        run.execute(CheckLedgerOperator(task_id="task"))
    elsewhere, lost = run.xcoms["task", "problems"]
    assert elsewhere == "receipt icav2_copy_batch/elsewhere belongs to ledger another-ledger, not to this one"
    assert lost.startswith("receipt icav2_copy_batch/lost names event 99")


def copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def test_a_ledger_restored_from_an_older_backup_is_seen_by_its_receipts(
    ledger: Ledger, receipts_folder: Path, tmp_path: Path
):
    at(ledger, State.FAILED, "a")
    copy(tmp_path / "ledger.db", tmp_path / "backup.db")
    at(ledger, State.FAILED, "b")
    receipt(ledger, "newer")
    copy(tmp_path / "backup.db", tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="icav2_copy_batch/newer names event 8"):
        execute(CheckLedgerOperator)


def test_a_receipt_that_is_no_document_fails_the_check_in_a_sentence(ledger: Ledger, receipts_folder: Path):
    receipt(ledger, "cut")
    (path,) = receipts_folder.rglob("receipt.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(LedgerError, match="a receipt is no JSON"):
        execute(CheckLedgerOperator)


def test_a_missing_ledger_is_not_called_whole(receipts_folder: Path, connect: Connect, tmp_path: Path):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    for operator in (CheckLedgerOperator, ListInDoubtOperator, CancellationsOperator):
        with pytest.raises(LedgerError, match=r"include\.core\.ledger init"):
            execute(operator)


# -- list_in_doubt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.HELD, State.IN_DOUBT, State.SENDING])
def test_a_doubt_of_more_than_an_hour_is_a_warning_and_stays_as_it_is(
    ledger: Ledger, ago: Callable[[float], Ledger], state: State, monkeypatch: pytest.MonkeyPatch
):
    notes: list[str] = []
    monkeypatch.setattr(maintenance, "write_note", lambda dag_id, run_id, note: notes.append(note))
    row = at(ago(3700), state)
    head = ledger.head()
    run, warning = execute(ListInDoubtOperator)
    assert warning.startswith("1 submission in doubt for more than an hour")
    assert "python -m include.core.ledger in-doubt" in warning
    (told,) = run.xcoms["task", "in_doubt"]
    assert told == f"submission {row.id}, {row}, of run icav2_copy_batch/run-1"
    assert notes == [warning]
    assert (ledger.get(row.id), ledger.head()) == (row, head)


def test_younger_doubts_and_what_is_not_in_doubt_are_not_told(
    ago: Callable[[float], Ledger], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintenance, "write_note", lambda *_: pytest.fail("there is nothing to note"))
    old = ago(7200)
    for state in (State.RESERVED, State.SENT, State.FAILED):
        at(old, state, state.lower())
    young = ago(3500)
    for state in (State.HELD, State.IN_DOUBT, State.SENDING):
        at(young, state, state.lower())
    run, sentence = execute(ListInDoubtOperator)
    assert sentence == "Nothing has been in doubt for more than an hour."
    assert run.xcoms["task", "in_doubt"] == []


# -- cancellations -----------------------------------------------------------------------------------------------


@pytest.fixture
def cancellers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Ledger, Submission], str]]:
    """The registry, for the length of a test."""
    monkeypatch.setattr(upkeep, "CANCELLERS", {})
    return upkeep.CANCELLERS


def test_icav2_has_no_canceller():
    assert "icav2" not in upkeep.CANCELLERS


def test_a_job_at_a_system_that_cannot_cancel_stays_for_the_next_run(ledger: Ledger):
    row = at(ledger, State.SENT, wished=True)
    head = ledger.head()
    _, (told,) = execute(CancellationsOperator)
    assert f"submission {row.id}, " in told
    assert "job job-a" in told
    assert "nothing can be cancelled at icav2" in told
    assert (ledger.get(row.id), ledger.head()) == (row, head), "not a thing was written"


def test_what_was_never_sent_needs_no_maintenance(ledger: Ledger):
    row = at(ledger, State.RESERVED)
    assert ledger.request_cancel(row, who="amy", why="not wanted").state == State.CANCELLED
    assert execute(CancellationsOperator)[1] == []


@pytest.mark.parametrize("state", [State.SENDING, State.IN_DOUBT, State.HELD])
def test_a_wish_about_a_doubt_is_left_until_the_doubt_is_settled(
    ledger: Ledger, cancellers: dict[str, Any], state: State
):
    cancellers["icav2"] = lambda book, row: pytest.fail("there is no exact id to cancel by")
    row = at(ledger, state, wished=True)
    _, (told,) = execute(CancellationsOperator)
    assert "it stays, since whether there is a job is not known" in told
    assert ledger.get(row.id) == row


def test_a_system_that_can_cancel_is_asked_for_its_own_rows_with_a_wish_and_for_no_other(
    ledger: Ledger, cancellers: dict[str, Any]
):
    asked: list[str] = []

    def cancel(book: Ledger, row: Submission) -> str:
        asked.append(str(row.external_id))
        book.move(row, State.CANCELLED, why="cancelled at the tape")
        return f"{row.external_id} is cancelled"

    cancellers["tape"] = cancel
    at(ledger, State.SENT, "wished", "tape", wished=True)
    at(ledger, State.SENT, "wanted", "tape")
    at(ledger, State.FAILED, "over", "tape", wished=True)
    at(ledger, State.SENT, "copy", wished=True)
    _, told = execute(CancellationsOperator)
    assert asked == ["job-wished"]
    assert told[0] == "job-wished is cancelled"
    assert "nothing can be cancelled at icav2" in told[1]
    assert len(told) == 2


def test_one_that_cannot_be_cancelled_now_does_not_stop_the_others_and_the_task_is_tried_again(
    ledger: Ledger, cancellers: dict[str, Any]
):
    def cancel(book: Ledger, row: Submission) -> str:
        if row.business_key == "refused":
            raise RemoteError("the tape refuses")
        if row.business_key == "busy":
            raise TransientError("the tape is busy", retry_after=5)
        book.move(row, State.CANCELLED, why="cancelled at the tape")
        return "done"

    cancellers["tape"] = cancel
    rows = {key: at(ledger, State.SENT, key, "tape", wished=True) for key in ("refused", "busy", "easy")}
    with pytest.raises(TransientError, match="busy"):
        execute(CancellationsOperator)
    assert {key: ledger.get(row.id).state for key, row in rows.items()} == {
        "refused": State.SENT,
        "busy": State.SENT,
        "easy": State.CANCELLED,
    }
