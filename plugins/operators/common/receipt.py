"""The last task of every DAG: writes the waybill whatever happened before, and fails the run when anything is missing."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from airflow.sdk import BaseOperatorLink, Context
from airflow.sdk.configuration import conf
from airflow.sdk.types import TaskInstanceKey
from hooks.questions import question_store
from hooks.task import owner_of, run_async
from hooks.waybill import ledger, receipts, write_note
from operators.common.base import WaybillOperator

from include.core.errors import VerificationError, WaybillError
from include.core.ledger import Ledger, State
from include.core.receipt import LedgerHead, Receipt
from include.core.text import shorten

OUTCOME_LIMIT = 4000  # characters of XCom `outcome`, and of the task's error


class ReceiptLink(BaseOperatorLink):
    """Opens the receipt of the run, or the partial one while it goes on."""

    name = "Receipt"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        return receipt_url(ti_key.dag_id, ti_key.run_id)


def receipt_url(dag_id: str, run_id: str) -> str:
    """Where the portal shows a receipt."""
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/waybill/receipts/{dag_id}/{run_id}"


class ReceiptOperator(WaybillOperator):
    """Base: a subclass fills in `build_receipt` what its system knows; questions, ledger, versions and timings are added here.

    The run is green where nobody has to do anything: all is there, or what is left is the next run's (`handed_on`).
    """

    operator_extra_links = (ReceiptLink(),)

    def __init__(self, **kwargs: Any):
        super().__init__(trigger_rule="all_done", **kwargs)

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        """The receipt in the system's own words. Must cope with every upstream task having failed."""
        raise NotImplementedError

    def tell(self, receipt: Receipt) -> None:
        """Tells people of the receipt, once it is written. Must not raise."""

    def execute(self, context: Context) -> dict[str, Any]:
        with self.recording(context) as facts, ExitStack() as opened:
            try:
                book: Ledger | None = opened.enter_context(ledger())
            except WaybillError as error:
                self.log.error("%s", error)
                book = None
            receipt = completed(self.build_receipt(context, book), context, book)
            document = run_async(receipts().write(receipt))
            facts |= {"receipt": document.to_dict(), "receipt_state": receipt.state}
            where = f"the whole is in the receipt, {receipt_url(receipt.dag_id, receipt.run_id)}"
            for problem in receipt.problems:
                self.log.error("%s", problem)
            self.log.info("%s", receipt.sentence)
            context["ti"].xcom_push(key="outcome", value=shorten(receipt.sentence, OUTCOME_LIMIT, where))
            write_note(receipt.dag_id, receipt.run_id, receipt.sentence)
            self.tell(receipt)
            if not receipt.good:
                raise VerificationError(shorten(receipt.sentence, OUTCOME_LIMIT, where))
        return document.to_dict()


def completed(receipt: Receipt, context: Context, book: Ledger | None) -> Receipt:
    """The receipt with what every system's receipt holds."""
    run = context["dag_run"]
    try:
        questions = [record.summary() for record in run_async(question_store(context).read_all())]
    except WaybillError as error:
        questions = [{"state": "unreadable", "why": str(error)}]
    facts: dict[str, Any] = {
        "request_sha256": owner_of(context).request_sha256,
        "questions": questions,
        "timings": {"started": str(run.start_date), **receipt.timings},
        "versions": {
            "waybill": waybill_version(),
            "airflow": version("apache-airflow-core"),
            "python": sys.version.split()[0],
            **receipt.versions,
        },
    }
    if book is not None:
        owner = owner_of(context)
        rows = book.of_run(owner.dag_id, owner.run_id)
        number, digest = book.head()
        facts["ledger"] = LedgerHead(id=book.ledger_id, number=number, sha256=digest)
        facts["held"] = [str(row) for row in rows if row.state in (State.HELD, State.IN_DOUBT)]
        facts["superseded"] = [str(row) for row in rows if row.state == State.SUPERSEDED]
    return receipt.model_copy(update=facts)


def waybill_version() -> str:
    from include import __version__

    return __version__
