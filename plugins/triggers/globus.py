"""Watches Globus tasks: those that a task waits for (their ids lie in the ledger), or those that its options list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from hooks.globus import GlobusHook
from triggers.watch import WatchTrigger

from include.core.watch import BulkWatch, Item, Observation, Observe, Wake
from include.globus.client import GlobusClient
from include.globus.transfer import NOT_KNOWN, SYSTEM, trouble


class GlobusTaskTrigger(WatchTrigger):
    """Options: `tasks` (ids, instead of the ledger's), `globus_conn_id` (where the task's own connection is another),
    `borne` ({id: code} of trouble that a worker has seen, and bears for a time), `can_cancel` (whether a task is cancelled with
    the run that is marked failed; by default it outlives it), `wake` (as of BulkWatch). A worker is woken at an end, by trouble
    that is not borne for ever, and when the time of such trouble is over."""

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
            borne = self.options.get("borne")
            yield TaskWatch(client, ids, Wake(self.options.get("wake") or Wake.END), borne).observe
        finally:
            await asyncio.to_thread(client.close)


class TaskWatch(BulkWatch):
    """As BulkWatch; also wakes for trouble that a worker must time. `borne` None: it wakes for none."""

    def __init__(self, client: GlobusClient, ids: Collection[str], wake: Wake, borne: Mapping[str, str] | None):
        super().__init__(ids, self._look, wake, noun="transfers", words=("succeeded", "active", "ended badly"))
        self._client, self._borne = client, borne
        self._new: list[str] = []

    async def _look(self, ids: Collection[str]) -> dict[str, Item]:
        """All tasks once. What keeps one from getting on is its state. One that Globus does not know has ended, unless it may
        still be shown."""
        found = {}
        self._new = []
        for one in ids:
            task = await asyncio.to_thread(self._client.task, one)
            if task is None:
                borne = (self._borne or {}).get(one) == NOT_KNOWN  # it may still be shown
                found[one] = Item("not known", ended=not borne)
                continue
            stuck = trouble(task, self._client.remote_now or time.time())
            if (
                stuck
                and stuck.bear_seconds is not None
                and self._borne is not None
                and self._borne.get(one) != stuck.code
            ):
                self._new.append(f"task {one}: {stuck.code}: {stuck.says}")
            found[one] = Item(stuck.code if stuck else task.status, ended=task.ended, good=task.status == "SUCCEEDED")
        return found

    async def observe(self) -> Observation:
        seen = await super().observe()
        return replace(seen, wake=seen.wake or "; ".join(self._new) or None)
