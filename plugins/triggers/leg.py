"""How a task waits without a worker, for operators and sensors alike: leg after leg, each acts and tells, then defers or
finishes.

Invariant: a leg looks for itself; what woke it is a reason, never a result. From one leg to the next go two instants and a
count, nothing else: the ledger and the documents are the memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from airflow.sdk import BaseHook, BaseOperator, Context
from hooks.task import owner_of, run_async
from triggers.until import UntilTrigger
from triggers.watch import WatchTrigger

from include.core.errors import AuthError, DeadlinePassed, WaybillError
from include.core.ledger import Owner
from include.core.request import DEADLINE_DAYS
from include.core.watch import WatchPolicy, asked_pause, may_pass

DAY_SECONDS = 86_400.0
CREDENTIAL_SECONDS = 3600.0  # how long a refused credential is waited for: it may just be being renewed
PAUSE_SECONDS, PAUSE_LIMIT_SECONDS = 30.0, 300.0  # after trouble for which nothing else is asked: doubling
LEAST_SECONDS = 5.0  # a shorter wait is not worth a deferral
PASS_SECONDS = 0.5  # between two legs of a worker that does not defer: what ends together is handled together


@dataclass(frozen=True)
class Wait:
    """What a leg returns when there is nothing to do but wait: for so many seconds, or until the trigger sees a reason.

    `why` is what people read meanwhile. `options` are the trigger's; it is the operator's own, unless another is given.
    """

    seconds: float
    why: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    poll_seconds: float = 30.0
    trigger: type[WatchTrigger] | None = None


@dataclass(frozen=True)
class Leg:
    """One turn of a task. `facts` go to the record of the step; `woken`: kind and reason, None where the task just began.

    `first`: no leg of this try has come to its end yet (one that raised an error is repeated). `began`: when this try began
    (epoch seconds). `over`: its time is over, so this leg starts nothing, and ends with what is open.
    """

    context: Context
    facts: dict[str, Any]
    woken: Mapping[str, Any] | None
    first: bool
    began: float
    over: bool

    @property
    def owner(self) -> Owner:
        return owner_of(self.context)


class Legs(BaseOperator):
    """Base of all that waits. A subclass has `act`, sets `conn_id`, and names the `trigger` that watches for it.

    Errors that may pass (a remote out of reach, a full quota, a submission in doubt) are waited for in the triggerer until
    the deadline, a refused credential for at most an hour. `deferrable=False` does all of it in the worker, however long.
    """

    trigger: ClassVar[type[WatchTrigger]] = UntilTrigger
    conn_id: str = ""

    def __init__(self, *, deferrable: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.deferrable = deferrable
        if not deferrable:
            self.execution_timeout = None  # it is meant for one leg; the whole wait ends at its deadline

    async def act(self, leg: Leg) -> Any:
        """Looks and acts; returns what the task returns, or a Wait. May raise: the error decides what is done."""
        raise NotImplementedError

    def deadline(self, context: Context, began: float) -> float:
        """When the time is over (epoch seconds), by default some days after the run's begin. `began`: this try's begin."""
        return run_began(context) + DEADLINE_DAYS * DAY_SECONDS

    def recorded(self, context: Context) -> AbstractContextManager[dict[str, Any]]:
        """Around each leg: where it is recorded how the step goes."""
        return nullcontext({})

    def execute(self, context: Context) -> Any:
        return self.resume(context)

    def resume(
        self,
        context: Context,
        event: dict[str, Any] | None = None,
        began: float | None = None,
        trouble: dict[str, Any] | None = None,
    ) -> Any:
        """The next leg, and those after it where the task does not defer."""
        began = began or time.time()
        deadline = self.deadline(context, began)
        with self.recorded(context) as facts:
            while True:
                if event:
                    self.log.info("woken: %s", event["why"])
                first = event is None or bool(trouble and trouble["first"])
                leg = Leg(context, facts, event, first, began, over=time.time() >= deadline)
                try:
                    outcome, trouble = run_async(self.act(leg)), None
                except WaybillError as error:
                    trouble = self._trouble(error, leg, trouble)
                    outcome = Wait(trouble["seconds"], str(error), trigger=UntilTrigger)
                if not isinstance(outcome, Wait):
                    return outcome
                if leg.over:
                    raise DeadlinePassed(self._open_at_the_deadline(outcome.why, deadline))
                self.log.info("waiting: %s", outcome.why or "the remote work goes on")
                trigger = self._trigger(leg.owner, outcome, deadline)
                if self.deferrable:
                    self.defer(trigger=trigger, method_name="resume", kwargs={"began": began, "trouble": trouble})
                policy = WatchPolicy(quiet_seconds=PASS_SECONDS, poll_seconds=outcome.poll_seconds)
                event = asdict(run_async(trigger.watched(policy)))

    def _trigger(self, owner: Owner, wait: Wait, deadline: float) -> WatchTrigger:
        kind, now = wait.trigger or self.trigger, time.time()
        options = {**wait.options, "why": wait.why[:1000]}
        if kind is UntilTrigger:
            options |= {"system": self.trigger.system, "can_cancel": self.trigger.can_cancel}
        return kind(
            conn_id=self.conn_id,
            owner=asdict(owner),
            deadline=max(min(now + wait.seconds, deadline), now + (LEAST_SECONDS if self.deferrable else 0)),
            since=now,
            poll_seconds=wait.poll_seconds,
            options=options,
        )

    def _trouble(self, error: WaybillError, leg: Leg, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """How long to wait because of an error, and what the next leg must know of it. Raises what waiting cannot mend."""
        if not may_pass(error):
            raise error
        now, refused = time.time(), isinstance(error, AuthError)
        same = before is not None and before["refused"] == refused  # an outage does not use up the hour of a credential
        since, count = (before["since"], before["count"]) if before is not None and same else (now, 0)
        if refused and now - since >= CREDENTIAL_SECONDS:
            raise DeadlinePassed(
                f"{error} It was refused for {(now - since) / 60:.0f} min by {self._remote()}: give the connection a credential "
                "that is accepted, then clear this task"
            ) from None
        pause = asked_pause(error, now) or min(PAUSE_SECONDS * 2.0 ** min(count, 9), PAUSE_LIMIT_SECONDS)
        if refused:
            pause = min(pause, since + CREDENTIAL_SECONDS - now)
        return {"since": since, "count": count + 1, "refused": refused, "seconds": pause, "first": leg.first}

    def _remote(self) -> str:
        """Connection and host, as a person looks for them."""
        host = BaseHook.get_connection(self.conn_id).host
        return f"connection {self.conn_id}" + (f" ({host})" if host else "")

    def _open_at_the_deadline(self, why: str, deadline: float) -> str:
        until = datetime.fromtimestamp(deadline, UTC).isoformat(timespec="minutes")
        return f"{why or 'it has not ended'}, and the time for it was over at {until}. Clear this task to wait on"


def run_began(context: Context) -> float:
    """When this run began (epoch seconds); a run that is cleared after its end begins anew."""
    began = context["dag_run"].start_date
    return began.timestamp() if isinstance(began, datetime) else time.time()
