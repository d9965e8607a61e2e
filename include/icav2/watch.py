"""The watch over ICA's copy jobs, for the trigger and for a worker that waits itself: all of them by one listing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from include.core.ledger import Ledger, Owner
from include.core.watch import BulkWatch, Item, Wake, waited_for
from include.icav2.client import ICAv2Client
from include.icav2.models import Job, JobStatus
from include.icav2.rules import KIND, SYSTEM

CLOCK_SKEW_SECONDS = 3600.0  # how far ICA's clock and ours may be apart


def watched_jobs(ledger: Ledger, owner: Owner) -> dict[str, float]:
    """The ids of the jobs that this task waits for, with each one's time of creation on ICA's clock."""
    rows = waited_for(ledger, owner, SYSTEM)
    return {str(row.external_id): created_at(row.detail, row.sending_at) for row in rows if row.kind == KIND}


def created_at(detail: Mapping[str, object], sending_at: float | None) -> float:
    """When a job was made on ICA's clock; where the answer was lost, an instant that is surely before."""
    known = detail.get("job_created")
    return float(known) if isinstance(known, int | float) else (sending_at or 0.0) - CLOCK_SKEW_SECONDS


def job_watch(client: ICAv2Client, jobs: Mapping[str, float], wake: Wake, expected: int = 0) -> BulkWatch:
    """Looks at jobs, given each one's time of creation. `expected`: how many were seen at work."""

    async def look(ids: Collection[str]) -> dict[str, Item]:
        return {one: item(job) for one, job in (await client.statuses({one: jobs[one] for one in ids})).items()}

    return BulkWatch(jobs, look, wake, expected=expected)


def item(job: Job) -> Item:
    return Item(job.status, job.ended, job.status == JobStatus.SUCCEEDED, job.known)
