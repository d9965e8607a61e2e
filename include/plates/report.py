"""The summary of a run on plates: how each plate ended, why, and what to do about it; totals and outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from include.core.questions import Record
from include.core.remedies import Cause, Problem, of_record
from include.core.text import few, format_bytes, pluralize
from include.plates.models import Level
from include.s3.rights import right_for

STEPS = ("archive", "verify", "delete", "purge")  # of one plate, in order
DELETION_BEGUN = "deletion begun"
OLDER_VERSIONS = (
    "older_versions"  # state of a deletion that was not begun, since it says nothing of the older versions there
)
AGAIN = "finished parts and plates are recognised"
ANEW = (
    "Keep both copies and find out which one is right. To archive what is there now, move the tarballs of this plate away "
    "and trigger the DAG for this plate alone: it is proved, and asked about, anew."
)
HIDE_OR_DELETE = (
    "These versions came since the plan, which would have said so before anything was archived. Look at them (`aws s3api "
    "list-object-versions`), then trigger the DAG for this plate alone with older_versions keep_hidden (they stay, under delete "
    "markers) or delete (they are deleted too, and are in no tarball). The archive and its proof stand, and count again."
)
_IN_RECEIPT = "the rest is in the plate's row"

_OLDER_ENDS = {"keep_hidden": "would stay, under delete markers", "delete": "would be deleted too"}
_KEPT_FINE = ("verified", "rejected", "planned")
_GONE = ("deleted", "marked")


@dataclass(frozen=True)
class Standing:
    """How a plate ended, in a word, and why. `problem` is None where nobody has to do anything."""

    state: str
    why: str
    problem: Problem | None = None


def standing(
    row: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]], request: Mapping[str, Any], question: Record | None
) -> Standing:
    """How a plate ended, by its row of the plan, the records of its steps, and the question that was asked."""
    name = str(row["name"])
    if row["problems"]:
        why = few(row["problems"], 5, _IN_RECEIPT)
        advice = "Mend what is named (or take this plate out of the conf), then trigger the DAG for this plate alone."
        return Standing("not planned", why, Problem(Cause.REFUSED, why, name, advice=advice))
    if request.get("dry_run"):
        return Standing("planned", f"{row['objects']} objects, {format_bytes(row['bytes'])}, would be archived")
    archive, verify, delete = (steps[step] for step in STEPS[:3])
    if archive.get("state") != "done":
        problem = of_record(archive, "archive", item=name)
        return Standing("not archived", problem.why, problem)
    if verify.get("state") != "verified":
        return _not_verified(name, verify, request)
    if not request.get("delete_parts"):
        return Standing("verified", "nothing was to be deleted")
    if delete:
        return _deletion(name, delete, steps["purge"])
    return _not_deleted(name, verify, question)


def _not_verified(name: str, verify: Mapping[str, Any], request: Mapping[str, Any]) -> Standing:
    state, why = str(verify.get("state")), few(verify.get("reasons", ()), 5, _IN_RECEIPT)
    if state == "mismatch":
        return Standing(state, why, Problem(Cause.MISMATCH, why, name, "verify", advice=ANEW))
    if state == "unverifiable":
        return Standing(state, why, Problem(Cause.UNVERIFIABLE, why, name, "verify"))
    if state == DELETION_BEGUN:
        why = str(verify.get("why"))
        advice = how_to_undo(str(request.get("bucket")), float(request.get("undo_days") or 0))
        return Standing(state, why, Problem(Cause.CONFLICT, why, name, "verify", advice=advice))
    problem = of_record(verify, "verify", item=name)
    return Standing("not verified", problem.why, problem)


def how_to_undo(bucket: str, undo_days: float) -> str:
    """What a person can do about a deletion that has begun."""
    if not undo_days:
        return (
            "What is deleted already is in the tarballs: plate_restore gives it back. To delete the rest, trigger the DAG "
            "for what is left of this plate."
        )
    return (
        f"To undo it, remove the delete markers of this plate: `aws s3api list-object-versions --bucket {bucket} --prefix "
        f"FOLDER` lists them, `aws s3api delete-object --bucket {bucket} --key KEY --version-id MARKER` removes one, and the "
        "object is there again; then clear task verify. Left as it is, nothing more is deleted by this run, and the versions "
        "stay under their markers."
    )


def _deletion(name: str, delete: Mapping[str, Any], purge: Mapping[str, Any]) -> Standing:
    state = delete.get("state")
    if state == "void":
        return Standing(
            "approval void", delete["why"], Problem(Cause.VOID, delete["why"], name, "approval", advice=ANEW)
        )
    if state == OLDER_VERSIONS:
        problem = Problem(Cause.REFUSED, delete["why"], name, "approval", advice=HIDE_OR_DELETE)
        return Standing("not deleted", delete["why"], problem)
    if state == "left":
        return _left(name, delete)
    if state == "current_again":
        return _current_again(name, delete)
    if state != "done":
        problem = _unprotected(name, delete) or of_record(delete, "delete", item=name)
        return Standing("not deleted", problem.why, problem)
    unknown = delete["unknown"]
    more = f"; {len(unknown)} newer objects were kept: {few(unknown, 5, _IN_RECEIPT)}" if unknown else ""
    if delete["phase"] == "delete":
        return Standing("deleted", f"{delete['deleted']} objects {delete['guard']}{more}")
    return _purged(name, delete, purge, more)


def _left(name: str, delete: Mapping[str, Any]) -> Standing:
    changed, failed = delete["changed"], delete["failed"]
    why = f"{len(changed) + len(failed)} objects were left: {few([*changed, *failed], 5, _IN_RECEIPT)}"
    parts = []
    if changed:
        anew = "archive the plate again for them, with its tarballs moved away"
        parts.append(f"{len(changed)} were written anew since and are kept: {anew}.")
    if failed:
        parts.append(
            f"{len(failed)} were refused by the store: give the right {right_for('delete_objects')}, then clear task delete."
        )
    return Standing("partly deleted", why, Problem(Cause.MISMATCH, why, name, "delete", advice=" ".join(parts)))


def _current_again(name: str, delete: Mapping[str, Any]) -> Standing:
    back = delete["current_again"]
    why = f"{len(back)} deleted objects are current again, with old content: {few(back, 5, _IN_RECEIPT)}"
    left = [*delete["changed"], *delete["failed"]]
    why += f"; {len(left)} more were left: {few(left, 5, _IN_RECEIPT)}" if left else ""
    advice = (
        "Look at their versions (`aws s3api list-object-versions`), and hide each by a delete marker or delete it by hand. Do "
        "not use what is current now as if it were the plate: the tarballs hold the last content."
    )
    return Standing("current again", why, Problem(Cause.MISMATCH, why, name, "delete", advice=advice))


def _purged(name: str, delete: Mapping[str, Any], purge: Mapping[str, Any], more: str) -> Standing:
    marked, state = f"{delete['deleted']} objects marked as deleted{more}", purge.get("state")
    if state == "done":
        return Standing("deleted", f"{purge['deleted']} objects purged {purge['guard']}{more}")
    if state == "current_again":
        return _current_again(name, purge)
    if state not in ("void", "left", "failed", "refused"):
        return Standing("marked", f"{marked}; to be purged {purge.get('until', 'when the time to undo is over')}")
    why = f"{marked}; {purge.get('why', 'some could not be purged')}"
    if state == "void":
        advice = "Nothing, where somebody wants the objects back: the versions of the others stay under their markers."
        return Standing("not purged", why, Problem(Cause.VOID, why, name, "purge", advice=advice))
    if state == "left":
        left = _left(name, purge)
        why = f"{marked}; {left.why}"
        return Standing("not purged", why, left.problem and replace(left.problem, why=why))
    return Standing("not purged", why, _unprotected(name, purge) or of_record(purge, "purge", item=name))


def _unprotected(name: str, record: Mapping[str, Any]) -> Problem | None:
    """The retention that was demanded is not there: the one refusal that a step of a plate writes by itself."""
    if record.get("state") != "refused" or "problems" in record:
        return None
    advice = (
        "Protect the archive bucket as it was demanded, then clear task {}; or ask for another retention, knowingly."
    )
    task = str(record.get("task_id", "delete"))
    return Problem(Cause.REFUSED, str(record.get("why")), name, task, advice=advice.format(task))


def _not_deleted(name: str, verify: Mapping[str, Any], question: Record | None) -> Standing:
    """Why a verified plate is kept that was to be deleted, by the question that was asked, or was not."""
    if "verdict" not in verify:
        why = "it was verified by an earlier release, whose proof is not where it is looked for"
        return Standing("not deleted", why, Problem(Cause.LOST, why, name, "verify"))
    state = question.state if question else "not asked"
    if question is None or state == "not asked":
        why = "nobody was asked: the approval was not reached, or failed before it asked"
        return Standing("not deleted", why, Problem(Cause.LOST, why, name, "approval"))
    if state == "rejected":
        return Standing("rejected", f"{question.by} rejected the deletion")
    if state == "refused":
        return Standing("not deleted", question.why, Problem(Cause.VOID, question.why, name, question.task_id))
    who = question.who_can_answer
    if state == "asked":
        why = "nobody has answered yet"
        return Standing("awaits approval", why, Problem(Cause.UNANSWERED, why, name, question.task_id, question=who))
    if state == "expired":
        return Standing("not deleted", question.why, Problem(Cause.EXPIRED, question.why, name, question.task_id))
    if state == "answered":
        why = "the answer was not judged: the gate did not come to its end"
        return Standing("not deleted", why, Problem(Cause.LOST, why, name, "gate"))
    why = "it was approved, and the deletion was not reached"
    return Standing("not deleted", why, Problem(Cause.LOST, why, name, "delete"))


def is_good(state: str, request: Mapping[str, Any]) -> bool:
    """Whether a plate ended as asked."""
    wanted = bool(request.get("delete_parts")) and not request.get("dry_run")
    return state in _GONE or (state in _KEPT_FINE and (not wanted or state == "rejected"))


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
        "freed bytes": sum(item.get(step, {}).get("freed_bytes", 0) for item in items for step in ("delete", "purge")),
    }


def _how_proved(items: list[dict[str, Any]]) -> str:
    weak = sum(item.get("verify", {}).get("level") == Level.STORE_PROVED for item in items)
    if not weak:
        return "read back byte for byte"
    proved = sum(item.get("verify", {}).get("state") == "verified" for item in items)
    rest = "" if weak == proved else f", {proved - weak} of them read back byte for byte"
    return f"{weak if rest else 'all'} of them store-proved, not read back{rest}"


def outcome_of(items: list[dict[str, Any]], request: Mapping[str, Any], question: Record | None) -> str:
    """One sentence of what came true."""
    figures = totals(items)
    if request.get("dry_run"):
        fit = sum(item["state"] == "planned" for item in items)
        size = format_bytes(figures["bytes"])
        older = sum(item.get("older_versions", 0) for item in items)
        sentence = f"Dry run, nothing was written: {fit} of {pluralize(len(items), 'plate')} ({size}) can be archived"
        if older and request.get("older_versions") in _OLDER_ENDS:
            ends = _OLDER_ENDS[request["older_versions"]]
            sentence += f"; {pluralize(older, 'older version')} below the parts to delete {ends}"
        unfit = [item for item in items if item["state"] != "planned"]
        return f"{sentence}; {_first_reason(unfit)}." if unfit else f"{sentence}."
    if not figures["plates verified"]:
        return f"No plate is archived and verified: {_first_reason(items)}."
    plates = f"{pluralize(len(items), 'plate')} {'is' if len(items) == 1 else 'are'}"
    sentence = (
        f"{figures['plates verified']} of {plates} archived and verified "
        f"({format_bytes(figures['proved bytes'])}), {_how_proved(items)}"
    )
    bad = [item for item in items if item["state"] != "awaits approval" and not is_good(item["state"], request)]
    reason = f" Not as asked: {_first_reason(bad)}." if bad else ""
    if not request.get("delete_parts"):
        return f"{sentence}; nothing was to be deleted.{reason}"
    state = question.state if question else "not asked"
    if question is not None and state == "rejected":
        return f"{sentence}; {question.by} rejected the deletion, so all are kept.{reason}"
    by = f", approved by {question.by}" if question is not None and state == "approved" else ""
    parts = ", ".join(request["delete_parts"])
    bare = " The tarballs have no retention (none was asked for)." if request.get("retention") == "none" else ""
    count = f"{figures['objects deleted']} objects, {format_bytes(figures['deleted bytes'])}"
    return f"{sentence}; {parts} deleted of {figures['plates deleted']} of them ({count}){by}.{bare}{reason}"


def _first_reason(items: list[dict[str, Any]]) -> str:
    """What is the matter with the first plate, and how many others there are."""
    first, others = items[0], len(items) - 1
    more = f" ({pluralize(others, 'more plate')}: see the receipt)" if others else ""
    return f"plate {first['plate']} is {first['state']}: {first['why'].rstrip('.')}{more}"
