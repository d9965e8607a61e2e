"""Every interleaving of `submit_once` in a small scope, and what is found there when one of its guards is gone."""

from __future__ import annotations

import pytest

from harness.core import guards
from harness.core.explored_remote import FINDS, FULL, HARMLESS, NAMELESS, PROVES, SAME_KEY, Scope
from harness.core.interleavings import Explorer

SMALL = {
    "three workers": (PROVES, Scope(crashes=1, ticks=2)),
    "absence cannot be proved": (FINDS, Scope(workers=2, ticks=3)),
    "a second job does no harm": (HARMLESS, Scope(workers=2, crashes=1, ticks=3)),
    "an answer that names nothing": (NAMELESS, Scope(workers=2, crashes=1, ticks=3)),
    "one key for all requests": (SAME_KEY, Scope(workers=2, crashes=1, late_commits=0, hidden_jobs=0, ticks=1)),
    "every call to the ledger": (
        PROVES,
        Scope(workers=2, crashes=1, lost_answers=1, late_commits=0, hidden_jobs=0, ticks=2, between_writes=True),
    ),
    "two look before they ask": (
        PROVES,
        Scope(workers=2, crashes=1, late_commits=0, hidden_jobs=0, ended_jobs=1, ticks=1, between_writes=True),
    ),
    "refusals": (PROVES, Scope(workers=2, crashes=1, hidden_jobs=0, refusals=1, ticks=2)),
    "the ground is cleared first": (PROVES, Scope(workers=2, crashes=1, ticks=2, prepares=True)),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_interleaving_makes_a_second_job_or_forgets_one(name):
    kind, scope = SMALL[name]
    found = Explorer(kind, scope).run()
    assert found.violations == []
    assert found.states > 1_000


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FULL)
def test_no_interleaving_of_three_workers_does_either(name):
    kind, scope = FULL[name]
    assert Explorer(kind, scope).run().violations == []


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.name)
def test_every_guard_that_is_removed_is_missed(guard):
    found = guards.explore_without(guard)
    assert found.violations, f"{found.states} states, and none is wrong without this guard"


def test_a_guard_that_is_not_there_as_it_is_written_down_is_said():
    with pytest.raises(ValueError, match="is not as it is written down"):
        guards.removed(guards.Guard("no such guard", guards.submit, "no such text", ""))
