"""What reconciling and sending share: the collaborators of one run, and how a destination is looked at and searched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from include.core.concurrency import map_by_key
from include.core.errors import NotFound, TransientError, WaybillError
from include.core.ledger import Intent, Ledger, Owner, Probe, State, Submission, resolve
from include.icav2 import rules
from include.icav2.client import ICAv2Client
from include.icav2.job_search import JobSearch
from include.icav2.models import Data, Destination, Item, Proof, Verdict
from include.icav2.plan import look_at
from include.icav2.rules import CopySettings
from include.icav2.verify import incomplete, prove

T = TypeVar("T")


@dataclass(frozen=True)
class CopyContext:
    """The collaborators of one run. `sleep` may be a virtual clock's.

    `wait_for_deletion`: a pass may hold up the worker while a deletion is carried out, since the next pass is expensive
    (a deferred task). Else the pass goes on with the other destinations, and the next one, a second later, sees to it.
    """

    client: ICAv2Client
    ledger: Ledger
    owner: Owner
    settings: CopySettings
    sleep: Callable[[float], Awaitable[None]]
    wait_for_deletion: bool = True

    @property
    def deletion_seconds(self) -> float:
        """How long a pass waits for a deletion."""
        return self.settings.request_timeout_seconds / 2 if self.wait_for_deletion else 0.0

    @property
    def come_back_seconds(self) -> float:
        """When to look again after something that is not yet gone."""
        return 10.0 if self.wait_for_deletion else 1.0

    @property
    def search(self) -> JobSearch:
        return JobSearch(self.client, self.ledger, self.settings)

    async def look(
        self, destination: Destination, rows: Sequence[Submission] = (), made: Iterable[str] = ()
    ) -> dict[str, Data]:
        """Everything at a destination that matters to its items, by full path.

        A listing may lag behind, an answer by id does not: so what is listed and not as it should be is asked for by its id, and
        so is what our latest jobs (`rows`, `made`) say that they made and the listing does not show.
        """
        there = await look_at(self.client, destination)
        bad = [p for p in prove(destination, there, use_etag=self.settings.use_etag) if p.verdict != Verdict.OK]
        if not bad:
            return there
        listed = {data.id for data in there.values()}
        ids = {p.data_id for p in bad if p.data_id} | ({*made, *rules.lately_made(rows, self.ledger.now())} - listed)
        seen = await map_by_key(sorted(ids), lambda data_id: self._data(destination.project_id, data_id))
        there = {path: data for path, data in there.items() if data.id not in seen}
        return there | {data.path: data for data in seen.values() if data is not None and not data.is_folder}

    async def _data(self, project_id: str, data_id: str) -> Data | None:
        try:
            return await self.client.data(project_id, data_id)
        except NotFound:
            return None

    async def proofs(
        self,
        destination: Destination,
        rows: Sequence[Submission] = (),
        made: Iterable[str] = (),
        *,
        allow_listing_lag: bool = False,
    ) -> list[Proof]:
        """What the destination holds now; arguments as of `look`. `allow_listing_lag`: a job says that it succeeded, so its
        files get time to be listed."""
        for last in (False, False, True):
            proofs = prove(destination, await self.look(destination, rows, made), use_etag=self.settings.use_etag)
            lagging = any(proof.verdict in (Verdict.MISSING, Verdict.PARTIAL) for proof in proofs)
            if not (allow_listing_lag and lagging) or last:
                break
            await self.sleep(self.settings.listing_lag_seconds / 2)
        return proofs

    def probe(self, destination: Destination) -> Probe:
        async def verified(row: Submission) -> bool:
            proved = ids_of(destination.items) - ids_of(incomplete(destination, await self.proofs(destination)))
            return set(row.detail["data_ids"]) <= proved

        return self.search.probe(destination, verified)

    def may_live(self, row: Submission, now: float) -> bool:
        """Whether another task's worker may be sending this right now. Our own task's can only be one that died."""
        young = row.accept_deadline is not None and now < row.accept_deadline
        return row.state == State.SENDING and young and not row.owner.is_same(self.owner)

    async def find_out(self, row: Submission, probe: Probe) -> Submission:
        """What has become of a submission whose answer is missing. Raises InDoubt, Held."""
        if row.state == State.SENDING:
            row = self.ledger.move(row, State.IN_DOUBT, why="found sending, without its sender")
        return await resolve(self.ledger, row, probe) if row.state == State.IN_DOUBT else row

    def withdraw_unsent(
        self, rows: list[Submission], now: float, *, instead: Intent | None = None, why: str = "something else is sent"
    ) -> int:
        """An intent that never left (a dead run's, or an older plan's) makes room, unless it is the same as `instead`. Whoever
        is faster wins; nobody loses. One that a worker is clearing the ground for is left to it.

        Returns the newest generation of which the look after `rows` were read saw what became of it.
        """
        last = rows[-1] if rows else None
        unsent = last is not None and last.state == State.RESERVED and claimed_until(last) <= now
        if last is not None and unsent and (instead is None or last.payload_sha256 != instead.payload_sha256):
            rows = [*rows[:-1], self.ledger.move(last, State.CANCELLED, why=f"never sent: {why}")]
        return rules.seen_generation(rows)

    async def into_folder(self, work: Awaitable[T], project_id: str, folder_id: str | None) -> T:
        """The answer to a request that names a folder. Where the folder was deleted since it was found (404), that is no
        refusal: TransientError, nothing done, and the next look finds or makes another."""
        try:
            return await work
        except NotFound as error:
            if folder_id is None or not await self._is_gone(project_id, folder_id):
                raise
            why = f"{error} Its folder was deleted since it was found; it is made anew"
            raise TransientError(why, retry_after=self.come_back_seconds, no_effect=True) from None

    async def _is_gone(self, project_id: str, folder_id: str) -> bool:
        """Whether a folder that was found does not exist any more. Asked after a refusal, so that no error of this hides it."""
        try:
            return (await self.client.data(project_id, folder_id)).status == "DELETING"
        except NotFound:
            return True
        except WaybillError:
            return False

    def stuck_at(self, row: Submission) -> float:
        return (row.sending_at or row.reserved_at) + self.settings.job_timeout_seconds


def claimed_until(row: Submission) -> float:
    """Until when a worker clears the ground for a submission (ledger time)."""
    return float(row.detail.get("claimed_until", 0.0))


def ids_of(items: Iterable[Item]) -> set[str]:
    return {item.data_id for item in items}
