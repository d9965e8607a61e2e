"""The waybill of a staging run: what is verified, what goes on, and what a person must look at."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.mail import send_mail
from hooks.mongo import tracking
from hooks.task import owner_of, run_async, step_records
from hooks.waybill import receipts
from operators.common.receipt import ReceiptOperator

from include.core.errors import WaybillError
from include.core.ledger import Ledger
from include.core.receipt import Receipt, nothing_done, page
from include.core.remedies import Cause, Problem, lines_of, of_record, problems_of_steps, remedy_of
from include.core.request import asked_of
from include.jgi.report import AGAIN, Report
from include.jgi.request import StagingRequest

STEPS = ("load_request", "take_up", "metadata", "restore")
MAPPED = ("wait", "transfer", "verify")  # one task per open restore request


class StagingReceiptOperator(ReceiptOperator):
    """By MongoDB as it is now, and the records of the run's steps. Sends it as mail where there is connection waybill_smtp."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), asked_of(StagingRequest, context["dag_run"].conf)
        steps = run_async(step_records(context).read_all(STEPS))
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": asked}
        if steps["load_request"].get("state") == "refused":
            return nothing_done(steps, "staged", **facts)
        problems = problems_of_steps(steps) + _unreached(steps) + _of_requests(context)
        report = Report()
        try:
            with tracking() as kept:
                report = Report.of(kept)
        except WaybillError as error:
            problems.append(Problem(Cause.TRANSIENT, str(error), task="receipt", connections=("waybill_mongo",)))
        problems += report.problems + _met(steps)
        forecast, documents = _forecast(steps)
        return Receipt(
            **facts,
            state="incomplete" if problems else "handed_on" if report.still_to_come else "complete",
            outcome=report.outcome(forecast, _in_doubt(steps)),
            remedy=remedy_of(problems, AGAIN),
            problems=lines_of(problems),
            items=[*report.projects, *report.requests],
            totals=report.totals,
            documents=documents,
        )

    def tell(self, receipt: Receipt) -> None:
        said = send_mail(f"Waybill {receipt.dag_id}: {receipt.state.replace('_', ' ')}", page(receipt))
        if said:
            self.log.info("%s", said)


def _unreached(steps: dict[str, dict[str, Any]]) -> list[Problem]:
    """A step that left no record, or did not come to its end: it was stopped or marked by a person, or its worker was lost."""
    failed = any(record.get("state") in ("failed", "refused") for record in steps.values())
    if failed:  # what comes after it was not reached, which is no news
        return []
    open_ones = [step for step in STEPS if steps[step].get("state") not in ("done", "skipped")]
    return [of_record(steps[open_ones[0]], open_ones[0])] if open_ones else []


def _of_requests(context: Context) -> list[Problem]:
    """What failed for single restore requests; each stops itself alone."""
    records = step_records(context)
    found = []
    for step in MAPPED:
        for record in run_async(records.read_mapped(step)).values():
            if record.get("state") in ("failed", "refused"):
                found.append(of_record(record, step))
    return found


def _met(steps: dict[str, dict[str, Any]]) -> list[Problem]:
    """What the steps met and went on from, that a person must know."""
    restore, taken, looked_up = steps["restore"], steps["take_up"], steps["metadata"]
    trouble = list(restore.get("trouble", ()))
    if taken.get("refused"):
        trouble.append({"cause": Cause.CREDENTIAL, "why": taken["refused"]})
    found = [
        Problem(Cause(one["cause"]), str(one["why"]), task="restore", connections=("waybill_jdp",)) for one in trouble
    ]
    found += [Problem(Cause.HELD, line, task="take_up") for line in taken.get("held", ())]
    failed = looked_up.get("failed") or {}
    found += [Problem(Cause.REMOTE, str(why), item=str(name), task="metadata") for name, why in failed.items()]
    if looked_up.get("trouble"):
        connections = ("waybill_gold", "waybill_jdp")
        cause = Cause(looked_up["cause"])
        found.append(Problem(cause, str(looked_up["trouble"]), task="metadata", connections=connections))
    return found


def _in_doubt(steps: dict[str, dict[str, Any]]) -> list[str]:
    return [*(steps["take_up"].get("in_doubt") or ()), *(steps["restore"].get("in_doubt") or ())]


def _forecast(steps: dict[str, dict[str, Any]]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    document = steps["restore"].get("forecast")
    if not document:
        return None, {}
    return json.loads(run_async(receipts().objects.get_document(document))), {"forecast": document}
