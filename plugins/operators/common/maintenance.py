"""The daily look after the ledger: is it whole, what is in doubt, and which cancellation requests can be carried out.

Invariant: nothing here says what is true of a submission in doubt, and nothing ends a row whose job may be out there. A
person resolves what is HELD; the next run adopts what was sent and has lost its run.
"""

from __future__ import annotations

import json

from airflow.sdk import Context
from hooks.globus import cancel_transfer
from hooks.task import run_async
from hooks.waybill import ledger, receipts, write_note
from operators.common.base import WaybillOperator

from include.core.errors import LedgerError, WaybillError
from include.core.ledger import OPEN, verify
from include.core.ledger.upkeep import CANCELLERS, carry_out, line, long_in_doubt
from include.core.request import truncate_for_xcom
from include.core.text import pluralize

CANCELLERS["globus"] = cancel_transfer


class CheckLedgerOperator(WaybillOperator):
    """Recomputes the ledger's chain and compares it with its rows and with every receipt. Fails with all problems named."""

    def execute(self, context: Context) -> str:
        with self.recording(context) as facts:
            facts["outcome"] = outcome = self._checked(context)
        return outcome

    def _checked(self, context: Context) -> str:
        with ledger() as book:
            try:  # before the ledger is read: a head written later would seem lost
                documents = run_async(receipts().all())
            except json.JSONDecodeError as error:
                why = f"a receipt is no JSON ({error}), so the ledger was not compared with receipts"
                raise LedgerError(why) from None
            audit = verify(book, documents)
        if audit.problems:
            for problem in audit.problems:
                self.log.error("%s", problem)
            context["ti"].xcom_push(key="problems", value=truncate_for_xcom(audit.problems))
            count = len(audit.problems)
            raise LedgerError(f"ledger {audit.ledger_id} is BROKEN ({count} problems): {'; '.join(audit.problems)}")
        outcome = (
            f"Ledger {audit.ledger_id} is whole: {audit.events} events, {audit.submissions} submissions, "
            f"{audit.receipts} receipts agree."
        )
        self.log.info("%s", outcome)
        return outcome


class ListInDoubtOperator(WaybillOperator):
    """Lists, as a warning, what has been in doubt for more than an hour (XCom `in_doubt`). Succeeds, and resolves nothing."""

    def execute(self, context: Context) -> str:
        with self.recording(context) as facts:
            facts["outcome"] = outcome = self._listed(context)
        return outcome

    def _listed(self, context: Context) -> str:
        with ledger() as book:
            found = [line(row) for row in long_in_doubt(book)]
        context["ti"].xcom_push(key="in_doubt", value=truncate_for_xcom(found))
        if not found:
            return "Nothing has been in doubt for more than an hour."
        warning = (
            f"{pluralize(len(found), 'submission')} in doubt for more than an hour: whether the remote accepted them is not "
            "known. Run `python -m include.core.ledger in-doubt`: it says what to do about each"
        )
        for one in found:
            self.log.warning("in doubt: %s", one)
        self.log.warning("%s", warning)
        write_note(context["ti"].dag_id, context["ti"].run_id, warning)  # the run is green: a note is what people see
        return warning


class CancellationsOperator(WaybillOperator):
    """Carries out the cancellation requests, by exact id, where the system can; says of each other row why it stays.

    What was never sent is closed without any remote. One that fails does not stop the others; the task fails after them.
    """

    def execute(self, context: Context) -> list[str]:
        with self.recording(context) as facts:
            facts["done"] = done = truncate_for_xcom(self._carried_out())
        return done

    def _carried_out(self) -> list[str]:
        done: list[str] = []
        failures: list[WaybillError] = []
        with ledger() as book:
            for row in book.in_states(*OPEN):
                if row.cancel_requested_at is None:
                    continue
                try:
                    done.append(carry_out(book, row))
                    self.log.info("%s", done[-1])
                except WaybillError as error:
                    failures.append(error)
                    self.log.error("%s: not cancelled: %s", row, error)
        self.log.info("%d cancellation requests, %d failed", len(done) + len(failures), len(failures))
        if failures:
            # One that may pass goes first: by it the retry policy decides whether to try again.
            raise min(failures, key=lambda error: not error.retryable)
        return done
