"""A database's clock that is wrong for a while: nothing freezes, nothing is taken for older than it is, holds are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from random import Random

import pytest

from include.core.errors import QuotaExceeded
from include.core.ledger import ClientKey, InDoubt, Ledger, OnHold, Probe, Quota, verify
from include.core.ledger import State as S
from include.core.ledger.clock import LONGEST_STEP_SECONDS, NOTED_SECONDS, PACE
from tests.include.core.ledger_world import TIMEOUT, Clock, Remote, begun, intent, submit
from tests.include.core.test_ledger_states import at

DAY = 86_400.0


def wrong_for_one_write(ledger: Ledger, clock: Clock, seconds: float) -> None:
    clock.at += seconds
    ledger.open(intent("another"))
    clock.at -= seconds


def test_a_clock_that_was_a_day_ahead_for_one_write_does_not_stop_time(ledger: Ledger, clock: Clock):
    wrong_for_one_write(ledger, clock, DAY)
    row, began = begun(ledger), clock.at  # its sender is killed here
    assert row.accept_deadline is not None
    assert ledger.now() < row.accept_deadline
    clock.at = began + 2 * TIMEOUT / PACE + 1
    assert ledger.now() > row.accept_deadline
    assert verify(ledger).problems == []


def test_whoever_only_reads_does_not_wait_for_a_clock_that_was_set_back(ledger: Ledger, clock: Clock):
    clock.at += DAY
    row = begun(ledger)
    clock.at -= DAY
    seen = ledger.now()  # nobody writes anything after this
    clock.at += 2 * TIMEOUT / PACE + 1
    assert ledger.now() > float(row.accept_deadline or 0) >= seen
    clock.at += 20 * DAY
    assert ledger.now() == clock.at
    assert [body["why"] for body in ledger.event_bodies(row.id)].count("the clock of the database is behind") == 1
    assert verify(ledger).problems == []


def test_a_clock_that_was_a_day_behind_for_one_write_makes_nothing_older(ledger: Ledger, clock: Clock):
    before = begun(ledger)
    wrong_for_one_write(ledger, clock, -DAY)
    clock.at -= DAY
    within = begun(ledger, intent("within"))
    clock.at += DAY + 1
    for row in (before, within):
        assert ledger.now() < float(row.accept_deadline or 0)
        assert ledger.now() - row.reserved_at == pytest.approx(1, abs=1)
    assert verify(ledger).problems == []


@pytest.mark.parametrize("wrong", [-DAY, -3600.0, 3600.0, DAY])
def test_no_event_is_before_an_earlier_one_and_time_goes_on(ledger: Ledger, clock: Clock, wrong: float):
    times = []
    for step in range(20):
        clock.at += 10 + (wrong if step == 5 else -wrong if step == 12 else 0)
        times.append(ledger.open(intent(f"key-{step}")).reserved_at)
    assert times == sorted(times)
    gone = [after - before for before, after in pairwise(times[12:])]
    assert all(10 * PACE - 0.01 <= seconds <= 10.01 for seconds in gone)
    assert verify(ledger).problems == []


def test_a_claim_of_a_dead_worker_ends_after_a_clock_was_put_right(ledger: Ledger, clock: Clock):
    clock.at += DAY
    assert ledger.claim(ledger.open(intent()), seconds=2 * TIMEOUT) is not None
    clock.at -= DAY
    with pytest.raises(InDoubt, match="clearing the ground"):
        submit(ledger, Remote())
    clock.at += 2 * TIMEOUT / PACE + 1
    assert submit(ledger, Remote()).state == S.SENT


def test_a_hold_is_kept_until_the_instant_that_a_clock_shows(ledger: Ledger, clock: Clock):
    wrong_for_one_write(ledger, clock, DAY)
    ledger.hold("tape", until=clock.at + 6 * 3600, who="amy", why="serviced")
    assert [hold.system for hold in ledger.holds()] == ["tape"]
    with pytest.raises(OnHold) as caught:
        submit(ledger, Remote())
    assert caught.value.retry_after == 3600
    clock.at += 6 * 3600
    assert ledger.holds() == []
    assert submit(ledger, Remote()).state == S.SENT


def test_a_quota_frees_its_bytes_after_its_window_though_the_clock_was_ahead(ledger: Ledger, clock: Clock):
    quota = Quota(limit_bytes=10)
    wrong_for_one_write(ledger, clock, DAY)
    at(ledger, S.SENT, intent("a", size=10))
    ledger.now()
    clock.at += 60
    with pytest.raises(QuotaExceeded) as caught:
        ledger.open(intent("b", size=1), quota=quota)
    assert caught.value.available_at - clock.at <= quota.span
    for _ in range(int(quota.span / PACE / 500) + 2):  # somebody looks now and then
        clock.at += 500
        ledger.now()
    ledger.open(intent("b", size=1), quota=quota)


def test_a_request_is_not_repeated_under_a_key_that_a_slower_time_takes_for_young(
    open_ledger: Callable[..., Ledger], clock: Clock
):
    ledger, remote = open_ledger(clock=clock), Remote(faults=["unsent"] * 9)

    async def key(_row: object) -> str:
        return "key"

    probe = Probe(remote.search, 60, TIMEOUT, False, client_key=ClientKey(key, 3600))
    wrong_for_one_write(ledger, clock, DAY)
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    sent, clock.at = remote.requests, clock.at + 3600
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    assert remote.requests - sent <= 1  # its last RESERVED try at most, none after a look at the key's age


class Wandering:
    """A ledger on a clock whose error is set by hand, beside the true time."""

    def __init__(self, ledger: Ledger, clock: Clock):
        self.ledger, self.clock, self.true, self.error = ledger, clock, clock.at, 0.0

    def look(self, after: float, error: float) -> float:
        """So many true seconds later, with this error of the clock. Returns how far the ledger's time is ahead."""
        self.true, self.error = self.true + after, error
        self.clock.at = self.true + error
        return self.ledger.now() - self.true

    def write(self) -> None:
        self.ledger.open(intent(f"at-{self.true}-{self.error}"))


