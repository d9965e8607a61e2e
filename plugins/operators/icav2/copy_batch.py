"""Launch Copy Job and Update Job Session in one operator: all destinations of a run, one trigger, one bulk look at a time.

Longer than 120 lines: one leg looks, sends, tells and waits; each half alone says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from airflow.sdk import Context
from hooks.icav2 import ICAv2Hook
from hooks.task import run_folder
from hooks.waybill import ledger, receipts
from operators.common.leg import Leg, LegOperator, Wait
from operators.common.receipt import ReceiptLink, receipt_url
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.leg import DAY_SECONDS, run_began

from include.core.effects import Phase
from include.core.errors import DeadlinePassed, Held, VerificationError, WaybillError
from include.core.receipt import Receipt, ReceiptStore
from include.core.request import XCOM_LIMIT_BYTES, truncate_for_xcom
from include.core.text import sentences
from include.core.watch import Wake, may_pass
from include.icav2 import report
from include.icav2.engine import CopyEngine, CopyProgress
from include.icav2.models import CopyPlan, CopyRequest, Proof
from include.icav2.rules import CopySettings


class ICAv2CopyBatchOperator(LegOperator):
    """Copies what `plan` lists (the output of ICAv2PlanOperator) and returns the SOP's output object.

    `request` holds the options (the output of load_request). Fails, without retry, when a file is missing at the end, or when
    `deadline_days` after the run's begin something is still open: the message names each; a new run copies only those. Above
    48 KiB the output is returned as {uri, sha256, size_bytes}.
    """

    step = "copy"
    trigger = ICAv2JobsTrigger
    template_fields: Sequence[str] = ("plan", "request")
    operator_extra_links = (ReceiptLink(),)

    def __init__(self, *, plan: Any, request: Any, icav2_conn_id: str = ICAv2Hook.default_conn_name, **kwargs: Any):
        super().__init__(conn_id=icav2_conn_id, **kwargs)
        self.plan = plan
        self.request = request

    def deadline(self, context: Context, began: float) -> float:
        return run_began(context) + CopyRequest.model_construct(**self.request).deadline_days * DAY_SECONDS

    async def act(self, leg: Leg) -> Any:
        """One leg: look, reconcile, send; then wait or finish. Once the time is over, nothing more is sent."""
        store = receipts()
        data = await store.objects.get_document(self.plan["plan"])
        plan, request = CopyPlan.model_validate_json(data), CopyRequest.model_construct(**self.request)
        settings = CopySettings.of(request)
        if leg.over:
            settings = replace(settings, max_in_flight=0)
        with ledger() as book:
            async with ICAv2Hook(self.conn_id).client() as client:
                engine = CopyEngine(client, book, plan, leg.owner, settings, wait_for_deletion=self.deferrable)
                progress = await engine.act()
                if progress.finished or leg.over:
                    return await self._finish(leg, store, engine, progress)
                await self._tell_so_far(leg.context, store, engine, progress)
        return Wait(
            seconds=(progress.look_again_at or progress.now + settings.job_timeout_seconds) - progress.now,
            why="; ".join(progress.waiting_reasons[:3]),
            # A leg in this worker is cheap, so each job is judged when it ends: one that passed may have left a wrong file.
            options={
                "wake": Wake.END if progress.more_to_send or not self.deferrable else Wake.FAILURE,
                "expected": progress.running,
            },
            poll_seconds=request.poll_seconds,
        )

    async def _tell_so_far(
        self, context: Context, store: ReceiptStore, engine: CopyEngine, progress: CopyProgress
    ) -> None:
        """The partial receipt that the link opens while the run goes on."""
        owner = engine.owner
        output = report.output(progress.standings, engine.rows(), owner)
        counts = ", ".join(f"{count} {phase}" for phase, count in progress.counts.items() if count)
        self.log.info("destinations: %s", counts)
        reasons = [reason.rstrip(".") for reason in progress.waiting_reasons]
        receipt = Receipt(
            dag_id=owner.dag_id,
            run_id=owner.run_id,
            request_sha256=owner.request_sha256,
            state="running",
            outcome=f"Copying goes on. Destinations: {counts}."
            + "".join(f" {sentences(f'Waiting: {why}')}" for why in reasons),
            asked={"files": engine.plan.files, "bytes": engine.plan.size_bytes},
            items=report.receipt_items(output, []),
        )
        await store.write(receipt)
        context["ti"].xcom_push(key=ReceiptLink().xcom_key, value=receipt_url(owner.dag_id, owner.run_id))

    async def _finish(self, leg: Leg, store: ReceiptStore, engine: CopyEngine, progress: CopyProgress) -> Any:
        """A last fresh look at everything, which alone decides; the documents; and the SOP's object, or the failure."""
        proofs = await self._last_look(leg, engine, progress)
        standings = report.proved(report.ended_by_deadline(progress.standings), proofs)
        output = report.output(standings, engine.rows(), engine.owner)
        missing = report.not_copied(standings, proofs, engine.item_messages())
        place = run_folder(leg.context)
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
        leg.facts["report"] = summary  # what the receipt reads, also where the step fails below
        leg.context["ti"].xcom_push(key="report", value=summary)
        held = [standing.why for standing in standings if standing.phase == Phase.HELD]
        if held:
            raise Held("; ".join(held))
        if missing:
            for line in missing:
                self.log.error("not copied: %s", line)
            raise VerificationError(
                ("" if progress.finished else f"{report.MORE_TIME} ")
                + f"{len(missing)} of {len(proofs)} files are not copied: {'; '.join(missing[:10])}"
                + ("; …" if len(missing) > 10 else "")
                + ". Deal with the reason, then trigger the DAG again with the same conf: it copies only what is missing"
            )
        small = documents["output"].size_bytes <= XCOM_LIMIT_BYTES
        return output if small else documents["output"].to_dict()

    async def _last_look(self, leg: Leg, engine: CopyEngine, progress: CopyProgress) -> list[Proof]:
        try:
            return await engine.final_proofs()
        except WaybillError as error:
            if not (leg.over and may_pass(error)):
                raise
            raise DeadlinePassed(report.open_at_deadline(progress.standings, str(error))) from None
