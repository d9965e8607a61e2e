"""Jobs whose answer was lost: how ICA is searched for them.

The thing to know before changing it: ICA takes no key of ours, and does not say who may see which job
(docs/protocols/icav2.md 2.3, 5.2, 5.4). So a search can
find, but never prove absence; a job that stays unfound is superseded, which is harmless, since a copy with SKIP leaves
what is there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from include.core.concurrency import map_by_key
from include.core.errors import AuthError, Forbidden, TransientError, WaybillError
from include.core.ledger import DuplicateSafe, Ledger, Probe, RemoteSearch, State, Submission
from include.icav2.client import ICAv2Client
from include.icav2.models import Destination, Job
from include.icav2.rules import KIND, SYSTEM, CopySettings
from include.icav2.watch import CLOCK_SKEW_SECONDS

log = logging.getLogger(__name__)
SKIP_DOES_NO_HARM = "a second copy with SKIP does no harm: it leaves what is there"
CLOCK_DOUBT_SECONDS = 300.0  # how wrong the comparison of two clocks by the Date header may be


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
        found = await self._matches(destination, row)
        # Earlier attempts whose answers were lost too may come to light now: the oldest jobs are theirs.
        rows = self.ledger.generations(SYSTEM, KIND, destination.key)
        twins = [r for r in lost(rows) if r.id < row.id and r.payload_sha256 == row.payload_sha256]
        for twin in twins[: max(0, len(found) - 1)]:
            self.ledger.record_sent(twin, found.pop(0), why="found with a later one")
        remote_now = self.client.http.remote_now or self.ledger.now()
        return RemoteSearch(tuple(found), complete=True, remote_now=remote_now)

    async def find(self, destination: Destination, rows: Sequence[Submission]) -> bool:
        """Looks once more for superseded jobs that were never found, and writes down what has come to light."""
        any_found = False
        for row in lost(rows):
            found = await self._matches(destination, row)
            if found:
                self.ledger.record_sent(row, found[0], why="found later")
                any_found = True
        return any_found

    async def _matches(self, destination: Destination, row: Submission) -> list[str]:
        """Jobs that no row has, whose batch has exactly the folder and the items of this row; oldest first."""
        jobs = await self.client.jobs_since(self._not_before(row))
        known = self.ledger.known(SYSTEM, KIND, [job.id for job in jobs])
        strangers = [job for job in jobs if job.id not in known and job.subject_id]
        same = await map_by_key(strangers, lambda job: self._is_same(destination, row, job))
        found = sorted((job for job in strangers if same[job]), key=lambda job: job.created)
        return [job.id for job in found]

    def _not_before(self, row: Submission) -> float:
        """An instant on ICA's clock before which the job of this row cannot have been made."""
        sending_at, remote_now = row.sending_at or row.reserved_at, self.client.http.remote_now
        if remote_now is None:
            return sending_at - CLOCK_SKEW_SECONDS
        return sending_at + (remote_now - self.ledger.now()) - CLOCK_DOUBT_SECONDS

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


def lost(rows: Sequence[Submission]) -> list[Submission]:
    """Superseded submissions of which it is not known whether a job exists; oldest first."""
    return [row for row in rows if row.state == State.SUPERSEDED and not row.external_id]
