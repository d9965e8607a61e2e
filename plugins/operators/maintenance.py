"""The daily look after the ledger: is it whole, what is in doubt, and which wishes to cancel can be carried out.

The thing to know before changing it: nothing here settles a doubt, and nothing here ends a row whose job may be out there. A
person settles what is HELD; the next run adopts what was sent and has lost its run.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from airflow.sdk import Context
from hooks.waybill import ledger, receipts, write_note
from operators.base import WaybillOperator, fitting, run_async

from include.core.errors import LedgerError, WaybillError
from include.core.ledger import OPEN, Ledger, State, Submission, verify

DOUBT_SECONDS = 3600.0  # a younger doubt is still being looked into by the task that met it
WHO = "waybill_maintenance"

# Cancels the job of a SENT row by its exact id and waits until the remote has ended it; then it moves the row, since only it
# knows how the job ended. Returns what it did, as a sentence. Must bear being called again for a row it did not finish.
Canceller = Callable[[Ledger, Submission], str]

# By system. ICAv2 is not here and cannot be: its API has nothing that ends a job (docs/icav2.md).
CANCELLERS: dict[str, Canceller] = {}


class CheckLedgerOperator(WaybillOperator):
    """Recomputes the ledger's chain and compares it with its rows and with every receipt. Fails with all problems named."""

    def execute(self, context: Context) -> str:
        book = ledger()
        try:
            documents = run_async(receipts().all())  # before the ledger is read: a head written later would seem lost
        except json.JSONDecodeError as error:
            raise LedgerError(f"a receipt is no JSON ({error}), so the ledger was not compared with receipts") from None
        audit = verify(book, documents)
        if audit.problems:
            for problem in audit.problems:
                self.log.error("%s", problem)
            context["ti"].xcom_push(key="problems", value=fitting(audit.problems))
            count = len(audit.problems)
            raise LedgerError(f"ledger {audit.ledger_id} is BROKEN ({count} problems): {'; '.join(audit.problems)}")
        outcome = (
            f"Ledger {audit.ledger_id} is whole: {audit.events} events, {audit.submissions} submissions, "
            f"{audit.receipts} receipts agree."
        )
        self.log.info("%s", outcome)
        return outcome


class ListDoubtsOperator(WaybillOperator):
    """Lists, as a warning, what has been in doubt for more than an hour (XCom `doubts`). Succeeds, and settles nothing."""

    def execute(self, context: Context) -> str:
        book = ledger()
        doubts = [line(row) for row in old_doubts(book)]
        context["ti"].xcom_push(key="doubts", value=fitting(doubts))
        if not doubts:
            return "Nothing has been in doubt for more than an hour."
        warning = (
            f"{len(doubts)} submissions have been in doubt for more than an hour: whether the remote accepted them is not "
            "known. Run `python -m include.core.ledger doubts`: it says what to do about each"
        )
        for doubt in doubts:
            self.log.warning("in doubt: %s", doubt)
        self.log.warning("%s", warning)
        write_note(context["ti"].dag_id, context["ti"].run_id, warning)  # the run is green: a note is what people see
        return warning


def old_doubts(book: Ledger) -> list[Submission]:
    """What `doubts` lists, once its answer has been missed for an hour: HELD, DOUBTFUL, or SENDING without its sender."""
    missed_before = book.now() - DOUBT_SECONDS
    rows = book.in_states(State.HELD, State.DOUBTFUL, State.SENDING)
    return [row for row in rows if (row.accepted_by or row.reserved_at) < missed_before]


class CancellationsOperator(WaybillOperator):
    """Carries out the wishes to cancel, by exact id, where the system can; says of each other row why it stays.

    What was never sent is closed without any remote. One that fails does not stop the others; the task fails after them.
    """

    def execute(self, context: Context) -> list[str]:
        book = ledger()
        told: list[str] = []
        failures: list[WaybillError] = []
        for row in book.in_states(*OPEN):
            if row.cancel_requested_at is None:
                continue
            try:
                told.append(carry_out(book, row))
                self.log.info("%s", told[-1])
            except WaybillError as error:
                failures.append(error)
                self.log.error("%s: not cancelled: %s", row, error)
        self.log.info("%d wishes to cancel, %d failed", len(told) + len(failures), len(failures))
        if failures:
            # One that may pass goes first: by it the retry policy decides whether to try again.
            raise min(failures, key=lambda error: not error.retryable)
        return fitting(told)


def carry_out(book: Ledger, row: Submission) -> str:
    """Does what can be done about one wish to cancel, and says what that was."""
    if row.state == State.RESERVED:
        row = book.move(row, State.CANCELLED, why="cancelled before anything was sent", who=WHO)
        if row.state == State.CANCELLED:
            return f"{line(row)}: nothing had been sent, and nothing will be"
    if row.state != State.SENT:
        return f"{line(row)}: it stays, since whether there is a job is not known: the doubt comes first"
    cancel = CANCELLERS.get(row.system)
    if cancel is None:
        return (
            f"{line(row)}: it stays, since nothing can be cancelled at {row.system}: what was sent ends by itself, and the "
            "next run that asks for the same adopts it"
        )
    return cancel(book, row)


def line(row: Submission) -> str:
    """A row as people look for it: by number, remote job and run."""
    job = f", job {row.external_id}" if row.external_id else ""
    return f"submission {row.id}, {row}{job}, of run {row.owner.dag_id}/{row.owner.run_id}"
