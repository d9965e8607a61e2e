"""The waybill of an ICA copy: what was asked, each destination with its jobs, and the proof of each file."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, step_records
from hooks.waybill import receipts
from operators.common.receipt import ReceiptOperator

from include.core.errors import VerificationError, WaybillError
from include.core.ledger import Ledger, Owner
from include.core.receipt import Receipt, nothing_done
from include.core.remedies import lines_of, remedy_of
from include.core.request import asked_of
from include.icav2 import report
from include.icav2.models import CopyRequest, Proof

STEPS = ("load_request", "plan", "copy")


class ICAv2ReceiptOperator(ReceiptOperator):
    """Reads the records of the steps `load_request`, `plan` and `copy`, as far as they came."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, steps = owner_of(context), run_async(step_records(context).read_all(STEPS))
        planned, copied = steps["plan"], steps["copy"]
        asked = {**asked_of(CopyRequest, context["dag_run"].conf), **planned.get("counts", {})}
        documents = {"plan": planned["plan"]} if "plan" in planned else {}
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": asked}
        summary = copied.get("report")
        if summary is None:
            earlier = run_async(receipts().read(owner.dag_id, owner.run_id))
            if (
                earlier is not None
                and earlier.state == "complete"
                and not (earlier.request_sha256 or any(steps.values()))
            ):
                raise VerificationError(
                    "the complete receipt of this run was written by an earlier release, or for another run under the same "
                    "run id; it is kept as it is. Nothing was copied now: trigger the DAG under another run id"
                )
            items = self._from_ledger(ledger, owner)
            if not (items or copied or "plan" in planned):
                return nothing_done(steps, "copied", **facts)
            return report.nothing_proved(steps, **facts, items=items, documents=documents)
        documents |= summary["documents"]
        try:
            output, proofs, missing = self._read(summary["documents"])
        except WaybillError as error:
            outcome = f"The proof of this run cannot be read ({error}), so nothing is proved."
            remedy = "Clear the task copy: it looks at every file again and writes the proof anew."
            facts |= {"problems": [outcome], "documents": documents}
            return Receipt(**facts, state="incomplete", outcome=outcome, remedy=remedy)
        good = report.is_complete(summary, proofs)
        problems = [] if good else report.problems(output, proofs, copied)
        return Receipt(
            **facts,
            state="complete" if good else "incomplete",
            outcome=report.outcome_of(summary, proofs, good=good),
            remedy=remedy_of(problems, report.AGAIN),
            problems=missing or lines_of(problems),
            totals=summary["totals"],
            items=report.receipt_items(output, proofs),
            documents=documents,
        )

    def _from_ledger(self, ledger: Ledger | None, owner: Owner) -> list[dict[str, Any]]:
        """What the ledger knows of a run that did not come to its end: which jobs, and how they stood."""
        return [
            {"destination": row.detail.get("dest_uri"), "state": str(row.state).lower(), "job": row.external_id}
            for row in (ledger.of_run(owner.dag_id, owner.run_id) if ledger is not None else [])
        ]

    def _read(self, documents: dict[str, Any]) -> tuple[dict[str, Any], list[Proof], list[str]]:
        """The output, the proofs and what is missing, from their documents. Raises WaybillError where one is gone or was
        changed."""
        store = receipts().objects
        output = json.loads(run_async(store.get_document(documents["output"])))
        lines = run_async(store.get_document(documents["per-file proof"])).splitlines()
        missing = json.loads(run_async(store.get_document(documents["not copied"])))
        return output, [Proof.model_validate_json(line) for line in lines], missing
