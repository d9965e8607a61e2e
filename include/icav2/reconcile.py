"""What has happened at a destination since somebody last looked: jobs that ended, lost answers, jobs that are stuck.

Invariant: a job's status says when to look, the destination says what is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from include.core.effects import Phase, Standing
from include.core.errors import Held, NotFound
from include.core.ledger import State, Submission
from include.core.ledger.submit import held_message
from include.icav2 import rules
from include.icav2.client import BatchItem
from include.icav2.context import CopyContext, ids_of
from include.icav2.job_search import SKIP_DOES_NO_HARM
from include.icav2.models import Destination, Job, JobStatus
from include.icav2.rules import CopyStanding
from include.icav2.verify import incomplete


@dataclass(frozen=True)
class Reconciler:
    """Closes what has ended, for one destination at a time. `now`: the ledger's time at the start of the pass."""

    context: CopyContext
    now: float

    async def reconcile(
        self, destination: Destination, rows: list[Submission], jobs: Mapping[str, Job]
    ) -> CopyStanding | None:
        """The standing of a destination. None: nothing is open there, so see what is missing."""
        await self._note_ends(destination, rows, jobs)
        row = rows[-1] if rows else None
        if row is not None and row.state in (State.SENDING, State.IN_DOUBT):
            if self.context.may_live(row, self.now):
                until = rules.clock(row.accept_deadline or self.now)
                why = f"a worker of run {row.owner.run_id} is sending to this folder, or was lost while it did; until {until}"
                return Standing(destination, Phase.WAITING, why, look_again_at=row.accept_deadline)
            row = await self.context.find_out(row, self.context.probe(destination))
            if row.state == State.SENT:  # just found: look at it with the next listing
                return Standing(destination, Phase.RUNNING, "found again", row.external_id, self.now)
        if row is not None and row.state == State.HELD:
            raise Held(held_message(row))
        if row is None or row.state != State.SENT:
            if not destination.items or rules.complete_before(rows, self.context.owner, destination):
                return Standing(destination, Phase.PASSED, job_id=rows[-1].external_id if rows else None)
            return None
        if not row.belongs_to(self.context.owner):
            row = self.context.ledger.attach(row, self.context.owner)
        job = jobs.get(str(row.external_id))
        if job is not None and job.ended:
            return await self._conclude(destination, rows, row, job)
        left = self._time_left(row, job)
        if left > 0:
            why = job.status if job else "not listed"
            return Standing(destination, Phase.RUNNING, why, row.external_id, self.now + left)
        return await self._stuck(destination, rows, row)

    def _time_left(self, row: Submission, job: Job | None) -> float:
        """Seconds until a job counts as stuck: by ICA's own clock where it is known, since a host's may have been set."""
        remote_now, settings = self.context.client.http.remote_now, self.context.settings
        if remote_now is None:
            return self.context.stuck_at(row) - self.now
        if job is not None:
            return job.created + settings.job_timeout_seconds - remote_now
        return self._made_at(row, remote_now) + max(settings.job_timeout_seconds, settings.doubt_seconds) - remote_now

    def _made_at(self, row: Submission, remote_now: float) -> float:
        """When a job that is not listed was made, by ICA's clock: as its answer said, or else at the latest when it was missed
        first."""
        for fact in ("job_created", "missed_at"):
            known = row.detail.get(fact)
            if isinstance(known, int | float):
                return float(known)
        self.context.ledger.annotate(row, {"missed_at": remote_now}, why="not listed")
        return remote_now

    async def _note_ends(self, destination: Destination, rows: list[Submission], jobs: Mapping[str, Job]) -> None:
        """A superseded job that has ended writes no more: from now on what it left may be cleaned up. One that ICA does not
        know any more, or shows as running for days, is taken to have ended: else its folder would be closed for ever."""
        for row in [row for row in rows if rules.not_seen_to_end(row)]:
            job = jobs.get(row.external_id or "")
            if job is not None and job.ended:
                facts = self._facts(row, job, await self._items(destination, row, job))
                self.context.ledger.annotate(row, facts, why=f"the superseded job has ended {job.status}")
                continue
            gone = job is None and self._given_up_for(row) > self.context.settings.doubt_seconds
            if gone or self.now > rules.may_write_until(row, self.now, self.context.settings):
                why = "ICA does not know the superseded job" if gone else "the superseded job has run for days"
                last = {"job_finished": row.closed_at if gone else self.now, "taken_to_have_ended": True}
                self.context.ledger.annotate(row, last, why=f"{why}: it is taken to have ended")

    def _given_up_for(self, row: Submission) -> float:
        """For how many seconds it has been superseded: by ICA's clock where it is known."""
        remote_now, since = self.context.client.http.remote_now, row.detail.get("given_up_at")
        if remote_now is not None and isinstance(since, int | float):
            return remote_now - since
        return self.now - (row.closed_at or self.now)

    async def _items(self, destination: Destination, row: Submission, job: Job) -> list[BatchItem]:
        """What the batch of a job says of its items; nothing where it is hidden."""
        try:
            return await self.context.client.batch_items(destination.project_id, _batch_id(row, job))
        except NotFound:
            return []

    def _facts(self, row: Submission, job: Job, items: Sequence[BatchItem]) -> dict[str, Any]:
        """What is kept of a job that has ended, and of what its batch says."""
        failed = {item.data_id: item.message for item in items if item.status != "COPIED"}
        return {
            "batch_id": _batch_id(row, job),
            "job_created": job.created,
            "job_finished": job.finished or self.context.client.http.remote_now or self.context.ledger.now(),
            "job_status": job.status,
            "created_ids": sorted(item.created_id for item in items if item.created_id),
            "item_reasons": rules.item_reasons(row.detail.get("data_ids", []), failed, job.message),
        }

    async def _conclude(
        self, destination: Destination, rows: list[Submission], row: Submission, job: Job
    ) -> CopyStanding | None:
        """A job has ended: what it made is looked at, and only that decides.

        Only of files that this plan does not hold (another run's, adopted) the job's own word is taken; that run looks
        for itself.
        """
        proofs = await self.context.proofs(destination, rows, allow_listing_lag=job.status == JobStatus.SUCCEEDED)
        missing = ids_of(incomplete(destination, proofs))
        theirs = set(row.detail.get("data_ids", []))
        foreign = theirs - ids_of(destination.items)
        items = await self._items(destination, row, job) if theirs & missing else []
        made = [item.created_id for item in items if item.created_id and item.data_id in missing]
        if made:
            missing = ids_of(incomplete(destination, await self.context.proofs(destination, rows, made)))
        done = not theirs & missing and (not foreign or job.status == JobStatus.SUCCEEDED)
        facts = self._facts(row, job, items)
        if not missing:
            facts["complete_for"] = rules.digest_of(destination)
        why = f"job {job.status}, {'all' if done else 'not all'} of its files proved"
        self.context.ledger.move(row, State.DONE if done else State.FAILED, why=why, detail=facts)
        return None if missing else Standing(destination, Phase.PASSED, job_id=row.external_id)

    async def _stuck(self, destination: Destination, rows: list[Submission], row: Submission) -> CopyStanding | None:
        """A job runs too long and cannot be cancelled: prove what is there; if that is not all, one more generation."""
        missing = ids_of(incomplete(destination, await self.context.proofs(destination, rows)))
        proved = set(row.detail.get("data_ids", [])) <= ids_of(destination.items) - missing
        if proved:
            facts = {} if missing else {"complete_for": rules.digest_of(destination)}
            self.context.ledger.move(row, State.DONE, why="still listed as running, all its files proved", detail=facts)
        if not missing:
            return Standing(destination, Phase.PASSED, job_id=row.external_id)
        if proved:
            return None
        minutes = self.context.settings.job_timeout_seconds / 60
        if rules.gave_up_waiting(rows, self.context.owner):
            why = f"job {row.external_id} too has not ended after {minutes:g} min; the next run adopts it"
            return Standing(destination, Phase.FAILED, why, row.external_id)
        why = f"stuck for {minutes:g} min; {SKIP_DOES_NO_HARM}"
        given_up = {"stuck": True, "given_up_at": self.context.client.http.remote_now}
        self.context.ledger.move(row, State.SUPERSEDED, why=why, detail=given_up)
        return None


def _batch_id(row: Submission, job: Job) -> str:
    return str(row.detail.get("batch_id") or job.subject_id)
