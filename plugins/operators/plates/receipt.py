"""The waybill of a plate backup: per plate what was archived, how it was proved, what was deleted, and what was kept and why."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import receipts
from operators.common.approval import approval_record
from operators.common.receipt import ReceiptOperator
from operators.plates.base import records_of, refusals_of
from operators.plates.plan import PLAN_NOTE

from include.core.errors import NotFound
from include.core.ledger import Ledger
from include.core.receipt import Receipt
from include.core.request import asked_of
from include.plates.report import _GONE, _KEPT_FINE, STEPS, approval_summary, outcome_of, remedy_of, standing, totals
from include.plates.request import BackupRequest


class PlateReceiptOperator(ReceiptOperator):
    """Reads the records of the steps, as far as they came."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        return waybill_of(context)


def waybill_of(context: Context) -> Receipt:
    """The receipt by the records that lie there now."""
    owner, place = owner_of(context), run_folder(context)
    request = asked_of(BackupRequest, context["dag_run"].conf)
    rows = _stored(f"{place}/{PLAN_NOTE}", [])
    approval = approval_record(context)
    items = [_item(context, row, request, approval) for row in rows]
    facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": request, "items": items}
    if not items:
        outcome, remedy = _nothing(context)
        return Receipt(**facts, state="incomplete", outcome=outcome, remedy=remedy)
    good = all(item["good"] for item in items)
    return Receipt(
        **facts,
        state="complete" if good else "incomplete",
        outcome=outcome_of(items, request, approval),
        remedy="" if good else remedy_of(items),
        totals=totals(items),
        approvals=[approval_summary(approval)] if approval.get("state") in ("approved", "rejected", "refused") else [],
    )


def _item(context: Context, row: dict[str, Any], request: dict[str, Any], approval: dict[str, Any]) -> dict[str, Any]:
    records = records_of(context, row["plate"])
    steps = {step: run_async(records.read(step)) for step in STEPS}
    state, why = standing(row, steps, request, approval)
    wanted = bool(request.get("delete_parts")) and not request.get("dry_run")
    return {
        "plate": row["name"],
        "state": state,
        "why": why,
        "good": state in _GONE or (state in _KEPT_FINE and (not wanted or state == "rejected")),
        "objects": row["objects"],
        "bytes": row["bytes"],
        "stored_bytes": steps["archive"].get("stored_bytes", 0),
        "retention": request.get("retention"),
        "deleted": steps["delete"].get("deleted", 0),
        "guard": steps["delete"].get("guard", ""),
        "warnings": row["warnings"],
        **{step: facts for step, facts in steps.items() if facts},
    }


def _nothing(context: Context) -> tuple[str, str]:
    refused = refusals_of(context)
    if refused:
        return f"Refused, nothing was archived: {'; '.join(refused[:5])}.", "Correct the conf and trigger again."
    return "Nothing was planned and nothing archived.", "See the log of the first task that failed, then clear it."


def _stored(name: str, otherwise: Any) -> Any:
    try:
        return json.loads(run_async(receipts().objects.get(name)))
    except NotFound:
        return otherwise
