"""Watches Globus tasks: those that a task waits for (their ids lie in the ledger), or those that its options list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from hooks.globus import GlobusHook
from triggers.watch import WatchTrigger

from include.core.watch import BulkWatch, Item, Observe, Wake
from include.globus.client import GlobusClient
from include.globus.transfer import SYSTEM, trouble


class GlobusTaskTrigger(WatchTrigger):
    """Options: `tasks` (ids, instead of the ledger's), `globus_conn_id` (where the task's own connection is another),
    `can_cancel` (whether a task is cancelled with the run that is marked failed; by default it outlives it). A worker is woken
    at an end, and when the time is over for which a task is let go on as it is."""

    system = SYSTEM
    can_cancel = False

    def __init__(self, **kwargs: object):
        super().__init__(**kwargs)  # type: ignore[arg-type]  # those of WatchTrigger
        self.can_cancel = bool(self.options.get("can_cancel"))

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        ids = list(self.options.get("tasks") or ())
        if not ids:
            ids = [str(row.external_id) for row in await self.waited_for()]
        client = await GlobusHook(str(self.options.get("globus_conn_id") or self.conn_id)).aclient()
        try:
            yield task_watch(client, ids).observe
        finally:
            await asyncio.to_thread(client.close)


def task_watch(client: GlobusClient, ids: Collection[str]) -> BulkWatch:
    """One look at all tasks. One that Globus does not know any more has ended; what keeps one from getting on is its state."""

    async def look(ids: Collection[str]) -> dict[str, Item]:
        found = {}
        for one in ids:
            task = await asyncio.to_thread(client.task, one)
            if task is None:
                found[one] = Item("not known any more", ended=True)
                continue
            stuck = trouble(task)
            found[one] = Item(stuck.code if stuck else task.status, ended=task.ended, good=task.status == "SUCCEEDED")
        return found

    return BulkWatch(ids, look, Wake.END, noun="transfers", words=("succeeded", "active", "ended badly"))
