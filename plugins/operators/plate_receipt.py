"""The waybill of a plate backup: per plate what was archived, how it was proved, what was deleted, and what was kept and why."""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.waybill import receipts
from operators.approval import approval_record
from operators.base import owner_of, run_async, run_folder
from operators.plate_base import STEPS, Notes
from operators.plate_plan import PLAN_NOTE
from operators.receipt import ReceiptOperator

from include.core.errors import NotFound
from include.core.ledger import Ledger
from include.core.receipts import Receipt, size

AGAIN = "Trigger the DAG again with the same conf: finished parts and plates are recognised"
_KEPT_FINE = ("verified", "rejected", "planned")
_GONE = ("deleted", "marked")


class PlateReceiptOperator(ReceiptOperator):
    """Reads the notes that the steps left, as far as they came."""

    def tell(self, context: Context, ledger: Ledger | None) -> Receipt:
        return waybill_of(context)


def waybill_of(context: Context) -> Receipt:
    """The receipt by the notes that lie there now."""
    owner, place = owner_of(context), run_folder(context)
    request = context["ti"].xcom_pull(task_ids="load_request") or {}
    rows = _note(f"{place}/{PLAN_NOTE}", [])
    approval = approval_record(context)
    items = [_item(context, row, request, approval) for row in rows]
    facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": request, "items": items}
    if not items:
        outcome, remedy = _nothing(context)
        return Receipt(**facts, state="incomplete", outcome=outcome, remedy=remedy)
    good = all(item["good"] for item in items)
    return Receipt(
        **facts,
        state="complete" if good else "incomplete",
        outcome=outcome_of(items, request, approval),
        remedy="" if good else remedy_of(items),
        totals=totals(items),
        approvals=[_told(approval)] if approval.get("state") in ("approved", "rejected", "refused") else [],
    )


def _told(approval: dict[str, Any]) -> dict[str, Any]:
    """Who answered what, when, to which question; or why the answer does not count."""
    answer = approval.get("answer") or {}
    person = (answer.get("responded_by_user") or {}).get("id")
    return {
        "state": approval["state"],
        "by": approval.get("by") or person,
        "at": approval.get("at") or answer.get("responded_at"),
        "why": approval.get("why", ""),
        "question": approval.get("subject"),
        "sha256": approval.get("sha256"),
        "passed": sorted(approval.get("passed") or {}),
    }


def _item(context: Context, row: dict[str, Any], request: dict[str, Any], approval: dict[str, Any]) -> dict[str, Any]:
    notes = Notes.of(context, row["plate"])
    steps = {step: run_async(notes.read(step)) for step in STEPS}
    state, why = standing(row, steps, request, approval)
    wanted = bool(request.get("delete_parts")) and not request.get("dry_run")
    return {
        "plate": row["name"],
        "state": state,
        "why": why,
        "good": state in _GONE or (state in _KEPT_FINE and (not wanted or state == "rejected")),
        "objects": row["objects"],
        "bytes": row["bytes"],
        "stored_bytes": steps["archive"].get("stored_bytes", 0),
        "retention": request.get("retention"),
        "deleted": steps["delete"].get("deleted", 0),
        "guard": steps["delete"].get("guard", ""),
        "warnings": row["warnings"],
        **{step: facts for step, facts in steps.items() if facts},
    }


def _nothing(context: Context) -> tuple[str, str]:
    refused = [
        problem
        for task_id in ("load_request", "plan")
        for problem in (context["ti"].xcom_pull(task_ids=task_id, key="request_errors") or [])
    ]
    if refused:
        return f"Refused, nothing was archived: {'; '.join(refused[:5])}.", "Correct the conf and trigger again."
    return "Nothing was planned and nothing archived.", "See the log of the first task that failed, then clear it."


def standing(
    row: dict[str, Any], steps: dict[str, dict[str, Any]], request: dict[str, Any], approval: dict[str, Any]
) -> tuple[str, str]:
    """How a plate ended, in a word, and why."""
    if row["problems"]:
        return "not planned", "; ".join(row["problems"])
    if request.get("dry_run"):
        return "planned", f"{row['objects']} objects, {size(row['bytes'])}, would be archived"
    archive, verify, delete, purge = (steps[step] for step in STEPS)
    if archive.get("state") != "done":
        return "not archived", archive.get("why", "the task did not come to its end; see its log")
    verdict = str(verify.get("state"))
    if verdict != "verified":
        reasons = "; ".join(verify.get("reasons", [])) or verify.get("why", "the task did not come to its end")
        return verdict if verdict in ("mismatch", "unverifiable") else "not verified", reasons
    if not request.get("delete_parts"):
        return "verified", "nothing was to be deleted"
    return _deletion(delete, purge, approval)


