"""The ledger's time: the database's clock, and what is made of it where that clock was set back.

A clock that is behind the last event may have been put right, or be wrong itself: nobody can tell. So the ledger's time
goes on from the last event, by what that clock has gone on since, and a little slower, until the clock has caught up. Either
way a wait is as long as it should be, or a little longer. What is not written down for long counts as the shorter of both.

Invariant: the time of an event is never before that of an earlier one, and it never stands still for long.
"""

from __future__ import annotations

import json

from include.core.ledger.sql import Found

PACE = 0.9  # of the database's clock, while that is behind: a day ahead is caught up with in ten days
UNNOTICED_SECONDS = 1.0  # a clock that went back by less is not written down for its own sake
NOTED_SECONDS = 600.0  # how often it is written down how far the clock has gone on since


def ledger_time(found: Found, clock: float) -> float:
    """The ledger's time while the database's clock shows `clock`."""
    if clock >= found.at:
        return clock
    return found.at + PACE * max(0.0, clock - _clock_then(found))


def must_be_noted(found: Found, clock: float) -> bool:
    """Whether the clock was set back since the last event, or has gone on for long since. Time goes on from what is written."""
    return clock < found.at and not -UNNOTICED_SECONDS <= clock - _clock_then(found) <= NOTED_SECONDS


def _clock_then(found: Found) -> float:
    """What the database's clock showed when the last event was written: that event says so where it was behind."""
    return float(json.loads(found.head_body or "{}").get("clock", found.at))
