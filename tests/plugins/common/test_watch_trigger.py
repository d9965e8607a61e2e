"""What every Waybill trigger does: it reads, it wakes once, and it never cancels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import TriggerEvent
from triggers import watch as watch_module
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.watch import Observe, WatchTrigger

from harness.virtual_time import VirtualTimeLoop, run_virtual
from include.core.errors import AuthError, TransientError
from include.core.ledger import Intent, Ledger, Owner, Probe, State, submit_once
from include.core.watch import Observation, WatchPolicy
from tests.plugins.conftest import Ica, rows_of
from tests.plugins.doubles import DAG_ID

RUN_ID = "first"


class Counting(WatchTrigger):
    """Sees what the test wants it to see, and notes when it looked. It needs no ledger to look."""

    system = "icav2"
    sees: Callable[[int], Observation]
    looked: list[float]

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        async def observe() -> Observation:
            self.looked.append(asyncio.get_running_loop().time())
            return self.sees(len(self.looked))

        yield observe

    async def _ledger(self) -> Any:
        return None


def trigger_of(kind: type[WatchTrigger], **changes: Any) -> Any:
    given = {"conn_id": "waybill_icav2", "dag_id": DAG_ID, "run_id": RUN_ID, "deadline": 0.0, "since": 0.0}
    return kind(**{**given, "poll_seconds": 30.0, **changes})


def watch_virtually(
    monkeypatch: pytest.MonkeyPatch, sees: Callable[[int], Observation], deadline_in: float = 3600.0
) -> tuple[list[TriggerEvent], list[float], float]:
    """All events of a trigger on virtual time, when it looked, and when it ended (seconds)."""

    async def main(loop: VirtualTimeLoop) -> tuple[list[TriggerEvent], list[float], float]:
        monkeypatch.setattr(watch_module, "watch", partial(watch_module.watch, now=loop.now))
        trigger = trigger_of(Counting, deadline=loop.now() + deadline_in, since=loop.now())
        trigger.sees, trigger.looked = sees, []
        events = [event async for event in trigger.run()]
        return events, trigger.looked, loop.time()

    return run_virtual(main)


def test_it_is_silent_for_the_first_three_seconds_and_then_ends_with_one_event(monkeypatch: pytest.MonkeyPatch):
    ended = Observation({"jobs passed": 2}, wake="all jobs have ended")
    events, looked, _ = watch_virtually(monkeypatch, lambda _count: ended)
    assert looked == [pytest.approx(3.0)]
    assert [event.payload for event in events] == [
        {"kind": "wake", "why": "all jobs have ended", "counts": {"jobs passed": 2}}
    ]


def test_the_silence_is_more_than_twice_the_heartbeat_that_the_settings_ask_for():
    from airflow.sdk.configuration import conf

    assert WatchPolicy().quiet_seconds > 2 * conf.getfloat("workers", "min_heartbeat_interval")


def test_it_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch):
    events, _, ended_at = watch_virtually(monkeypatch, lambda _count: Observation({"running": 1}), deadline_in=100.0)
    assert [event.payload["kind"] for event in events] == ["deadline"]
    assert ended_at == pytest.approx(100.0)


@pytest.mark.parametrize("error", [TransientError("no answer"), AuthError("401")])
def test_a_budget_of_errors_in_a_row_makes_it_lost_and_a_success_restores_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    budget = WatchPolicy().error_budget

    def sees(count: int) -> Observation:
        if count == 3:
            return Observation({"running": 1})
        raise error

    events, looked, _ = watch_virtually(monkeypatch, sees, deadline_in=1e9)
    assert [event.payload["kind"] for event in events] == ["lost"]
    assert len(looked) == 3 + budget


def test_it_carries_names_and_instants_through_the_database_and_nothing_else():
    options = {"more_to_send": True}
    trigger = trigger_of(ICAv2JobsTrigger, deadline=1_800_000_000.5, since=1_799_999_999.5, options=options)
    path, kwargs = trigger.serialize()
    assert path == "triggers.icav2_jobs.ICAv2JobsTrigger"
    assert resolve_name(path) is ICAv2JobsTrigger
    assert resolve_name(path)(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
    assert kwargs == {
        "conn_id": "waybill_icav2", "ledger_conn_id": "waybill_ledger", "dag_id": DAG_ID, "run_id": RUN_ID,
        "deadline": 1_800_000_000.5, "since": 1_799_999_999.5, "poll_seconds": 30.0, "options": options,
    }  # fmt: skip


def test_a_subclass_without_a_system_or_an_observer_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="must set `system` and define `observer`"):
        type("NoSystem", (WatchTrigger,), {"observer": lambda self, ledger: None})
    with pytest.raises(TypeError, match="must set `system` and define `observer`"):
        type("NoObserver", (WatchTrigger,), {"system": "icav2"})


# -- on_kill ----------------------------------------------------------------------------------------------------


def submitted(ledger: Ledger, system: str, key: str, run_id: str = RUN_ID) -> None:
    """A row in state SENT: a job that runs."""

    async def send(_row: Any, _guard: Any) -> str:
        return f"job of {key}"

    async def never(*_: Any) -> Any:
        raise NotImplementedError

    intent = Intent(system, "copy_batch", key, {"key": key}, Owner(DAG_ID, run_id, "copy"))
    asyncio.run(submit_once(ledger, intent, send=send, probe=Probe(never, 60, 60, proves_absence=False)))


@pytest.fixture
def killed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Airflow kills the trigger while its task instance is in the given state; `asked` keeps how it was looked up."""
    submitted(ledger, "icav2", "ours")
    submitted(ledger, "jgi", "another system's")
    submitted(ledger, "icav2", "another run's", "second")

    def kill(state: str | None, times: int = 1, found: bool = True) -> None:
        def states(**asked: Any) -> dict[str, Any]:
            assert asked == {"dag_id": DAG_ID, "task_ids": ["copy"], "run_ids": [RUN_ID], "map_index": -1}
            return {RUN_ID: {"copy": state}} if found else {}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))
        trigger = trigger_of(ICAv2JobsTrigger)
        trigger.task_instance = SimpleNamespace(dag_id=DAG_ID, run_id=RUN_ID, task_id="copy", map_index=-1)
        for _ in range(times):
            asyncio.run(trigger.on_kill())

    return kill


