"""What the receipt of a staging run says: by project, what is verified, what is open and goes on by itself, and what a person
must look at.

Invariant: a run is red only where somebody has to do something; what the next run does by itself is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from include.core.remedies import Cause, Problem
from include.core.text import format_bytes, pluralize
from include.jgi.models import FileState, PlacementState, Project
from include.jgi.tracking import Tracking

AGAIN = "it goes on with what is open"
NEEDS_A_PERSON = {
    FileState.HELD: "look at these files at JDP; to ask for them again set their state to PLANNED in MongoDB",
    FileState.OVERSIZE: "they are larger than the whole window: arrange it with JGI, then raise window_bytes of "
    "connection waybill_jdp",
    FileState.REJECTED: "JDP refuses them: look at the reason in MongoDB",
    FileState.LOST: "JDP does not list them any more: ask JGI",
}
NEEDS_A_LOOK = {
    PlacementState.MISMATCH: "they arrived with another md5 than the manifest's. The next run moves them again; if they stay "
    "wrong, ask JGI",
    PlacementState.UNVERIFIABLE: "nothing could prove their md5: give connection waybill_globus the extra mount, or compare "
    "them by hand",
}


def item_of(project: Project, tracking: Tracking) -> dict[str, Any]:
    """One row per project: files and bytes by where they stand."""
    counts = tracking.counts(project.name)
    row: dict[str, Any] = {"project": project.name}
    total = [counts.get(str(state), (0, 0)) for state in FileState if state != FileState.FILTERED]
    row["files"], row["bytes"] = sum(count for count, _ in total), sum(size for _, size in total)
    for state in FileState:
        count, _ = counts.get(str(state), (0, 0))
        if count:
            row[str(state).lower()] = count
    for place in PlacementState:
        count, _ = counts.get(f"placed {place}", (0, 0))
        if count:
            row[f"placements {str(place).lower()}"] = count
    row["verified_bytes"] = counts.get(f"placed {PlacementState.VERIFIED}", (0, 0))[1]
    return row


def problems_of(items: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """What a person must look at, by project."""
    found = []
    for item in items:
        name = str(item["project"])
        for state, advice in NEEDS_A_PERSON.items():
            count = item.get(str(state).lower(), 0)
            if count:
                why = f"{pluralize(count, 'file')} {state}"
                found.append(Problem(Cause.MISMATCH, why, item=name, advice=f"{advice[0].upper()}{advice[1:]}."))
        for place, advice in NEEDS_A_LOOK.items():
            count = item.get(f"placements {str(place).lower()}", 0)
            if count:
                why = f"{pluralize(count, 'file')} {place}"
                found.append(Problem(Cause.MISMATCH, why, item=name, advice=f"{advice[0].upper()}{advice[1:]}."))
    return found


def open_placements(items: Sequence[Mapping[str, Any]]) -> int:
    """How many are on their way, or wait for their turn."""
    names = ("waiting", "batched", "submitted", "arrived")
    return sum(int(item.get(f"placements {name}", 0)) for item in items for name in names)


def outcome_of(items: Sequence[Mapping[str, Any]], forecast: Mapping[str, Any] | None) -> str:
    """The first sentence of the receipt."""
    verified = sum(int(item.get("placements verified", 0)) for item in items)
    size = sum(int(item["verified_bytes"]) for item in items)
    rest = open_placements(items)
    said = f"{pluralize(verified, 'file')} ({format_bytes(size)}) of {pluralize(len(items), 'project')} are staged and verified."
    if rest:
        said += f" {pluralize(rest, 'file')} {'are' if rest > 1 else 'is'} still to come."
    if forecast and forecast["days"]:
        last = max(one["send_at"] for one in forecast["requests"])
        said += f" The last will be asked for by {last[:16]} ({pluralize(forecast['days'], 'day')} from now)."
    return said
