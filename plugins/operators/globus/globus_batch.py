"""Moves files by Globus: one task per batch, submitted once, watched without a worker, judged file by file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hooks.globus import Collections, GlobusHook
from hooks.waybill import ledger
from operators.common.leg import Leg, LegOperator, Wait
from triggers.globus import GlobusTaskTrigger

from include.core.errors import RequestError, VerificationError
from include.core.text import few
from include.globus.batch import Batch, Item, batch_key, under
from include.globus.moving import Underway, move
from include.globus.transfer import Transfers, Verdict, counted

POOL = "waybill_globus"


class GlobusBatchOperator(LegOperator):
    """Moves `items`, a list of {source, destination, size_bytes, md5}, with paths below the connection's `source_root` and
    `destination_root`; size and md5 may be left out.

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
                transfers = Transfers(client, book, leg.owner)
                return await self.move(leg, transfers, collections)
            finally:
                await asyncio.to_thread(client.close)

    async def move(self, leg: Leg, transfers: Transfers, collections: Collections) -> Any:
        if leg.first:
            for one in (collections.source, collections.destination):
                await asyncio.to_thread(transfers.client.collection, one)
        batch = self._batch(collections, transfers)
        fine = {Verdict.VERIFIED} if self.require_md5 else {Verdict.VERIFIED, Verdict.UNVERIFIABLE}
        found = await move(transfers, batch, collections.mount, first=leg.first, fine=fine)
        if isinstance(found, Underway):
            return wait_for(found, collections)
        bad = [f"{one.item.destination} ({one.verdict}: {one.why})" for one in found if one.verdict not in fine]
        if bad:
            raise VerificationError(f"{len(bad)} of {len(found)} files are not verified: {few(bad, 5)}")
        return counted(found)

    def _batch(self, collections: Collections, transfers: Transfers) -> Batch:
        if not isinstance(self.items, list) or not self.items:
            raise RequestError("items: it is empty; give a list of {source, destination, size_bytes, md5}")
        items = tuple(_item(one, at, collections) for at, one in enumerate(self.items))
        now = transfers.client.remote_now or transfers.ledger.now()
        deadline = datetime.fromtimestamp(now + self.deadline_hours * 3600, UTC)
        key = batch_key(collections.source, collections.destination, items)
        return Batch(key, collections.source, collections.destination, items, deadline, self.batch_label)


def wait_for(task: Underway, collections: Collections) -> Wait:
    """Without a worker, until it has ended, or has trouble that must be timed."""
    options = {"tasks": [task.task_id], "borne": task.borne_by_id, "can_cancel": collections.cancel_on_failure}
    return Wait(task.seconds, task.why, options)


def _item(given: Any, at: int, collections: Collections) -> Item:
    if not isinstance(given, Mapping) or not {"source", "destination"} <= set(given):
        raise RequestError(f"items.{at}: it is no {{source, destination, size_bytes, md5}}; give each file both paths")
    size, md5 = given.get("size_bytes"), given.get("md5")
    return Item(
        under(collections.source_root, str(given["source"])),
        under(collections.destination_root, str(given["destination"])),
        None if size is None else int(size),
        md5 or None,
    )
