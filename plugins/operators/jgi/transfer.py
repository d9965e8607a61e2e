"""Moves the files of one restore request, and says of each whether it arrived: two tasks, so that each can be cleared alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from hooks.globus import Collections, GlobusHook
from hooks.jgi import JdpHook
from hooks.mongo import tracking
from hooks.task import owner_of, run_async
from hooks.waybill import ledger, receipts
from operators.common.base import WaybillOperator
from operators.common.leg import Leg
from operators.globus.globus_batch import GlobusBatchOperator, wait_for

from include.core.ledger import State
from include.globus.batch import Batch
from include.globus.client import GlobusClient
from include.globus.moving import Underway, ended_task
from include.globus.transfer import KIND, SYSTEM, Transfers, close, outcomes
from include.jgi.manifest import ManifestRow, read_manifest
from include.jgi.models import BatchState
from include.jgi.moving import Route, drained, files_batch, record, submitted, with_facts
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
            batch = await self._open_batch(kept, transfers, request.key)
            if batch is not None:
                batch = with_facts(batch, rows, route_of(collections), int(request.request_id or 0))
            if batch is None:
                await asyncio.to_thread(client.collection, collections.source)  # its clock, and whether it is there
                batch = files_batch(
                    kept,
                    route_of(collections),
                    request,
                    rows,
                    left_seconds=float(self.ready["left_seconds"]),
                    globus_now=client.remote_now or book.now(),
                )
            if batch is None:
                raise AirflowSkipException(f"restore request {request.request_id}: all of it has arrived")
            before = book.generations(SYSTEM, KIND, batch.key)
            seen = before[-1].generation if before and before[-1].state != State.SENT else None
            row = await transfers.submit(batch, seen_absent=seen)
            submitted(kept, batch, row)
        task = await ended_task(transfers, row)
        if isinstance(task, Underway):
            return wait_for(task, collections)
        return {"key": self.ready["key"], "batch": batch.key}

    async def _open_batch(self, kept: Tracking, transfers: Transfers, key: str) -> Batch | None:
        """The batch that an earlier leg, try or run has begun for this request, if one is still open."""
        for one in kept.batches((BatchState.INTENT, BatchState.SUBMITTED), request_key=key):
            found = transfers.ledger.generations(SYSTEM, KIND, one.key)
            if found:
                return await transfers.batch_of(found[-1])
        return None


class StagingVerifyOperator(WaybillOperator):
    """Judges each file of a batch (`moved`, the result of StagingTransferOperator) and writes it down. Returns counts."""

    step = "verify"
    template_fields: Sequence[str] = ("moved", "ready")

    def __init__(
        self,
        *,
        moved: Any,
        ready: Any,
        globus_conn_id: str = GlobusHook.default_conn_name,
        jdp_conn_id: str = JdpHook.default_conn_name,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.moved = moved
        self.ready = ready
        self.globus_conn_id = globus_conn_id
        self.jdp_conn_id = jdp_conn_id

    def execute(self, context: Context) -> dict[str, int]:
        with self.refusing(context) as facts, ledger() as book, tracking() as kept:
            facts["counts"] = counts = run_async(
                self._judged(Transfers(self._client(), book, owner_of(context), receipts().objects), kept)
            )
        return counts

    def _client(self) -> GlobusClient:
        return GlobusHook(self.globus_conn_id).client()

    async def _judged(self, transfers: Transfers, kept: Tracking) -> dict[str, int]:
        collections = GlobusHook(self.globus_conn_id).collections()
        (request,) = kept.requests(key=self.ready["key"])
        row = transfers.ledger.generations(SYSTEM, KIND, self.moved["batch"])[-1]
        rows = await manifest_rows(self.ready, int(request.request_id or 0))
        batch = with_facts(await transfers.batch_of(row), rows, route_of(collections), int(request.request_id or 0))
        try:
            task = await asyncio.to_thread(transfers.client.task, str(row.external_id))
            found = await outcomes(transfers.client, batch, task, collections.mount)
        finally:
            await asyncio.to_thread(transfers.client.close)
        counts = record(kept, request, batch, found, JdpHook(self.jdp_conn_id).account().limits)
        close(transfers.ledger, row, found, task)
        drained(kept, request)
        for one in found:
            if one.verdict != "verified":
                self.log.warning("%s: %s: %s", one.item.destination, one.verdict, one.why)
        return dict(counts)
