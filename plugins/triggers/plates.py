"""Waiting for cold storage, and for the end of the time in which a deletion can be undone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hooks.aws import PlatesHook
from triggers.watch import Observe, WatchTrigger

from include.core.ledger import Ledger
from include.core.watch import Observation

SYSTEM = "plates"


class PlateWarmTrigger(WatchTrigger):
    """Wakes when no tarball is cold any more. Options: `bucket`, and `keys`, the tarballs of one plate (a few)."""

    system = SYSTEM

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        async with await PlatesHook(self.conn_id).aaccess() as access:
            bucket = access.bucket(self.options["bucket"])

            async def observe() -> Observation:
                counts: dict[str, int] = {}
                for key in self.options["keys"]:
                    head = await bucket.head(key)
                    state = "missing" if head is None else "cold" if head.cold else "warm"
                    counts[state] = counts.get(state, 0) + 1
                return Observation(counts, wake=None if "cold" in counts else "no tarball is cold any more")

            yield observe


class PlateUndoTrigger(WatchTrigger):
    """Wakes at its deadline, when the time to undo a deletion is over. There is nothing to look at until then."""

    system = SYSTEM

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        async def observe() -> Observation:
            return Observation({"plates marked": 1})

        yield observe
