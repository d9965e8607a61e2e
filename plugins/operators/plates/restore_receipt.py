"""The waybill of a restore: plate by plate, how many files came back, and which did not."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import receipts
from operators.common.receipt import ReceiptOperator
from operators.plates.base import records_of, refusals_of
from operators.plates.plan import PLAN_NOTE

from include.core.errors import NotFound
from include.core.ledger import Ledger
from include.core.receipt import Receipt
from include.core.request import asked_of
from include.core.text import pluralize
from include.plates.request import RestoreRequest


class PlateRestoreReceiptOperator(ReceiptOperator):
    """Reads the record of every plate's restore."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), asked_of(RestoreRequest, context["dag_run"].conf)
        try:
            rows = json.loads(run_async(receipts().objects.get(f"{run_folder(context)}/{PLAN_NOTE}")))
        except NotFound:
            rows = []
        items = [self._item(row, self._record(context, row["plate"]), asked) for row in rows]
        bad = [item for item in items if item["state"] not in ("restored", "planned")]
        files = sum(item["files"] for item in items if item["state"] == "restored")
        refused = refusals_of(context)
        word = "Dry run, nothing was restored" if asked.get("dry_run") else "Restored with their right checksums"
        count = sum(item["files"] for item in items if item["state"] == "planned") if asked.get("dry_run") else files
        outcome = f"{word}: {pluralize(count, 'file')} of {len(items) - len(bad)} of {pluralize(len(items), 'plate')}."
        return Receipt(
            dag_id=owner.dag_id,
            run_id=owner.run_id,
            state="incomplete" if bad or not items else "complete",
            outcome=outcome
            if items
            else f"Nothing was restored: {'; '.join(refused or ['see the first failed task'])}.",
            remedy=f"First: {bad[0]['plate']}: {bad[0]['why']}. Clear its task, or trigger again." if bad else "",
            asked=asked,
            items=items,
            totals={
                "files": sum(row["files"] for row in rows),
                "files proved": files,
                "bytes": sum(row["bytes"] for row in rows),
                "proved bytes": sum(item["bytes"] for item in items if item["state"] == "restored"),
                "bytes read": sum(item["read_bytes"] for item in items),
            },
        )

    def _record(self, context: Context, label: str) -> dict[str, Any]:
        """How a plate's restore went; where it was not reached, why its thaw failed."""
        records = records_of(context, label)
        thaw = run_async(records.read("thaw"))
        return run_async(records.read("restore")) or {name: why for name, why in thaw.items() if name == "why"}

    def _item(self, row: dict[str, Any], record: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        state, why = "not restored", record.get("why", "the task did not come to its end; see its log")
        if row["problem"]:
            why = row["problem"]
        elif asked.get("dry_run"):
            state, why = "planned", "a dry run"
        elif record.get("state") == "done":
            state, why = (
                "restored",
                ", ".join(f"{count} {result}" for result, count in record["counts"].items() if count),
            )
        elif record.get("state") == "left":
            why = f"{record['left_count']} files: {'; '.join(record['left'][:3])}"
        facts = {"files": row["files"], "bytes": row["bytes"], "read_bytes": record.get("read_bytes", 0)}
        documents = {"document": record["document"]} if "document" in record else {}
        return {"plate": row["name"], "state": state, "why": why, **facts, "tarballs": row["tarballs"], **documents}
