"""Waits for ICA jobs that somebody else started. Starts nothing, sends nothing again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from hooks.icav2 import ICAv2Hook
from hooks.task import run_folder
from hooks.waybill import receipts
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.leg import Leg, Legs, Wait

from include.core.errors import NotFound, RemoteError
from include.core.watch import BulkWatch, Wake
from include.icav2.client import ICAv2Client
from include.icav2.report import dumps
from include.icav2.watch import job_watch


class ICAv2JobsSensor(Legs, BaseSensorOperator):
    """Waits until all of `job_ids` have ended and returns {job id: status}; fails if one did not succeed.

    `timeout` (seconds) bounds the whole wait. It never resubmits: use ICAv2CopyBatchOperator for that.
    """

    trigger = ICAv2JobsTrigger
    template_fields: Sequence[str] = ("job_ids",)

    def __init__(
        self,
        *,
        job_ids: Any,
        icav2_conn_id: str = ICAv2Hook.default_conn_name,
        poll_seconds: float = 30.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.job_ids = job_ids
        self.conn_id = icav2_conn_id
        self.poll_seconds = poll_seconds

    def deadline(self, _context: Context, began: float) -> float:
        return began + float(self.timeout)

    async def act(self, leg: Leg) -> Any:
        """Looks for itself, then waits or tells."""
        async with ICAv2Hook(self.conn_id).client() as client:
            jobs = {job_id: await self._created(client, job_id) for job_id in self.job_ids}
            look = job_watch(client, jobs, Wake.NOTHING)
            await look.observe()
        if len(look.ended) == len(jobs) or leg.over:
            return self._told(look)
        place = f"{run_folder(leg.context)}/{leg.owner.task_id}.jobs.json"
        document = await receipts().objects.put(place, dumps(jobs))
        options = {"jobs": document.to_dict(), "wake": Wake.NOTHING}
        return Wait(float(self.timeout), options=options, poll_seconds=self.poll_seconds)

    async def _created(self, client: ICAv2Client, job_id: str) -> float:
        try:
            return (await client.job(job_id)).created
        except NotFound:
            raise RemoteError(f"ICA knows no job {job_id}: correct job_ids", no_effect=True) from None

    def _told(self, look: BulkWatch) -> Mapping[str, str]:
        statuses = {one: look.ended[one].state if one in look.ended else "not ended" for one in look.ids}
        bad = {one: status for one, status in statuses.items() if one not in look.ended or not look.ended[one].good}
        if bad:
            listed = ", ".join(f"{one} {status}" for one, status in sorted(bad.items())[:20])
            raise RemoteError(f"{len(bad)} of {len(statuses)} jobs did not succeed: {listed}. Look at them in ICA")
        return statuses
