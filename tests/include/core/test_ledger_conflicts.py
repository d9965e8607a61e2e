"""Effects that are there already, other payloads, and what a person or another worker has decided."""

from __future__ import annotations

import pytest

from include.core.errors import (
    Cancelled,
    ConflictingRequest,
    RemoteError,
)
from include.core.ledger import (
    Ledger,
    LookAgain,
    State,
    Submission,
)
from tests.include.core.ledger_world import Remote, intent, only, submit

S = State


# -- effects in place, conflicts, cancellations ------------------------------------------------------------------------


@pytest.mark.parametrize(("seen_absent", "generation"), [(None, 1), (1, 2)])
def test_a_done_effect_is_made_again_only_where_it_was_seen_absent(
    ledger: Ledger, remote: Remote, seen_absent: int | None, generation: int
):
    ledger.move(submit(ledger, remote), S.DONE, why="test")
    assert submit(ledger, remote, seen_absent=seen_absent).generation == generation


@pytest.mark.parametrize("ended", [S.DONE, S.FAILED])
def test_whoever_looked_before_the_last_job_ended_looks_again(ledger: Ledger, remote: Remote, ended: State):
    """Also a failed job may have done half of what the old look found missing."""
    ledger.move(submit(ledger, remote), ended, why="test")
    with pytest.raises(LookAgain):
        submit(ledger, remote, intent(run_id="run-2"), seen_absent=0)
    assert remote.requests == 1


def test_a_done_effect_with_another_payload_needs_a_look_at_the_effect(ledger: Ledger, remote: Remote):
    ledger.move(submit(ledger, remote), S.DONE, why="test")
    with pytest.raises(ConflictingRequest, match="is in effect"):
        submit(ledger, remote, intent(payload="other"))
    assert submit(ledger, remote, intent(payload="other"), seen_absent=1).generation == 2


def test_another_payload_is_refused_before_anything_is_sent(ledger: Ledger, remote: Remote):
    submit(ledger, remote)
    with pytest.raises(ConflictingRequest):
        submit(ledger, remote, intent(payload="other"))
    assert remote.requests == 1


def test_what_a_person_cancels_while_it_is_prepared_by_a_worker_is_not_sent(ledger: Ledger, remote: Remote):
    def cancel(step: str, row: Submission) -> None:
        if step == "intent":
            ledger.request_cancel(row, who="amy", why="wrong plate")

    ledger.on_step = cancel
    with pytest.raises(Cancelled, match="cancelled by a person"):
        submit(ledger, remote)
    assert (only(ledger).state, remote.requests) == (S.CANCELLED, 0)


def test_an_intent_that_another_worker_withdrew_is_asked_anew(ledger: Ledger, remote: Remote):
    def withdraw(step: str, row: Submission) -> None:
        if step == "intent" and row.generation == 1:
            ledger.move(row, S.CANCELLED, why="an older plan's")

    ledger.on_step = withdraw
    assert submit(ledger, remote).generation == 2


def test_a_refusal_seen_by_another_worker_is_told_to_all(ledger: Ledger, remote: Remote):
    def refuse(step: str, row: Submission) -> None:
        if step == "intent":
            attempt = ledger.begin(row, response_deadline=60)
            ledger.move(attempt, S.REJECTED, why="422", detail={"refusal": "no such plate"})

    ledger.on_step = refuse
    with pytest.raises(RemoteError, match="no such plate"):
        submit(ledger, remote)
