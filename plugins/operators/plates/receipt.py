"""The waybill of a plate backup: per plate what was archived, how it was proved, what was deleted, and what was kept and why."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, step_records
from operators.common.gate import question_record
from operators.common.receipt import ReceiptOperator
from operators.plates.base import records_of
from operators.plates.one_file import one_file
from operators.plates.plan_document import plan_rows

from include.core.ledger import Ledger
from include.core.questions import Record
from include.core.receipt import Receipt, nothing_done
from include.core.remedies import Problem, lines_of, remedy_of
from include.core.request import asked_of
from include.plates.report import AGAIN, STEPS, is_good, outcome_of, standing, totals
from include.plates.request import BackupRequest

RUN_STEPS = ("load_request", "plan", "approval", "gate")


class PlateReceiptOperator(ReceiptOperator):
    """Reads the records of the steps, as far as they came."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        return waybill_of(context)


def waybill_of(context: Context) -> Receipt:
    """The receipt by the records that lie there now."""
    owner, request = owner_of(context), asked_of(BackupRequest, context["dag_run"].conf)
    facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": request}
    steps = run_async(step_records(context).read_all(RUN_STEPS))
    rows = run_async(plan_rows(context))
    if not rows:
        return nothing_done(steps, "archived", **facts)
    question = question_record(context)
    found = [_item(context, row, request, question) for row in rows]
    items, problems = [item for item, _ in found], [problem for _, problem in found if problem is not None]
    return Receipt(
        **facts,
        items=items,
        state="complete" if all(item["good"] for item in items) else "incomplete",
        outcome=outcome_of(items, request, question),
        remedy=remedy_of(problems, AGAIN),
        problems=lines_of(problems),
        totals=totals(items),
    )


def _item(
    context: Context, row: dict[str, Any], request: dict[str, Any], question: Record | None
) -> tuple[dict[str, Any], Problem | None]:
    steps = run_async(records_of(context, row["plate"]).read_all(STEPS))
    found = standing(row, steps, request, question)
    item = {
        "plate": row["name"],
        "state": found.state,
        "why": found.why,
        "good": is_good(found.state, request),
        "objects": row["objects"],
        "bytes": row["bytes"],
        "stored_bytes": steps["archive"].get("stored_bytes", 0),
        "retention": request.get("retention"),
        "deleted": steps["delete"].get("deleted", 0),
        "guard": steps["delete"].get("guard", ""),
        "older_versions": row.get("older_versions", 0),
        "warnings": row["warnings"],
        "problems": row["problems"],
        **one_file(owner_of(context).dag_id, request, row.get("tarballs", [])),
        **{step: facts for step, facts in steps.items() if facts},
    }
    return item, found.problem
