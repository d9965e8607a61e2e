"""The waybill of a restore drill: which plates were looked at, how each was found, and how much the drill can have missed."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, step_records
from operators.common.receipt import ReceiptOperator
from operators.plates.base import read_model, records_of
from operators.plates.drill_plan import label_of_drill

from include.core.ledger import Ledger
from include.core.receipt import Receipt, nothing_done
from include.core.remedies import lines_of, remedy_of
from include.core.request import asked_of
from include.plates.drill_plan import DrillPlan
from include.plates.drill_report import AGAIN, item_of, listing_problems, outcome_of, totals
from include.plates.drill_request import DrillRequest


class PlateDrillReceiptOperator(ReceiptOperator):
    """Reads the plan and the record of every plate that was drawn."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), asked_of(DrillRequest, context["dag_run"].conf)
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": asked}
        steps = run_async(step_records(context).read_all(("load_request", "plan")))
        if "plan" not in steps["plan"]:
            return nothing_done(steps, "read", **facts)
        plan = run_async(read_model(DrillPlan, steps["plan"]["plan"]))
        dry = bool(asked.get("dry_run"))
        found = []
        for number, plate in enumerate(plan.drawn):
            record = run_async(records_of(context, label_of_drill(number, plate.name)).read("drill"))
            found.append(item_of(plate, record, dry=dry))
        items = [item for item, _ in found]
        problems = [problem for _, problem in found if problem is not None] + listing_problems(plan)
        documents: dict[str, Any] = {
            name: steps["plan"][name] for name in ("plan", "cold_tarballs") if name in steps["plan"]
        }
        return Receipt(
            **facts,
            state="incomplete" if problems else "complete",
            outcome=outcome_of(plan, items, dry=dry),
            remedy=remedy_of(problems, AGAIN),
            problems=lines_of(problems),
            items=items,
            totals=totals(plan, items),
            documents=documents,
        )
