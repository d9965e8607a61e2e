"""What every Waybill trigger does: it reads, it wakes once, it holds no connection to the ledger, and it never cancels."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import TriggerEvent
from hooks import waybill
from triggers import watch as watch_module
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.until import UntilTrigger
from triggers.watch import WatchTrigger

from harness.fixtures import Connect, connections_to
from harness.virtual_time import VirtualTimeLoop, run_virtual
from include.core.errors import AuthError, LedgerError, TransientError
from include.core.ledger import Intent, Ledger, Owner, Probe, Submission, submit_once
from include.core.watch import Observation, Observe, WatchPolicy
from tests.plugins.conftest import Ica, rows_of
from tests.plugins.doubles import DAG_ID

RUN_ID = "first"
OWNER = Owner(DAG_ID, RUN_ID, "copy")


class Counting(WatchTrigger):
    """Sees what the test wants it to see, and notes when it looked, and how often it was opened. It needs no ledger."""

    system = "icav2"
    can_cancel = True
    sees: Callable[[int], Observation]
    looked: list[float]
    opened: Callable[[int], None] = staticmethod(lambda _count: None)
    openings = 0

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        self.openings += 1
        self.opened(self.openings)

        async def observe() -> Observation:
            self.looked.append(asyncio.get_running_loop().time())
            return self.sees(len(self.looked))

        yield observe


def trigger_of(kind: type[WatchTrigger], **changes: Any) -> Any:
    given = {"conn_id": "waybill_icav2", "owner": asdict(OWNER), "deadline": 0.0, "since": 0.0, "poll_seconds": 30.0}
    return kind(**{**given, **changes})


def watch_virtually(
    monkeypatch: pytest.MonkeyPatch,
    sees: Callable[[int], Observation],
    deadline_in: float = 3600.0,
    opened: Callable[[int], None] = lambda _count: None,
) -> tuple[list[TriggerEvent], list[float], float]:
    """All events of a trigger on virtual time, when it looked, and when it ended (seconds)."""

    async def main(loop: VirtualTimeLoop) -> tuple[list[TriggerEvent], list[float], float]:
        monkeypatch.setattr(watch_module, "watch", partial(watch_module.watch, now=loop.now))
        trigger = trigger_of(Counting, deadline=loop.now() + deadline_in, since=loop.now())
        trigger.sees, trigger.looked, trigger.opened = sees, [], opened
        events = [event async for event in trigger.run()]
        return events, trigger.looked, loop.time()

    return run_virtual(main)


def test_it_is_silent_for_the_first_three_seconds_and_then_ends_with_one_event(monkeypatch: pytest.MonkeyPatch):
    ended = Observation({"jobs passed": 2}, wake="no jobs are running any more")
    events, looked, _ = watch_virtually(monkeypatch, lambda _count: ended)
    assert looked == [pytest.approx(3.0)]
    assert [event.payload for event in events] == [
        {"kind": "wake", "why": "no jobs are running any more", "counts": {"jobs passed": 2}}
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


TROUBLES = [
    TransientError("no answer"), OSError("no route"), httpx.DecodingError("a body that is no gzip"), KeyError("state"),
    AirflowNotFoundException("no such connection"),
]  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["opening", "looking"])
def test_whatever_opening_or_looking_raises_is_a_failed_look_within_the_budget(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception, place: str
):
    def raises(_count: int) -> Any:
        raise trouble

    seen = Observation({"running": 1})
    places = {"opened": raises} if place == "opening" else {}
    sees = raises if place == "looking" else lambda _count: seen
    events, looked, ended_at = watch_virtually(monkeypatch, sees, deadline_in=1e9, **places)
    assert [event.payload["kind"] for event in events] == ["lost"]
    assert ended_at > 3600, "a trouble of some minutes must not wake anybody"
    assert len(looked) == (0 if place == "opening" else WatchPolicy().error_budget)


def test_a_lost_connection_is_opened_anew_and_the_watch_goes_on(monkeypatch: pytest.MonkeyPatch):
    openings: list[int] = []

    def sees(count: int) -> Observation:
        if count == 2:
            raise OSError("connection lost")
        return Observation({"running": 1}, wake="ended" if count == 4 else None)

    events, looked, _ = watch_virtually(monkeypatch, sees, opened=openings.append)
    assert [event.payload["kind"] for event in events] == ["wake"]
    assert (openings, len(looked)) == ([1, 2], 4)


def test_a_ledger_that_cannot_be_trusted_wakes_a_worker_who_says_so(monkeypatch: pytest.MonkeyPatch):
    def opened(_count: int) -> None:
        raise LedgerError("there is no ledger")

    events, _, _ = watch_virtually(monkeypatch, lambda _count: Observation({}), opened=opened)
    assert [event.payload["kind"] for event in events] == ["lost"]
    assert "there is no ledger" in events[0].payload["why"]


def test_the_text_of_an_error_that_is_not_ours_is_not_told(monkeypatch: pytest.MonkeyPatch):
    def sees(_count: int) -> Observation:
        raise ValueError("Bearer s3cret")

    events, _, _ = watch_virtually(monkeypatch, sees, deadline_in=1e9)
    assert "s3cret" not in events[0].payload["why"]
    assert "ValueError in test_watch_trigger.py" in events[0].payload["why"]


# -- the ledger -------------------------------------------------------------------------------------------------------


class Looking(ICAv2JobsTrigger):
    """Reads its jobs in the ledger as the real one does, then stays, and says that it waits."""

    waits: asyncio.Event

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        jobs = await self.waited_for()

        async def observe() -> Observation:
            self.waits.set()
            return Observation({"running": len(jobs)})

        yield observe


def test_many_triggers_that_wait_hold_no_connection_to_the_ledger(ledger: Ledger, quick_looks: None):
    submitted(ledger, "icav2", "ours")

    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        triggers = [trigger_of(Looking, deadline=2e9, since=2e9) for _ in range(20)]
        for trigger in triggers:
            trigger.waits = asyncio.Event()
        tasks = [loop.create_task(anext(trigger.run())) for trigger in triggers]
        await asyncio.gather(*(trigger.waits.wait() for trigger in triggers))
        held = connections_to(ledger)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return held, connections_to(ledger)

    ledger.close()
    assert asyncio.run(main()) == (0, 0)


def test_a_ledger_that_does_not_answer_stops_no_other_trigger(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    connecting, others_went_on = threading.Event(), threading.Event()

    class Silent(Ledger):
        def __init__(self, *args: Any, **kwargs: Any):
            connecting.set()
            assert others_went_on.wait(30), "the event loop stood still"
            super().__init__(*args, **kwargs)

    async def main() -> list[Submission]:
        asked = asyncio.ensure_future(trigger_of(ICAv2JobsTrigger).waited_for())
        while not connecting.is_set():
            await asyncio.sleep(0.01)
        others_went_on.set()
        return await asked

    monkeypatch.setattr(waybill, "Ledger", Silent)
    assert asyncio.run(main()) == []


def test_one_that_needs_no_ledger_opens_none(connect: Connect, tmp_path: Path, quick_looks: None):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    event = asyncio.run(anext(trigger_of(UntilTrigger, deadline=1.0).run()))
    assert event.payload["kind"] == "deadline"


# -- in Airflow's database --------------------------------------------------------------------------------------------


def test_it_carries_names_and_instants_through_the_database_and_nothing_else():
    options = {"wake": "end"}
    trigger = trigger_of(ICAv2JobsTrigger, deadline=1_800_000_000.5, since=1_799_999_999.5, options=options)
    path, kwargs = trigger.serialize()
    assert path == "triggers.icav2_jobs.ICAv2JobsTrigger"
    assert resolve_name(path) is ICAv2JobsTrigger
    assert resolve_name(path)(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
    assert kwargs == {
        "conn_id": "waybill_icav2", "ledger_conn_id": "waybill_ledger", "owner": asdict(OWNER),
        "deadline": 1_800_000_000.5, "since": 1_799_999_999.5, "poll_seconds": 30.0, "options": options,
    }  # fmt: skip


def test_a_task_that_an_earlier_release_deferred_is_woken_to_defer_anew(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    async def main(loop: VirtualTimeLoop) -> tuple[Any, float]:
        monkeypatch.setattr(watch_module, "watch", partial(watch_module.watch, now=loop.now))
        kwargs = {"conn_id": "c", "dag_id": DAG_ID, "run_id": RUN_ID, "since": loop.now(), "poll_seconds": 30.0}
        trigger = UntilTrigger(**kwargs, deadline=loop.now() + 7200, options={"more_to_send": True})
        return (await anext(trigger.run())).payload["kind"], loop.time()

    assert run_virtual(main) == ("deadline", pytest.approx(0.0))


def test_a_subclass_that_does_not_say_all_is_refused_when_it_is_made():
    whole = {"observer": lambda self: None, "system": "icav2", "can_cancel": True}
    type("Whole", (WatchTrigger,), whole)
    for missing in whole:
        with pytest.raises(TypeError, match="must set `system` and `can_cancel`, and define `observer`"):
            type("Without", (WatchTrigger,), {name: value for name, value in whole.items() if name != missing})


# -- on_kill ----------------------------------------------------------------------------------------------------


def submitted(ledger: Ledger, system: str, key: str, owner: Owner = OWNER, *, sent: bool = True) -> Submission:
    """A row in state SENT: a job that runs; or one that has not left."""

    async def send(_row: Any, _guard: Any) -> str:
        return f"job of {key}"

    async def never(*_: Any) -> Any:
        raise NotImplementedError

    intent = Intent(system, "copy_batch", key, {"key": key}, owner)
    if not sent:
        return ledger.open(intent)
    return asyncio.run(submit_once(ledger, intent, send=send, probe=Probe(never, 60, 60, proves_absence=False)))


@pytest.fixture
def killed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Airflow kills the trigger while its task instance is in the given state; `asked` keeps how it was looked up."""
    submitted(ledger, "icav2", "ours")
    submitted(ledger, "icav2", "ours, not sent", sent=False)
    submitted(ledger, "jgi", "another system's")
    submitted(ledger, "icav2", "a sibling's", replace(OWNER, map_index=1))
    submitted(ledger, "icav2", "another task's", replace(OWNER, task_id="copy_more"))
    submitted(ledger, "icav2", "another run's", replace(OWNER, run_id="second"))
    ledger.attach(submitted(ledger, "icav2", "adopted", replace(OWNER, run_id="earlier")), OWNER)

    def kill(
        state: str | None, times: int = 1, found: bool = True, kind: type[WatchTrigger] = Counting, **more: Any
    ) -> None:
        def states(**asked: Any) -> dict[str, Any]:
            assert asked == {"dag_id": DAG_ID, "task_ids": ["copy"], "run_ids": [RUN_ID], "map_index": -1}
            return {RUN_ID: {"copy": state}} if found else {}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(states))
        trigger = trigger_of(kind, **more)
        trigger.task_instance = SimpleNamespace(dag_id=DAG_ID, run_id=RUN_ID, task_id="copy", map_index=-1)
        for _ in range(times):
            asyncio.run(trigger.on_kill())

    return kill


