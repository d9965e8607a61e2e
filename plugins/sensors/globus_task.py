"""Waits for Globus tasks that somebody else has submitted. Submits nothing, cancels nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from hooks.globus import GlobusHook
from triggers.globus import GlobusTaskTrigger, TaskWatch
from triggers.leg import Leg, Legs, Wait

from include.core.errors import RemoteError
from include.core.text import few
from include.core.watch import Wake


class GlobusTaskSensor(Legs, BaseSensorOperator):
    """Waits until all of `task_ids` have ended and returns {task id: status}; fails if one did not succeed.

    `timeout` (seconds) bounds the whole wait. SUCCEEDED says that the task has ended well, and nothing of a single file: use
    GlobusBatchOperator for that.
    """

    trigger = GlobusTaskTrigger
    template_fields: Sequence[str] = ("task_ids",)

    def __init__(
        self,
        *,
        task_ids: Any,
        globus_conn_id: str = GlobusHook.default_conn_name,
        poll_seconds: float = 30.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.task_ids = task_ids
        self.conn_id = globus_conn_id
        self.poll_seconds = poll_seconds

    def deadline(self, _context: Context, began: float) -> float:
        return began + float(self.timeout)

    async def act(self, leg: Leg) -> Any:
        """Looks for itself, then waits or tells."""
        client = await asyncio.to_thread(GlobusHook(self.conn_id).client)
        try:
            look = TaskWatch(client, list(self.task_ids), Wake.NOTHING, None)
            seen = await look.observe()
        finally:
            await asyncio.to_thread(client.close)
        if len(look.ended) == len(look.ids) or leg.over:
            return self._told(look)
        options = {"tasks": list(look.ids), "wake": Wake.NOTHING}
        why = ", ".join(f"{count} {name}" for name, count in seen.counts.items())
        return Wait(float(self.timeout), why, options, self.poll_seconds)

    def _told(self, look: TaskWatch) -> dict[str, str]:
        statuses = {one: look.ended[one].state if one in look.ended else "not ended" for one in look.ids}
        bad = [f"{one} {status}" for one, status in sorted(statuses.items()) if status != "SUCCEEDED"]
        if bad:
            raise RemoteError(
                f"{len(bad)} of {len(statuses)} tasks did not succeed: {few(bad, 20)}. Look at them in Globus"
            )
        return statuses
