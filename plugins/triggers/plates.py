"""Waiting for cold storage to give tarballs back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hooks.aws import AwsHook
from triggers.until import UntilTrigger
from triggers.watch import Observe, WatchTrigger

from include.core.ledger import Ledger
from include.core.watch import Observation


class PlateThawTrigger(WatchTrigger):
    """Wakes when no tarball is cold any more. Options: `bucket`, and `keys`, the tarballs of one plate (a few)."""

    system = "plates"

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        async with await AwsHook(self.conn_id).aaccess() as access:
            bucket = access.bucket(self.options["bucket"])

            async def observe() -> Observation:
                counts: dict[str, int] = {}
                for key in self.options["keys"]:
                    head = await bucket.head(key)
                    state = "missing" if head is None else "cold" if head.cold else "ready"
                    counts[state] = counts.get(state, 0) + 1
                return Observation(counts, wake=None if "cold" in counts else "no tarball is cold any more")

            yield observe


class PlateWarmTrigger(PlateThawTrigger):
    """The name under which restores that an earlier release deferred wait in Airflow's database."""


class PlateUndoTrigger(UntilTrigger):
    """The name under which purges that an earlier release deferred wait in Airflow's database."""
