"""The summary of a run on plates: how each plate ended and why, totals, outcome, remedy."""

from __future__ import annotations

from typing import Any

from include.core.text import format_bytes

STEPS = ("archive", "verify", "delete", "purge")  # of one plate, in order
AGAIN = "Trigger the DAG again with the same conf: finished parts and plates are recognised"


_KEPT_FINE = ("verified", "rejected", "planned")


_GONE = ("deleted", "marked")


def approval_summary(approval: dict[str, Any]) -> dict[str, Any]:
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


def standing(
    row: dict[str, Any], steps: dict[str, dict[str, Any]], request: dict[str, Any], approval: dict[str, Any]
) -> tuple[str, str]:
    """How a plate ended, in a word, and why."""
    if row["problems"]:
        return "not planned", "; ".join(row["problems"])
    if request.get("dry_run"):
        return "planned", f"{row['objects']} objects, {format_bytes(row['bytes'])}, would be archived"
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
        more = f"; {len(unknown)} newer objects were kept: {', '.join(unknown[:5])}" if unknown else ""
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
        return f"Dry run, nothing was written: {fit} of {len(items)} plates ({format_bytes(figures['bytes'])}) can be archived."
    sentence = (
        f"{figures['plates verified']} of {len(items)} plates are archived and verified "
        f"({format_bytes(figures['proved bytes'])}), read back byte for byte"
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
