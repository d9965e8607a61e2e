"""Jobs whose answer was lost: how ICA is searched for them.

ICA takes no key of ours, and does not say who may see which job. A job that stays unfound is superseded, which is harmless,
since a copy with SKIP leaves what is there.

Invariant: nothing is sent again because a search found nothing. What is shown to be absent (`JobSearch.find`) is only no
longer waited for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from include.core.concurrency import map_by_key
from include.core.errors import AuthError, Forbidden, TransientError, WaybillError
from include.core.ledger import DuplicateSafe, Ledger, Probe, RemoteSearch, Submission
from include.icav2.client import ICAv2Client
from include.icav2.models import Destination, Job
from include.icav2.rules import KIND, LONGEST_JOB_SECONDS, SYSTEM, CopySettings, lost
from include.icav2.watch import CLOCK_SKEW_SECONDS

log = logging.getLogger(__name__)
SKIP_DOES_NO_HARM = "a second copy with SKIP does no harm: it leaves what is there"
CLOCK_ERROR_SECONDS = 300.0  # how wrong the comparison of two clocks by the Date header may be


@dataclass(frozen=True)
class JobSearch:
    """Finds copy jobs by what they are: the exact destination folder and the exact set of items."""

    client: ICAv2Client
    ledger: Ledger
    settings: CopySettings

    def probe(self, destination: Destination, verified: Callable[[Submission], Awaitable[bool]]) -> Probe:
        return Probe(
            search=lambda row: self._search(destination, row),
            visibility_window_seconds=self.settings.visibility_window_seconds,
            request_timeout_seconds=self.settings.request_timeout_seconds,
            proves_absence=False,
            harmless=DuplicateSafe(SKIP_DOES_NO_HARM, verified),
        )

    async def _search(self, destination: Destination, row: Submission) -> RemoteSearch:
        found = await self._matches(destination, row, await self._jobs_for(row))
        # Earlier attempts whose answers were lost too may come to light now: the oldest jobs are theirs.
        rows = self.ledger.generations(SYSTEM, KIND, destination.key)
        earlier = [r for r in lost(rows) if r.id < row.id and r.payload_sha256 == row.payload_sha256]
        for lost_row in earlier[: max(0, len(found) - 1)]:
            self.ledger.record_sent(lost_row, found.pop(0), why="found with a later one")
        remote_now = self.client.http.remote_now or self.ledger.now()
        return RemoteSearch(tuple(found), complete=True, remote_now=remote_now)

    async def find(self, destination: Destination, rows: Sequence[Submission]) -> bool:
        """Looks once more for superseded jobs that were never found, and writes down what has come to light, or what shows
        that there is none: such a one is not waited for any more."""
        any_found, oldest = False, self.ledger.now() - LONGEST_JOB_SECONDS
        for row in lost([row for row in rows if (row.closed_at or oldest) > oldest]):
            jobs = await self._jobs_for(row)
            found = await self._matches(destination, row, jobs)
            if found:
                self.ledger.record_sent(row, found[0], why="found later")
                any_found = True
            elif "absent" not in row.detail and (why := self._absence(row, jobs)):
                self.ledger.annotate(row, {"absent": why}, why=f"no job of it exists: {why}")
        return any_found

    def _absence(self, row: Submission, jobs: Sequence[Job]) -> str | None:
        """What shows, in a complete listing without it, that a superseded job does not exist: a job of ours that was made
        after the search for it had ended; or that this is the second time that it would have had to be visible."""
        closed_at = row.closed_at or self.ledger.now()
        # By ICA's clock it was given up when its first empty search was that long ago: a host's may have been set since.
        searched, remote_now = row.detail.get("first_empty_search"), self.client.http.remote_now
        given_up = float(searched["remote_now"]) + self.settings.doubt_seconds if searched else -math.inf
        decided = max(closed_at + self._clock_difference, given_up)
        later = [job.id for job in jobs if job.created > decided]
        if self.ledger.known(SYSTEM, KIND, later):
            return "a later job of ours is listed, and this one is not"
        waited = min(self.ledger.now() - closed_at, math.inf if remote_now is None else remote_now - given_up)
        return f"not listed {waited:.0f} s after it was given up" if waited >= self.settings.doubt_seconds else None

    async def _jobs_for(self, row: Submission) -> list[Job]:
        """All jobs among which the one of this row must be."""
        return await self.client.jobs_since(self._not_before(row))

    async def _matches(self, destination: Destination, row: Submission, jobs: Sequence[Job]) -> list[str]:
        """Jobs that no row has, whose batch has exactly the folder and the items of this row; oldest first."""
        known = self.ledger.known(SYSTEM, KIND, [job.id for job in jobs])
        unmanaged = [job for job in jobs if job.id not in known and job.subject_id]
        same = await map_by_key(unmanaged, lambda job: self._is_same(destination, row, job))
        found = sorted((job for job in unmanaged if same[job]), key=lambda job: job.created)
        return [job.id for job in found]

    def _not_before(self, row: Submission) -> float:
        """An instant on ICA's clock before which the job of this row cannot have been made."""
        sending_at = row.sending_at or row.reserved_at
        if self.client.http.remote_now is None:
            return sending_at - CLOCK_SKEW_SECONDS
        return sending_at + self._clock_difference - CLOCK_ERROR_SECONDS

    @property
    def _clock_difference(self) -> float:
        """How far ICA's clock is before ours, as its last answer said."""
        remote_now = self.client.http.remote_now
        return 0.0 if remote_now is None else remote_now - self.ledger.now()

    async def _is_same(self, destination: Destination, row: Submission, job: Job) -> bool:
        try:
            batch = await self.client.batch(destination.project_id, str(job.subject_id))
            if batch.folder_id != row.detail["folder_id"]:
                return False
            items = await self.client.batch_items(destination.project_id, batch.id)
        except Forbidden:
            return False
        except (AuthError, TransientError):
            raise
        except WaybillError:  # another project's, or not a copy batch at all
            return False
        return sorted(item.data_id for item in items) == sorted(row.detail["data_ids"])
