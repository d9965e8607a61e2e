"""Moves files by Globus: one task per batch, submitted once, watched without a worker, judged file by file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hooks.globus import Collections, GlobusHook
from hooks.waybill import ledger
from operators.common.leg import Leg, LegOperator, Wait
from triggers.globus import GlobusTaskTrigger

from include.core.errors import RequestError, VerificationError
from include.core.ledger import Ledger, State, Submission
from include.core.text import few
from include.globus.batch import Batch, Item, batch_key
from include.globus.client import GlobusClient, Task
from include.globus.transfer import Outcome, Transfers, Verdict, bear, close, outcomes, trouble

POOL = "waybill_globus"


class GlobusBatchOperator(LegOperator):
    """Moves `items`, a list of {source, destination, size_bytes, md5} with paths from the roots of the connection's collections.

    Returns counts by verdict. Fails, without retry, where a file is not verified; a file without md5 is never verified, so
    pass `require_md5=False` to take those that arrived by Globus' own checks. `deadline_hours`: when Globus gives up.
    """

    trigger = GlobusTaskTrigger
    template_fields: Sequence[str] = ("items", "batch_label")

    def __init__(
        self,
        *,
        items: Any = None,
        batch_label: str = "waybill",
        deadline_hours: float = 72.0,
        require_md5: bool = True,
        globus_conn_id: str = GlobusHook.default_conn_name,
        **kwargs: Any,
    ):
        kwargs.setdefault("pool", POOL)
        super().__init__(conn_id=globus_conn_id, **kwargs)
        self.items = items
        self.batch_label = batch_label
        self.deadline_hours = deadline_hours
        self.require_md5 = require_md5

    async def act(self, leg: Leg) -> Any:
        """One leg: submit, or look and judge."""
        hook = GlobusHook(self.conn_id)
        collections = hook.collections()
        with ledger() as book:
            client = await asyncio.to_thread(hook.client)
            try:
                return await self.move(leg, book, client, collections)
            finally:
                await asyncio.to_thread(client.close)

    async def move(self, leg: Leg, book: Ledger, client: GlobusClient, collections: Collections) -> Any:
        batch = self._batch(collections, client)
        transfers = Transfers(client, book, leg.owner)
        row = await transfers.submit(batch, seen_absent=self._ended_before(book, batch) if leg.first else None)
        found = await settled(transfers, row, batch, collections)
        if isinstance(found, Wait):
            return found
        return self._told(found)

    def _ended_before(self, book: Ledger, batch: Batch) -> int | None:
        """A batch that failed is sent again by a new try; sync by checksum leaves what is right."""
        rows = book.generations("globus", "transfer", batch.key)
        return rows[-1].generation if rows and rows[-1].state in (State.FAILED, State.CANCELLED) else None

    def _batch(self, collections: Collections, client: GlobusClient) -> Batch:
        if not isinstance(self.items, list) or not self.items:
            raise RequestError("items: it is empty; give a list of {source, destination, size_bytes, md5}")
        items = tuple(_item(one, at) for at, one in enumerate(self.items))
        deadline = datetime.fromtimestamp((client.remote_now or time.time()) + self.deadline_hours * 3600, UTC)
        key = batch_key(collections.source, collections.destination, items)
        return Batch(key, collections.source, collections.destination, items, deadline, self.batch_label)

    def _told(self, found: Sequence[Outcome]) -> dict[str, int]:
        counts = {str(verdict): sum(1 for one in found if one.verdict == verdict) for verdict in Verdict}
        fine = {Verdict.VERIFIED} if self.require_md5 else {Verdict.VERIFIED, Verdict.UNVERIFIABLE}
        bad = [f"{one.item.destination} ({one.verdict}: {one.why})" for one in found if one.verdict not in fine]
        if bad:
            raise VerificationError(f"{len(bad)} of {len(found)} files are not verified: {few(bad, 5)}")
        return counts


async def settled(
    transfers: Transfers, row: Submission, batch: Batch, collections: Collections
) -> list[Outcome] | Wait:
    """The files' outcomes once the task has ended, and the row closed; or what to wait for."""
    task = await waiting(transfers, row, collections)
    if isinstance(task, Wait):
        return task
    found = await outcomes(transfers.client, batch, task, collections.mount)
    close(transfers.ledger, row, found, task)
    return found


async def waiting(transfers: Transfers, row: Submission, collections: Collections) -> Task | Wait | None:
    """The task once it has ended (None where Globus does not know it any more), or what to wait for."""
    task = await asyncio.to_thread(transfers.client.task, str(row.external_id))
    if task is None or task.ended:
        return task
    stuck = trouble(task)
    left = await bear(transfers, row, task, stuck)
    why = f"task {task.task_id}: {task.files_transferred} of {task.files} files"
    if stuck is not None:
        why += f"; {stuck.code}: {stuck.says}"
    return Wait(left, why, {"tasks": [task.task_id], "can_cancel": collections.cancel_on_failure})


def _item(given: Any, at: int) -> Item:
    if not isinstance(given, Mapping) or not {"source", "destination"} <= set(given):
        raise RequestError(f"items.{at}: it is no {{source, destination, size_bytes, md5}}; give each file both paths")
    size, md5 = given.get("size_bytes"), given.get("md5")
    return Item(str(given["source"]), str(given["destination"]), None if size is None else int(size), md5 or None)
