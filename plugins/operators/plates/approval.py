"""The question before a plate is deleted, and the gate behind it.

Invariant: what is approved is a digest over every plate's manifests *and* what shall be deleted
of them. Between proof and question, and again between answer and deletion, the plates are listed anew; whatever changed
is kept. The deletion itself looks a third time (include/plates/delete.py).

Longer than 120 lines: question and gate compare the same things, and stand together so that they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.task import run_async
from hooks.waybill import receipts
from operators.common.approval import ApprovalOperator
from operators.common.gate import GateOperator
from operators.plates.base import backup_request, read_model, records_of
from operators.plates.delete import begun, delete_journal
from operators.plates.receipt import waybill_of

from include.core.approval import Question
from include.core.concurrency import map_concurrently
from include.core.errors import VerificationError, WaybillError
from include.core.text import format_bytes, pluralize
from include.plates.approval import Proved, body, digest_of
from include.plates.compare import changes
from include.plates.models import Outcome, Verdict
from include.plates.request import BackupRequest

_PLATES_AT_ONCE = 4


async def proved_plates(context: Context) -> list[Proved]:
    """What the verify tasks that succeeded have proved, read from their verdicts and not from XCom.

    Pulled, and not given as an argument: a failed plate must neither stop the gate nor let the receipt run early.
    """
    found = context["ti"].xcom_pull(
        task_ids="verify"
    )  # one mapped task's value has no list around it (docs/protocols/airflow.md 3.5)
    entries = [found] if isinstance(found, Mapping) else [entry for entry in found or [] if entry]

    async def one(entry: Mapping[str, Any]) -> Proved:
        return Proved(entry["plate"], await read_model(Verdict, entry["verdict"]), entry["verdict"])

    plates = await map_concurrently(entries, one, _PLATES_AT_ONCE)
    return [plate for plate in plates if plate.verdict.outcome is Outcome.VERIFIED]


async def look_again(request: BackupRequest, plates: Sequence[Proved], aws_conn_id: str) -> dict[str, str]:
    """By label, why a plate may not go on: it changed, or cannot be looked at.

    A plate whose deletion has begun (and whose approval is asked or read again) differs by our own doing, and goes on.
    """
    async with AwsHook(aws_conn_id).access() as access:

        async def one(plate: Proved) -> str | None:
            verdict = plate.verdict
            try:
                if await asyncio.to_thread(begun, delete_journal(verdict, request.order(verdict.manifests_sha256))):
                    return None
                return await changes(verdict, access.bucket(verdict.bucket), access.bucket(verdict.archive_bucket))
            except WaybillError as error:
                return f"it cannot be looked at again ({error})"

        found = await map_concurrently(list(plates), one, _PLATES_AT_ONCE)
    return {plate.label: why for plate, why in zip(plates, found, strict=True) if why}


class PlateApprovalOperator(ApprovalOperator):
    """Asks whether the verified plates may be deleted; skips where there is nothing to.

    A plate that changed since its proof is a mismatch from here on: it is noted, and not asked about.
    """

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(trigger_rule="all_done", **kwargs)
        self.aws_conn_id = aws_conn_id

    def question(self, context: Context) -> Question | None:
        request = backup_request(context)
        plates = run_async(proved_plates(context)) if request.delete_parts else []
        if not plates:
            return None
        changed = run_async(look_again(request, plates, self.aws_conn_id))
        for label, why in changed.items():
            self.log.error("plate %s is kept: %s", label, why)
            why = f"since it was verified, {why}"
            run_async(records_of(context, label).write("verify", "mismatch", reasons=[why]))
        plates = [plate for plate in plates if plate.label not in changed]
        if not plates:
            return None
        total = sum(plate.verdict.size_bytes for plate in plates)
        parts = ", ".join(request.delete_parts)
        subject = f"Delete {parts} of {pluralize(len(plates), 'plate')} ({format_bytes(total)}) from {request.bucket}?"
        about = {"plates": [plate.label for plate in plates]}
        return Question(
            subject, body(request, plates, changed), digest_of(request, plates), request.approval_days, about
        )

    def tell_progress(self, context: Context) -> None:
        waiting = f"Waiting for an answer: {self.subject}"
        run_async(receipts().write(waybill_of(context).model_copy(update={"state": "running", "outcome": waiting})))


class PlateGateOperator(GateOperator):
    """Lets through the plates that were asked about, were approved, and are still what was proved."""

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def _asked_about(self, context: Context, about: Mapping[str, Any]) -> list[Proved]:
        plates = {plate.label: plate for plate in run_async(proved_plates(context))}
        lost = [label for label in about.get("plates", []) if label not in plates]
        if lost:
            raise VerificationError(f"no proof is left of {', '.join(lost)}; clear the approval to ask again")
        return [plates[label] for label in about.get("plates", [])]

    def sha256_now(self, context: Context, about: Mapping[str, Any]) -> str:
        return digest_of(backup_request(context), self._asked_about(context, about))

    def passed(self, context: Context, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        plates = self._asked_about(context, about)
        changed = run_async(look_again(backup_request(context), plates, self.aws_conn_id))
        for label, why in changed.items():
            self.log.error("the approval is void for plate %s: %s", label, why)
            run_async(records_of(context, label).write("delete", "void", why=f"since it was approved, {why}"))
        return {
            plate.label: {
                "plate": plate.label,
                "name": plate.verdict.plate.plate_id_full,
                "verdict": dict(plate.document),
            }
            for plate in plates
            if plate.label not in changed
        }
