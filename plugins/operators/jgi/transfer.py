"""Moves the files of one restore request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException
from hooks.globus import Collections
from hooks.mongo import tracking
from hooks.task import run_folder
from hooks.waybill import receipts
from operators.common.leg import Leg
from operators.globus.globus_batch import GlobusBatchOperator, wait_for

from include.core.errors import DeadlinePassed
from include.core.ledger import Ledger, State
from include.globus.batch import Batch, batch_file
from include.globus.moving import Underway, ended_task
from include.globus.transfer import KIND, SYSTEM, Transfers, kept_batch
from include.jgi.manifest import ManifestRow, read_manifest
from include.jgi.models import BatchState
from include.jgi.moving import LEAST_SECONDS, Route, drained, files_batch, submitted, with_facts
from include.jgi.tracking import Tracking


def route_of(collections: Collections) -> Route:
    return Route(collections.source, collections.source_root, collections.destination, collections.destination_root)


async def manifest_rows(ready: Mapping[str, Any], request_id: int) -> list[ManifestRow]:
    return read_manifest(await receipts().objects.get_document(ready["manifest"]), request_id)


class StagingTransferOperator(GlobusBatchOperator):
    """Moves what `ready` (the result of RestoreRequestSensor) has on JDP's disk; returns {"key", "batch"}. Skips where nothing is
    left to move."""

    step = "transfer"
    template_fields: Sequence[str] = ("ready",)

    def __init__(self, *, ready: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.ready = ready

    async def move(self, leg: Leg, transfers: Transfers, collections: Collections) -> Any:
        client, book = transfers.client, transfers.ledger
        with tracking() as kept:
            (request,) = kept.requests(key=self.ready["key"])
            rows = await manifest_rows(self.ready, int(request.request_id or 0))
            batch = self._open_batch(kept, transfers, request.key)
            if batch is not None:
                batch = with_facts(batch, rows, route_of(collections), int(request.request_id or 0))
            if batch is None:
                await asyncio.to_thread(client.collection, collections.source)  # its clock, and whether it is there
                try:
                    batch = files_batch(
                        kept,
                        route_of(collections),
                        request,
                        rows,
                        left_seconds=self._left_seconds(book),
                        globus_now=client.remote_now or book.now(),
                    )
                except DeadlinePassed as error:  # once JDP has taken them off its disk, the next run asks again
                    raise AirflowSkipException(str(error)) from None
            if batch is None:
                drained(kept, request)
                raise AirflowSkipException(f"restore request {request.request_id}: all of it has arrived")
            before = book.generations(SYSTEM, KIND, batch.key)
            seen = None
            if before and before[-1].state != State.SENT:  # it has ended, or was never sent: its deadline may be over
                seen, left = before[-1].generation, self._left_seconds(book)
                now = client.remote_now or book.now()
                batch = replace(batch, deadline=datetime.fromtimestamp(now + max(left, LEAST_SECONDS), UTC))
            row = await transfers.submit(batch, seen_absent=seen)
            submitted(kept, batch, row)
            await self._keep(leg, batch)
        task = await ended_task(transfers, row)
        if isinstance(task, Underway):
            return wait_for(task, collections)
        return {"key": self.ready["key"], "batch": batch.key}

    def _left_seconds(self, book: Ledger) -> float:
        """How long the files stay on JDP's disk: the sensor said it some time ago, before a queue or a clear."""
        passed = book.now() - float(self.ready["looked_at"])
        return float(self.ready["left_seconds"]) - max(passed, 0.0)

    async def _keep(self, leg: Leg, batch: Batch) -> None:
        """The batch as the procedure's own file, for the record."""
        place = f"{run_folder(leg.context)}/{batch.key}.txt"
        document = await receipts().objects.put(place, batch_file(batch.items, batch.label).encode())
        leg.facts["batch_file"] = document.to_dict()

    def _open_batch(self, kept: Tracking, transfers: Transfers, key: str) -> Batch | None:
        """The batch that an earlier leg, try or run has begun for this request, if one is still open."""
        for one in kept.batches((BatchState.INTENT, BatchState.SUBMITTED), request_key=key):
            found = transfers.ledger.generations(SYSTEM, KIND, one.key)
            if found:
                return kept_batch(found[-1])
        return None
