"""What the receipt of a staging run says: by project, what is verified, what is open and goes on by itself, and what a person
must look at.

Invariant: a run is red only where somebody has to do something; what the next run does by itself is handed on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from include.core.remedies import Cause, Problem
from include.core.text import few, format_bytes, pluralize
from include.jgi.documents import TrackedRequest
from include.jgi.models import FileState, PlacementState, Project
from include.jgi.restoring import NOT_READY, OPEN_REQUESTS
from include.jgi.tracking import Tracking

AGAIN = "it goes on with what is open"
SLOW_SECONDS = 2 * 86_400.0  # a restore request that has waited longer for its tapes is named
SHOWN = 3
IN_DOCUMENTS = "all stand in MongoDB with their reasons"
NEEDS_A_PERSON = {
    FileState.HELD: "Look at these files at JDP; to ask for them again set their state to PLANNED and their attempts to 0 in "
    "MongoDB.",
    FileState.OVERSIZE: "They are larger than the whole window: arrange it with JGI, then raise window_bytes of connection "
    "waybill_jdp.",
    FileState.REJECTED: "JDP refuses them: see the reason, and ask JGI; to ask for them again set their state to PLANNED in "
    "MongoDB.",
    FileState.LOST: "JDP does not list them any more: ask JGI.",
}
NEEDS_A_LOOK = {
    PlacementState.MISMATCH: "They arrived with another md5 than the manifest's. The next run moves them again; if they stay "
    "wrong, ask JGI to look at its copies.",
    PlacementState.UNVERIFIABLE: "Nothing could prove their md5: give connection waybill_globus the extra mount, or compare them "
    "by hand and set their state to VERIFIED in MongoDB.",
}


@dataclass(frozen=True)
class Report:
    """Rows for people: `projects`, with what is where; `requests`, the open restore requests."""

    projects: Sequence[dict[str, Any]] = ()
    requests: Sequence[dict[str, Any]] = ()
    problems: list[Problem] = field(default_factory=list)
    slow: Sequence[str] = ()

    @classmethod
    def of(cls, tracking: Tracking, now: datetime | None = None) -> Report:
        """By MongoDB as it is."""
        now = now or datetime.now(UTC)
        projects = tracking.projects()
        rows = [project_row(project, tracking) for project in projects]
        problems = [
            problem for project, row in zip(projects, rows, strict=True) for problem in _of(project, row, tracking)
        ]
        open_ones = tracking.requests(OPEN_REQUESTS)
        slow = [one for one in open_ones if one.state in NOT_READY and _waited(one, now) >= SLOW_SECONDS]
        told = [f"restore request {one.request_id} for {_waited(one, now) / 86_400:.0f} days" for one in slow]
        return cls(rows, [request_row(one) for one in open_ones], problems, told)

    @property
    def still_to_come(self) -> int:
        """How many files are on their way, or wait for their turn."""
        names = ("waiting", "batched", "submitted", "arrived")
        held = sum(int(row.get(str(state).lower(), 0)) for row in self.projects for state in NEEDS_A_PERSON)
        rest = sum(int(row.get(f"placements {name}", 0)) for row in self.projects for name in names)
        return max(0, rest - held)

    @property
    def totals(self) -> dict[str, int | float]:
        names = {"files": "placements", "verified": "placements verified", "verified bytes": "verified bytes"}
        sums = {name: sum(int(row.get(column, 0)) for row in self.projects) for name, column in names.items()}
        return {"projects": len(self.projects), **sums}

    def outcome(self, forecast: Mapping[str, Any] | None, in_doubt: Collection[str] = ()) -> str:
        """The first sentences of the receipt."""
        totals, rest = self.totals, self.still_to_come
        size, count = format_bytes(totals["verified bytes"]), pluralize(int(totals["verified"]), "file")
        said = f"{count} ({size}) of {pluralize(len(self.projects), 'project')} are staged and verified."
        if rest:
            said += f" {pluralize(rest, 'file')} {'are' if rest > 1 else 'is'} still to come."
        if forecast and forecast["requests"]:
            last = max(one["send_at"] for one in forecast["requests"])
            said += f" The last will be asked for by {last[:16]} ({pluralize(forecast['days'], 'day')} from now)."
        if self.slow:
            said += f" Tapes are slow: {few(self.slow, SHOWN)}; they are watched, and not asked for twice."
        if in_doubt:
            said += f" {pluralize(len(in_doubt), 'restore request')} may or may not have been accepted: the next run looks again."
        return said


def project_row(project: Project, tracking: Tracking) -> dict[str, Any]:
    """Files and bytes of a project by where they stand."""
    counts = tracking.counts(project.name)
    total = [counts.get(str(state), (0, 0)) for state in FileState if state != FileState.FILTERED]
    row: dict[str, Any] = {"project": project.name}
    row["files"], row["bytes"] = sum(count for count, _ in total), sum(size for _, size in total)
    row["placements"] = sum(counts.get(f"placed {place}", (0, 0))[0] for place in PlacementState)
    for state in FileState:
        row |= _counted(str(state).lower(), counts.get(str(state)))
    for place in PlacementState:
        row |= _counted(f"placements {str(place).lower()}", counts.get(f"placed {place}"))
    row["verified bytes"] = counts.get(f"placed {PlacementState.VERIFIED}", (0, 0))[1]
    return row


def _counted(name: str, found: tuple[int, int] | None) -> dict[str, int]:
    return {name: found[0]} if found else {}


def request_row(request: TrackedRequest) -> dict[str, Any]:
    """An open restore request."""
    sent = request.sent_at.isoformat(timespec="minutes") if request.sent_at else ""
    return {
        "restore request": request.request_id or request.key,
        "state": str(request.state),
        "sent": sent,
        "its files": request.ids,
        "its bytes": request.size_bytes,
        "its projects": request.project,
    }


def _waited(request: TrackedRequest, now: datetime) -> float:
    return (now - request.sent_at).total_seconds() if request.sent_at else 0.0


def _of(project: Project, row: Mapping[str, Any], tracking: Tracking) -> list[Problem]:
    """What a person must look at in a project."""
    found = []
    for state, advice in NEEDS_A_PERSON.items():
        if row.get(str(state).lower()):
            files = tracking.files(project=project.name, states=(state,))
            lines = [f"{one.file_name} ({one.jdp_file_id}: {one.why})" for one in files]
            found.append(_problem(project, str(state), lines, advice))
    for place, advice in NEEDS_A_LOOK.items():
        if row.get(f"placements {str(place).lower()}"):
            placed = tracking.placements(project=project.name, states=(place,))
            found.append(_problem(project, str(place), [f"{one.destination} ({one.why})" for one in placed], advice))
    return found


def _problem(project: Project, state: str, lines: Sequence[str], advice: str) -> Problem:
    cause = Cause.UNVERIFIABLE if state == PlacementState.UNVERIFIABLE else Cause.MISMATCH
    why = f"{pluralize(len(lines), 'file')} {state}: {few(lines, SHOWN, IN_DOCUMENTS)}"
    return Problem(cause, why, item=project.name, advice=advice)
