"""Waits for ICA jobs that somebody else started. Starts nothing, sends nothing again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from hooks.icav2 import ICAv2Hook
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import receipts
from triggers.icav2_jobs import ICAv2JobsTrigger

from include.core.errors import NotFound, RemoteError
from include.core.watch import WatchPolicy, watch
from include.icav2.models import JobStatus
from include.icav2.report import dumps
from include.icav2.watch import JobWatch


class ICAv2JobsSensor(BaseSensorOperator):
    """Waits until all of `job_ids` have ended and returns {job id: status}; fails if one did not succeed.

    `timeout` (seconds) bounds the whole wait. It never resubmits: use ICAv2CopyBatchOperator for that.
    """

    template_fields: Sequence[str] = ("job_ids",)

    def __init__(
        self,
        *,
        job_ids: Any,
        icav2_conn_id: str = ICAv2Hook.default_conn_name,
        poll_seconds: float = 30.0,
        deferrable: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.job_ids = job_ids
        self.icav2_conn_id = icav2_conn_id
        self.poll_seconds = poll_seconds
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, str]:
        return self.resume(context)

    def resume(
        self, context: Context, event: dict[str, Any] | None = None, deadline: float | None = None
    ) -> dict[str, str]:
        """Looks for itself, then waits or tells."""
        return run_async(self._leg(context, deadline or time.time() + float(self.timeout)))

    async def _leg(self, context: Context, deadline: float) -> dict[str, str]:
        async with ICAv2Hook(self.icav2_conn_id).client() as client:
            jobs = {job_id: (await self._job(client, job_id)).created for job_id in self.job_ids}
            look = JobWatch(client, jobs, wake_on_failure=False)
            await look.observe()
            if len(look.seen) < len(jobs) and time.time() < deadline:
                if self.deferrable:
                    await self._defer(context, jobs, deadline)
                policy = WatchPolicy(quiet_seconds=0, poll_seconds=self.poll_seconds)
                await watch(look.observe, deadline=deadline, policy=policy, say=self.log.info)
        return self._told(look, jobs)

    async def _job(self, client: Any, job_id: str) -> Any:
        try:
            return await client.job(job_id)
        except NotFound:
            raise RemoteError(f"ICA knows no job {job_id}: correct job_ids", no_effect=True) from None

    async def _defer(self, context: Context, jobs: dict[str, float], deadline: float) -> None:
        owner = owner_of(context)
        document = await receipts().objects.put(f"{run_folder(context)}/{owner.task_id}.jobs.json", dumps(jobs))
        self.defer(
            trigger=ICAv2JobsTrigger(
                conn_id=self.icav2_conn_id,
                dag_id=owner.dag_id,
                run_id=owner.run_id,
                deadline=deadline,
                since=time.time(),
                poll_seconds=self.poll_seconds,
                options={"jobs": document.to_dict()},
            ),
            method_name="resume",
            kwargs={"deadline": deadline},
        )

    def _told(self, look: JobWatch, jobs: dict[str, float]) -> dict[str, str]:
        statuses = {job_id: look.seen[job_id].status if job_id in look.seen else "not ended" for job_id in jobs}
        bad = {job_id: status for job_id, status in statuses.items() if status != JobStatus.SUCCEEDED}
        if bad:
            listed = ", ".join(f"{job_id} {status}" for job_id, status in sorted(bad.items())[:20])
            raise RemoteError(f"{len(bad)} of {len(jobs)} jobs did not succeed: {listed}. Look at them in ICA")
        return statuses
