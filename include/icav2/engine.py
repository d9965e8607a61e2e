"""The copy itself: one pass over all destinations closes what has ended, proves it, and sends what is still missing.

Invariant: `act` may be called by anyone, at any time, twice at once, after any crash. It looks
(ledger, jobs, destination), then acts through the ledger; nothing is remembered between two calls. One open row per
destination keeps two runs off one folder: whoever finds a job there waits for it, then copies what it lacks itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from include.core import effects
from include.core.concurrency import map_by_key
from include.core.effects import FINAL, Phase, Progress, Standing
from include.core.errors import (
    Forbidden,
    TransientError,
)
from include.core.ledger import Ledger, Owner, State, Submission
from include.core.watch import Wake, WatchPolicy, watch
from include.icav2 import rules
from include.icav2.client import ICAv2Client
from include.icav2.context import CopyContext
from include.icav2.folders import ensure_folders, missing_folders
from include.icav2.models import CopyPlan, Destination, Job, Proof
from include.icav2.reconcile import Reconciler
from include.icav2.rules import KIND, SYSTEM, CopySettings, CopyStanding
from include.icav2.small_files import SmallFileCopier, batch_part
from include.icav2.submit import Sender, Work
from include.icav2.verify import prove
from include.icav2.watch import created_at, job_watch, watched_jobs

log = logging.getLogger(__name__)
OUT_OF_REACH_SECONDS = 120.0  # until the next pass when ICA cannot be reached at all
MIN_PASS_INTERVAL_SECONDS = 0.5  # between two passes in one process: what ends together is handled together
CopyProgress = Progress[Destination]
T = TypeVar("T")


@dataclass
class CopyEngine:
    """Copies a plan on behalf of one run (`owner`). Collaborators are passed in; `sleep` may be a virtual clock's."""

    client: ICAv2Client
    ledger: Ledger
    plan: CopyPlan
    owner: Owner
    settings: CopySettings
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    wait_for_deletion: bool = True

    @property
    def _context(self) -> CopyContext:
        return CopyContext(self.client, self.ledger, self.owner, self.settings, self.sleep, self.wait_for_deletion)

    # -- one pass -----------------------------------------------------------------------------------------------

    @cached_property
    def _batches(self) -> CopyPlan:
        """What is left to ICA's batch copy."""
        return batch_part(self.plan) if self.settings.stream_small_files else self.plan

    async def act(self) -> CopyProgress:
        """Reconciles, proves, sends. Raises AuthError, LedgerError; where ICA is out of reach, all destinations wait."""
        rows = self.rows()
        try:
            jobs = await self.client.statuses(self._jobs_of(rows))
        except TransientError as error:
            now = self.ledger.now()
            waiting = [effects.waits(d, error, now, OUT_OF_REACH_SECONDS) for d in self.plan.destinations]
            return Progress(waiting, now)
        batches = await self._act_on_batches(rows, jobs)
        if not self.settings.stream_small_files:
            return batches
        return await SmallFileCopier(self._context, self.ledger.now()).act(self.plan, batches)

    async def _act_on_batches(self, rows: dict[str, list[Submission]], jobs: Mapping[str, Job]) -> CopyProgress:
        by_key = {d.key: d for d in self._batches.destinations}
        reconciler = Reconciler(self._context, self.ledger.now())
        reconciled = await map_by_key(
            by_key, lambda key: self._guarded(by_key[key], reconciler.reconcile(by_key[key], rows[key], jobs))
        )
        standings = {key: standing for key, standing in reconciled.items() if standing is not None}
        ready = [by_key[key] for key in by_key if key not in standings]
        rows |= self.rows([destination.key for destination in ready])  # reconciling has changed them
        busy = sum(
            1
            for key, standing in standings.items()
            if standing.phase not in FINAL and effects.may_be_running(rows[key])
        )
        circuit_until = effects.circuit_open_until((row for found in rows.values() for row in found), self.ledger.now())
        if circuit_until is not None:
            why = "circuit breaker open: nearly all jobs have just failed, so nothing is sent for a minute"
            standings |= {d.key: Standing(d, Phase.WAITING, why, look_again_at=circuit_until) for d in ready}
            ready = []
        wanted, seen = await self._work_for(ready, rows, max(0, self.settings.max_in_flight - busy))
        standings |= seen | await self._launch_all(wanted, rows)
        return Progress([standings[key] for key in by_key], self.ledger.now())

    async def _work_for(
        self, ready: list[Destination], rows: Mapping[str, list[Submission]], free: int
    ) -> tuple[list[Work], dict[str, CopyStanding]]:
        """What to send into the free slots, and the standing of all other ready destinations.

        Failed copies go first, since theirs is the longest way to the end. Only as many are looked at as there are slots.
        """
        queue = sorted((d.key for d in ready), key=lambda key: -len(rows[key]))
        by_key = {d.key: d for d in ready}
        wanted: list[Work] = []
        standings: dict[str, CopyStanding] = {}
        while queue and len(wanted) < free:
            some, queue = queue[: free - len(wanted)], queue[free - len(wanted) :]
            found = await self._look([by_key[key] for key in some], rows)
            wanted += [work for work in found.values() if isinstance(work, Work)]
            standings |= {s.target.key: s for s in found.values() if isinstance(s, Standing)}
        return wanted, standings | {key: Standing(by_key[key], Phase.WAITING, "a free slot") for key in queue}

    async def _look(
        self, some: list[Destination], rows: Mapping[str, list[Submission]]
    ) -> dict[str, Work | CopyStanding]:
        """What is missing at these destinations. Folders that nothing was ever sent to are mostly not there yet: one call
        tells that of many, and saves a look at each."""
        sender, by_key = Sender(self._context, self.ledger.now()), {d.key: d for d in some}
        absent = await missing_folders(self.client, [(d.project_id, d.path) for d in some if not rows[d.key]])

        def look(key: str) -> Awaitable[Work | CopyStanding]:
            destination = by_key[key]
            bare = (destination.project_id, destination.path) in absent
            return self._guarded(destination, sender.missing(destination, rows[key], bare=bare))

        return await map_by_key(by_key, look)

    async def _launch_all(
        self, wanted: Sequence[Work], rows: Mapping[str, list[Submission]]
    ) -> dict[str, CopyStanding]:
        places = [(w.destination.project_id, w.destination.path) for w in wanted]
        folders = await ensure_folders(self.client, places)
        seen = rules.seen_jobs(row for found in rows.values() for row in found)
        sender = Sender(self._context, self.ledger.now(), seen)
        work = {w.destination.key: w for w in wanted}
        return await map_by_key(
            work,
            lambda key: self._guarded(work[key].destination, sender.launch(work[key], rows[key], folders)),
        )

    def rows(self, keys: Sequence[str] | None = None) -> dict[str, list[Submission]]:
        """All that the ledger knows of the destinations (of all, without `keys`), by key, oldest first."""
        keys = [destination.key for destination in self.plan.destinations] if keys is None else keys
        found = self.ledger.latest(SYSTEM, KIND, keys)
        return {key: found.get(key, []) for key in keys}

    def _jobs_of(self, rows: Mapping[str, Sequence[Submission]]) -> dict[str, float]:
        """Jobs worth a look: those that run, and superseded ones, which may still write."""
        alive = [r for key in rows for r in rows[key] if r.state == State.SENT or rules.not_seen_to_end(r)]
        return {str(row.external_id): created_at(row.detail, row.sending_at) for row in alive}

    def _guarded(self, destination: Destination, work: Awaitable[T]) -> Awaitable[T | CopyStanding]:
        return effects.guarded(destination, work, self.ledger.now)

    # -- the whole run ------------------------------------------------------------------------------------------

    async def run(
        self,
        policy: WatchPolicy,
        *,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        say: Callable[[str], None] = log.info,
    ) -> CopyProgress:
        """Acts and watches in turns until nothing is left to do, in this process."""
        self.wait_for_deletion = False
        policy = replace(policy, quiet_seconds=max(policy.quiet_seconds, MIN_PASS_INTERVAL_SECONDS))
        said: list[str] = []
        warned: set[str] = set()
        while True:
            progress = await self.act()
            if progress.finished:
                return progress
            for reason in progress.waiting_reasons:
                if reason not in said:
                    say(f"waiting: {reason}")
            said = progress.waiting_reasons
            # A pass is cheap in here, so each job is judged when it ends: one that succeeded may have left a wrong file.
            watcher = job_watch(self.client, watched_jobs(self.ledger, self.owner), Wake.END, progress.running)
            watcher.warned = warned
            wait = (progress.look_again_at or progress.now + self.settings.job_timeout_seconds) - progress.now
            deadline = now() + max(wait, 0.0)
            await watch(watcher.observe, deadline=deadline, policy=policy, now=now, sleep=self.sleep, rng=rng, say=say)

    def item_messages(self) -> dict[tuple[str, str], str]:
        """ICA's last words about each item that it did not copy in this run, by destination and source."""
        rows, said = self.rows(), dict[tuple[str, str], list[str]]()
        for destination in self.plan.destinations:
            for item in destination.items:
                place = (destination.dest_uri, item.source_uri)
                said[place] = rules.reasons_of(rows[destination.key], self.owner, item)
        if self.settings.stream_small_files:
            said |= {file.place: why for file, why in SmallFileCopier(self._context, 0.0).reasons(self.plan)}
        return {place: messages[-1] for place, messages in said.items() if messages}

    async def final_proofs(self) -> list[Proof]:
        """A last fresh look at every destination: what the receipt says is what is there now.

        A destination that may not be looked at counts as empty. Raises TransientError, AuthError.
        """

        async def look(destination: Destination) -> list[Proof]:
            try:
                return await self._context.proofs(destination, rows[destination.key])
            except Forbidden:
                return prove(destination, {}, use_etag=self.settings.use_etag)

        context, rows = self._context, self.rows()
        by_key = {d.key: d for d in self.plan.destinations}
        proofs = await map_by_key(by_key, lambda key: look(by_key[key]))
        for destination in self.plan.destinations:
            try:  # superseded jobs that were never found may have become visible: for the record only
                await context.search.find(destination, rows[destination.key])
            except (TransientError, Forbidden) as error:
                log.warning("%s: lost jobs cannot be looked for now (%s)", destination.dest_uri, error)
        return [proof for destination in self.plan.destinations for proof in proofs[destination.key]]
