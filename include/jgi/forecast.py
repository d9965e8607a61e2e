"""The plan of all that is open, by what MongoDB and the ledger know, and its JSON form.

Invariant: what may have been accepted counts against the window, also while it is in doubt.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from include.jgi.bound import Accepted
from include.jgi.models import FileState, Limits
from include.jgi.planner import DONE, NotPlanned, Plan, plan
from include.jgi.restoring import KIND, SYSTEM, Restoring
from include.jgi.tracking import CLAIMABLE, Tracking

ASKED_FOR = (FileState.REQUESTING, FileState.QUEUED)


def planned(restoring: Restoring, project: str = "") -> Plan:
    """What would be asked for from now on, of this project, or ("") of all. Files that are settled at each destination are DONE;
    what no window can hold is marked OVERSIZE."""
    ledger, account, tracking = restoring.ledger, restoring.account, restoring.tracking
    reading = ledger.quota_reading(SYSTEM, KIND, account.quota, account=account.name)
    accepted = [Accepted(free_at - account.limits.span_seconds, size) for free_at, size in reading.frees]
    _let_in(tracking, account.limits)
    settled: dict[str, bool] = {}
    for one in tracking.placements(project=project or None):
        settled[one.jdp_file_id] = one.settled and settled.get(one.jdp_file_id, True)
    files, done = [], []
    for file in tracking.files(project=project or None):
        if settled.get(file.jdp_file_id, False) and file.state not in ASKED_FOR:
            done.append(NotPlanned(file, DONE, "it is moved, and nothing more is to be done for it"))
        else:
            files.append(file)
    found = plan(files, accepted, ledger.now(), account.limits)
    too_large = [one for one in found.not_planned if one.state == FileState.OVERSIZE]
    for why in {one.why for one in too_large}:
        ids = [one.file.jdp_file_id for one in too_large if one.why == why]
        tracking.move_files(ids, CLAIMABLE, FileState.OVERSIZE, why)
    return replace(found, not_planned=(*found.not_planned, *done))


def _let_in(tracking: Tracking, limits: Limits) -> None:
    """Files that were larger than the window, and are not any more, since the connection says so."""
    too_large = tracking.files(states=(FileState.OVERSIZE,))
    ids = [file.jdp_file_id for file in too_large if file.size_bytes <= limits.window_bytes]
    tracking.move_files(ids, FileState.OVERSIZE, FileState.PLANNED, "it fits into the window now")


def iso(at: float | None) -> str | None:
    """In UTC, to the microsecond: an instant that is cut could lie before its window is free."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def forecast(found: Plan, now: float) -> dict[str, Any]:
    """The plan as JSON, times in ISO 8601."""
    projects: defaultdict[str, dict[str, Any]] = defaultdict(lambda: {"files": 0, "bytes": 0, "last_send_at": None})
    for request in found.requests:
        for file in request.files:
            project = projects[file.project]
            project["files"] += 1
            project["bytes"] += file.size_bytes
            project["last_send_at"] = iso(request.send_at)
    window = found.window
    return {
        "now": iso(now),
        "window": {
            "limit_bytes": window.limit_bytes,
            "limit_ids": window.limit_ids,
            "seconds": window.seconds,
            "used_bytes": window.used_bytes,
            "free_bytes": window.free_bytes,
            "next_free_at": iso(window.next_free_at),
        },
        "requests": [
            {"send_at": iso(one.send_at), "bytes": one.size_bytes, "ids": [file.jdp_file_id for file in one.files]}
            for one in found.requests
        ],
        "not_planned": [
            {"jdp_file_id": one.file.jdp_file_id, "state": one.state, "why": one.why} for one in found.not_planned
        ],
        "days": found.days,
        "lower_bound_days": found.lower_bound_days,
        "projects": dict(projects),
        "oldest_unserved": _oldest(found),
    }


def _oldest(found: Plan) -> dict[str, Any] | None:
    """The file that has waited longest, and when it will be asked for; of those of which that is not known, the last one."""
    never = datetime.max.replace(tzinfo=UTC)
    first = min(
        ((file.waiting_since or never, -one.send_at, file.jdp_file_id) for one in found.requests for file in one.files),
        default=None,
    )
    if first is None:
        return None
    since = None if first[0] == never else first[0].isoformat()
    return {"jdp_file_id": first[2], "waiting_since": since, "send_at": iso(-first[1])}
