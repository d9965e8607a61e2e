"""The waybill of an ICA copy: what was asked, each destination with its jobs, and the proof of each file."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowRuntimeError
from hooks.task import owner_of, run_async
from hooks.waybill import receipts
from operators.common.receipt import ReceiptOperator

from include.core.errors import WaybillError
from include.core.ledger import Ledger, Owner, State
from include.core.receipt import Receipt
from include.core.text import format_bytes, pluralize
from include.icav2 import report
from include.icav2.models import Proof, Verdict

AGAIN = "Deal with the reason, then trigger the DAG again with the same conf: it copies only what is missing."


class ICAv2ReceiptOperator(ReceiptOperator):
    """Reads what the tasks `load_request`, `plan` and `copy` left behind, as far as they came."""

    def tell(self, context: Context, ledger: Ledger | None) -> Receipt:
        ti, owner = context["ti"], owner_of(context)
        told = ti.xcom_pull(task_ids="copy", key="report")
        planned = ti.xcom_pull(task_ids="plan") or {}
        request = ti.xcom_pull(task_ids="load_request") or {}
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": {**request, **planned}}
        facts["asked"].pop("plan", None)
        documents = {"plan": planned["plan"]} if planned else {}
        if told is None:
            outcome, remedy = self._nothing_proved(ti, bool(planned))
            if ledger is not None and planned:
                self._record_the_stop(ti, ledger, owner)
            items = self._from_ledger(ledger, owner)
            return Receipt(
                **facts, state="incomplete", outcome=outcome, remedy=remedy, items=items, documents=documents
            )
        documents |= told["documents"]
        try:
            output, proofs = self._read(told["documents"])
        except WaybillError as error:
            outcome = f"The proof of this run cannot be read ({error}), so nothing is proved."
            remedy = "Clear the task copy: it looks at every file again and writes the proof anew."
            return Receipt(**facts, state="incomplete", outcome=outcome, remedy=remedy, documents=documents)
        totals = told["totals"]
        moved = f"{totals['files proved']} of {totals['files']} files ({format_bytes(totals['proved bytes'])}) are at their destinations"
        good = told["missing_count"] == 0 and totals["files"] == sum(proof.verdict == Verdict.OK for proof in proofs)
        how = sorted({proof.by for proof in proofs})
        return Receipt(
            **facts,
            state="complete" if good else "incomplete",
            outcome=f"All {pluralize(totals['files'], 'file')} ({format_bytes(totals['bytes'])}) are at their "
            f"{pluralize(totals['destinations'], 'destination')}, proved by {' or '.join(how)}."
            if good
            else f"{moved}; {pluralize(told['missing_count'], 'file')} not.",
            remedy="" if good else f"First: {told['missing'][0]}. {AGAIN}",
            totals=totals,
            items=report.receipt_items(output, proofs),
            documents=documents,
        )

    def _nothing_proved(self, ti: Any, planned: bool) -> tuple[str, str]:
        refused = [
            problem
            for task_id in ("load_request", "plan")
            for problem in (ti.xcom_pull(task_ids=task_id, key="request_errors") or [])
        ]
        if refused:
            return f"Refused, nothing was copied: {'; '.join(refused[:5])}.", "Correct the conf and trigger again."
        failures = [(t, ti.xcom_pull(task_ids=t, key="failure")) for t in ("load_request", "plan", "copy")]
        failures += [("copy", why) for why in ti.xcom_pull(task_ids="copy", key="request_errors") or []]
        told = "".join(f" Task {task_id}: {why}." for task_id, why in failures if why)
        if planned:
            # Nothing was left behind: neither by our errors nor by any other, and what it was cannot be seen from here.
            told = told or (
                " Task copy left no reason behind: it was stopped or marked by a person, or its worker was lost "
                "(see its log). What ICA was asked goes on there."
            )
            return f"The copy did not come to its end, so nothing is proved.{told}", AGAIN
        return (
            f"Nothing was planned and nothing copied.{told}",
            "See the log of the first task that failed, then trigger again.",
        )

    def _record_the_stop(self, ti: Any, ledger: Ledger, owner: Owner) -> None:
        """The trigger does this, but one that was marked before it began to watch never hears of it."""
        if ti.xcom_pull(task_ids="copy", key="failure") or ti.xcom_pull(task_ids="copy", key="request_errors"):
            return  # it failed by itself; nobody stopped it
        try:
            states = ti.get_task_states(dag_id=owner.dag_id, task_ids=["copy"], run_ids=[owner.run_id])
        except AirflowRuntimeError as error:
            self.log.warning("whether the copy was marked failed cannot be read: %s", error)
            return
        if (states.get(owner.run_id) or {}).get("copy") != "failed":
            return
        for row in ledger.of_run(owner.dag_id, owner.run_id):
            if row.state == State.SENT:
                ledger.request_cancel(row, who="a person, or a lost worker", why="the task copy was ended from outside")

    def _from_ledger(self, ledger: Ledger | None, owner: Owner) -> list[dict[str, Any]]:
        """What the ledger knows of a run that did not come to its end: which jobs, and how they stood."""
        return [
            {"destination": row.detail.get("dest_uri"), "state": str(row.state).lower(), "job": row.external_id}
            for row in (ledger.of_run(owner.dag_id, owner.run_id) if ledger is not None else [])
        ]

    def _read(self, documents: dict[str, Any]) -> tuple[dict[str, Any], list[Proof]]:
        """The output and the proofs, from their documents. Raises WaybillError where one is gone or was changed."""
        store = receipts().objects
        output = json.loads(run_async(store.get_document(documents["output"])))
        lines = run_async(store.get_document(documents["per-file proof"])).splitlines()
        return output, [Proof.model_validate_json(line) for line in lines]
