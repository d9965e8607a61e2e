"""The question before a plate is deleted, and the gate behind it.

Invariant: what is approved is a digest over every plate's manifests *and* what shall be deleted
of them, object by object counted. Between proof and question, and again between answer and deletion, the plates are listed
and counted anew; whatever changed is kept. The deletion itself looks a third time (include/plates/delete.py).

Longer than 120 lines: question and gate compare the same things, and stand together so that they do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.task import run_async
from operators.common.approval import ApprovalOperator
from operators.common.gate import GateOperator, Passed
from operators.plates.base import backup_request, read_model, records_of
from operators.plates.delete import begun, delete_journal
from operators.plates.plan_document import plan_rows
from operators.plates.receipt import waybill_of

from include.core.concurrency import map_concurrently
from include.core.errors import VerificationError, WaybillError
from include.core.questions import Question, Record
from include.core.receipt import Receipt
from include.plates.approval import Proved, body, days_to_answer, digest_of, subject
from include.plates.compare import changes
from include.plates.delete import check_order
from include.plates.delete_preview import PartPreview, preview, refuses_older
from include.plates.models import Outcome, Verdict
from include.plates.report import OLDER_VERSIONS
from include.plates.request import BackupRequest
from include.s3.bucket import S3Access

_PLATES_AT_ONCE = 4


async def proved_plates(context: Context) -> list[Proved]:
    """What verify has proved of each plate of the plan, by the Document in its step record: what is approved and deleted is
    decided by no other task's XCom, and a failed plate neither stops the gate nor lets the receipt run early."""

    async def one(label: str) -> Proved | None:
        record = await records_of(context, label).read("verify")
        if record.get("state") != Outcome.VERIFIED or "verdict" not in record:
            return None
        verdict = await read_model(Verdict, record["verdict"])
        return Proved(label, verdict, record["verdict"]) if verdict.outcome is Outcome.VERIFIED else None

    labels = [row["plate"] for row in await plan_rows(context) if not row["problems"]]
    return [plate for plate in await map_concurrently(labels, one, _PLATES_AT_ONCE) if plate is not None]


@dataclass(frozen=True)
class Kept:
    """Why a plate does not go on, as a step record holds it: `step`, its state, and the reason.

    A plate that differs from its proof is no longer verified. One below which older versions lie is, and the order is refused.
    """

    why: str
    step: str = "verify"
    state: str = Outcome.MISMATCH


async def look_again(
    request: BackupRequest, plates: Sequence[Proved], aws_conn_id: str
) -> tuple[list[Proved], dict[str, Kept]]:
    """The plates that may go on, with what would be deleted of them now; and by label why the others may not.

    A plate whose deletion has begun (and whose approval is asked or read again) differs by our own doing, and goes on.
    """
    async with AwsHook(aws_conn_id).access(patience_minutes=request.store_patience) as access:
        found = await map_concurrently(list(plates), lambda plate: _look(request, plate, access), _PLATES_AT_ONCE)
    pairs = list(zip(plates, found, strict=True))
    kept = {plate.label: one for plate, one in pairs if isinstance(one, Kept)}
    return [one for one in found if isinstance(one, Proved)], kept


async def _look(request: BackupRequest, plate: Proved, access: S3Access) -> Proved | Kept:
    verdict = plate.verdict
    source, archive = access.bucket(verdict.bucket), access.bucket(verdict.archive_bucket)
    order = request.order(verdict.manifests_sha256)
    try:
        check_order(verdict, order)
        journal = delete_journal(verdict, order)
        why = await changes(verdict, source, archive)
        if why is not None and not await asyncio.to_thread(begun, journal):
            return Kept(why)
        # Whole as it was proved, though deleted before: it was restored, and this is another deletion.
        found = await preview(verdict, order, source=source, archive=archive, journal=journal, anew=why is None)
    except WaybillError as error:
        return Kept(f"it cannot be looked at again ({error})", state=Outcome.UNVERIFIABLE)
    why = refuses_older(verdict, order, found.older)
    return Kept(why, "delete", OLDER_VERSIONS) if why else replace(plate, parts=found.parts, older=found.older)


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
        plates, changed = run_async(look_again(request, plates, self.aws_conn_id))
        for label, kept in changed.items():
            self.log.error("plate %s is kept: %s", label, kept.why)
            why = f"since it was verified, {kept.why}" if kept.state == Outcome.MISMATCH else kept.why
            run_async(records_of(context, label).write(kept.step, kept.state, why=why, reasons=[why]))
        if not plates:
            return None
        run_async(self._forget_void_answers(context, plates))
        return Question(
            subject(request, plates),
            body(request, plates, {label: kept.why for label, kept in changed.items()}),
            digest_of(request, plates),
            days_to_answer(request, plates, time.time()),
            about={"plates": [plate.label for plate in plates], "parts": _rows_of(plates)},
            silence="nothing is deleted",
        )

    async def _forget_void_answers(self, context: Context, plates: Sequence[Proved]) -> None:
        for plate in plates:
            records = records_of(context, plate.label)
            if (await records.read("delete")).get("state") in ("void", OLDER_VERSIONS):
                await records.empty("delete", "purge")

    def receipt_so_far(self, context: Context) -> Receipt:
        return waybill_of(context)


def _rows_of(plates: Sequence[Proved]) -> dict[str, list[list[Any]]]:
    """What would be deleted of each plate, as the question's record keeps it."""
    return {
        plate.label: [
            [part.part, part.objects, part.size_bytes, part.shared, part.older, part.older_bytes, part.older_sha256]
            for part in plate.parts
        ]
        for plate in plates
    }


class PlateGateOperator(GateOperator):
    """Lets through the plates that were asked about, were approved, and are still what was proved."""

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def _asked_about(self, context: Context, record: Record) -> list[Proved]:
        """The plates of the question with the proofs of now, and what the question said would be deleted of them."""
        plates = {plate.label: plate for plate in run_async(proved_plates(context))}
        labels, said = record.about.get("plates", []), record.about.get("parts", {})
        lost = [label for label in labels if label not in plates]
        if lost:
            raise VerificationError(f"no proof is left of {', '.join(lost)}; clear the approval to ask again")
        parts = {label: tuple(PartPreview(*row) for row in said.get(label, ())) for label in labels}
        return [replace(plates[label], parts=parts[label]) for label in labels]

    def sha256_now(self, context: Context, record: Record) -> str:
        return digest_of(backup_request(context), self._asked_about(context, record))

    def passed(self, context: Context, record: Record) -> list[Passed]:
        asked = self._asked_about(context, record)
        now, changed = run_async(look_again(backup_request(context), asked, self.aws_conn_id))
        said, counted = _rows_of(asked), _rows_of(now)
        changed |= {
            label: Kept(f"what would be deleted is another: {counted[label]}, and the question said {said[label]}")
            for label in counted
            if counted[label] != said[label]
        }
        for label, kept in changed.items():
            self.log.error("the approval is void for plate %s: %s", label, kept.why)
            older = kept.state == OLDER_VERSIONS
            state, why = (OLDER_VERSIONS, kept.why) if older else ("void", f"since it was approved, {kept.why}")
            run_async(records_of(context, label).write("delete", state, why=why))
        return [_passed(plate) for plate in now if plate.label not in changed]


def _passed(plate: Proved) -> Passed:
    document = dict(plate.document)
    entry = {"plate": plate.label, "name": plate.verdict.plate.plate_id_full, "verdict": document}
    return Passed(plate.label, document["sha256"], entry)
