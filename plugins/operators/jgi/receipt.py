"""The waybill of a staging run: what is verified, what goes on, and what a person must look at."""

from __future__ import annotations

import json
from typing import Any, Literal

from airflow.sdk import Context
from hooks.mongo import tracking
from hooks.task import owner_of, run_async, step_records
from hooks.waybill import receipts
from operators.common.receipt import ReceiptOperator

from include.core.errors import WaybillError
from include.core.ledger import Ledger
from include.core.receipt import Receipt, nothing_done
from include.core.remedies import Cause, Problem, lines_of, problems_of_steps, remedy_of
from include.core.request import asked_of
from include.jgi.report import AGAIN, item_of, open_placements, outcome_of, problems_of
from include.jgi.request import StagingRequest

STEPS = ("load_request", "take_up", "metadata", "restore")


class StagingReceiptOperator(ReceiptOperator):
    """By MongoDB as it is now, and the records of the run's steps."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), asked_of(StagingRequest, context["dag_run"].conf)
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": asked}
        steps = run_async(step_records(context).read_all(STEPS))
        if steps["load_request"].get("state") == "refused":
            return nothing_done(steps, "staged", **facts)
        problems = problems_of_steps(steps)
        items: list[dict[str, Any]] = []
        try:
            with tracking() as kept:
                items = [item_of(project, kept) for project in kept.projects()]
        except WaybillError as error:
            problems.append(Problem(Cause.TRANSIENT, str(error), connections=("waybill_mongo",)))
        problems += problems_of(items) + _of_steps(steps)
        forecast, documents = _forecast(steps)
        state: Literal["incomplete", "handed_on", "complete"] = (
            "incomplete" if problems else "handed_on" if open_placements(items) else "complete"
        )
        return Receipt(
            **facts,
            state=state,
            outcome=outcome_of(items, forecast),
            remedy=remedy_of(problems, AGAIN),
            problems=lines_of(problems),
            items=items,
            totals={"projects": len(items), "verified": sum(int(one.get("placements verified", 0)) for one in items)},
            documents=documents,
        )


def _of_steps(steps: dict[str, dict[str, Any]]) -> list[Problem]:
    """What the steps met and went on from, that a person must know."""
    found = [
        Problem(Cause.CREDENTIAL, str(line), task="restore", connections=("waybill_jdp",))
        for line in {*steps["restore"].get("refused", ()), steps["take_up"].get("refused") or ""} - {""}
    ]
    found += [Problem(Cause.HELD, str(line), task="take_up") for line in steps["take_up"].get("held", ())]
    failed = steps["metadata"].get("failed") or {}
    found += [Problem(Cause.REMOTE, str(why), item=str(name), task="metadata") for name, why in failed.items()]
    return found


def _forecast(steps: dict[str, dict[str, Any]]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    document = steps["restore"].get("forecast")
    if not document:
        return None, {}
    return json.loads(run_async(receipts().objects.get_document(document))), {"forecast": document}
