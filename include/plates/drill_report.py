"""What the receipt of a restore drill says: how each plate was found, what to do about it, and what a drill cannot see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from include.core.remedies import Cause, Problem, of_record
from include.core.text import format_bytes, pluralize
from include.plates.drill_plan import DrillPlan, DrillPlate

AGAIN = "plates that were looked at are looked at again, which changes nothing"
DAMAGED = (
    "This archive cannot be given back as it is. Do not run plate_backup over it, and let no life cycle rule remove old "
    "versions. On a versioned bucket look for an older version of the tarball or manifest that is named "
    "(`aws s3api list-object-versions`) and copy it back; where the source is still there, move the damaged tarball away and "
    "archive the plate anew. Then trigger plate_drill with the same seed."
)
MISSING = (
    "Something that was archived is not where it was. If it was moved on purpose, run `python -m include.plates index "
    "--rebuild`, and remove what is left beside it; otherwise look for it among the old versions of the bucket."
)


def item_of(plate: DrillPlate, record: Mapping[str, Any], *, dry: bool) -> tuple[dict[str, Any], Problem | None]:
    """The row of a plate that was drawn, and what of it is not as it should be."""
    item: dict[str, Any] = {
        "plate": plate.name,
        "state": "not looked at",
        "why": "",
        "tarballs": len(plate.tarballs),
        "planned_bytes": plate.read_bytes,
        "read_bytes": record.get("read_bytes", 0),
    }
    if plate.left_out:
        return {**item, "why": plate.left_out}, None
    if dry:
        return {**item, "state": "planned", "why": "a dry run"}, None
    state = str(record.get("state", ""))
    if "document" not in record:
        problem = of_record(record, "drill", item=plate.name)
        return {**item, "why": problem.why}, problem
    item |= {"state": state, "why": record["why"], "document": record["document"]}
    if state != "damaged":
        return item, None
    return item, Problem(Cause.MISMATCH, str(record["why"]), plate.name, "drill", advice=DAMAGED)


def listing_problems(plan: DrillPlan) -> list[Problem]:
    """What the listing shows of all plates, also of those that were not drawn."""
    return [Problem(Cause.NOT_FOUND, line, advice=MISSING) for line in plan.faults]


def outcome_of(plan: DrillPlan, items: list[dict[str, Any]], *, dry: bool) -> str:
    """What came true, and how likely a damaged plate was met."""
    drawn = f"{pluralize(len(items), 'plate')} of {plan.plates_there} drawn by seed {plan.seed}"
    if dry:
        size = format_bytes(sum(cost["read_bytes"] for cost in plan.cost().values()))
        return f"Dry run, nothing was read: {drawn}, {size} to read."
    counts: dict[str, int] = {}
    for item in items:
        counts[item["state"]] = counts.get(item["state"], 0) + 1
    found = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing to look at"
    seen = (
        f" If one plate of all were damaged, this drill met it with a probability of {plan.chance():.1%}."
        if items
        else ""
    )
    faults = f" The listing shows {pluralize(len(plan.faults), 'fault')} besides." if plan.faults else ""
    return f"{drawn}: {found}.{faults}{seen}"


def totals(plan: DrillPlan, items: list[dict[str, Any]]) -> dict[str, int | float]:
    cost = plan.cost().values()
    return {
        "plates": plan.plates_there,
        "plates drawn": len(items),
        "plates sound": sum(item["state"] == "sound" for item in items),
        "tarballs": sum(item["tarballs"] for item in items),
        "planned bytes": sum(one["read_bytes"] for one in cost),
        "planned requests": sum(one["requests"] for one in cost),
        "read bytes": sum(item["read_bytes"] for item in items),
    }
