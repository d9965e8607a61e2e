"""One look at all jobs of a run, by one listing: used by the trigger, and by a worker that waits itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from include.core.ledger import Ledger, State
from include.core.watch import Observation
from include.icav2.client import ICAv2Client
from include.icav2.models import Job, JobStatus
from include.icav2.rules import KIND, SYSTEM

CLOCK_SKEW_SECONDS = 3600.0  # how far ICA's clock and ours may be apart


def watched_jobs(ledger: Ledger, dag_id: str, run_id: str) -> dict[str, float]:
    """The ids of the jobs that this run waits for, with each one's time of creation on ICA's clock."""
    rows = [r for r in ledger.of_run(dag_id, run_id) if (r.system, r.kind, r.state) == (SYSTEM, KIND, State.SENT)]
    return {row.external_id: created_at(row.detail, row.sending_at) for row in rows if row.external_id}


def created_at(detail: Mapping[str, object], sending_at: float | None) -> float:
    """When a job was made on ICA's clock; where the answer was lost, an instant that is surely before."""
    known = detail.get("job_created")
    return float(known) if isinstance(known, int | float) else (sending_at or 0.0) - CLOCK_SKEW_SECONDS


@dataclass
class JobWatch:
    """Looks at jobs until a worker has something to do: a job to send again, a free slot to fill, or all have ended.

    `more_to_send`: copies wait for a slot (or a pass is cheap), so any job that ends is a reason to wake.
    `wake_on_failure`: whether somebody sends failed jobs again (a sensor never does).
    `warned`: unknown statuses that were reported already.
    """

    client: ICAv2Client
    jobs: Mapping[str, float]
    more_to_send: bool = False
    wake_on_failure: bool = True
    seen: dict[str, Job] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    async def observe(self) -> Observation:
        open_jobs = {job_id: created for job_id, created in self.jobs.items() if job_id not in self.seen}
        found = await self.client.statuses(open_jobs)
        # Once ended is ended: a late or reordered answer does not bring a job back to life.
        self.seen |= {job_id: job for job_id, job in found.items() if job.ended}
        passed = sum(1 for job in self.seen.values() if job.status == JobStatus.SUCCEEDED)
        failed = len(self.seen) - passed
        running = len(self.jobs) - len(self.seen)
        counts = {"jobs passed": passed, "running": running, "failed": failed}
        odd = {job.status: job.id for job in found.values() if not job.known and job.status not in self.warned}
        self.warned.update(odd)
        warnings = tuple(
            f"job {job_id} is {status}, a status that Waybill does not know: such jobs count as running"
            for status, job_id in odd.items()
        )
        return Observation(counts, self._wake(running, failed), warnings)

    def _wake(self, running: int, failed: int) -> str | None:
        if not self.jobs:
            return None  # waiting for an instant, not for a job
        if running == 0:
            return "all jobs have ended"
        if failed and self.wake_on_failure:
            return f"{failed} jobs have failed"
        if self.more_to_send and self.seen:
            return f"{len(self.seen)} jobs have ended"
        return None