def _deletion(delete: dict[str, Any], purge: dict[str, Any], approval: dict[str, Any]) -> tuple[str, str]:
    if delete.get("state") == "void":
        return "approval void", delete["why"]
    if delete.get("state") == "left":
        left = [*delete["changed"], *delete["failed"]]
        return "partly deleted", f"{len(left)} objects were left: {', '.join(left[:5])}"
    if delete.get("state") == "done":
        unknown = delete["unknown"]
        more = f"; {len(unknown)} newer objects were left alone: {', '.join(unknown[:5])}" if unknown else ""
        if delete["phase"] == "delete":
            return "deleted", f"{delete['deleted']} objects {delete['guard']}{more}"
        return _purged(delete, purge, more)
    if delete:
        return "not deleted", delete.get("why", "the task did not come to its end; clear it to go on")
    if approval.get("state") == "rejected":
        return "rejected", f"{approval['by']} rejected the deletion"
    if approval.get("state") == "refused":
        return "not deleted", approval["why"]
    if approval.get("state") == "asked":
        return "awaits approval", "nobody has answered yet"
    return "not deleted", "the deletion was not approved"


def _purged(delete: dict[str, Any], purge: dict[str, Any], more: str) -> tuple[str, str]:
    marked = f"{delete['deleted']} objects marked as deleted{more}"
    if purge.get("state") == "done":
        return "deleted", f"{purge['deleted']} objects purged {purge['guard']}{more}"
    if purge.get("state") in ("void", "left", "failed", "refused"):
        return "not purged", f"{marked}; {purge.get('why', 'some could not be purged')}"
    return "marked", f"{marked}; to be purged {purge.get('until', 'when the time to undo is over')}"


def totals(items: list[dict[str, Any]]) -> dict[str, int | float]:
    proved = [item for item in items if item.get("verify", {}).get("state") == "verified"]
    return {
        "plates": len(items),
        "plates verified": len(proved),
        "plates deleted": sum(item["state"] in _GONE for item in items),
        "files": sum(item["objects"] for item in items),
        "files proved": sum(item["objects"] for item in proved),
        "bytes": sum(item["bytes"] for item in items),
        "proved bytes": sum(item["bytes"] for item in proved),
        "objects deleted": sum(item["deleted"] for item in items),
        "deleted bytes": sum(item.get("delete", {}).get("deleted_bytes", 0) for item in items),
    }


def outcome_of(items: list[dict[str, Any]], request: dict[str, Any], approval: dict[str, Any]) -> str:
    """One sentence of what came true."""
    figures = totals(items)
    if request.get("dry_run"):
        fit = sum(item["state"] == "planned" for item in items)
        return f"Dry run, nothing was written: {fit} of {len(items)} plates ({size(figures['bytes'])}) can be archived."
    sentence = (
        f"{figures['plates verified']} of {len(items)} plates are archived and verified "
        f"({size(figures['proved bytes'])}), read back byte for byte"
    )
    if not request.get("delete_parts"):
        return f"{sentence}; nothing was to be deleted."
    if approval.get("state") == "rejected":
        return f"{sentence}; {approval['by']} rejected the deletion, so all are kept."
    by = f", approved by {approval['by']}" if approval.get("state") == "approved" else ""
    parts = ", ".join(request["delete_parts"])
    bare = " The tarballs have no retention (none was asked for)." if request.get("retention") == "none" else ""
    return f"{sentence}; {parts} deleted of {figures['plates deleted']} of them{by}.{bare}"


def remedy_of(items: list[dict[str, Any]]) -> str:
    """What to do about the first plate that is not well."""
    bad = [item for item in items if not item["good"]]
    first = f"{len(bad)} kept, first {bad[0]['plate']}, {bad[0]['state']}: {bad[0]['why']}"
    advice = {
        "mismatch": "Look at both copies; move the archive away if it is the wrong one, then trigger again for this plate.",
        "approval void": f"{AGAIN}, and what changed is shown before it is approved anew.",
        "partly deleted": "Clear task delete of this plate: it goes on where it stopped, and leaves what changed.",
        "not deleted": "Clear approval (or delete, if it had begun) in this run.",
    }
    return f"{first}. {advice.get(bad[0]['state'], AGAIN + '.')}"


def _note(name: str, otherwise: Any) -> Any:
    try:
        return json.loads(run_async(receipts().objects.get(name)))
    except NotFound:
        return otherwise
