"""`WatchTrigger`: what every Waybill trigger is. A subclass says what to look at, and nothing else.

Invariant: a trigger only reads and wakes, holds no database connection while it waits, and ends in wake, deadline or lost
whatever happens. Airflow calls `on_kill` on mark-failed, but also on clear, on mark-success and when a stalled triggerer
comes back to find its triggers moved (docs/protocols/airflow.md 2.4); so `on_kill` looks at the task instance and, only if a
person made it fail, writes cancellation requests into the ledger, for what this very task sent. It never cancels.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent
from hooks.waybill import LEDGER, ask_ledger

from include.core.ledger import Ledger, Owner, Submission
from include.core.watch import Observe, Opened, WatchEnd, WatchPolicy, waited_for, watch

T = TypeVar("T")


class WatchTrigger(BaseTrigger):
    """Looks at all items of a task in one bulk call until a worker is needed; ends with one event.

    `owner` (the fields of an Owner) is the watch key: the list of ids lies in the ledger. `deadline` and `since` are absolute
    epoch seconds, so that a restarted triggerer goes on where the old one was. The option `why` is logged when the wait
    begins. Payload: {"kind", "why", "counts"}.

    `can_cancel`: whether the system can end what it has accepted. Where it cannot, nothing is asked for.
    """

    system: str = ""
    can_cancel: bool

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if not cls.system or cls.observer is WatchTrigger.observer or not hasattr(cls, "can_cancel"):
            # Otherwise it would defer well and fail later, out of sight.
            raise TypeError(f"{cls.__name__} must set `system` and `can_cancel`, and define `observer`")

    def __init__(
        self,
        *,
        conn_id: str,
        deadline: float,
        since: float,
        poll_seconds: float,
        owner: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        ledger_conn_id: str = LEDGER,
        dag_id: str = "",
        run_id: str = "",
    ):
        super().__init__()
        self.conn_id = conn_id
        # A task that an earlier release deferred gives its run only: see `run`.
        self.owner = Owner(**owner) if owner else Owner(dag_id, run_id, task_id="")
        self.deadline = deadline
        self.since = since
        self.poll_seconds = poll_seconds
        self.options = dict(options or {})
        self.ledger_conn_id = ledger_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("conn_id", "deadline", "since", "poll_seconds", "options", "ledger_conn_id")
        kwargs = {"owner": asdict(self.owner), **{name: getattr(self, name) for name in names}}
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    def observer(self) -> AbstractAsyncContextManager[Observe]:
        """Opens what is needed to look, and gives the look. Called again after a look that failed."""
        raise NotImplementedError

    async def run(self) -> AsyncIterator[TriggerEvent]:
        if self.options.get("why"):
            self.log.info("waiting: %s", self.options["why"])
        end = await self.watched(WatchPolicy(poll_seconds=self.poll_seconds))
        self.log.info("waking a worker: %s", end.why)
        yield TriggerEvent({"kind": end.kind, "why": end.why, "counts": dict(end.counts)})

    async def watched(self, policy: WatchPolicy) -> WatchEnd:
        """The whole wait: in a triggerer, or in a worker that does not defer."""
        deadline = self.deadline if self.owner.task_id else min(self.deadline, self.since)  # the worker defers anew
        async with Opened(self.observer) as look:
            return await watch(look.observe, deadline=deadline, since=self.since, policy=policy, say=self.log.info)

    # -- the ledger ---------------------------------------------------------------------------------------------

    async def ask_ledger(self, work: Callable[[Ledger], T]) -> T:
        """Asks the ledger in a thread, and leaves no connection open."""
        return await ask_ledger(work, self.ledger_conn_id)

    async def waited_for(self) -> list[Submission]:
        """The jobs that this trigger's task waits for."""
        return await self.ask_ledger(lambda book: waited_for(book, self.owner, self.system))

    async def on_kill(self) -> None:
        state = await self._task_state()
        if state != "failed":
            self.log.info("no longer watching (the task is %s); the remote work goes on", state)
            return
        if not self.can_cancel:
            self.log.info("nothing can be cancelled at %s: what was sent ends by itself", self.system)
            return
        await self.ask_ledger(self._request_cancellations)

    def _request_cancellations(self, book: Ledger) -> None:
        """What the task attached to is another task's, and goes on."""
        rows = [row for row in waited_for(book, self.owner, self.system) if row.owner.is_same(self.owner)]
        for row in rows:
            book.request_cancel(row, who="a person, in Airflow", why="the task was marked failed while it waited")
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
