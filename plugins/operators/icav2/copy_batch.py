"""Launch Copy Job and Update Job Session in one operator: all destinations of a run, one trigger, one bulk look at a time.

Longer than 120 lines: one leg looks, sends, tells and waits; each half alone says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from hooks.icav2 import ICAv2Hook
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import ledger, receipts
from operators.common.base import WaybillOperator
from operators.common.receipt import ReceiptLink, receipt_url
from triggers.icav2_jobs import ICAv2JobsTrigger

from include.core.effects import Phase, Progress
from include.core.errors import Held, VerificationError
from include.core.receipt import Receipt, ReceiptStore
from include.core.request import XCOM_LIMIT_BYTES, truncate_for_xcom
from include.core.watch import WatchPolicy
from include.icav2 import report
from include.icav2.engine import CopyEngine
from include.icav2.models import CopyPlan, CopyRequest, Destination
from include.icav2.rules import CopySettings


class ICAv2CopyBatchOperator(WaybillOperator):
    """Copies what `plan` lists (the output of ICAv2PlanOperator) and returns the SOP's output object.

    `request` holds the options (the output of load_request). Fails, without retry, when a file is missing at the end: the
    message names each; a new run copies only those. Above 48 KiB the output is returned as {uri, sha256, size_bytes}.
    """

    step = "copy"
    template_fields: Sequence[str] = ("plan", "request")
    operator_extra_links = (ReceiptLink(),)

    def __init__(
        self,
        *,
        plan: Any,
        request: Any,
        icav2_conn_id: str = ICAv2Hook.default_conn_name,
        deferrable: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.plan = plan
        self.request = request
        self.icav2_conn_id = icav2_conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        return self.resume(context)

    def resume(self, context: Context, event: dict[str, Any] | None = None) -> Any:
        """One leg: look, settle, send; then wait or finish. The event says why to wake, never what is true."""
        if event:
            self.log.info("woken: %s", event["why"])
        with self.refusing(context) as facts:
            return run_async(self._leg(context, facts))

    async def _leg(self, context: Context, facts: dict[str, Any]) -> Any:
        store = receipts()
        data = await store.objects.get_document(self.plan["plan"])
        plan, request = CopyPlan.model_validate_json(data), CopyRequest.model_construct(**self.request)
        async with ICAv2Hook(self.icav2_conn_id).client() as client:
            engine = CopyEngine(client, ledger(), plan, owner_of(context), CopySettings.of(request))
            if self.deferrable:
                progress = await engine.act()
            else:
                policy = WatchPolicy(quiet_seconds=0, poll_seconds=request.poll_seconds)
                progress = await engine.run(policy, say=self.log.info)
            if not progress.finished:
                await self._tell_so_far(context, store, engine, progress)
                self._defer(context, request, progress)
            return await self._finish(context, store, engine, progress, facts)

    async def _tell_so_far(
        self, context: Context, store: ReceiptStore, engine: CopyEngine, progress: Progress[Destination]
    ) -> None:
        """The partial receipt that the link opens while the run goes on."""
        owner = engine.owner
        output = report.output(progress.standings, engine.rows(), owner)
        counts = ", ".join(f"{count} {phase}" for phase, count in progress.counts.items() if count)
        self.log.info("destinations: %s", counts)
        for trouble in progress.waiting_reasons:
            self.log.info("waiting: %s", trouble)
        receipt = Receipt(
            dag_id=owner.dag_id,
            run_id=owner.run_id,
            state="running",
            outcome=f"Copying goes on. Destinations: {counts}.",
            asked={"files": engine.plan.files, "bytes": engine.plan.size_bytes},
            items=report.receipt_items(output, []),
        )
        await store.write(receipt)
        context["ti"].xcom_push(key=ReceiptLink().xcom_key, value=receipt_url(owner.dag_id, owner.run_id))

    def _defer(self, context: Context, request: CopyRequest, progress: Progress[Destination]) -> None:
        wait = (progress.look_again_at or progress.now + request.job_timeout_minutes * 60) - progress.now
        owner = owner_of(context)
        self.defer(
            trigger=ICAv2JobsTrigger(
                conn_id=self.icav2_conn_id,
                dag_id=owner.dag_id,
                run_id=owner.run_id,
                deadline=time.time() + max(wait, 5.0),
                since=time.time(),
                poll_seconds=request.poll_seconds,
                options={"more_to_send": progress.more_to_send},
            ),
            method_name="resume",
        )

    async def _finish(
        self,
        context: Context,
        store: ReceiptStore,
        engine: CopyEngine,
        progress: Progress[Destination],
        facts: dict[str, Any],
    ) -> Any:
        """A last fresh look at everything; the documents; and the SOP's object, or the failure."""
        proofs = await engine.final_proofs()
        output = report.output(progress.standings, engine.rows(), engine.owner)
        missing = report.not_copied(progress.standings, proofs, engine.item_messages())
        place = run_folder(context)
        documents = {
            "per-file proof": await store.objects.put(f"{place}/proof.jsonl", report.proof_lines(proofs)),
            "output": await store.objects.put(f"{place}/output.json", report.dumps(output)),
            "not copied": await store.objects.put(f"{place}/not_copied.json", report.dumps(missing)),
        }
        summary = {
            "documents": {name: document.to_dict() for name, document in documents.items()},
            "totals": report.totals(proofs, output),
            "missing": truncate_for_xcom(missing)[:50],
            "missing_count": len(missing),
        }
        facts["report"] = summary  # what the receipt reads, also where the step fails below
        context["ti"].xcom_push(key="report", value=summary)
        held = [standing.why for standing in progress.standings if standing.phase == Phase.HELD]
        if held:
            raise Held("; ".join(held))
        if missing:
            for line in missing:
                self.log.error("not copied: %s", line)
            raise VerificationError(
                f"{len(missing)} of {len(proofs)} files are not copied: {'; '.join(missing[:10])}"
                + ("; …" if len(missing) > 10 else "")
                + ". Deal with the reason, then trigger the DAG again with the same conf: it copies only what is missing"
            )
        small = documents["output"].size_bytes <= XCOM_LIMIT_BYTES
        return output if small else documents["output"].to_dict()
