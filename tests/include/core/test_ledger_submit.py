"""`submit_once`: lost answers, probes, duplicates, fences, late answers, cancellations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from include.core.errors import (
    Held,
    LedgerError,
    TransientError,
)
from include.core.ledger import (
    AttemptLost,
    DuplicateSafe,
    InDoubt,
    Ledger,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    resolve,
    submit_once,
)
from tests.include.core.ledger_world import (
    PROOFS,
    TIMEOUT,
    VISIBILITY_WINDOW,
    Clock,
    Crash,
    Remote,
    begun,
    intent,
    only,
    past_the_visibility_window,
    run,
    submit,
    whys,
)
from tests.include.core.test_ledger_states import at

S = State


def test_an_intent_is_sent_once_and_found_again(ledger: Ledger, remote: Remote):
    first = submit(ledger, remote)
    again = submit(ledger, remote, intent(run_id="run-2"))
    assert (first.state, first.external_id, again.external_id, remote.requests) == (S.SENT, "job-1", "job-1", 1)


def test_the_intent_is_committed_before_the_request_leaves(
    ledger: Ledger, remote: Remote, open_ledger: Callable[..., Ledger]
):
    seen: list[Submission] = []
    remote.before_send = lambda row: seen.append(open_ledger().get(row.id))
    submit(ledger, remote)
    assert [row.state for row in seen] == [S.SENDING]


def test_facts_of_the_answer_are_written_with_the_id(ledger: Ledger, remote: Remote):
    async def send(row: Submission, fence: SendFence) -> Sent:
        fence()
        return Sent("job-9", {"batch": "b"})

    row = submit(ledger, remote, send=send)
    assert (row.external_id, row.detail["batch"]) == ("job-9", "b")
    assert whys(ledger) == ["intent", "sending", "answer"]


def test_a_lost_answer_is_found_by_probe_and_not_sent_again(ledger: Ledger, remote: Remote):
    remote.faults = ["lost"]
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 1
    assert whys(ledger)[-1] == "found by probe"


def test_a_request_that_never_arrived_is_sent_again_only_after_the_horizon(ledger: Ledger, remote: Remote):
    remote.faults = ["unsent"]
    with pytest.raises(InDoubt) as caught:
        submit(ledger, remote)
    assert caught.value.retry_after == VISIBILITY_WINDOW + TIMEOUT
    remote.now += VISIBILITY_WINDOW + TIMEOUT - 1
    with pytest.raises(InDoubt) as caught:
        submit(ledger, remote)
    assert caught.value.retry_after == 1
    remote.now += 1
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 2


def test_a_job_that_is_hidden_for_a_while_is_found(ledger: Ledger, remote: Remote):
    remote.faults, remote.hidden = ["lost"], {"job-1"}
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    remote.now += VISIBILITY_WINDOW
    remote.hidden.clear()
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 1


def test_a_commit_after_the_clients_timeout_is_found(ledger: Ledger, remote: Remote):
    remote.faults = ["late"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    remote.commit()
    past_the_visibility_window(remote)
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 1


def test_the_horizon_is_counted_on_the_remotes_clock(ledger: Ledger, remote: Remote, clock: Clock):
    remote.faults = ["unsent"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    clock.at += 10 * (VISIBILITY_WINDOW + TIMEOUT)
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    remote.now -= 3_600  # a remote whose clock is set back makes it longer, never shorter
    with pytest.raises(InDoubt):
        submit(ledger, remote)


def test_an_incomplete_search_proves_nothing(ledger: Ledger, remote: Remote):
    remote.faults, remote.searches_complete = ["unsent"], False
    for _ in range(3):
        with pytest.raises(InDoubt, match="not complete") as caught:
            submit(ledger, remote)
        assert caught.value.retry_after == VISIBILITY_WINDOW / 4
        past_the_visibility_window(remote)
    remote.searches_complete = True
    with pytest.raises(InDoubt, match="not found"):  # the first of the two complete searches
        submit(ledger, remote)
    assert remote.requests == 1


def test_the_request_timeout_is_waited_for_beside_the_horizon(ledger: Ledger, remote: Remote):
    remote.faults = ["late"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    remote.now += VISIBILITY_WINDOW + 1
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    assert remote.requests == 1


def test_empty_searches_of_an_earlier_attempt_do_not_count(ledger: Ledger, remote: Remote):
    remote.faults = ["unsent", "unsent"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    past_the_visibility_window(remote)
    with pytest.raises(InDoubt) as caught:  # absence proved, sent again, lost again: the count starts anew
        submit(ledger, remote)
    assert caught.value.retry_after == VISIBILITY_WINDOW + TIMEOUT
    assert remote.requests == 2


def test_two_candidates_are_held_for_a_person(ledger: Ledger, remote: Remote):
    remote.faults = ["lost"]
    remote.accept("plate-7")
    with pytest.raises(Held, match=r"job-1, job-2.*ledger resolve 1 --as sent"):
        submit(ledger, remote)
    with pytest.raises(Held):  # and stays so
        submit(ledger, remote)
    assert only(ledger).state == S.HELD
    assert remote.requests == 1


def test_a_candidate_of_another_submission_is_not_taken(ledger: Ledger, remote: Remote):
    at(ledger, S.SENT, intent("another"), job="job-1")
    remote.accept("plate-7")
    remote.faults = ["unsent"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)


def test_a_candidate_that_was_another_attempts_late_answer_is_not_taken(ledger: Ledger, remote: Remote):
    sent = at(ledger, S.SENT, job="job-0")
    with pytest.raises(LedgerError):
        ledger.record_sent(sent, remote.accept("plate-7"), why="answer")
    ledger.move(sent, S.FAILED, why="test")
    remote.faults = ["unsent"]
    with pytest.raises(InDoubt):
        submit(ledger, remote)


def test_where_absence_cannot_be_proved_the_row_is_held(ledger: Ledger, remote: Remote):
    remote.faults = ["unsent"]
    probe = remote.probe(proves_absence=False)
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    past_the_visibility_window(remote)
    with pytest.raises(Held, match=r"do not show it.*resolve"):
        submit(ledger, remote, probe=probe)
    assert (only(ledger).state, remote.requests) == (S.HELD, 1)


def test_where_absence_cannot_be_proved_a_job_that_is_found_decides_it(ledger: Ledger, remote: Remote):
    remote.faults = ["lost"]
    assert submit(ledger, remote, probe=remote.probe(proves_absence=False)).state == S.SENT


@pytest.mark.parametrize("present", [True, False])
def test_a_duplicate_is_sent_only_after_the_effect_was_looked_at(ledger: Ledger, remote: Remote, present: bool):
    async def verified(_row: Submission) -> bool:
        return present

    remote.faults = ["unsent"]
    probe = remote.probe(proves_absence=False, harmless=DuplicateSafe("SKIP", verified))
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    past_the_visibility_window(remote)
    row = submit(ledger, remote, probe=probe)
    assert (row.state, row.generation, remote.requests) == ((S.SUPERSEDED, 1, 1) if present else (S.SENT, 2, 2))
    assert ledger.generations("tape", "restore", "plate-7")[0].detail["is_effective"] is present
    submit(ledger, remote, probe=probe)
    assert remote.requests == (1 if present else 2)  # nor does asking again send again


@pytest.mark.parametrize(("error", "state"), PROOFS, ids=lambda value: type(value).__name__)
def test_an_answer_that_proves_no_effect_leaves_nothing_in_doubt(
    ledger: Ledger, remote: Remote, error: Exception, state: State
):
    remote.faults = [error]
    with pytest.raises(type(error)):
        submit(ledger, remote)
    row = only(ledger)
    assert (row.state, row.accept_deadline, row.sending_at) == (state, None, None)
    assert submit(ledger, remote).generation == (1 if state == S.RESERVED else 2)


@pytest.mark.parametrize(("error", "state"), PROOFS, ids=lambda value: type(value).__name__)
def test_the_senders_proof_counts_also_when_others_have_begun_to_search(
    ledger: Ledger, remote: Remote, error: Exception, state: State
):
    remote.faults = [error]
    remote.before_send = lambda _row: ledger.move(only(ledger), S.IN_DOUBT, why="another worker") and None
    with pytest.raises(type(error)):
        submit(ledger, remote)
    assert only(ledger).state == state


@pytest.mark.parametrize(
    "error", [ValueError("bug"), asyncio.CancelledError(), LedgerError("inside send"), KeyboardInterrupt()]
)
def test_whatever_else_ends_a_send_leaves_it_in_doubt(ledger: Ledger, remote: Remote, error: BaseException):
    remote.faults = [error]
    with pytest.raises((type(error), InDoubt)):
        submit(ledger, remote)
    assert only(ledger).state == S.IN_DOUBT


def test_an_error_is_not_hidden_by_a_ledger_that_fails_too(
    ledger: Ledger, remote: Remote, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_args: object, **_more: object) -> None:
        raise TransientError("the ledger cannot be written")

    monkeypatch.setattr(ledger, "move", broken)
    remote.faults = [asyncio.CancelledError()]
    with pytest.raises(asyncio.CancelledError):
        submit(ledger, remote)
    remote.faults = [TransientError("429", no_effect=True)]
    with pytest.raises(TransientError, match="429"):
        submit(ledger, remote, intent("other"))
    assert {row.state for row in ledger.in_states(*State)} == {S.SENDING}


def resent_while(ledger: Ledger, remote: Remote, row: Submission) -> None:
    """Another worker proves absence, sends anew, and loses its answer."""
    attempt = ledger.begin(ledger.move(row, S.RESERVED, why="absence proved"), response_deadline=2 * TIMEOUT)
    assert attempt is not None
    remote.accept("plate-7")
    ledger.move(attempt, S.IN_DOUBT, why="no answer")


def test_a_slow_search_that_finds_the_job_of_a_later_attempt_does_not_take_it_from_that_attempt(
    ledger: Ledger, remote: Remote
):
    async def slow(row: Submission) -> RemoteSearch:
        resent_while(ledger, remote, row)
        return await remote.search(row)

    row = ledger.move(begun(ledger), S.IN_DOUBT, why="no answer")
    found = run(resolve(ledger, row, replace(remote.probe(), search=slow)))
    assert (found.state, found.external_id, found.detail.get("late_answers")) == (S.SENT, "job-1", None)
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 0


@pytest.mark.parametrize("state", [S.SENDING, S.SUPERSEDED])
def test_what_a_slow_search_finds_is_left_to_whoever_has_sent_it_since(ledger: Ledger, remote: Remote, state: State):
    async def slow(row: Submission) -> RemoteSearch:
        if state == S.SENDING:
            ledger.begin(ledger.move(row, S.RESERVED, why="absence proved"), response_deadline=2 * TIMEOUT)
        else:
            ledger.move(row, S.SUPERSEDED, why="not found", detail={"is_effective": False})
        remote.accept("plate-7")
        return await remote.search(row)

    row = ledger.move(begun(ledger), S.IN_DOUBT, why="no answer")
    found = run(resolve(ledger, row, replace(remote.probe(), search=slow)))
    assert (found.state, found.external_id) == (state, None)
    assert ledger.known("tape", "restore", ["job-1"]) == set()


def test_under_one_client_key_the_answer_of_an_earlier_attempt_is_the_later_ones_too(ledger: Ledger, remote: Remote):
    row = ledger.keep_client_key(ledger.open(intent()), "key")
    first = ledger.begin(row, response_deadline=2 * TIMEOUT)
    assert first is not None
    again = ledger.move(ledger.move(first, S.IN_DOUBT, why="no answer"), S.RESERVED, why="sent again under the key")
    second = ledger.begin(again, response_deadline=2 * TIMEOUT)
    assert second is not None
    for attempt in (first, second):
        recorded = ledger.record_sent(attempt, "job-1", why="answer")
        assert (recorded.state, recorded.external_id, recorded.detail.get("late_answers")) == (S.SENT, "job-1", None)


def test_a_dead_workers_sending_is_put_in_doubt_first(ledger: Ledger, remote: Remote):
    def die(step: str, _row: Submission) -> None:
        if step == "answered":
            raise Crash

    ledger.on_step = die
    with pytest.raises(Crash):
        submit(ledger, remote)
    ledger.on_step = lambda _step, _row: None
    assert only(ledger).state == S.SENDING
    assert submit(ledger, remote).external_id == "job-1"
    assert remote.requests == 1


# -- preparing and guarding -------------------------------------------------------------------------------------------


def test_a_failed_preparation_proves_that_nothing_was_sent(ledger: Ledger, remote: Remote):
    async def prepare(_row: Submission, fence: SendFence) -> None:
        fence()
        raise RuntimeError("cannot clear the ground")

    with pytest.raises(RuntimeError):
        submit(ledger, remote, prepare=prepare)
    assert only(ledger).state == S.RESERVED
    assert submit(ledger, remote).state == S.SENT


def test_a_preparation_may_take_longer_than_a_request(ledger: Ledger, remote: Remote, clock: Clock):
    async def prepare(_row: Submission, fence: SendFence) -> None:
        clock.at += 10 * TIMEOUT
        fence()

    assert submit(ledger, remote, prepare=prepare).state == S.SENT


@pytest.mark.parametrize("where", ["while the fence is committed", "before a second try with a new credential"])
def test_a_sender_who_was_paused_too_long_does_not_send(ledger: Ledger, remote: Remote, clock: Clock, where: str):
    def pause(step: str, _row: Submission) -> None:
        clock.at += TIMEOUT + 1 if step == "sending" and "committed" in where else 0

    async def send(row: Submission, fence: SendFence) -> str | Sent:
        fence()
        clock.at += TIMEOUT + 1
        return await remote.send(row, fence)

    ledger.on_step = pause
    with pytest.raises(AttemptLost, match="paused"):
        submit(ledger, remote, send=send)
    assert (only(ledger).state, remote.requests) == (S.RESERVED, 0)


def test_a_row_is_sending_only_while_its_own_bytes_may_be_on_the_wire(ledger: Ledger, remote: Remote):
    """A worker that dies while it queues for its turn leaves nothing that others must wait for."""

    async def queue(_row: Submission, _fence: SendFence) -> str | Sent:
        raise Crash

    with pytest.raises(Crash):
        submit(ledger, remote, send=queue)
    assert only(ledger).state == S.RESERVED
    assert submit(ledger, remote, intent(run_id="run-2")).state == S.SENT


def test_two_workers_do_not_clear_the_ground_for_one_row_at_once(ledger: Ledger, remote: Remote, clock: Clock):
    others: list[Exception] = []

    async def prepare(_row: Submission, fence: SendFence) -> None:
        fence()
        try:
            await submit_once(ledger, intent(run_id="run-2"), send=remote.send, probe=remote.probe())
        except InDoubt as error:
            others.append(error)
        fence()

    assert submit(ledger, remote, prepare=prepare).state == S.SENT
    assert ("clearing the ground" in str(others), remote.requests) == (True, 1)


@pytest.mark.parametrize("ends", ["with an error", "killed"])
def test_a_worker_that_did_not_clear_the_ground_is_replaced(ledger: Ledger, remote: Remote, clock: Clock, ends: str):
    async def prepare(_row: Submission, _fence: SendFence) -> None:
        raise TransientError("being deleted", retry_after=10)

    if ends == "killed":
        assert ledger.claim(ledger.open(intent()), seconds=2 * TIMEOUT)
        with pytest.raises(InDoubt) as waits:
            submit(ledger, remote)
        clock.at += waits.value.retry_after or 0
    else:
        with pytest.raises(TransientError, match="being deleted"):
            submit(ledger, remote, prepare=prepare)
    assert (submit(ledger, remote).state, remote.requests) == (S.SENT, 1)


@pytest.mark.parametrize("where", ["prepare", "send"])
def test_a_sender_whose_attempt_was_taken_over_does_not_send(ledger: Ledger, remote: Remote, where: str):
    def take_over() -> None:
        assert ledger.begin(only(ledger), response_deadline=60)

    async def prepare(_row: Submission, fence: SendFence) -> None:
        if where == "prepare":
            take_over()
            fence()

    async def send(row: Submission, fence: SendFence) -> str | Sent:
        if where == "send":
            take_over()
        return await remote.send(row, fence)

    with pytest.raises(AttemptLost, match="taken it over"):
        submit(ledger, remote, send=send, prepare=prepare)
    assert (only(ledger).state, remote.requests) == (S.SENDING, 0)  # the other's attempt is left alone


def test_a_sender_who_is_in_doubt_does_not_send(ledger: Ledger, remote: Remote):
    """The search may have begun already: a job that is sent now, with a new credential, could come after the last look."""

    async def send(row: Submission, fence: SendFence) -> str | Sent:
        fence()
        ledger.move(only(ledger), S.IN_DOUBT, why="another worker")
        return await remote.send(row, fence)

    with pytest.raises(AttemptLost):
        submit(ledger, remote, send=send)
    assert (only(ledger).state, remote.requests) == (S.RESERVED, 0)


def test_a_guard_that_cannot_read_the_ledger_lets_nothing_pass(
    ledger: Ledger, remote: Remote, monkeypatch: pytest.MonkeyPatch
):
    async def send(row: Submission, fence: SendFence) -> str | Sent:
        with monkeypatch.context() as patch:
            patch.setattr(
                fence.ledger, "begin", lambda _row, **_options: (_ for _ in ()).throw(TransientError("no connection"))
            )
            return await remote.send(row, fence)

    with pytest.raises(AttemptLost, match="no connection"):
        submit(ledger, remote, send=send)
    assert (only(ledger).state, remote.requests) == (S.RESERVED, 0)


def test_a_lost_attempt_may_be_tried_again_and_proves_no_effect():
    assert AttemptLost("x").retryable
    assert AttemptLost("x").no_effect
