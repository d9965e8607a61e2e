"""Watches ICA copy jobs: those that a task waits for (their ids lie in the ledger), or those that a document lists."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hooks.icav2 import ICAv2Hook
from hooks.waybill import areceipts
from triggers.watch import WatchTrigger

from include.core.watch import Observe, Wake
from include.icav2.rules import SYSTEM
from include.icav2.watch import job_watch, watched_jobs


class ICAv2JobsTrigger(WatchTrigger):
    """Options: `wake` (what a worker is wanted for, a Wake), `expected` (how many jobs the worker saw at work), `jobs` (a
    Document listing ids, instead of the ledger)."""

    system = SYSTEM
    can_cancel = False  # ICA's API has nothing that ends a job (docs/icav2.md)

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        if "jobs" in self.options:
            jobs = json.loads(await (await areceipts()).objects.get_document(self.options["jobs"]))
        else:
            jobs = await self.ask_ledger(lambda book: watched_jobs(book, self.owner))
        async with await ICAv2Hook(self.conn_id).aclient() as client:
            wake, expected = Wake(self.options.get("wake", Wake.FAILURE)), int(self.options.get("expected", 0))
            yield job_watch(client, jobs, wake, expected).observe
