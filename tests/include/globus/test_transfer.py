"""One task per batch: submitted once, found again, timed when in trouble, cancelled by id, judged file by file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from include.core.errors import RequestError, TransientError
from include.core.ledger import State
from include.globus.batch import Item
from include.globus.client import Task
from include.globus.moving import Underway
from include.globus.transfer import CANCEL_SECONDS, RULES, Outcome, Verdict, cancel, kept_batch, trouble
from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION
from tests.include.globus.conftest import ROOT, START, World, run

DAY = 86_400.0


def verdicts(found: list[Outcome] | Underway) -> list[str]:
    assert isinstance(found, list), found
    return [str(one.verdict) for one in found]


def underway(found: list[Outcome] | Underway) -> Underway:
    assert isinstance(found, Underway), found
    return found


def statuses(world: World) -> list[str]:
    return [task.status for task in world.sim.engine.tasks.values()]


# -- submitted once ---------------------------------------------------------------------------------------------------


def test_document_and_submission_id_are_kept_before_anything_is_sent(world: World) -> None:
    batch = world.batch(world.item("a"))
    world.fault("drop_before_commit", method="POST", path="/transfer$", times=None)
    with pytest.raises(TransientError):
        run(world.transfers().submit(batch))
    (row,) = world.ledger.in_states(*State)
    assert row.client_key
    assert kept_batch(row).items[0].source == batch.items[0].source


def test_a_document_is_kept_once_and_not_in_each_event(world: World) -> None:
    items = [Item(f"{ROOT}/{number}", f"/staging/{number}") for number in range(750)]
    row = run(world.transfers().submit(world.batch(*items)))
    events = [str(body) for body in world.ledger.event_bodies(row.id)]
    assert len(events) >= 3
    assert max(map(len, events)) < 3000


def test_a_lost_answer_is_the_same_task(world: World) -> None:
    world.fault("drop_after_commit", method="POST", path="/transfer$", times=1)
    row = run(world.transfers().submit(world.batch(world.item("a"))))
    (task,) = world.accepted()
    assert row.external_id == task["task_id"]


def test_two_runs_share_one_task(world: World) -> None:
    batch = world.batch(world.item("a"))
    rows = [run(world.transfers(run_id).submit(batch)) for run_id in ("run-1", "run-2")]
    assert len({row.external_id for row in rows}) == len(world.accepted()) == 1


@pytest.mark.globus(known_submission_first=False)
def test_identical_paths_our_own_is_adopted(world: World) -> None:
    """The answer was lost and the list does not show the task yet: the repetition meets 409, and finds it by its label."""
    world.fault("drop_after_commit", method="POST", path="/transfer$", times=1)
    world.fault("status", code=200, body='{"DATA": [], "total": 0}', path="/task_list$", times=1)
    row = run(world.transfers().submit(world.batch(world.item("a"))))
    assert [row.external_id] == [one["task_id"] for one in world.accepted()]
    assert row.state == State.SENT


def test_identical_paths_an_earlier_one_of_ours_is_cancelled_and_awaited(world: World) -> None:
    batch = world.batch(world.item("a"))
    first = run(world.transfers().submit(batch))
    world.ledger.move(first, State.FAILED, why="a test")  # the ledger lost sight of it
    with pytest.raises(TransientError, match="being cancelled"):
        run(world.transfers().submit(batch))
    second = run(world.transfers().submit(batch))
    assert second.external_id != first.external_id
    assert statuses(world) == ["FAILED", "ACTIVE"]


def test_identical_paths_somebody_elses_is_waited_for_and_left_alone(world: World) -> None:
    item = world.item("a")
    document = {**world.batch(item).document(), "label": "by hand", "submission_id": world.client.submission_id()}
    world.client.submit(document, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TransientError, match="No task of ours"):
        run(world.transfers().submit(world.batch(item)))
    assert statuses(world) == ["ACTIVE"]
    world.advance(3600)
    assert run(world.transfers().submit(world.batch(item))).state == State.SENT


def test_a_clash_is_refused_before_any_call(world: World) -> None:
    one, two = world.item("a"), world.item("A")
    with pytest.raises(RequestError, match="more than one file"):
        run(world.transfers().submit(world.batch(one, two)))
    assert not world.sim.journal.entries("request")


def test_a_clash_with_a_batch_that_is_at_work_is_named_and_waited_for(world: World) -> None:
    one, two = world.item("a"), world.item("b")
    run(world.transfers().submit(world.batch(one)))
    clash = world.batch(replace(two, destination=one.destination))
    with pytest.raises(TransientError, match=r"/staging/a: task .* of run dag/run-1 moves other files there"):
        run(world.transfers("run-2").submit(clash))
    assert len(world.accepted()) == 1
    world.advance(3600)
    assert run(world.transfers("run-2").submit(clash)).state == State.SENT


# -- cancelled by id --------------------------------------------------------------------------------------------------


@pytest.mark.globus(cancel_seconds=10)
def test_a_cancellation_is_awaited(world: World) -> None:
    row = run(world.transfers().submit(world.batch(world.item("a", b"x" * 100_000))))
    said = cancel(world.client, world.ledger, row, sleep=world.advance)
    assert "is cancelled" in said
    assert world.ledger.get(row.id).state == State.CANCELLED


@pytest.mark.globus(cancel_seconds=10)
def test_one_that_is_not_ended_in_time_keeps_its_row(world: World) -> None:
    row = run(world.transfers().submit(world.batch(world.item("a", b"x" * 100_000))))
    with pytest.raises(TransientError, match="still being cancelled"):
        cancel(world.client, world.ledger, row, sleep=lambda seconds: None)
    assert world.ledger.get(row.id).state == State.SENT


def test_one_that_had_ended_says_so(world: World) -> None:
    row = run(world.transfers().submit(world.batch(world.item("a"))))
    world.advance(3600)
    assert "SUCCEEDED" in cancel(world.client, world.ledger, row)


def test_what_a_person_asked_to_cancel_is_cancelled_before_it_is_sent_anew(world: World) -> None:
    batch = world.batch(world.item("a"))
    row = run(world.transfers().submit(batch))
    world.ledger.request_cancel(row, who="a person", why="a test")
    again = run(world.transfers("run-2").submit(batch))
    assert (again.generation, again.state) == (2, State.SENT)
    assert statuses(world) == ["FAILED", "ACTIVE"]


# -- trouble ----------------------------------------------------------------------------------------------------------


def _task(**facts: Any) -> Task:
    given = dict.fromkeys(Task.__dataclass_fields__, "") | {"status": "ACTIVE", "is_paused": False, "deadline": None}
    return Task(**(given | facts))


@pytest.mark.parametrize("code", [code for code in RULES if code not in ("INACTIVE", "PAUSED", "OVERDUE")])
def test_each_word_has_a_message_and_a_time(code: str) -> None:
    stuck = trouble(_task(nice_status=code), START)
    assert stuck is not None
    assert (stuck.says, stuck.bear_seconds) == RULES[code]


def test_words_that_are_no_trouble_and_one_that_nobody_knows() -> None:
    assert [trouble(_task(nice_status=word), START) for word in ("", "OK", "Queued")] == [None] * 3
    odd = trouble(_task(nice_status="NEW_WORD", nice_details="hm"), START)
    assert odd is not None
    assert odd.bear_seconds is None
    assert "NEW_WORD: hm" in odd.says


def test_trouble_that_lasts_its_time_by_globus_clock_ends_the_task(world: World) -> None:
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=[".*"]))
    batch = world.batch(world.item("a"))
    first = underway(world.step(batch))
    assert (first.borne, first.seconds) == ("PERMISSION_DENIED", RULES["PERMISSION_DENIED"][1])
    world.advance(1800)
    assert underway(world.step(batch)).seconds == first.seconds - 1800
    world.advance(1800)
    assert underway(world.step(batch)).seconds == CANCEL_SECONDS
    assert verdicts(world.step(batch)) == ["not moved"]
    assert statuses(world) == ["FAILED"]


def test_trouble_is_not_timed_while_files_still_arrive(world: World) -> None:
    """One file is refused for two hours, and others arrive meanwhile."""
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=["bad"]))
    batch = world.batch(world.item("bad"), *(world.item(f"f{number}", b"x" * 180_000) for number in range(4)))
    for _ in range(5):
        assert underway(world.step(batch)).seconds > CANCEL_SECONDS
        world.advance(1800)
    assert statuses(world) == ["ACTIVE"]


def test_what_is_suspended_and_never_ends_is_ended_after_its_time(world: World) -> None:
    batch = world.batch(world.item("a"), hours=1.0)
    underway(world.step(batch))
    world.afflict("inactivate_task")
    assert underway(world.step(batch)).borne == "INACTIVE"
    world.advance(2 * 3600)  # its deadline has passed, and it is as it was
    assert underway(world.step(batch)).seconds == CANCEL_SECONDS
    assert verdicts(world.step(batch)) == ["not moved"]


def test_a_pause_is_borne_and_its_reason_told(world: World) -> None:
    batch = world.batch(world.item("a"))
    underway(world.step(batch))
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused="the power goes on Sunday"))
    found = underway(world.step(batch))
    assert "the power goes on Sunday" in found.why
    assert found.seconds > DAY / 2


# -- what became of each file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounted", [True, False])
def test_each_file_is_judged(world: World, mounted: bool) -> None:
    good, wrong = world.item("good"), world.item("page", b"<html>Sign in</html>", as_md5="0" * 32)
    gone = world.item("gone")
    world.files.remove(JGI_COLLECTION, f"{ROOT}/gone")
    batch = world.batch(good, wrong, gone)
    found = world.done(batch, mounted=mounted)
    assert verdicts(found) == ["verified", "mismatch", "not moved"]
    assert [one.source_gone for one in found] == [False, False, True]
    assert [row.state for row in world.ledger.in_states(*State)] == [State.FAILED]


def test_a_source_that_may_not_be_read_is_not_gone(world: World) -> None:
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, read_denied=["secret"]))
    batch = world.batch(world.item("secret"))
    found = world.done(batch)
    assert (found[0].verdict, found[0].source_gone) == (Verdict.NOT_MOVED, False)


def test_a_file_that_is_gone_at_its_source_and_had_arrived_is_verified(world: World) -> None:
    item = world.item("a")
    world.files.put(DESTINATION_COLLECTION, item.destination, data=b"a " * 10)
    world.files.remove(JGI_COLLECTION, item.source)
    batch = world.batch(item)
    assert verdicts(world.done(batch)) == ["verified"]


@pytest.mark.parametrize(("mounted", "verdict"), [(True, "verified"), (False, "unverifiable")])
def test_a_task_that_is_forgotten_is_judged_at_the_destination(world: World, mounted: bool, verdict: str) -> None:
    batch = world.batch(world.item("a"))
    underway(world.step(batch))
    world.advance(3600)
    world.afflict("forget_task")
    assert underway(world.step(batch, mounted=mounted)).borne == "NOT_KNOWN"
    world.advance(600)
    assert verdicts(world.step(batch, mounted=mounted)) == [verdict]


@pytest.mark.parametrize("fault", ["lose_file", "cut_file"])
def test_what_befell_a_file_after_its_check_is_seen_at_the_mount(world: World, fault: str) -> None:
    batch = world.batch(world.item("a"))
    world.fault(fault, method="POST", path="/transfer$", options={"times": 1})
    underway(world.step(batch))
    world.advance(3600)
    assert verdicts(world.step(batch)) != ["verified"]


def test_what_an_earlier_run_has_moved_is_looked_for(world: World) -> None:
    batch = world.batch(world.item("a"))
    underway(world.step(batch))
    world.advance(3600)
    assert verdicts(world.step(batch)) == ["verified"]
    assert verdicts(world.step(batch)) == ["verified"]
    assert len(world.accepted()) == 1
    (world.mount / "staging/a").unlink()
    world.files.lose(DESTINATION_COLLECTION, "/staging/a")
    underway(world.step(batch))
    assert len(world.accepted()) == 2


def test_an_outage_of_the_destination_is_no_verdict(world: World) -> None:
    batch = world.batch(world.item("a"))
    underway(world.step(batch))
    world.advance(3600)
    world.afflict("forget_task")
    underway(world.step(batch, mounted=False))
    world.advance(600)
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, connected=False))
    with pytest.raises(TransientError):
        world.step(batch, mounted=False)
    assert [row.state for row in world.ledger.in_states(*State)] == [State.SENT]
