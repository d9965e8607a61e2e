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
from typing import Any

from airflow.sdk import Context
from hooks.plates import PlatesHook
from hooks.waybill import receipts
from operators.approval import ApprovalOperator, Question
from operators.base import run_async, run_folder
from operators.gate import Decision, GateOperator
from operators.plate_base import Notes, backup_request, read_model
from operators.plate_batches import begun, delete_journal

from include.core.errors import VerificationError, WaybillError
from include.core.receipts import size
from include.plates.bucket import Bucket
from include.plates.flow import in_order
from include.plates.models import Verdict
from include.plates.proofs import list_plate, parse_manifest, unchanged
from include.plates.request import BackupRequest

APPROVAL_NOTE = "approval.json"
_PLATES_AT_ONCE = 4
_SHOWN = 5

Entry = Mapping[str, Any]


def proved_entries(context: Context) -> list[Entry]:
    """The entries of the verify tasks that succeeded.

    Pulled, and not given as an argument: a failed plate must neither stop the gate nor let the receipt run early.
    """
    found = context["ti"].xcom_pull(task_ids="verify")  # Airflow gives one mapped task's value without a list around it
    return [found] if isinstance(found, Mapping) else [entry for entry in found or [] if entry]


def digest_of(request: BackupRequest, entries: Sequence[Entry]) -> str:
    """What a person approves: these manifests, and what is deleted of their plates, where, and how."""
    order = request.order("")
    asked = [request.bucket, request.archive_bucket, order.parts, order.phase, order.retention, order.undo_days]
    rows = sorted([entry["plate"], entry["manifests"]] for entry in entries)
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


async def look_again(request: BackupRequest, entries: Sequence[Entry], aws_conn_id: str) -> dict[str, str]:
    """By plate label, why an entry may not go on: it changed, or cannot be looked at.

    A plate whose deletion has begun (and whose approval is asked or read again) differs by our own doing, and goes on.
    """
    async with PlatesHook(aws_conn_id).access() as access:

        async def one(entry: Entry) -> str | None:
            try:
                verdict = await read_model(Verdict, entry["verdict"])
                if await asyncio.to_thread(begun, delete_journal(verdict, request.order(verdict.manifests_sha256))):
                    return None
                source, archive = access.bucket(verdict.bucket), access.bucket(verdict.archive_bucket)
                return await changes(verdict, source, archive)
            except WaybillError as error:
                return f"it cannot be looked at again ({error})"

        found = await in_order(list(entries), one, _PLATES_AT_ONCE)
    return {entry["plate"]: why for entry, why in zip(entries, found, strict=True) if why}


def note_approval(context: Context, state: str, facts: Mapping[str, Any]) -> None:
    """Keeps, for the receipt, how far the approval is."""
    name = f"{run_folder(context)}/{APPROVAL_NOTE}"
    run_async(receipts().objects.put(name, json.dumps({"state": state, **facts}, ensure_ascii=False).encode()))


class PlateApprovalOperator(ApprovalOperator):
    """Asks whether the verified plates may be deleted; skips where there is nothing to.

    A plate that changed since its proof is a mismatch from here on: it is noted, and not asked about.
    """

    def __init__(self, *, aws_conn_id: str = PlatesHook.default_conn_name, **kwargs: Any):
        super().__init__(trigger_rule="all_done", **kwargs)
        self.aws_conn_id = aws_conn_id

    def question(self, context: Context) -> Question | None:
        request = backup_request(context)
        note_approval(context, "not asked", {})
        entries = proved_entries(context)
        if not request.delete_parts or not entries:
            return None
        changed = run_async(look_again(backup_request(context), entries, self.aws_conn_id))
        for label, why in changed.items():
            self.log.error("plate %s is kept: %s", label, why)
            why = f"since it was verified, {why}"
            run_async(Notes.of(context, label).write("verify", "mismatch", reasons=[why]))
        entries = [entry for entry in entries if entry["plate"] not in changed]
        if not entries:
            return None
        digest = digest_of(request, entries)
        context["ti"].xcom_push(key="plates", value=[entry["plate"] for entry in entries])
        note_approval(context, "asked", {"sha256": digest, "plates": [entry["plate"] for entry in entries]})
        total = sum(entry["bytes"] for entry in entries)
        parts = ", ".join(request.delete_parts)
        subject = f"Delete {parts} of {len(entries)} plates ({size(total)}) from {request.bucket}?"
        return Question(subject, body(request, entries, changed), digest, request.approval_days)


def body(request: BackupRequest, entries: Sequence[Entry], changed: Mapping[str, str]) -> str:
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
    for entry in entries:
        row = (entry["name"], entry["objects"], size(entry["bytes"]), "V1 to V5", f"`{entry['manifests'][:16]}…`")
        lines.append(f"| {' | '.join(map(str, row))} |")
    if changed:
        lines += ["", f"Kept, since they changed after they were verified: {', '.join(sorted(changed))}."]
    return "\n".join(lines)


class PlateGateOperator(GateOperator):
    """Lets through the plates that were asked about, were approved, and are still what was proved."""

    def __init__(self, *, aws_conn_id: str = PlatesHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def _asked_about(self, context: Context) -> list[Entry]:
        labels = context["ti"].xcom_pull(task_ids=self.approval_task_id, key="plates") or []
        entries = {entry["plate"]: entry for entry in proved_entries(context)}
        lost = [label for label in labels if label not in entries]
        if lost:
            raise VerificationError(f"no proof is left of {', '.join(lost)}; clear the approval to ask again")
        return [entries[label] for label in labels]

    def sha256_now(self, context: Context) -> str:
        return digest_of(backup_request(context), self._asked_about(context))

    def passed(self, context: Context, decided: Decision) -> list[dict[str, Any]]:
        entries = self._asked_about(context)
        changed = run_async(look_again(backup_request(context), entries, self.aws_conn_id))
        for label, why in changed.items():
            self.log.error("the approval is void for plate %s: %s", label, why)
            run_async(Notes.of(context, label).write("delete", "void", why=f"since it was approved, {why}"))
        keep = ("plate", "name", "verdict")
        return [{name: entry[name] for name in keep} for entry in entries if entry["plate"] not in changed]

    def note(self, context: Context, state: str, facts: Mapping[str, Any]) -> None:
        note_approval(context, state, facts)
