"""Watches ICA copy jobs: those of a run (their ids lie in the ledger), or those that a document lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hooks.icav2 import ICAv2Hook
from hooks.waybill import areceipts
from triggers.watch import Observe, WatchTrigger

from include.core.ledger import Ledger
from include.icav2.rules import SYSTEM
from include.icav2.watch import JobWatch, watched_jobs


class ICAv2JobsTrigger(WatchTrigger):
    """Options: `more_to_send` (copies wait for a free slot), `jobs` (a Document listing ids; never resubmitted)."""

    system = SYSTEM

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        listed = self.options.get("jobs")
        if listed:
            store = await areceipts()
            jobs = json.loads(await store.objects.get_document(listed))
        else:
            jobs = await asyncio.to_thread(watched_jobs, ledger, self.dag_id, self.run_id)
        async with await ICAv2Hook(self.conn_id).aclient() as client:
            more = bool(self.options.get("more_to_send"))
            yield JobWatch(client, jobs, more_to_send=more, wake_on_failure=not listed).observe
