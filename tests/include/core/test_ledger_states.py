"""Rows, moves, generations, conflicts and attached runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from include.core.errors import ConflictingRequest, LedgerError, RequestError
from include.core.ledger import CLOSED, OPEN, Intent, Ledger, LookAgain, Owner, State, verify
from include.core.ledger.states import MOVES, UNCERTAIN
from tests.include.core.ledger_world import Clock, begun, intent, owner

S = State
LEGAL = {
    (S.RESERVED, S.SENDING),
    (S.RESERVED, S.CANCELLED),
    (S.SENDING, S.SENT),
    (S.SENDING, S.ACCEPTED),
    (S.IN_DOUBT, S.ACCEPTED),
    (S.ACCEPTED, S.SENT),
    (S.ACCEPTED, S.HELD),
    (S.HELD, S.ACCEPTED),
    (S.SENDING, S.RESERVED),
    (S.SENDING, S.REJECTED),
    (S.SENDING, S.IN_DOUBT),
    (S.IN_DOUBT, S.SENT),
    (S.IN_DOUBT, S.RESERVED),
    (S.IN_DOUBT, S.REJECTED),
    (S.IN_DOUBT, S.HELD),
    (S.IN_DOUBT, S.SUPERSEDED),
    (S.HELD, S.SENT),
    (S.HELD, S.RESERVED),
    (S.HELD, S.CANCELLED),
    (S.SENT, S.DONE),
    (S.SENT, S.FAILED),
    (S.SENT, S.CANCELLED),
    (S.SENT, S.SUPERSEDED),
}
PATHS = {
    S.RESERVED: [],
    S.SENDING: [S.SENDING],
    S.IN_DOUBT: [S.SENDING, S.IN_DOUBT],
    S.HELD: [S.SENDING, S.IN_DOUBT, S.HELD],
    S.ACCEPTED: [S.SENDING, S.ACCEPTED],
    S.SENT: [S.SENDING, S.SENT],
    S.DONE: [S.SENDING, S.SENT, S.DONE],
    S.FAILED: [S.SENDING, S.SENT, S.FAILED],
    S.CANCELLED: [S.CANCELLED],
    S.SUPERSEDED: [S.SENDING, S.IN_DOUBT, S.SUPERSEDED],
    S.REJECTED: [S.SENDING, S.REJECTED],
}


def at(ledger: Ledger, state: State, what: Intent | None = None, job: str = "job-1"):
    row = ledger.open(what or intent())
    for step in PATHS[state]:
        if step == S.SENDING:
            row = ledger.begin(row, response_deadline=60)
        else:
            row = ledger.move(row, step, why="test", external_id=job if step == S.SENT else None)
    return row


def test_the_table_of_moves_is_the_one_of_the_design():
    assert {(old, new) for old, news in MOVES.items() for new in news} == LEGAL
    assert set(State) == OPEN | CLOSED
    assert not OPEN & CLOSED
    assert OPEN - {S.SENT, S.ACCEPTED} == UNCERTAIN


@pytest.mark.parametrize("old", State)
def test_only_legal_moves_are_made_and_an_illegal_one_changes_nothing(ledger: Ledger, old: State):
    for number, new in enumerate(State):
        row = at(ledger, old, intent(f"key-{number}"), job=f"job-{number}")
        head = ledger.head()
        if (old, new) in LEGAL or (old == new and old != S.RESERVED):
            assert ledger.move(row, new, why="test", external_id=f"job-{number}").state == new
        elif old != new:
            with pytest.raises(LedgerError, match="does not exist"):
                ledger.move(row, new, why="test", external_id=f"job-{number}")
            assert ledger.get(row.id) == row
            assert ledger.head() == head
    assert verify(ledger).problems == []


def test_nothing_is_sent_without_the_remotes_id(ledger: Ledger):
    with pytest.raises(LedgerError, match="id"):
        ledger.move(begun(ledger), S.SENT, why="test")


def test_a_move_from_a_state_that_is_no_longer_there_returns_what_is(ledger: Ledger):
    row = begun(ledger)
    ledger.move(row, S.IN_DOUBT, why="somebody else")
    assert ledger.move(row, S.REJECTED, why="too late").state == S.IN_DOUBT


def test_a_move_with_an_old_token_changes_nothing(ledger: Ledger):
    first = begun(ledger)
    again = ledger.begin(ledger.move(first, S.RESERVED, why="test"), response_deadline=60)
    assert ledger.move(first, S.REJECTED, why="too late") == again


@pytest.mark.parametrize("state", sorted(CLOSED - {S.DONE}))
def test_a_closed_generation_makes_room_for_the_next(ledger: Ledger, state: State):
    old = at(ledger, state)
    new = ledger.open(intent(payload="another"))
    assert (new.generation, new.state, new.external_id) == (2, S.RESERVED, None)
    assert old.closed_at is not None
    assert [row.generation for row in ledger.generations("tape", "restore", "plate-7")] == [1, 2]


@pytest.mark.parametrize("state", sorted(OPEN))
def test_an_open_generation_is_attached_to_and_never_doubled(ledger: Ledger, state: State):
    old = at(ledger, state)
    assert ledger.open(intent(run_id="run-2")).id == old.id
    assert len(ledger.generations("tape", "restore", "plate-7")) == 1


@pytest.mark.parametrize("state", sorted(OPEN))
def test_another_payload_conflicts_with_an_open_generation_and_both_are_named(ledger: Ledger, state: State):
    at(ledger, state)
    with pytest.raises(ConflictingRequest, match=r"run copy/run-1 .* run copy/run-2"):
        ledger.open(intent(payload="other", run_id="run-2"))


def test_what_is_done_is_not_done_again_unless_its_effect_was_seen_absent(ledger: Ledger):
    done = at(ledger, S.DONE)
    assert ledger.open(intent()) == done
    assert ledger.open(intent(), seen_absent=done.generation).generation == 2


def test_an_effect_seen_absent_before_another_worker_made_it_again_opens_nothing(ledger: Ledger):
    done = at(ledger, S.DONE)
    redone = ledger.open(intent(), seen_absent=done.generation)
    redone = ledger.record_sent(ledger.begin(redone, response_deadline=60), "job-2", why="answer")
    redone = ledger.move(redone, S.DONE, why="test")
    with pytest.raises(LookAgain, match="run-1 has sent it since"):
        ledger.open(intent(), seen_absent=done.generation)
    assert ledger.open(intent()) == redone


def test_a_superseded_generation_whose_effect_was_verified_stands(ledger: Ledger):
    row = at(ledger, S.IN_DOUBT)
    row = ledger.move(row, S.SUPERSEDED, why="not found", detail={"is_effective": True})
    assert ledger.open(intent()) == row
    assert ledger.open(intent(), seen_absent=row.generation).generation == 2


def test_runs_that_attach_are_listed_once_and_found_by_dag_and_run(ledger: Ledger):
    for run_id, dag_id in [("run-1", "copy"), ("run-2", "copy"), ("run-2", "copy"), ("run-1", "backup")]:
        row = ledger.open(intent(run_id=run_id, dag_id=dag_id))
    ledger.open(intent("other", run_id="run-3"))
    assert [one.run_id for one in row.owners] == ["run-1", "run-2", "run-1"]
    assert [r.id for r in ledger.of_run("copy", "run-2")] == [row.id]
    assert [r.id for r in ledger.of_run("backup", "run-1")] == [row.id]
    assert ledger.of_run("backup", "run-2") == []
    assert ledger.of_run("copy", "run") == []
    mentions = Intent("tape", "restore", "mentions", {}, owner("run-4"), detail={"note": ["copy", "run-2"]})
    ledger.open(mentions)
    assert [r.id for r in ledger.of_run("copy", "run-2")] == [row.id]
    assert ledger.attach(row, owner("run-9")).owners[-1] == owner("run-9")


@pytest.mark.parametrize("run_id", ["50%_off", 'quote"d', "back\\slash", "ünïcode"])
def test_run_ids_with_special_characters_are_found(ledger: Ledger, run_id: str):
    ledger.open(intent())
    row = ledger.open(intent(run_id=run_id))
    assert [r.id for r in ledger.of_run("copy", run_id)] == [row.id]


def test_many_keys_and_ids_are_looked_up_in_one_call(ledger: Ledger):
    keys = [f"key-{n}" for n in range(3)] + [f"absent-{n}" for n in range(1200)]
    for n in range(3):
        at(ledger, S.SENT, intent(f"key-{n}"), job=f"job-{n}")
    found = ledger.latest("tape", "restore", keys)
    assert sorted(found) == ["key-0", "key-1", "key-2"]
    assert ledger.known("tape", "restore", ["job-1", *keys]) == {"job-1"}
    assert ledger.known("tape", "other kind", ["job-1"]) == set()
    assert ledger.latest("tape", "restore", []) == {}
    assert len(ledger.in_states(S.SENT, system="tape")) == 3
    assert ledger.in_states(S.SENT, system="disk") == []


def test_two_rows_cannot_have_one_remote_job(ledger: Ledger):
    at(ledger, S.SENT, intent("key-1"))
    with pytest.raises(LedgerError, match="same remote job"):
        at(ledger, S.SENT, intent("key-2"))


def test_only_one_of_two_workers_begins(ledger: Ledger, open_ledger: Callable[..., Ledger]):
    one, two = ledger.open(intent()), open_ledger().open(intent())
    assert ledger.begin(one, response_deadline=60) is not None
    assert open_ledger().begin(two, response_deadline=60) is None


def test_who_saw_an_older_reservation_cannot_begin(ledger: Ledger):
    old = ledger.open(intent())
    ledger.move(ledger.begin(old, response_deadline=60), S.RESERVED, why="429")
    assert ledger.begin(old, response_deadline=60) is None


def test_what_was_withdrawn_cannot_begin(ledger: Ledger):
    row = ledger.open(intent())
    ledger.move(row, S.CANCELLED, why="withdrawn")
    assert ledger.begin(row, response_deadline=60) is None


def test_a_reservation_has_a_token_that_no_earlier_holder_knows(ledger: Ledger):
    first = ledger.open(intent())
    attempt = ledger.begin(first, response_deadline=60)
    again = ledger.move(attempt, S.RESERVED, why="429")
    assert len({first.fencing_token, attempt.fencing_token, again.fencing_token}) == 3


def test_a_cancellation_request_is_noted_once_and_stops_what_has_not_left(ledger: Ledger):
    row = ledger.open(intent())
    requested = ledger.request_cancel(row, who="amy", why="wrong plate")
    assert requested.cancel_requested_at is not None
    assert ledger.request_cancel(row, who="bob", why="again") == requested
    assert requested.state == S.CANCELLED
    assert ledger.begin(row, response_deadline=60) is None
    assert ledger.open(intent()) == requested  # the task that had asked for it does not send it after all
    assert ledger.open(intent(run_id="run-2")).generation == 2


@pytest.mark.parametrize("doubt", [S.SENDING, S.IN_DOUBT])
def test_what_was_cancelled_while_in_doubt_is_not_sent_once_it_is_proved_absent(ledger: Ledger, doubt: State):
    row = at(ledger, doubt)
    ledger.request_cancel(row, who="amy", why="wrong plate")
    now = ledger.move(ledger.get(row.id), S.RESERVED, why="absence proved")
    assert (now.state, now.cancelled_unsent) == (S.CANCELLED, True)
    assert ledger.open(intent()) == now
    assert verify(ledger).problems == []


def test_an_owner_is_the_task_the_index_and_the_request_not_the_run_alone(ledger: Ledger):
    first = Owner("copy", "run-1", "copy", 0, "a" * 64)
    row = ledger.open(Intent("tape", "restore", "plate-7", {}, first))
    others = [replace(first, **{name: value}) for name, value in (
        ("dag_id", "x"), ("run_id", "x"), ("task_id", "x"), ("map_index", 1), ("request_sha256", "b" * 64))]  # fmt: skip
    assert row.belongs_to(first)
    assert not any(row.belongs_to(other) for other in others)
    for other in others:
        row = ledger.open(Intent("tape", "restore", "plate-7", {}, other))
    assert row.owners == (first, *others) == ledger.get(row.id).owners
    assert [r.id for r in ledger.of_owner(others[-1])] == [row.id]
    assert ledger.of_owner(replace(first, map_index=2)) == []
    assert verify(ledger).problems == []


def test_long_values_are_kept_once_beside_the_rows(ledger: Ledger):
    ids = [f"fil.{n:032}" for n in range(750)]
    row = ledger.open(Intent("tape", "restore", "plate-7", {}, owner(), detail={"data_ids": ids, "files": 750}))
    sent = ledger.record_sent(ledger.begin(row, response_deadline=60), "job-1", why="answer", detail={"names": ids})
    assert sent.detail == {"data_ids": ids, "files": 750, "names": ids} == ledger.get(row.id).detail
    with ledger.reading() as conn:
        events = conn.exec_driver_sql("SELECT length(body) FROM waybill_events").scalars().all()
        assert max(events) < 2000
        assert conn.exec_driver_sql("SELECT count(*) FROM waybill_documents").scalar_one() == 1
    assert verify(ledger).problems == []


def test_what_has_ended_cannot_be_cancelled(ledger: Ledger):
    row = at(ledger, S.DONE)
    assert ledger.request_cancel(row, who="amy", why="late").cancel_requested_at is None


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (intent("k" * 2001), "digest"),
        (intent("nul\0"), "digest"),
        (intent("\udcff"), "digest"),
        (intent(size=-1), "negative"),
        (Intent("s" * 41, "k", "key", {}, owner()), "40 characters"),
        (Intent("s", "k" * 41, "key", {}, owner()), "40 characters"),
    ],
)
def test_an_intent_that_cannot_be_written_down_is_refused_before_anything_is(
    ledger: Ledger, what: Intent, problem: str
):
    with pytest.raises(RequestError, match=problem):
        ledger.open(what)
    assert ledger.head()[0] == 0


def test_names_that_are_no_text_may_stand_in_payload_and_detail(ledger: Ledger):
    what = Intent("tape", "restore", "schön/⚗ 7", {"file": "a\udcff\0b"}, owner(), detail={"file": "a\udcff\0b"})
    row = ledger.get(ledger.open(what).id)
    assert row.detail["file"] == "a\udcff\0b"
    assert row.business_key == "schön/⚗ 7"
    assert verify(ledger).problems == []


def test_a_row_survives_forty_five_days_of_waiting(ledger: Ledger, open_ledger: Callable[..., Ledger], clock: Clock):
    at(ledger, S.SENT)
    clock.at += 45 * 86_400
    later = open_ledger(clock=clock)
    assert later.open(intent(run_id="run-2")).external_id == "job-1"


def test_time_never_runs_backwards_and_events_say_so(ledger: Ledger, clock: Clock):
    row = ledger.open(intent())
    clock.at -= 3_600
    attempt = ledger.begin(row, response_deadline=60)
    assert attempt is not None
    assert attempt.sending_at == row.reserved_at
    assert ledger.now() == row.reserved_at
    clock.at += 7_200
    assert ledger.now() == clock.at
    assert verify(ledger).problems == []


def test_the_clock_is_the_databases(open_ledger: Callable[..., Ledger]):
    import time

    assert abs(open_ledger().now() - time.time()) < 5
