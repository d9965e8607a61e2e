"""The question before a plate is deleted, and the gate behind it.

The thing to know before changing it: what is approved is a digest over every plate's manifests *and* what shall be deleted
of them. Between proof and question, and again between answer and deletion, the plates are listed anew; whatever changed
is kept. The deletion itself looks a third time (include/plates/deleting.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Context
from hooks.plates import PlatesHook
from hooks.waybill import receipts
from operators.approval import ApprovalOperator, Question
from operators.base import run_async
from operators.gate import GateOperator
from operators.plate_base import Notes, backup_request, read_model
from operators.plate_batches import begun, delete_journal
from operators.plate_receipt import waybill_of

from include.core.errors import VerificationError, WaybillError
from include.core.receipts import number, size
from include.plates.bucket import Bucket
from include.plates.flow import in_order
from include.plates.models import Outcome, Verdict
from include.plates.proofs import list_plate, parse_manifest, unchanged
from include.plates.request import BackupRequest

_PLATES_AT_ONCE = 4
_SHOWN = 5


@dataclass(frozen=True)
class Proved:
    """A verified plate: its label, the verdict as the verifier wrote it, and the Document that holds it."""

    label: str
    verdict: Verdict
    document: Mapping[str, Any]


async def proved_plates(context: Context) -> list[Proved]:
    """What the verify tasks that succeeded have proved, read from their verdicts and not from XCom.

    Pulled, and not given as an argument: a failed plate must neither stop the gate nor let the receipt run early.
    """
    found = context["ti"].xcom_pull(task_ids="verify")  # Airflow gives one mapped task's value without a list around it
    entries = [found] if isinstance(found, Mapping) else [entry for entry in found or [] if entry]

    async def one(entry: Mapping[str, Any]) -> Proved:
        return Proved(entry["plate"], await read_model(Verdict, entry["verdict"]), entry["verdict"])

    plates = await in_order(entries, one, _PLATES_AT_ONCE)
    return [plate for plate in plates if plate.verdict.outcome is Outcome.VERIFIED]


def digest_of(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """What a person approves: these manifests, and what is deleted of their plates, where, and how."""
    order = request.order("")
    asked = [request.bucket, request.archive_bucket, order.parts, order.phase, order.retention, order.undo_days]
    rows = sorted([plate.label, plate.verdict.tag, plate.verdict.manifests_sha256] for plate in plates)
    return hashlib.sha256(json.dumps([asked, rows], ensure_ascii=False).encode()).hexdigest()


async def changes(verdict: Verdict, source: Bucket, archive: Bucket) -> str | None:
    """What differs, now, between a plate and its verified manifests; None if nothing does."""
    rows: dict[str, Mapping[str, Any]] = {}
    for proof in verdict.volumes:
        data = await archive.read_all(proof.manifest_key)
        if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
            return f"{proof.manifest_key} is not the manifest that was verified"
        manifest = parse_manifest(proof.manifest_key, data)
        rows |= {row["key"]: row for row in manifest.rows if row.get("key") is not None}
    listed = await list_plate(verdict.plate, verdict.layout, source)
    found = [f"{key!r} appeared" for key in sorted(listed.keys() - rows.keys())]
    for key in sorted(rows.keys() - listed.keys()):
        there = await source.head(key, rows[key].get("version_id"))  # a listing may lag behind what HEAD sees
        if there is None or (there.etag, there.size) != (rows[key].get("etag"), rows[key]["size"]):
            found.append(f"{key!r} vanished")
    found += [
        f"{key!r} changed" for key in sorted(rows.keys() & listed.keys()) if not unchanged(listed[key], rows[key])
    ]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


async def look_again(request: BackupRequest, plates: Sequence[Proved], aws_conn_id: str) -> dict[str, str]:
    """By label, why a plate may not go on: it changed, or cannot be looked at.

    A plate whose deletion has begun (and whose approval is asked or read again) differs by our own doing, and goes on.
    """
    async with PlatesHook(aws_conn_id).access() as access:

        async def one(plate: Proved) -> str | None:
            verdict = plate.verdict
            try:
                if await asyncio.to_thread(begun, delete_journal(verdict, request.order(verdict.manifests_sha256))):
                    return None
                return await changes(verdict, access.bucket(verdict.bucket), access.bucket(verdict.archive_bucket))
            except WaybillError as error:
                return f"it cannot be looked at again ({error})"

        found = await in_order(list(plates), one, _PLATES_AT_ONCE)
    return {plate.label: why for plate, why in zip(plates, found, strict=True) if why}


class PlateApprovalOperator(ApprovalOperator):
    """Asks whether the verified plates may be deleted; skips where there is nothing to.

    A plate that changed since its proof is a mismatch from here on: it is noted, and not asked about.
    """

    def __init__(self, *, aws_conn_id: str = PlatesHook.default_conn_name, **kwargs: Any):
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
            run_async(Notes.of(context, label).write("verify", "mismatch", reasons=[why]))
        plates = [plate for plate in plates if plate.label not in changed]
        if not plates:
            return None
        total = sum(plate.verdict.size_bytes for plate in plates)
        parts = ", ".join(request.delete_parts)
        subject = f"Delete {parts} of {number(len(plates), 'plate')} ({size(total)}) from {request.bucket}?"
        about = {"plates": [plate.label for plate in plates]}
        return Question(
            subject, body(request, plates, changed), digest_of(request, plates), request.approval_days, about
        )

    def tell_progress(self, context: Context) -> None:
        waiting = f"Waiting for an answer: {self.subject}"
        run_async(receipts().write(waybill_of(context).model_copy(update={"state": "running", "outcome": waiting})))


def body(request: BackupRequest, plates: Sequence[Proved], changed: Mapping[str, str]) -> str:
    """What a person reads before deciding."""
    how = (
        "delete markers are set, and purged after " + f"{request.undo_days:g} days" if request.undo_days else "for good"
    )
    lines = [
        f"Project {request.project}, batch {request.batch}. Parts **{', '.join(request.delete_parts)}** of these plates are",
        f"deleted from `{request.bucket}` ({how}). Their tarballs lie in `{request.archive_bucket}`,",
        f"retention **{request.retention}**; each was read back whole and agrees with its source byte for byte.",
        "",
        "| plate | objects archived | bytes | proof | manifests (sha256) |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for plate in plates:
        proof = plate.verdict
        row = (
            proof.plate.plate_id_full,
            proof.objects,
            size(proof.size_bytes),
            "V1 to V5",
            f"`{proof.manifests_sha256[:16]}…`",
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    if changed:
        lines += ["", f"Kept, since they changed after they were verified: {', '.join(sorted(changed))}."]
    return "\n".join(lines)


class PlateGateOperator(GateOperator):
    """Lets through the plates that were asked about, were approved, and are still what was proved."""

    def __init__(self, *, aws_conn_id: str = PlatesHook.default_conn_name, **kwargs: Any):
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
            run_async(Notes.of(context, label).write("delete", "void", why=f"since it was approved, {why}"))
        return {
            plate.label: {
                "plate": plate.label,
                "name": plate.verdict.plate.plate_id_full,
                "verdict": dict(plate.document),
            }
            for plate in plates
            if plate.label not in changed
        }
