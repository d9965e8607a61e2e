"""Waiting without a worker: what is waited for, for how long, and how it ends."""

from __future__ import annotations

import json
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from hooks.task import owner_of
from operators.common.base import DEFAULT_ARGS, WaybillRetry
from operators.common.leg import Leg, LegOperator, Wait
from triggers import leg as leg_module
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.until import UntilTrigger

from include.core.errors import AuthError, DeadlinePassed, Forbidden, QuotaExceeded, RemoteError, TransientError
from include.core.ledger.submit import InDoubt
from include.core.request import DEADLINE_DAYS
from include.core.watch import Observe
from tests.plugins.conftest import Connect
from tests.plugins.doubles import Run

SLACK_SECONDS = 60.0  # between the instant that the operator computes and the test's look at it
Outcome = Any


class Scripted(LegOperator):
    """Each leg does the next thing of the script: raises it, or returns it."""

    trigger = ICAv2JobsTrigger
    conn_id = "waybill_remote"
    legs: list[Leg]
    script: list[Outcome]

    async def act(self, leg: Leg) -> Any:
        self.legs.append(leg)
        outcome = self.script.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture(autouse=True)
def places(receipts_folder: Path, connect: Connect) -> None:
    host = {"conn_type": "http", "host": "https://remote.example.org", "password": "s3cret"}
    connect("waybill_remote", json.dumps(host))


def operator(*script: Outcome, **options: Any) -> Scripted:
    made = Scripted(task_id="copy", **options)
    made.legs, made.script = [], list(script)
    return made


