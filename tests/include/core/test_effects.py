"""Standings, attempts, rate limits, the circuit breaker and the mapping of errors, over rows that no remote ever made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from include.core import effects
from include.core.effects import FINAL, Phase, Progress, Standing
from include.core.errors import (
    AuthError,
    ConflictingRequest,
    Forbidden,
    Held,
    LedgerError,
    QuotaExceeded,
    RemoteError,
    TransientError,
    WaybillError,
)
from include.core.ledger import Ledger, Owner, State, Submission
from tests.include.core.ledger_world import intent

S = State


RUN, ANOTHER = Owner("d", "run", "submit"), Owner("d", "another run", "submit")


def row(number: int, state: State, run: str = "run", job: str | None = None, **more: Any) -> Submission:
    detail = more.pop("detail", {})
    fields: dict[str, Any] = {"reserved_at": 0.0, "sending_at": 1.0, "accept_deadline": 2.0, "closed_at": 3.0} | more
    return Submission(
        id=number, system="tape", kind="restore", business_key="plate-7", generation=number, state=state,
        fencing_token="t", external_id=job, payload_sha256="", size_bytes=0, owner=Owner("d", run, "submit"),
        cancel_requested_at=None, detail=detail, **fields,
    )  # fmt: skip


def all_rows(_row: Submission) -> bool:
    return True


def test_a_run_is_finished_when_every_effect_is_and_says_what_it_waits_for():
    standings = [
        Standing("a", Phase.PASSED),
        Standing("b", Phase.WAITING, "a free slot"),
        Standing("c", Phase.WAITING, "rate limited", look_again_at=30.0),
        Standing("d", Phase.WAITING, "rate limited", look_again_at=20.0),
        Standing("e", Phase.RUNNING, job_id="j", look_again_at=50.0),
    ]
    progress = Progress(standings, 10.0)
    assert (progress.finished, progress.look_again_at, progress.more_to_send) == (False, 20.0, True)
    assert progress.waiting_reasons == ["rate limited"]
    assert progress.counts == {"passed": 1, "running": 1, "waiting": 3, "failed": 0, "held": 0}
    ended = Progress([Standing(n, phase) for n, phase in enumerate(FINAL)], 10.0)
    assert (ended.finished, ended.look_again_at, ended.more_to_send) == (True, None, False)


def test_resubmissions_are_this_runs_failures_that_cover_what_is_asked():
    rows = [
        row(1, S.FAILED, job="j1"),
        row(2, S.FAILED, "another run", job="j2"),
        row(3, S.SUPERSEDED, "another run", job="j3", attached=(RUN,)),
        row(4, S.SUPERSEDED),
        row(5, S.DONE, job="j5"),
        row(6, S.CANCELLED),
    ]
    assert effects.resubmissions(rows, RUN, all_rows) == 3
    assert effects.failed_jobs(rows, RUN, all_rows) == ["j1", "j3"]
    assert effects.resubmissions(rows, RUN, lambda r: r.id != 1) == 2
    assert effects.failed_jobs(rows, RUN, lambda r: r.id == 5) == []
    assert [r.id for r in effects.of_owner(rows, ANOTHER)] == [2, 3]


@pytest.mark.parametrize("state", sorted(State))
@pytest.mark.parametrize("job", [None, "j"])
def test_what_never_left_was_not_sent_unless_it_has_a_job(state: State, job: str | None):
    never = job is None and state in (S.RESERVED, S.CANCELLED, S.REJECTED)
    assert effects.was_sent(row(1, state, job=job)) is not never
    assert effects.may_be_running([row(1, state, job=job)]) is (state in (S.SENDING, S.ACCEPTED, S.SENT, S.IN_DOUBT))
    assert effects.may_be_running([]) is False


def test_what_was_sent_after_a_row_is_a_later_generation_of_this_run():
    first = row(1, S.SUPERSEDED, job="j1")
    assert not effects.sent_after([first], RUN, first)
    assert not effects.sent_after([first, row(2, S.CANCELLED)], RUN, first)
    assert not effects.sent_after([first, row(2, S.FAILED, "another run", job="j2")], RUN, first)
    assert effects.sent_after([first, row(2, S.FAILED, job="j2")], RUN, first)


def test_a_refusal_counts_for_the_run_that_met_it_and_only_while_it_is_the_last_word():
    refusal = row(1, S.REJECTED, detail={"refusal": "no such plate"})
    assert effects.refused([refusal], RUN) == "no such plate"
    assert effects.refused([refusal], ANOTHER) is None
    assert effects.refused([refusal, row(2, S.RESERVED)], RUN) is None
    assert effects.refused([row(1, S.REJECTED)], RUN) == "the remote refused it"
    assert effects.refused([], RUN) is None


def test_a_rate_limit_is_written_down_for_whoever_looks_next(ledger: Ledger):
    reserved = ledger.open(intent())
    effects.note_rate_limit(ledger, reserved, None)
    assert effects.rate_limited_until([ledger.get(reserved.id)], ledger.now()) is None
    effects.note_rate_limit(ledger, reserved, 90.0)
    rows, now = [ledger.get(reserved.id)], ledger.now()
    assert effects.rate_limited_until(rows, now) == now + 90.0
    assert effects.rate_limited_until(rows, now + 90.0) is None
    assert ledger.event_bodies(reserved.id)[-1]["why"] == "rate limited by the remote for 90 s"
    sent = ledger.begin(rows[0], response_deadline=60)
    assert sent is not None
    assert effects.rate_limited_until([sent], now) is None
    effects.note_rate_limit(ledger, sent, 500.0)
    assert ledger.get(sent.id).detail["not_before"] == now + 90.0


def test_a_rate_limit_of_three_centuries_is_an_hour_also_where_it_is_stored_already(ledger: Ledger):
    reserved = ledger.open(intent())
    effects.note_rate_limit(ledger, reserved, 9999999999.0)
    rows, now = [ledger.get(reserved.id)], ledger.now()
    assert effects.rate_limited_until(rows, now) == now + 3600.0
    assert effects.rate_limited_until(rows, now + 3600.0) is None
    of_before = row(1, S.RESERVED, detail={"not_before": now + 9999999999.0})
    assert effects.rate_limited_until([of_before], now) is None


@pytest.mark.parametrize(("ages", "until"), [([1, 2, 3, 4], None), ([1, 2, 3, 4, 5], 159.0), ([1, 2, 3, 4, 61], None)])
def test_the_circuit_is_open_for_a_minute_after_the_last_of_many_failures(ages: list[float], until: float | None):
    rows = [row(n, S.FAILED, closed_at=100.0 - age) for n, age in enumerate(ages)]
    assert effects.circuit_open_until(rows, 100.0) == until


@pytest.mark.parametrize(
    ("error", "phase", "again"),
    [
        (TransientError("busy"), Phase.WAITING, 10.0 + effects.LOOK_AGAIN_SECONDS),
        (TransientError("busy", retry_after=5.0), Phase.WAITING, 15.0),
        (ConflictingRequest("another payload"), Phase.WAITING, 10.0 + effects.LOOK_AGAIN_SECONDS),
        (QuotaExceeded("full", available_at=70.0), Phase.WAITING, 70.0),
        (Held("look there"), Phase.HELD, None),
        (Forbidden("403"), Phase.FAILED, None),
        (RemoteError("422"), Phase.FAILED, None),
    ],
)
def test_trouble_with_one_effect_becomes_its_standing(error: WaybillError, phase: Phase, again: float | None):
    assert run_guarded(error) == Standing("plate-7", phase, str(error), look_again_at=again)


@pytest.mark.parametrize("error", [AuthError("401"), LedgerError("broken"), ValueError("bug")])
def test_a_wrong_credential_a_bad_ledger_and_a_bug_stop_all(error: Exception):
    with pytest.raises(type(error)):
        run_guarded(error)


def test_work_without_trouble_gives_its_result():
    assert run_guarded(None) == "done"


def run_guarded(error: Exception | None) -> object:
    async def work() -> str:
        if error is not None:
            raise error
        return "done"

    now: Callable[[], float] = lambda: 10.0  # noqa: E731
    return asyncio.run(effects.guarded("plate-7", work(), now))
