"""Watches one restore request at JDP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from hooks.jgi import JdpHook
from triggers.watch import WatchTrigger

from include.core.watch import BulkWatch, Item, Observe, Wake
from include.jgi.jdp import EXPIRED, READY, RUNNING, JdpClient
from include.jgi.restoring import SYSTEM


class RestoreRequestTrigger(WatchTrigger):
    """Options: `requests`, numbers of restore requests. Nothing is ever cancelled: JDP has nothing that ends a request."""

    system = SYSTEM
    can_cancel = False

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        async with await JdpHook(self.conn_id).aclient() as client:
            yield request_watch(client, [str(one) for one in self.options["requests"]]).observe


def request_watch(client: JdpClient, ids: Collection[str]) -> BulkWatch:
    """Ready and expired are ends. A word that is not known runs on, and is shown once; so does a number that JDP does not show
    (yet): its task looks at how old it is."""

    async def look(ids: Collection[str]) -> dict[str, Item]:
        found = {}
        for one in ids:
            status = await client.status(int(one), by_anyone=True)
            word = "not shown" if status is None else status.status
            ended = word in (READY, EXPIRED)
            found[one] = Item(word, ended=ended, good=word == READY, known=ended or word in RUNNING)
        return found

    return BulkWatch(ids, look, Wake.END, noun="restore requests", words=("ready", "running", "expired"))
