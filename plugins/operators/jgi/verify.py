"""Says of each file of a batch whether it arrived: a task of its own, so that it can be cleared alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from hooks.globus import GlobusHook
from hooks.jgi import JdpHook
from hooks.mongo import tracking
from hooks.task import owner_of, run_async
from hooks.waybill import ledger
from operators.common.base import WaybillOperator
from operators.jgi.transfer import manifest_rows, route_of

from include.globus.client import GlobusClient
from include.globus.transfer import KIND, SYSTEM, Transfers, close, kept_batch, outcomes
from include.jgi.moving import drained, record, with_facts
from include.jgi.tracking import Tracking


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
            transfers = Transfers(self._client(), book, owner_of(context))
            facts["counts"] = counts = run_async(self._judged(transfers, kept))
        return counts

    def _client(self) -> GlobusClient:
        return GlobusHook(self.globus_conn_id).client()

    async def _judged(self, transfers: Transfers, kept: Tracking) -> dict[str, int]:
        collections = GlobusHook(self.globus_conn_id).collections()
        (request,) = kept.requests(key=self.ready["key"])
        row = transfers.ledger.generations(SYSTEM, KIND, self.moved["batch"])[-1]
        rows = await manifest_rows(self.ready, int(request.request_id or 0))
        batch = with_facts(kept_batch(row), rows, route_of(collections), int(request.request_id or 0))
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