def deferred(task: Scripted, run: Run, **resumed: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as waits:
        task.resume(run.context("copy"), **resumed)
    return waits.value


def seconds(waits: TaskDeferred) -> float:
    return float(waits.trigger.deadline - time.time())


def test_a_wait_needs_seconds_and_options_and_the_rest_is_the_bases():
    run = Run()
    waits = deferred(operator(Wait(600, "two jobs run", {"wake": "end"})), run)
    assert isinstance(waits.trigger, ICAv2JobsTrigger)
    assert waits.trigger.owner == owner_of(run.context("copy"))
    assert waits.trigger.conn_id == "waybill_remote"
    assert waits.trigger.options == {"wake": "end", "why": "two jobs run"}
    assert seconds(waits) == pytest.approx(600, abs=SLACK_SECONDS)
    assert waits.method_name == "resume"


def test_the_next_leg_gets_what_woke_it_and_the_begin_of_the_first():
    run, task = Run(), operator(Wait(600), "the result")
    waits = deferred(task, run)
    event = {"kind": "wake", "why": "a job has ended", "counts": {}}
    assert task.resume(run.context("copy"), event, **waits.kwargs) == "the result"
    first, second = task.legs
    assert (first.woken, second.woken) == (None, event)
    assert (first.first, second.first) == (True, False)
    assert first.began == second.began
    assert not second.over


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (QuotaExceeded("full", available_at=90_000), 89_000, 90_000),
        (QuotaExceeded("full", available_at=-1e9), 55, 60),
        (InDoubt("not found yet", retry_after=90), 80, 90),
        (TransientError("out of reach"), 20, 30),
        (TransientError("asks too much", retry_after=1e9), 3500, 3600),
        (AuthError("401"), 20, 30),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_pass_is_waited_for_in_the_triggerer_and_uses_up_no_retry(error: Exception, least: float, most: float):
    if isinstance(error, QuotaExceeded):
        error.available_at += time.time()  # named from now on
    waits = deferred(operator(error), Run())
    assert isinstance(waits.trigger, UntilTrigger)
    assert least <= seconds(waits) + SLACK_SECONDS / 4
    assert seconds(waits) <= most
    assert waits.trigger.options["why"] == str(error)
    assert (waits.trigger.system, waits.trigger.can_cancel) == ("icav2", False), "its jobs are those of the operator"


@pytest.mark.parametrize("error", [Forbidden("403"), RemoteError("refused"), DeadlinePassed("over")])
def test_what_waiting_cannot_mend_ends_the_task_at_once(error: Exception):
    with pytest.raises(type(error), match=str(error)):
        operator(error).execute(Run().context("copy"))


def test_trouble_that_lasts_is_looked_at_less_and_less_often_and_forgotten_when_it_has_passed():
    run, task = Run(), operator(*[TransientError("out of reach")] * 5, Wait(600), TransientError("again"))
    pauses, resumed = [], {}
    for _ in range(7):
        waits = deferred(task, run, **resumed)
        pauses.append(seconds(waits))
        resumed = waits.kwargs
    assert pauses == [pytest.approx(pause, abs=15) for pause in (30, 60, 120, 240, 300, 600, 30)]


def test_a_credential_that_is_renewed_late_kills_no_run_and_the_leg_is_repeated_as_the_one_it_was():
    run, task = Run(), operator(AuthError("401"), Wait(60), AuthError("401"), "the result")
    first = deferred(task, run)
    second = deferred(task, run, event={"kind": "deadline", "why": ""}, **first.kwargs)
    third = deferred(task, run, event={"kind": "wake", "why": ""}, **second.kwargs)
    assert task.resume(run.context("copy"), {"kind": "deadline", "why": ""}, **third.kwargs) == "the result"
    assert [leg.first for leg in task.legs] == [True, True, False, False]


def test_a_credential_that_stays_refused_fails_after_an_hour_and_names_connection_and_host():
    run, now = Run(), time.time()
    waits = deferred(
        operator(AuthError("401")),
        run,
        trouble={"since": now - 3000, "count": 9, "refused": True, "seconds": 300, "first": True},
    )
    assert seconds(waits) <= 300
    with pytest.raises(DeadlinePassed) as failed:
        operator(AuthError("GET jobs answered 401.")).resume(
            run.context("copy"),
            trouble={"since": now - 3601, "count": 12, "refused": True, "seconds": 300, "first": True},
        )
    assert "GET jobs answered 401." in str(failed.value)
    assert "connection waybill_remote (https://remote.example.org)" in str(failed.value)
    assert "s3cret" not in str(failed.value)
    assert WaybillRetry().evaluate(failed.value, 1, 4).action.value == "fail", "no further hour"


def test_an_outage_before_it_does_not_use_up_the_hour_of_a_credential():
    outage = {"since": time.time() - 86_400, "count": 99, "refused": False, "seconds": 300, "first": False}
    assert seconds(deferred(operator(AuthError("401")), Run(), trouble=outage)) == pytest.approx(30, abs=15)


# -- the deadline ---------------------------------------------------------------------------------------------------


def begun(days_ago: float) -> Run:
    run = Run()
    run.start_date = datetime.now(UTC) - timedelta(days=days_ago)
    return run


def test_no_wait_outlasts_the_time_of_the_run():
    waits = deferred(operator(Wait(30 * 86_400)), begun(DEADLINE_DAYS - 1))
    assert seconds(waits) == pytest.approx(86_400, abs=SLACK_SECONDS)


def test_at_its_deadline_a_leg_is_told_and_may_end_with_what_is_open():
    task = operator("what is open")
    assert task.execute(begun(DEADLINE_DAYS).context("copy")) == "what is open"
    assert task.legs[0].over


@pytest.mark.parametrize("outcome", [Wait(600, "3 jobs run"), TransientError("the remote is out of reach")])
def test_at_its_deadline_nothing_is_waited_for_any_more(outcome: Outcome):
    with pytest.raises(
        DeadlinePassed, match=r"(3 jobs run|out of reach), and the time for it was over at .*Clear this task"
    ):
        operator(outcome).execute(begun(DEADLINE_DAYS).context("copy"))


# -- without deferring ----------------------------------------------------------------------------------------------


def test_a_worker_that_waits_itself_is_not_ended_by_the_time_limit_of_a_leg():
    assert operator(deferrable=False, **DEFAULT_ARGS).execution_timeout is None
    assert operator(**DEFAULT_ARGS).execution_timeout == DEFAULT_ARGS["execution_timeout"]


def test_a_worker_that_waits_itself_watches_and_acts_in_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leg_module, "WatchPolicy", partial(leg_module.WatchPolicy, first_poll_seconds=0.01))
    monkeypatch.setattr(leg_module, "PASS_SECONDS", 0.01)
    openings: list[int] = []

    def observer(self: Any) -> AbstractAsyncContextManager[Observe]:
        openings.append(1)
        raise OSError("cannot be opened yet")

    monkeypatch.setattr(ICAv2JobsTrigger, "observer", observer)
    task = operator(Wait(0.3, "a job runs"), TransientError("busy", retry_after=0.1), "the result", deferrable=False)
    assert task.execute(Run().context("copy")) == "the result"
    assert [(leg.woken or {}).get("kind") for leg in task.legs] == [None, "deadline", "deadline"]
    assert openings


def test_each_leg_is_recorded_and_a_task_that_waits_goes_on(receipts_folder: Path):
    run = Run()
    waits = deferred(operator(Wait(600)), run)

    def record() -> dict[str, Any]:
        return json.loads(next(receipts_folder.rglob("copy.note.json")).read_text())

    assert record()["state"] == "running"
    operator("the result").resume(run.context("copy"), {"kind": "wake", "why": ""}, **waits.kwargs)
    assert record()["state"] == "done"
