"""`WatchTrigger`: what every Waybill trigger is. A subclass says what to look at, and nothing else.

Invariant: a trigger only reads and wakes. Airflow calls `on_kill` on mark-failed, but also on
clear, on mark-success and when a stalled triggerer comes back to find its triggers moved (docs/protocols/airflow.md
2.4); so `on_kill` looks at the task
instance and, only if a person made it fail, writes a cancellation request into the ledger. It never cancels.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent
from hooks.waybill import LEDGER, aledger

from include.core.ledger import Ledger, State
from include.core.watch import Observation, WatchPolicy, watch

Observe = Callable[[], Awaitable[Observation]]


class WatchTrigger(BaseTrigger):
    """Looks at all items of a task in one bulk call until a worker is needed; ends with one event.

    `dag_id` and `run_id` are the watch key: the list of ids lies in the ledger. `deadline` and `since` are absolute epoch
    seconds, so that a restarted triggerer goes on where the old one was. Payload: {"kind", "why", "counts"}.
    """

    system: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if not cls.system or cls.observer is WatchTrigger.observer:
            # Otherwise it would defer well and fail later, out of sight.
            raise TypeError(f"{cls.__name__} must set `system` and define `observer`")

    def __init__(
        self,
        *,
        conn_id: str,
        dag_id: str,
        run_id: str,
        deadline: float,
        since: float,
        poll_seconds: float,
        options: dict[str, Any] | None = None,
        ledger_conn_id: str = LEDGER,
    ):
        super().__init__()
        self.conn_id = conn_id
        self.dag_id = dag_id
        self.run_id = run_id
        self.deadline = deadline
        self.since = since
        self.poll_seconds = poll_seconds
        self.options = options or {}
        self.ledger_conn_id = ledger_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("conn_id", "dag_id", "run_id", "deadline", "since", "poll_seconds", "options", "ledger_conn_id")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    def observer(self, ledger: Ledger) -> AbstractAsyncContextManager[Observe]:
        """Opens what is needed to look, and gives the look."""
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        ledger = await self._ledger()
        async with self.observer(ledger) as observe:
            end = await watch(
                observe,
                deadline=self.deadline,
                since=self.since,
                policy=WatchPolicy(poll_seconds=self.poll_seconds),
                say=self.log.info,
            )
        self.log.info("waking a worker: %s", end.why)
        yield TriggerEvent({"kind": end.kind, "why": end.why, "counts": dict(end.counts)})

    async def _ledger(self) -> Ledger:
        return await aledger(self.ledger_conn_id)

    async def on_kill(self) -> None:
        state = await self._task_state()
        if state != "failed":
            self.log.info("no longer watching (the task is %s); the remote work goes on", state)
            return
        ledger = await self._ledger()
        await asyncio.to_thread(self._request_cancellation, ledger)

    def _request_cancellation(self, ledger: Ledger) -> None:
        rows = [r for r in ledger.of_run(self.dag_id, self.run_id) if r.system == self.system and r.state == State.SENT]
        for row in rows:
            ledger.request_cancel(row, who="a person, in Airflow", why="the task was marked failed while it waited")
        self.log.info("the task was marked failed: cancellation of %d jobs is requested in the ledger", len(rows))

    async def _task_state(self) -> str | None:
        """The state of this trigger's task instance, read now. None where it cannot be found (a deleted run)."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti = self.task_instance
        if ti is None:
            return None
        # For a mapped task the answer's key holds the index; one index is asked for, so one value comes back.
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        found = list((states.get(ti.run_id) or {}).values())
        return str(found[0]) if found else None
