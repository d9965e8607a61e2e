"""Waiting for cold storage to give tarballs back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from hooks.aws import AwsHook
from triggers.until import UntilTrigger
from triggers.watch import WatchTrigger

from include.core.watch import BulkWatch, Item, Observe, Wake


class PlateThawTrigger(WatchTrigger):
    """Wakes when no tarball is cold any more, or one is missing. Options: `bucket`, `keys`, the tarballs of one plate, and
    `store_patience`: for how many minutes a look waits for a store that is out of reach."""

    system = "plates"
    can_cancel = False  # what cold storage is asked for, it gives

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        patience = float(self.options.get("store_patience", 0))  # a wait that an earlier release began has none
        async with await AwsHook(self.conn_id).aaccess(patience_minutes=patience) as access:
            bucket = access.bucket(self.options["bucket"])

            async def look(keys: Collection[str]) -> dict[str, Item]:
                found = {key: await bucket.head(key) for key in keys}
                return {
                    key: Item("missing", ended=True)
                    if head is None
                    else Item("", ended=not head.cold, good=not head.cold)
                    for key, head in found.items()
                }

            words = ("ready", "cold", "missing")
            yield BulkWatch(self.options["keys"], look, Wake.FAILURE, noun="tarballs", words=words).observe


class PlateWarmTrigger(PlateThawTrigger):
    """The name under which restores that an earlier release deferred wait in Airflow's database."""


class PlateUndoTrigger(UntilTrigger):
    """The name under which purges that an earlier release deferred wait in Airflow's database."""
