"""The plan of all that is open, by what MongoDB and the ledger know, and how it is told.

Invariant: what may have been accepted counts against the window, also while it is in doubt.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from include.jgi.models import FileState
from include.jgi.bound import Accepted
from include.jgi.planner import Plan, plan
from include.jgi.restoring import KIND, SYSTEM, Restoring

UNPLANNED = tuple(
    state for state in FileState if state not in (FileState.QUEUED, FileState.ON_DISK, FileState.REQUESTING)
)


def planned(restoring: Restoring) -> Plan:
    """What would be asked for from now on, of all projects."""
    ledger, account = restoring.ledger, restoring.account
    reading = ledger.quota_reading(SYSTEM, KIND, account.quota, account=account.name)
    accepted = [Accepted(free_at - account.limits.span_seconds, size) for free_at, size in reading.frees]
    files = list(restoring.tracking.files(states=UNPLANNED))
    return plan(files, accepted, ledger.now(), account.limits)


def iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


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
    """The file that has waited longest, and when it will be asked for."""
    waiting = [
        (file.waiting_since, file, request.send_at)
        for request in found.requests
        for file in request.files
        if file.waiting_since is not None
    ]
    if not waiting:
        return None
    since, file, at = min(waiting, key=lambda one: (one[0], one[1].jdp_file_id))
    return {"jdp_file_id": file.jdp_file_id, "waiting_since": since.isoformat(), "send_at": iso(at)}
