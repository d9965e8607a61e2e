"""The planner of restores, judged by harness/jgi_plans.py, which counts windows and disk for itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.jgi_plans import (
    NOW,
    TB,
    Asked,
    Rules,
    Wanted,
    faults_of,
    file_id,
    fixture_shaped,
    random_before,
    random_files,
)
from include.jgi.bound import Accepted, windows_of_large
from include.jgi.forecast import forecast
from include.jgi.models import FileState, Limits, StagedFile
from include.jgi.planner import Plan, plan

RULES = Rules()
WINDOW = RULES.window
SPAN = RULES.span_seconds


def staged(wanted: Wanted, **changes) -> StagedFile:
    given = {
        "jdp_file_id": wanted.id,
        "file_name": "reads.bam",
        "size_bytes": wanted.size,
        "project": wanted.project,
        "priority": wanted.priority,
        "waiting_since": wanted.waiting_since,
        "analyses": (wanted.analysis,) if wanted.analysis else (),
    }
    return StagedFile(**(given | changes))


def planned(files: Sequence[Wanted], before: Sequence[Asked] = (), rules: Rules = RULES, free_bytes=None) -> Plan:
    limits = Limits(window_bytes=rules.window, request_ids=rules.ids)
    accepted = [Accepted(one.at, one.size) for one in before]
    return plan(
        [staged(file) for file in files], accepted, NOW, limits, drain_rate=rules.drain_rate, free_bytes=free_bytes
    )


def asked(found: Plan) -> list[Asked]:
    return [Asked(one.send_at, one.size_bytes, tuple(file.jdp_file_id for file in one.files)) for one in found.requests]


def files(*sizes: int, analysis: str = "", first: int = 0, **more) -> list[Wanted]:
    return [Wanted(file_id(first + at), size, analysis, **more) for at, size in enumerate(sizes)]


def send_times(found: Plan) -> dict[str, float]:
    return {file.jdp_file_id: request.send_at for request in found.requests for file in request.files}


# -- properties -------------------------------------------------------------------------------------------------------

SIZES = st.one_of(st.integers(0, 10**6), st.integers(10**9, 10**11), st.integers(TB // 2, WINDOW))


@st.composite
def instances(draw):
    names = [file_id(number) for number in range(draw(st.integers(1, 60)))]
    wanted = [
        Wanted(
            name,
            draw(SIZES),
            draw(st.sampled_from(("", "Ga1", "Ga2", "Ga3", "Ga4"))),
            draw(st.sampled_from("ab")),
            draw(st.sampled_from((0.5, 1.0, 3.0))),
            draw(st.sampled_from((0.0, 2.5, 30.0))),
        )
        for name in names
    ]
    before = [
        Asked(NOW - draw(st.floats(0, 2 * SPAN)), draw(st.integers(1, WINDOW // 2)))
        for _ in range(draw(st.integers(0, 4)))
    ]
    rules = Rules(ids=draw(st.sampled_from((3, 7, 750))))
    return wanted, before, rules


@given(instances())
@settings(max_examples=150, deadline=None)
def test_no_window_holds_more_and_each_file_is_asked_for_once(instance):
    wanted, before, rules = instance
    found = planned(wanted, before, rules)
    assert faults_of(wanted, before, asked(found), rules) == []
    assert not found.not_planned
    assert found.days >= found.lower_bound_days  # a bound that some plan is below is none


@given(instances(), st.sampled_from((2e6, 5e7, 1.1e8)), st.sampled_from((None, 3 * TB, 40 * TB)))
@settings(max_examples=60, deadline=None)
def test_what_lies_on_disk_never_outgrows_the_transfers_or_the_destination(instance, rate, free_bytes):
    wanted, before, rules = instance
    room = rate * 14 * 86_400 / 2
    rules = Rules(ids=rules.ids, drain_rate=rate, room=room if free_bytes is None else min(room, free_bytes))
    found = planned(wanted, before, rules, free_bytes)
    too_large = {one.file.jdp_file_id for one in found.not_planned}
    assert too_large == {file.id for file in wanted if file.size > int(rules.room)}
    rest = [file for file in wanted if file.id not in too_large]
    assert [fault for fault in faults_of(rest, before, asked(found), rules) if "is split" not in fault] == []
    assert found.days >= found.lower_bound_days


@given(instances(), st.randoms())
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_input_does_not_matter(instance, rng):
    wanted, before, rules = instance
    once = planned(wanted, before, rules)
    rng.shuffle(wanted)
    rng.shuffle(before)
    again = planned(wanted, before, rules)
    assert asked(again) == asked(once)
    assert (again.days, again.lower_bound_days, again.window) == (once.days, once.lower_bound_days, once.window)


def first_fit_decreasing(sizes: Sequence[int]) -> int:
    free: list[int] = []
    for size in sorted(sizes, reverse=True):
        at = next((at for at, room in enumerate(free) if size <= room), None)
        if at is None:
            free.append(WINDOW - size)
        else:
            free[at] -= size
    return len(free)


def test_days_are_the_bound_and_never_more_than_first_fit_decreasing_needs():
    above = 0
    for seed in range(120):
        rng = random.Random(seed)
        wanted = fixture_shaped(rng, rng.randint(1, 40)) if seed % 2 else random_files(rng, 200, 0.01)
        before = random_before(rng, RULES)
        found = planned(wanted, before)
        assert faults_of(wanted, before, asked(found), RULES) == []
        assert found.lower_bound_days <= found.days <= first_fit_decreasing([file.size for file in wanted])
        above += found.days > found.lower_bound_days
    assert above <= 1


# -- cases ------------------------------------------------------------------------------------------------------------


def test_a_full_window_is_waited_for_to_the_second():
    found = planned(files(TB), [Asked(NOW - 3600.5, WINDOW)])
    assert [one.send_at for one in found.requests] == [
        NOW + SPAN - 3600
    ]  # up to a whole second, never before it is free
    assert found.window.used_bytes == WINDOW and found.window.free_bytes == 0
    assert found.window.next_free_at == NOW + SPAN - 3600
    assert (found.days, found.lower_bound_days) == (1, 1)


def test_the_window_rolls_and_is_no_calendar_day():
    """Sent at 02:05, the next is not sent at 02:00 of the next day."""
    found = planned(files(WINDOW, WINDOW), [Asked(NOW - 86_100.0, WINDOW)])
    assert [one.send_at - NOW for one in found.requests] == [SPAN - 86_100.0, 2 * SPAN - 86_100.0]


def test_what_was_accepted_at_this_instant_costs_a_day_in_the_bound_too():
    found = planned(files(WINDOW), [Asked(NOW, WINDOW)])
    assert (found.days, found.lower_bound_days) == (2, 2)


def test_small_pieces_of_a_window_are_not_asked_for_one_by_one():
    before = [Asked(NOW - 60.0 * at, WINDOW // 200) for at in range(1, 201)]
    found = planned(files(*[TB // 100] * 1000), before)
    assert len({one.send_at for one in found.requests}) <= 21
    assert faults_of(files(*[TB // 100] * 1000), before, asked(found), RULES) == []


def test_the_border_row_is_in_one_request():
    wanted = files(*[1] * 751, analysis="Ga1")
    found = planned(wanted)
    assert sorted(len(one.files) for one in found.requests) == [375, 376]  # about equally long


def test_requests_of_one_instant_are_balanced_and_keep_analyses_together():
    wanted = [file for at in range(30) for file in files(*[10**9] * 80, analysis=f"Ga{at}", first=100 * at)]
    found = planned(wanted)
    assert sorted(len(one.files) for one in found.requests) == [560, 560, 640, 640]
    for at in range(30):
        of_one = {file.id for file in wanted if file.analysis == f"Ga{at}"}
        assert sum(bool(of_one & set(one.ids)) for one in asked(found)) == 1


def test_an_analysis_is_split_where_the_window_ends_and_nowhere_else():
    wanted = [file for at in range(5) for file in files(*[TB // 10] * 30, analysis=f"Ga{at}", first=100 * at)]
    at = send_times(planned(wanted))
    instants = [sorted({at[file.id] for file in wanted if file.analysis == f"Ga{one}"}) for one in range(5)]
    assert [len(one) for one in instants] == [1, 1, 1, 2, 1]  # 3 TB each: the fourth is at the border


def test_an_analysis_larger_than_a_window_goes_part_by_part():
    wanted = files(*[TB] * 25, analysis="Ga1")
    found = planned(wanted)
    assert [one.size_bytes for one in found.requests] == [10 * TB, 10 * TB, 5 * TB]
    assert found.days == 3


def test_turn_is_priority_times_one_and_the_weeks_waited():
    wanted = [
        Wanted(file_id(1), WINDOW, "Ga1", "late", 1.0, 0.0),
        Wanted(file_id(2), WINDOW, "Ga2", "waited", 1.0, 15.0),
        Wanted(file_id(3), WINDOW, "Ga3", "first", 3.0, 1.0),
        Wanted(file_id(4), WINDOW, "Ga4", "urgent", 3.0, 0.0),
    ]
    at = send_times(planned(wanted))
    assert sorted(at, key=at.__getitem__) == [file_id(3), file_id(2), file_id(4), file_id(1)]  # 3.43, 3.14, 3, 1


def test_a_small_project_is_not_kept_waiting_by_a_large_one_of_the_same_turn():
    large = [file for at in range(40) for file in files(TB, analysis=f"Ga0{at:02}", first=at, project="large")]
    small = files(TB, analysis="Ga9", first=900, project="small")
    assert send_times(planned([*large, *small]))[small[0].id] == NOW


def test_a_large_file_is_not_put_off_by_small_ones():
    """It needs nearly a whole window; what becomes free bit by bit is not given to others before it."""
    before = [Asked(NOW - SPAN + 3600.0 * at, TB) for at in range(1, 11)]
    wanted = [
        *files(9 * TB, analysis="Ga1", days_waited=20),
        *files(*[TB // 2] * 40, analysis="Ga2", first=10),
    ]
    found = planned(wanted, before)
    assert send_times(found)[wanted[0].id] == NOW + 9 * 3600
    assert faults_of(wanted, before, asked(found), RULES) == []


def test_small_files_go_before_a_large_one_only_beside_it():
    before = [Asked(NOW - SPAN + 5 * 3600, 8 * TB)]
    large = files(9 * TB, analysis="Ga1", days_waited=20)
    small = [file for at in range(4) for file in files(TB // 2, analysis=f"Ga2{at}", first=10 + at)]
    at = send_times(planned([*large, *small], before))
    assert at[large[0].id] == NOW + 5 * 3600
    assert [at[file.id] == NOW for file in small] == [True, True, False, False]  # 2 TB are free, and 1 TB beside it


def test_at_one_border_one_analysis_is_split():
    wanted = [
        *files(7 * TB, analysis="Ga1"),
        *files(2 * TB, 2 * TB, analysis="Ga2", first=10),
        *files(8 * TB // 10, 8 * TB // 10, analysis="Ga3", first=20),
        *files(TB // 2, analysis="Ga4", first=30),
    ]
    at = send_times(planned(wanted))
    assert [at[file.id] == NOW for file in wanted] == [True, True, False, False, False, True]


def test_a_large_file_that_goes_first_takes_what_else_goes_of_its_analysis_into_its_request():
    """Whole analyses would need three days, their files need two."""
    wanted = [
        *files(4 * TB - 100, 4 * TB - 100, 1, analysis="Ga1"),
        *files(6 * TB, analysis="Ga2", first=10),
        *files(6 * TB, analysis="Ga3", first=20),
        *files(1, 1, analysis="Ga9", first=30),
    ]
    found = planned(wanted, rules=Rules(ids=3))
    assert found.days == found.lower_bound_days == 2
    assert faults_of(wanted, [], asked(found), Rules(ids=3)) == []


def test_whole_analyses_that_fit_badly_do_not_hang_the_planner():
    wanted = [file for at in range(4) for file in files(TB, 4 * TB, 3 * TB, analysis=f"Ga{at}", first=10 * at)]
    found = planned(wanted, [Asked(NOW - 10, 3 * TB)])
    assert faults_of(wanted, [Asked(NOW - 10, 3 * TB)], asked(found), RULES) == []


def test_the_bound_knows_that_files_over_half_a_window_lie_apart():
    assert windows_of_large([6, 6, 6], 10) == 3
    assert windows_of_large([6, 6, 6, 5, 5, 5], 10) == 5
    assert windows_of_large([6, 4, 5, 5], 10) == 2
    assert windows_of_large([], 10) == 0


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"size_bytes": WINDOW + 1}, "OVERSIZE"),
        ({"state": FileState.OVERSIZE, "size_bytes": WINDOW + 1}, "OVERSIZE"),
        ({"state": FileState.OVERSIZE}, None),  # the window has grown since
        ({"state": FileState.FILTERED}, "FILTERED"),
        ({"state": FileState.REQUESTING}, "QUEUED"),
        ({"state": FileState.QUEUED}, "QUEUED"),
        ({"state": FileState.ON_DISK}, "QUEUED"),
        ({"state": FileState.HELD, "attempts": 3}, "HELD"),
        ({"attempts": 3}, "HELD"),
        ({"attempts": 2}, None),
        ({"state": FileState.PLANNED, "attempts": 3}, None),  # a person has set it so
        ({"state": FileState.EXPIRED, "attempts": 1}, None),
        ({"state": FileState.REJECTED}, "REJECTED"),
        ({"state": FileState.LOST}, "LOST"),
        ({"jdp_status": "RESTORED"}, None),
    ],
)
def test_what_is_not_planned_has_a_state_and_a_reason_and_blocks_nothing(changes, state):
    one = staged(files(TB)[0], **changes)
    other = staged(Wanted(file_id(77), 5))
    found = plan([one, other], [], NOW, Limits())
    assert [left.state for left in found.not_planned] == ([state] if state else [])
    assert all(left.why for left in found.not_planned)
    assert other.jdp_file_id in send_times(found)


def test_restored_files_count_fully():
    found = plan([staged(file, jdp_status="RESTORED") for file in files(WINDOW, WINDOW)], [], NOW, Limits())
    assert found.days == 2


def test_nothing_to_do_is_a_plan_too():
    found = planned([])
    assert (found.days, found.lower_bound_days, found.requests) == (0, 0, ())
    assert forecast(found, NOW)["oldest_unserved"] is None


def test_the_forecast_names_each_project_and_the_file_that_waits_longest():
    wanted = [
        Wanted(file_id(1), WINDOW, "Ga1", "grow", 9.0, 1.0),
        Wanted(file_id(2), WINDOW, "Ga2", "bioscales", 1.0, 6.0),
        Wanted(file_id(3), 7, "Ga3", "bioscales", 1.0, 0.0),
    ]
    told = forecast(planned(wanted), NOW)
    assert told["projects"] == {
        "grow": {"files": 1, "bytes": WINDOW, "last_send_at": "2026-11-26T00:00:00+00:00"},
        "bioscales": {"files": 2, "bytes": WINDOW + 7, "last_send_at": "2026-11-28T02:30:00+00:00"},
    }
    assert told["oldest_unserved"] == {
        "jdp_file_id": file_id(2),
        "waiting_since": "2026-11-20T00:00:00+00:00",
        "send_at": "2026-11-27T01:15:00+00:00",
    }
    assert (told["days"], told["lower_bound_days"]) == (3, 3)