@pytest.mark.parametrize("seed", range(4))
def test_a_clock_that_wanders_does_not_carry_the_time_away(ledger: Ledger, clock: Clock, seed: int):
    chance, wandering, most = Random(seed), Wandering(ledger, clock), 4200.0
    every = (600.0, 1800.0, 60.0, 5.0)[seed % 4]
    leads = []
    for _ in range(120):
        leads.append(wandering.look(every, chance.choice([0.0, most, chance.uniform(0, most)])))
        if chance.random() < 0.8:
            wandering.write()
    jump = 0.0 if every >= LONGEST_STEP_SECONDS else PACE * most
    assert max(leads) <= most + jump + 1
    assert min(leads) >= 0  # the time is never behind that clock
    for _ in range(40):  # right from here on: caught up with, though a little slower than the true time
        lead = wandering.look(LONGEST_STEP_SECONDS, 0.0)
    while lead > 0.001:
        gone = wandering.look(NOTED_SECONDS, 0.0)
        assert gone <= lead
        lead = gone
    assert wandering.true - 1_800_000_000 <= 120 * every + 40 * 600 + (most + jump) / (1 - PACE)
    assert verify(ledger).problems == []


@pytest.mark.parametrize(("ahead", "swing"), [(4200.0, 1800.0), (4200.0, 120.0), (DAY, 30.0)])
def test_a_swing_of_the_clock_counts_once(ledger: Ledger, clock: Clock, ahead: float, swing: float):
    wandering = Wandering(ledger, clock)
    wandering.look(0, ahead)
    wandering.write()
    leads = [wandering.look(30, swing * (step % 2)) for step in range(150)]
    assert max(leads) <= ahead + PACE * swing
    assert leads[-1] < leads[1]  # it comes nearer


def test_a_clock_set_right_in_two_steps_stops_time_for_no_longer_than_was_counted(ledger: Ledger, clock: Clock):
    wandering = Wandering(ledger, clock)
    wandering.look(0, DAY)
    wandering.write()
    for _ in range(5):
        wandering.look(60, DAY / 2)
        wandering.write()
    before = wandering.look(0, 0.0)
    stood = ledger.now()
    assert wandering.look(200, 0.0) == pytest.approx(before - 200)
    assert ledger.now() == stood
    wandering.look(100 + 240, 0.0)
    assert ledger.now() > stood + 200


def test_a_clock_that_wanders_within_the_margin_of_a_quota_frees_nothing_too_early(ledger: Ledger, clock: Clock):
    chance, wandering, quota = Random(1), Wandering(ledger, clock), Quota(10)
    accepted: list[float] = []
    for step in range(100):
        wandering.look(1800, chance.uniform(0, quota.margin_seconds - 300))
        with suppress(QuotaExceeded):
            row = ledger.open(intent(f"unit-{step}", size=1), quota=quota)
            at_remote = ledger.begin(row, response_deadline=60, quota=quota)
            assert at_remote is not None
            ledger.record_sent(at_remote, f"job-{step}", why="answer")
            accepted.append(wandering.true)
        wandering.write()
    assert max(sum(first <= at < first + DAY for at in accepted) for first in accepted) == 10


@pytest.mark.parametrize("set_back", [2 * 3600.0, -2 * 3600.0])
def test_a_request_is_not_repeated_under_a_key_whose_age_nobody_can_tell(ledger: Ledger, clock: Clock, set_back: float):
    """The clock was set back since: the key may be old. It was behind, and nobody looked for two hours: the key is old."""
    remote = Remote(faults=["unsent"] * 9)

    async def key(_row: object) -> str:
        return "key"

    probe = Probe(remote.search, 60, TIMEOUT, False, client_key=ClientKey(key, 3600))
    wrong_for_one_write(ledger, clock, DAY)
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    sent, clock.at = remote.requests, clock.at - set_back
    with pytest.raises(InDoubt):
        submit(ledger, remote, probe=probe)
    assert remote.requests - sent <= 1