def wished(ledger: Ledger) -> list[str]:
    return [row.business_key for row in rows_of(ledger) if row.cancel_requested_at is not None]


def test_marked_failed_is_written_down_as_a_wish_and_nothing_is_cancelled(killed: Callable[..., None], ledger: Ledger):
    killed("failed", times=2)
    assert wished(ledger) == ["ours"], "only this run's jobs in this system"
    assert {row.state for row in rows_of(ledger)} == {State.SENT}


@pytest.mark.parametrize("state", ["success", "scheduled", "queued", "running", "deferred", "up_for_retry", None])
def test_a_task_that_is_not_failed_leaves_no_wish(killed: Callable[..., None], ledger: Ledger, state: str | None):
    killed(state)
    assert wished(ledger) == []


def test_a_task_of_a_deleted_run_leaves_no_wish(killed: Callable[..., None], ledger: Ledger):
    killed(None, found=False)
    assert wished(ledger) == []


def test_a_trigger_that_does_not_know_its_task_leaves_no_wish(ledger: Ledger):
    submitted(ledger, "icav2", "ours")
    asyncio.run(trigger_of(ICAv2JobsTrigger).on_kill())
    assert wished(ledger) == []


# -- on the jobs of ICA ------------------------------------------------------------------------------------------


def test_it_watches_the_jobs_of_its_run_by_one_listing_and_wakes_when_one_fails(
    ica: Ica, ledger: Ledger, receipts_folder: Any, quick_looks: None
):
    from tests.plugins.icav2.test_copy_batch import Copy

    ica.change_settings(overrides=[{"destination": "/cache/d1/", "outcome": "failed_clean", "duration_seconds": 1.0}])
    copy = Copy(ica.conf(3), RUN_ID)
    trigger = copy.wait().trigger
    ica.pass_time(2)
    before = dict(ica.call(lambda sim: sim.journal.calls))
    event = asyncio.run(anext(trigger.run()))
    assert event.payload["kind"] == "wake"
    assert event.payload["counts"] == {"jobs passed": 0, "running": 2, "failed": 1}
    calls = ica.call(lambda sim: dict(sim.journal.calls))
    asked = {call: count - before.get(call, 0) for call, count in calls.items() if count != before.get(call, 0)}
    assert asked == {"POST /api/tokens": 1, "GET /api/jobs": 1}
