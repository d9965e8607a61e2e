"""Answers that come late, and searches whose row is decided meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from include.core.errors import (
    Held,
    LedgerError,
    TransientError,
)
from include.core.ledger import (
    Ledger,
    State,
    Submission,
    resolve,
    verify,
)
from tests.include.core.ledger_world import Remote, begun, intent, only, run, submit, whys
from tests.include.core.test_ledger_states import at

S = State


# -- late answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.SENDING, S.IN_DOUBT, S.HELD, S.RESERVED])
def test_a_late_answer_ends_every_doubt(ledger: Ledger, state: State):
    attempt = begun(ledger)
    row = attempt
    for step in {
        S.SENDING: [],
        S.IN_DOUBT: [S.IN_DOUBT],
        S.HELD: [S.IN_DOUBT, S.HELD],
        S.RESERVED: [S.IN_DOUBT, S.RESERVED],
    }[state]:
        row = ledger.move(row, step, why="test")
    sent = ledger.record_sent(attempt, "job-1", why="answer")
    assert (sent.state, sent.external_id) == (S.SENT, "job-1")
    assert ledger.record_sent(attempt, "job-1", why="answer") == sent  # twice is once
    assert verify(ledger).problems == []


def test_a_late_answer_of_a_superseded_attempt_is_kept_with_its_row(ledger: Ledger):
    attempt = begun(ledger)
    ledger.move(ledger.move(attempt, S.IN_DOUBT, why="test"), S.SUPERSEDED, why="test")
    row = ledger.record_sent(attempt, "job-1", why="answer")
    assert (row.state, row.external_id) == (S.SUPERSEDED, "job-1")


def test_a_late_answer_of_a_cancelled_attempt_is_kept_and_reported(ledger: Ledger):
    attempt = begun(ledger)
    ledger.move(
        ledger.move(ledger.move(attempt, S.IN_DOUBT, why="t"), S.HELD, why="t"), S.CANCELLED, why="t", who="amy"
    )
    with pytest.raises(LedgerError, match="job-1") as caught:
        ledger.record_sent(attempt, "job-1", why="answer")
    assert not caught.value.no_effect
    assert (only(ledger).state, only(ledger).external_id) == (S.CANCELLED, "job-1")


@pytest.mark.parametrize("state", [S.SENT, S.DONE, S.FAILED])
def test_a_second_job_of_one_generation_is_kept_and_reported(ledger: Ledger, state: State):
    row = at(ledger, state, job="job-1")
    for _ in range(2):
        with pytest.raises(LedgerError, match="job-2"):
            ledger.record_sent(row, "job-2", why="answer")
    assert (only(ledger).external_id, only(ledger).detail["late_answers"]) == ("job-1", ["job-2"])


def test_a_late_answer_while_the_next_attempt_is_out_does_not_end_that_attempt(ledger: Ledger):
    old = begun(ledger)
    ledger.move(ledger.move(old, S.IN_DOUBT, why="t"), S.RESERVED, why="t")
    new = begun(ledger)
    with pytest.raises(LedgerError, match="job-1"):
        ledger.record_sent(old, "job-1", why="answer")
    assert only(ledger).state == S.SENDING
    assert ledger.record_sent(new, "job-2", why="answer").external_id == "job-2"
    assert ledger.known("tape", "restore", ["job-1", "job-2"]) == {"job-1", "job-2"}


def test_a_late_answer_after_a_rejection_is_kept_and_reported(ledger: Ledger):
    attempt = begun(ledger)
    ledger.move(attempt, S.REJECTED, why="t")
    with pytest.raises(LedgerError, match="job-1"):
        ledger.record_sent(attempt, "job-1", why="answer")
    assert only(ledger).detail["late_answers"] == ["job-1"]


def test_an_answer_that_names_another_submissions_job_is_held(ledger: Ledger, remote: Remote):
    at(ledger, S.SENT, intent("another"), job="job-1")
    with pytest.raises(Held, match="job-1"):
        submit(ledger, remote)
    assert only(ledger).state == S.HELD


def test_an_answer_that_cannot_be_recorded_is_named_and_found_by_the_next_try(
    ledger: Ledger, remote: Remote, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_record_sent", lambda *_a: (_ for _ in ()).throw(TransientError("disk full")))
        with pytest.raises(TransientError, match=r"job-1.*disk full"):
            submit(ledger, remote)
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 1


@pytest.mark.parametrize("method", ["_take", "_record_sent"])
def test_a_commit_whose_answer_was_lost_counts(
    ledger: Ledger, remote: Remote, monkeypatch: pytest.MonkeyPatch, method: str
):
    real, calls = getattr(ledger, method), []

    def commits_then_breaks(*args: Any, **options: Any) -> object:
        calls.append(args)
        result = real(*args, **options)
        if len(calls) == 1:
            raise TransientError("connection lost while committing")
        return result

    monkeypatch.setattr(ledger, method, commits_then_breaks)
    assert submit(ledger, remote).state == S.SENT
    assert (len(calls), remote.requests) == (2, 1)
    assert whys(ledger) == ["intent", "sending", "answer"]


# -- resolve, alone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [[], ["plate-7"], ["plate-7", "plate-7"]])
def test_what_is_decided_while_it_is_searched_for_stays_decided(ledger: Ledger, remote: Remote, candidates: list[str]):
    row = ledger.move(begun(ledger), S.IN_DOUBT, why="test")
    for key in candidates:
        remote.accept(key)

    async def search_and_answer(found: Submission):
        seen = await remote.search(found)
        if ledger.get(row.id).state == S.IN_DOUBT:
            ledger.record_sent(row, "job-99", why="answer")
        return seen

    probe = replace(remote.probe(), search=search_and_answer)
    try:
        run(resolve(ledger, row, probe))
    except LedgerError:
        pass
    assert (only(ledger).state, only(ledger).external_id) == (S.SENT, "job-99")


def test_of_two_probers_only_one_takes_a_job(ledger: Ledger, remote: Remote, monkeypatch: pytest.MonkeyPatch):
    one = ledger.move(begun(ledger), S.IN_DOUBT, why="test")
    other = ledger.move(begun(ledger, intent("other")), S.IN_DOUBT, why="test")
    ledger.record_sent(other, remote.accept("plate-7"), why="found by probe")
    monkeypatch.setattr(ledger, "known", lambda *_args: set())  # read just before the other's commit
    row = run(resolve(ledger, one, remote.probe()))
    assert (row.id, row.state, row.external_id) == (one.id, S.IN_DOUBT, None)
