"""What reconciling and sending share: the collaborators of one run, and how a destination is looked at and searched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from include.core.ledger import Ledger, Owner, Probe, Submission
from include.icav2.client import ICAv2Client
from include.icav2.job_search import JobSearch
from include.icav2.models import Data, Destination, Item, Proof, Verdict
from include.icav2.plan import look_at
from include.icav2.rules import CopySettings
from include.icav2.verify import incomplete, prove


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

    async def proofs(
        self, destination: Destination, *, allow_listing_lag: bool = False, seen: Iterable[Data] = ()
    ) -> list[Proof]:
        """What the destination holds now. `allow_listing_lag`: a job says that it succeeded, so its files get
        time to be listed. `seen`: what was looked at by its id, which does not lag."""
        for last in (False, False, True):
            there = await look_at(self.client, destination) | {data.path: data for data in seen}
            proofs = prove(destination, there, use_etag=self.settings.use_etag)
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

    def stuck_at(self, row: Submission) -> float:
        return (row.sending_at or row.reserved_at) + self.settings.job_timeout_seconds


def ids_of(items: Iterable[Item]) -> set[str]:
    return {item.data_id for item in items}
