"""Quota windows, as the remote measures them: races, lost answers, clocks that step."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from include.core.errors import QuotaExceeded, RemoteError, RequestError, TransientError
from include.core.ledger import InDoubt, Ledger, Quota, State
from include.core.ledger.states import UNCERTAIN
from tests.include.core.ledger_world import TIMEOUT, VISIBILITY_WINDOW, Clock, Remote, begun, intent, submit
from tests.include.core.test_ledger_states import at

S = State
DAY = 86_400.0
TEN = Quota(limit_bytes=10)
SPAN = DAY + TEN.margin_seconds


def test_a_window_takes_what_fits_and_says_when_the_rest_will(ledger: Ledger, clock: Clock):
    at(ledger, S.SENT, intent("a", size=4), job="a")
    clock.at += 3_600
    at(ledger, S.SENT, intent("b", size=6), job="b")
    start = clock.at
    with pytest.raises(QuotaExceeded) as caught:
        ledger.open(intent("c", size=4), quota=TEN)
    assert caught.value.available_at == start - 3_600 + SPAN
    with pytest.raises(QuotaExceeded) as caught:
        ledger.open(intent("c", size=5), quota=TEN)
    assert caught.value.available_at == start + SPAN
    clock.at = start - 3_600 + SPAN - 1
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("c", size=4), quota=TEN)
    clock.at += 1
    assert ledger.open(intent("c", size=4), quota=TEN).state == S.RESERVED


@pytest.mark.parametrize("state", sorted(UNCERTAIN))
def test_what_may_be_out_there_counts_however_long_it_takes(ledger: Ledger, clock: Clock, state: State):
    at(ledger, state, intent("a", size=10))
    clock.at += 10 * DAY
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)


@pytest.mark.parametrize("state", [S.SENT, S.DONE, S.FAILED, S.SUPERSEDED])
def test_what_was_accepted_counts_for_the_window_however_it_ended(ledger: Ledger, clock: Clock, state: State):
    at(ledger, state, intent("a", size=10))
    clock.at += SPAN - 1
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)
    clock.at += 1
    ledger.open(intent("b", size=1), quota=TEN)


@pytest.mark.parametrize("fault", [RemoteError("422", no_effect=True), None])
def test_a_refusal_or_a_withdrawal_frees_its_bytes_at_once(ledger: Ledger, fault: Exception | None):
    if fault is None:
        ledger.move(ledger.open(intent("a", size=10), quota=TEN), S.CANCELLED, why="withdrawn")
    else:
        with pytest.raises(RemoteError):
            submit(ledger, Remote(faults=[fault]), intent("a", size=10), quota=TEN)
    ledger.open(intent("b", size=10), quota=TEN)


def test_bytes_whose_absence_was_proved_stay_reserved_for_the_same_intent_only(ledger: Ledger):
    row = ledger.move(begun(ledger, intent("a", size=10), TEN), S.IN_DOUBT, why="t")
    row = ledger.move(row, S.RESERVED, why="absence proved")
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)
    ledger.move(row, S.CANCELLED, why="withdrawn")
    ledger.open(intent("b", size=10), quota=TEN)


def test_who_attaches_needs_no_second_quota(ledger: Ledger):
    ledger.open(intent("a", size=10), quota=TEN)
    ledger.open(intent("a", size=10, run_id="run-2"), quota=TEN)


def test_more_than_the_whole_quota_is_refused_for_good(ledger: Ledger):
    with pytest.raises(RequestError, match="split it"):
        ledger.open(intent("a", size=11), quota=TEN)


def test_kinds_have_quotas_of_their_own(ledger: Ledger):
    at(ledger, S.SENT, intent("a", size=10))
    other = intent("b", size=10)
    ledger.open(type(other)("disk", "restore", "b", other.payload, other.owner, 10), quota=TEN)


def test_two_workers_never_share_the_last_bytes(open_ledger: Callable[..., Ledger]):
    at(open_ledger(), S.SENT, intent("first", size=4), job="first")
    taken: list[str] = []
    start = threading.Barrier(8)

    def ask(ledger: Ledger, key: str) -> None:
        start.wait()
        try:
            ledger.open(intent(key, size=3), quota=TEN)
            taken.append(key)
        except QuotaExceeded:
            pass

    ledgers = [open_ledger() for _ in range(8)]
    threads = [threading.Thread(target=ask, args=(one, f"key-{n}")) for n, one in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 2


def test_a_job_that_is_accepted_long_after_its_answer_was_missed_counts_from_its_discovery(
    ledger: Ledger, clock: Clock
):
    remote = Remote(faults=["late"])
    with pytest.raises(InDoubt):
        submit(ledger, remote, intent("a", size=10), quota=TEN)
    clock.at += 5_000  # far beyond every timeout
    remote.commit()
    accepted_at = clock.at
    submit(ledger, remote, intent("a", size=10), quota=TEN)
    clock.at = accepted_at + DAY - 1
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)


@pytest.mark.parametrize("ending", [S.SENT, S.SUPERSEDED, S.CANCELLED])
def test_what_was_in_doubt_counts_from_the_instant_at_which_that_ended(ledger: Ledger, clock: Clock, ending: State):
    row = ledger.move(begun(ledger, intent("a", size=10)), S.IN_DOUBT, why="t")
    if ending != S.SUPERSEDED:
        row = ledger.move(row, S.HELD, why="t")
    clock.at += 10 * DAY
    ledger.move(row, ending, why="t", external_id="job-1" if ending == S.SENT else None)
    clock.at += DAY
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)


def test_a_late_answer_of_a_superseded_attempt_counts_again(ledger: Ledger, clock: Clock):
    attempt = begun(ledger, intent("a", size=10))
    ledger.move(ledger.move(attempt, S.IN_DOUBT, why="t"), S.SUPERSEDED, why="t")
    clock.at += 2 * DAY
    ledger.record_sent(attempt, "job-1", why="answer")
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)


def test_bytes_accepted_while_the_clock_was_an_hour_slow_are_not_freed_an_hour_early(ledger: Ledger, clock: Clock):
    true = clock.at
    clock.at = true - 3_600
    at(ledger, S.SENT, intent("a", size=10))
    clock.at = true + DAY - 1  # put right meanwhile
    with pytest.raises(QuotaExceeded):
        ledger.open(intent("b", size=1), quota=TEN)


class MeasuringRemote(Remote):
    """Knows the true time, and what it accepted when."""

    def __init__(self, true: Clock):
        super().__init__()
        self.true, self.accepted = true, list[tuple[float, int]]()

    def accept(self, key: str) -> str:
        self.accepted.append((self.true.at, int(key.rsplit(":")[1])))
        return super().accept(key)

    def fullest_window(self) -> int:
        return max(sum(size for when, size in self.accepted if 0 <= when - since < DAY) for since, _ in self.accepted)


@pytest.mark.parametrize("first_step", [-3_600.0, 0.0, 3_600.0])
@pytest.mark.parametrize("second_step", [-3_600.0, 0.0, 3_600.0])
def test_no_window_exceeds_the_limit_by_the_remotes_measure_whatever_the_hosts_clock_does(
    open_ledger: Callable[..., Ledger], first_step: float, second_step: float
):
    """One clock is an hour wrong for half a day, in either direction, and then put right or made wrong the other way."""
    true, ours = Clock(), Clock()
    ledger, remote = open_ledger(clock=ours, monotonic=true), MeasuringRemote(true)
    offset = 0.0
    for minute in range(0, 4 * 24 * 60, 30):
        offset = first_step if 600 <= minute < 1_900 else second_step if 1_900 <= minute < 2_200 else 0.0
        true.at += 1_800
        ours.at = true.at + offset
        if minute % 150 == 0:
            remote.faults = ["lost"]
        if minute % 330 == 0:
            remote.faults = ["late"]
        try:
            submit(ledger, remote, intent(f"{minute}:3", size=3), quota=TEN)
        except (QuotaExceeded, TransientError):
            remote.now += VISIBILITY_WINDOW + TIMEOUT
            true.at += 300
            remote.commit()
    for row in ledger.in_states(S.IN_DOUBT):  # whoever was left in doubt is found
        submit(ledger, remote, intent(row.business_key, size=3), quota=TEN)
    assert 0 < remote.fullest_window() <= TEN.limit_bytes
    assert len(remote.accepted) >= 6  # and it goes on after the steps
