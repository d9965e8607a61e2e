"""The copy itself: one pass over all destinations settles what has ended, proves it, and sends what is still missing.

The thing to know before changing it: `act` may be called by anyone, at any time, twice at once, after any crash. It looks
(ledger, jobs, destination), then acts through the ledger; nothing is remembered between two calls. One open row per
destination keeps two runs off one folder: whoever finds a job there waits for it, then copies what it lacks itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from include.core.errors import (
    AuthError,
    ConflictingRequest,
    Doubtful,
    Forbidden,
    LedgerError,
    TransientError,
    WaybillError,
)
from include.core.ledger import Guard, HarmlessTwin, Intent, Ledger, Owner, Probe, State, Submission, Walk, submit_once
from include.core.ledger.submit import resolve
from include.core.watching import WatchPolicy, watch
from include.icav2 import rules
from include.icav2.client import ICAv2Client
from include.icav2.folders import Place, ensure_folders
from include.icav2.models import CopyPlan, Data, Destination, Item, Job, JobStatus, Proof, Verdict
from include.icav2.resolve import gather_by, look_at
from include.icav2.rules import FINAL, KIND, SYSTEM, CopySettings, Phase, Standing
from include.icav2.verify import incomplete, leftovers, prove
from include.icav2.watch import CLOCK_SKEW_SECONDS, JobWatch, created_at, watched_jobs

log = logging.getLogger(__name__)
LAUNCHES_AT_ONCE = 50
T = TypeVar("T")
SKIP_DOES_NO_HARM = "a second copy with SKIP does no harm: it leaves what is there"


@dataclass(frozen=True)
class Progress:
    """What one pass left behind."""

    standings: list[Standing]
    now: float

    @property
    def finished(self) -> bool:
        return all(s.phase in FINAL for s in self.standings)

    @property
    def counts(self) -> dict[str, int]:
        return {str(phase): sum(1 for s in self.standings if s.phase == phase) for phase in Phase}

    @property
    def look_again_at(self) -> float | None:
        """The earliest instant (ledger time) at which a worker is needed even if no job ends."""
        return min((s.look_again_at for s in self.standings if s.look_again_at is not None), default=None)

    @property
    def more_to_send(self) -> bool:
        return any(s.phase == Phase.WAITING for s in self.standings)


@dataclass
class CopyEngine:
    """Copies a plan on behalf of one run (`owner`). Collaborators are passed in; `sleep` may be a virtual clock's."""

    client: ICAv2Client
    ledger: Ledger
    plan: CopyPlan
    owner: Owner
    settings: CopySettings
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    # -- one pass -----------------------------------------------------------------------------------------------

    async def act(self) -> Progress:
        """Settles, proves, sends. Raises TransientError when ICA as a whole is out of reach, AuthError, LedgerError."""
        rows = self.rows()
        jobs = await self.client.statuses(self._jobs_of(rows))
        by_key = {d.key: d for d in self.plan.destinations}
        settled = await gather_by(
            by_key, lambda key: self._guarded(by_key[key], self._settle(by_key[key], rows[key], jobs))
        )
        standings = {key: standing for key, standing in settled.items() if standing is not None}
        running = sum(1 for standing in standings.values() if standing.phase == Phase.RUNNING)
        rows = self.rows()
        ready = [by_key[key] for key in by_key if key not in standings]
        wanted, seen = await self._work_for(ready, rows, max(0, self.settings.max_in_flight - running))
        standings |= seen | await self._launch_all(wanted, rows, jobs)
        return Progress([standings[key] for key in by_key], self.ledger.now())

    async def _work_for(
        self, ready: list[Destination], rows: Mapping[str, list[Submission]], free: int
    ) -> tuple[list[_Work], dict[str, Standing]]:
        """What to send into the free slots, and where all other ready destinations stand.

        Failed copies go first, since theirs is the longest way to the end. Only as many are looked at as there are slots.
        """
        queue = sorted(ready, key=lambda d: -len(rows[d.key]))
        wanted: list[_Work] = []
        standings: dict[str, Standing] = {}
        while queue and len(wanted) < free:
            some, queue = queue[: free - len(wanted)], queue[free - len(wanted) :]
            works = {d.key: self._guarded(d, self._missing(d, rows[d.key])) for d in some}
            found = await gather_by(works, works.__getitem__)
            wanted += [work for work in found.values() if isinstance(work, _Work)]
            standings |= {work.destination.key: work for work in found.values() if isinstance(work, Standing)}
        return wanted, standings | {d.key: Standing(d, Phase.WAITING, "a free slot") for d in queue}

    def rows(self) -> dict[str, list[Submission]]:
        keys = [destination.key for destination in self.plan.destinations]
        found = self.ledger.latest(SYSTEM, KIND, keys)
        return {key: found.get(key, []) for key in keys}

    def _jobs_of(self, rows: Mapping[str, Sequence[Submission]]) -> dict[str, float]:
        """Jobs worth a look: those that run, and superseded ones, which may still write."""
        alive = [r for key in rows for r in rows[key] if r.external_id and r.state in (State.SENT, State.SUPERSEDED)]
        return {str(row.external_id): created_at(row.detail, row.sending_at) for row in alive}

    async def _guarded(self, destination: Destination, work: Awaitable[T]) -> T | Standing:
        """Trouble with one destination does not stop the others. Only a wrong credential and a bad ledger stop all."""
        try:
            return await work
        except Forbidden as error:
            return Standing(destination, Phase.FAILED, str(error))
        except (AuthError, LedgerError):
            raise
        except Doubtful as error:
            return Standing(destination, Phase.HELD, str(error))
        except (TransientError, ConflictingRequest) as error:
            wait = getattr(error, "retry_after", None) or 15.0
            return Standing(destination, Phase.WAITING, str(error), look_again_at=self.ledger.now() + wait)
        except WaybillError as error:
            return Standing(destination, Phase.FAILED, str(error))

    # -- what has happened --------------------------------------------------------------------------------------

    async def _settle(
        self, destination: Destination, rows: list[Submission], jobs: Mapping[str, Job]
    ) -> Standing | None:
        """Where a destination stands. None: nothing is open there, so see what is missing."""
        row = rows[-1] if rows else None
        if row is not None and row.state in (State.SENDING, State.DOUBTFUL):
            row = await self._find_out(destination, row)
            if row.state == State.SENT:  # just found: look at it with the next listing
                return Standing(destination, Phase.RUNNING, "found again", row.external_id, self.ledger.now())
        if row is not None and row.state == State.HELD:
            raise Doubtful(f"{destination.dest_uri} is held: run `python -m include.core.ledger doubts`")
        if row is None or row.state != State.SENT:
            if rules.verified_before(rows, self.owner.run_id, destination):
                return Standing(destination, Phase.PASSED, job_id=rows[-1].external_id)
            return None
        row = self.ledger.attach(row, self.owner)
        job = jobs.get(str(row.external_id))
        if job is not None and job.ended:
            return await self._conclude(destination, row, job)
        stuck_at = (row.sending_at or row.reserved_at) + self.settings.job_timeout_seconds
        if self.ledger.now() < stuck_at:
            return Standing(destination, Phase.RUNNING, job.status if job else "not listed", row.external_id, stuck_at)
        return await self._stuck(destination, rows, row)

    async def _find_out(self, destination: Destination, row: Submission) -> Submission:
        if row.state == State.SENDING:
            row = self.ledger.move(row, State.DOUBTFUL, why="found sending, without its sender")
        return await resolve(self.ledger, row, self._probe(destination)) if row.state == State.DOUBTFUL else row

    async def _conclude(self, destination: Destination, row: Submission, job: Job) -> Standing | None:
        """A job has ended: what it made is looked at, and only that decides."""
        batch_id = str(row.detail.get("batch_id") or job.subject_id)
        items = await self.client.batch_items(destination.project_id, batch_id)
        proofs = await self._proofs(destination, patient=job.status == JobStatus.SUCCEEDED)
        missing = {item.name for item in incomplete(destination, proofs)}
        verified = sorted({item.name for item in destination.items} - missing)
        theirs = {item.name for item in destination.items if rules.covers(row, item)}
        facts = {
            "batch_id": batch_id,
            "job_created": job.created,
            "job_status": job.status,
            "created_ids": sorted(item.created_id for item in items if item.created_id),
            "verified": verified,
            "item_messages": sorted({item.message for item in items if item.message})[:5],
        }
        done = not theirs & missing
        why = f"job {job.status}, {'all' if done else 'not all'} of its files proved"
        self.ledger.move(row, State.DONE if done else State.FAILED, why=why, detail=facts)
        return None if missing else Standing(destination, Phase.PASSED, job_id=row.external_id)

    async def _stuck(self, destination: Destination, rows: list[Submission], row: Submission) -> Standing | None:
        """A job runs too long and cannot be cancelled: prove what is there; if that is not all, one more generation."""
        proofs = await self._proofs(destination)
        if not incomplete(destination, proofs):
            verified = sorted(item.name for item in destination.items)
            self.ledger.move(
                row, State.DONE, why="still listed as running, all files proved", detail={"verified": verified}
            )
            return Standing(destination, Phase.PASSED, job_id=row.external_id)
        minutes = self.settings.job_timeout_seconds / 60
        if any(r.state == State.SUPERSEDED for r in rules.of_run(rows, self.owner.run_id)):
            why = f"job {row.external_id} too has not ended after {minutes:.0f} min; the next run adopts it"
            return Standing(destination, Phase.FAILED, why, row.external_id)
        self.ledger.move(row, State.SUPERSEDED, why=f"stuck for {minutes:.0f} min; {SKIP_DOES_NO_HARM}")
        return None

    async def _proofs(self, destination: Destination, *, patient: bool = False) -> list[Proof]:
        """What the destination holds now. `patient`: a job says it succeeded, so give its files time to be listed."""
        for last in (False, False, True):
            proofs = prove(destination, await look_at(self.client, destination), use_etag=self.settings.use_etag)
            lagging = any(proof.verdict in (Verdict.MISSING, Verdict.PARTIAL) for proof in proofs)
            if not (patient and lagging) or last:
                break
            await self.sleep(self.settings.settle_seconds / 2)
        return proofs

    # -- what is missing ----------------------------------------------------------------------------------------

    async def _missing(self, destination: Destination, rows: list[Submission]) -> Standing | _Work:
        """The items to send to a destination where nothing is open, or why there are none."""
        there = await look_at(self.client, destination)
        proofs = prove(destination, there, use_etag=self.settings.use_etag)
        rest = incomplete(destination, proofs)
        if not rest:
            return Standing(destination, Phase.PASSED, "all files are there", rows[-1].external_id if rows else None)
        refusal = rules.refused(rows, self.owner.run_id)
        if refusal:
            return Standing(destination, Phase.FAILED, refusal)
        may = rules.may_send(rows, self.owner.run_id, rest, self.settings)
        if not may:
            tries = self.settings.max_resubmissions + 1
            return Standing(destination, Phase.FAILED, f"{len(rest)} items not copied after {tries} submissions")
        return _Work(destination, may[: self.settings.items_per_job], proofs, there)

    async def _launch_all(
        self, wanted: Sequence[_Work], rows: Mapping[str, list[Submission]], jobs: Mapping[str, Job]
    ) -> dict[str, Standing]:
        places = [(w.destination.project_id, w.destination.path) for w in wanted]
        folders = await ensure_folders(self.client, places) if wanted else {}
        work = {w.destination.key: w for w in wanted}
        return await gather_by(
            work,
            lambda key: self._guarded(work[key].destination, self._launch(work[key], rows[key], jobs, folders)),
            LAUNCHES_AT_ONCE,
        )

    async def _launch(
        self, work: _Work, rows: list[Submission], jobs: Mapping[str, Job], folders: Mapping[Place, str]
    ) -> Standing:
        destination = work.destination
        alive = rules.still_writing(rows, jobs, self.ledger.now(), self.settings)
        if alive and rules.generations_after(rows, alive[-1]) > 0:
            why = f"job {alive[-1].external_id or 'of a lost answer'} may still write; one more was sent and did not complete it"
            return Standing(destination, Phase.FAILED, why)
        self._withdraw_unsent(rows)
        intent = self._intent(destination, work.items, folders.get((destination.project_id, destination.path)))
        row = await submit_once(
            self.ledger,
            intent,
            probe=self._probe(destination),
            prepare=None if alive else self._sweeper(work, rows),
            send=lambda attempt, guard: self._send(destination, attempt, guard),
            effect_present=_just_seen_missing,
        )
        stuck_at = (row.sending_at or row.reserved_at) + self.settings.job_timeout_seconds
        return Standing(destination, Phase.RUNNING, "sent", row.external_id, stuck_at)

    def _withdraw_unsent(self, rows: Sequence[Submission]) -> None:
        """An intent that never left (a dead run's, or an older plan's) makes room. Whoever is faster wins; nobody loses."""
        last = rows[-1] if rows else None
        if last is not None and last.state == State.RESERVED:
            self.ledger.move(last, State.CANCELLED, why="never sent; what is missing now is sent instead")

    def _intent(self, destination: Destination, items: Sequence[Item], folder_id: str | None) -> Intent:
        data_ids = [item.data_id for item in items]
        return Intent(
            system=SYSTEM,
            kind=KIND,
            business_key=destination.key,
            payload={"project": destination.project_id, "folder": folder_id, "items": sorted(data_ids)},
            owner=self.owner,
            size_bytes=sum(item.size_bytes for item in items),
            detail={
                "dest_uri": destination.dest_uri,
                "folder_id": folder_id,
                "names": [item.name for item in items],
                "data_ids": data_ids,
                "files": sum(len(item.files) for item in items),
            },
        )

    async def _send(self, destination: Destination, attempt: Submission, guard: Guard) -> str:
        folder_id = attempt.detail["folder_id"]
        batch = await self.client.copy(destination.project_id, folder_id, attempt.detail["data_ids"], guard=guard)
        self.ledger.annotate(attempt, {"batch_id": batch.id, "job_created": batch.job.created}, why="ICA's batch")
        return batch.job.id

    def _sweeper(self, work: _Work, rows: Sequence[Submission]) -> Callable[[Submission, Guard], Awaitable[None]]:
        """Clears away what our own failed copies left, since SKIP would keep it. Deletes by exact id, under the guard."""
        ours, made_after = rules.made_by_us(rows)
        swept = leftovers(work.proofs, ours, made_after, work.there)

        async def sweep(_attempt: Submission, guard: Guard) -> None:
            for data in swept:
                log.info("removing our own leftover %s (%s)", data.path, data.status)
                await self.client.delete_data(work.destination.project_id, data.id, guard=guard)
            waited = 0.0
            while swept and waited < self.settings.request_timeout_seconds / 2:
                gone = {data.id for data in swept} - {
                    d.id for d in (await look_at(self.client, work.destination)).values()
                }
                if len(gone) == len(swept):
                    return
                await self.sleep(1.0)
                waited += 1.0
            if swept:
                raise TransientError(f"leftovers in {work.destination.dest_uri} are not gone yet", retry_after=10.0)

        return sweep

    # -- doubts -------------------------------------------------------------------------------------------------

    def _probe(self, destination: Destination) -> Probe:
        """ICA can be searched by its job list, but does not say who may see what in it: so it finds only."""

        async def verified(row: Submission) -> bool:
            bad = {item.data_id for item in incomplete(destination, await self._proofs(destination))}
            return not bad & set(row.detail["data_ids"])

        return Probe(
            walk=lambda row: self._walk(destination, row),
            horizon_seconds=self.settings.horizon_seconds,
            request_timeout_seconds=self.settings.request_timeout_seconds,
            proves_absence=False,
            harmless=HarmlessTwin(SKIP_DOES_NO_HARM, verified),
        )

    async def _walk(self, destination: Destination, row: Submission) -> Walk:
        """Jobs whose batch has exactly the destination folder and the items of this row."""
        jobs = await self.client.jobs_since((row.sending_at or row.reserved_at) - CLOCK_SKEW_SECONDS)
        remote_now = self.client.http.remote_now or time.time()
        known = self.ledger.known(SYSTEM, KIND, [job.id for job in jobs])
        strangers = {job.id: job for job in jobs if job.id not in known and job.subject_id}
        same = await gather_by(
            strangers, lambda job_id: self._is_ours(destination, row, str(strangers[job_id].subject_id))
        )
        return Walk(tuple(job_id for job_id, matches in same.items() if matches), complete=True, remote_now=remote_now)

    async def _is_ours(self, destination: Destination, row: Submission, batch_id: str) -> bool:
        try:
            batch = await self.client.batch(destination.project_id, batch_id)
            if batch.folder_id != row.detail["folder_id"]:
                return False
            items = await self.client.batch_items(destination.project_id, batch_id)
        except (AuthError, TransientError):
            raise
        except WaybillError:  # another project's, or not a copy batch at all
            return False
        return sorted(item.data_id for item in items) == sorted(row.detail["data_ids"])

    # -- the whole run ------------------------------------------------------------------------------------------

    async def run(
        self,
        policy: WatchPolicy,
        *,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        say: Callable[[str], None] = log.info,
    ) -> Progress:
        """Acts and watches in turns until nothing is left to do, in this process."""
        while True:
            progress = await self.act()
            if progress.finished:
                return progress
            jobs = watched_jobs(self.ledger, self.owner.dag_id, self.owner.run_id)
            watcher = JobWatch(self.client, jobs, more_to_send=progress.more_to_send)
            wait = (progress.look_again_at or progress.now + self.settings.job_timeout_seconds) - progress.now
            deadline = now() + max(wait, 0.0)
            await watch(watcher.observe, deadline=deadline, policy=policy, now=now, sleep=self.sleep, rng=rng, say=say)

    async def final_proofs(self) -> list[Proof]:
        """A last fresh look at every destination: what the receipt says is what is there now."""
        proofs = await gather_by(
            range(len(self.plan.destinations)), lambda index: self._proofs(self.plan.destinations[index])
        )
        await self._find_lost_jobs()
        return [proof for index in range(len(proofs)) for proof in proofs[index]]

    async def _find_lost_jobs(self) -> None:
        """Superseded submissions whose job was never found may have become visible: write its id down, for the record."""
        by_key = {d.key: d for d in self.plan.destinations}
        for row in [
            r for rows in self.rows().values() for r in rows if r.state == State.SUPERSEDED and not r.external_id
        ]:
            walk = await self._walk(by_key[row.business_key], row)
            if len(walk.candidates) == 1:
                self.ledger.record_sent(row, walk.candidates[0], why="found later")


async def _just_seen_missing() -> bool:
    """An earlier run's copy is DONE, but this pass looked: some of its files are not there any more."""
    return False


@dataclass(frozen=True)
class _Work:
    """What to send to one destination, and what was seen there."""

    destination: Destination
    items: list[Item]
    proofs: list[Proof]
    there: Mapping[str, Data]