def wished(ledger: Ledger) -> list[str]:
    return [row.business_key for row in rows_of(ledger) if row.cancel_requested_at is not None]


def test_marked_failed_is_written_down_as_a_wish_and_nothing_is_cancelled(killed: Callable[..., None], ledger: Ledger):
    before = [row.state for row in rows_of(ledger)]
    killed("failed", times=2)
    assert wished(ledger) == ["ours"], "only what this very task sent, in this system"
    assert [row.state for row in rows_of(ledger)] == before


def test_where_nothing_can_be_cancelled_nothing_is_asked_for(killed: Callable[..., None], ledger: Ledger):
    killed("failed", kind=ICAv2JobsTrigger)
    assert wished(ledger) == []


def test_a_task_that_waits_for_a_time_has_its_jobs_cancelled_too(killed: Callable[..., None], ledger: Ledger):
    killed("failed", kind=UntilTrigger, options={"system": "icav2", "can_cancel": True})
    assert wished(ledger) == ["ours"]


@pytest.mark.parametrize("state", ["success", "scheduled", "queued", "running", "deferred", "up_for_retry", None])
def test_a_task_that_is_not_failed_leaves_no_wish(killed: Callable[..., None], ledger: Ledger, state: str | None):
    killed(state)
    assert wished(ledger) == []


def test_a_task_of_a_deleted_run_leaves_no_wish(killed: Callable[..., None], ledger: Ledger):
    killed(None, found=False)
    assert wished(ledger) == []


def test_a_trigger_that_does_not_know_its_task_leaves_no_wish(ledger: Ledger):
    submitted(ledger, "icav2", "ours")
    asyncio.run(trigger_of(Counting).on_kill())
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
