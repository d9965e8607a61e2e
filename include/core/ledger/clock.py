"""The ledger's time: the database's clock, and what is made of it where that clock was set back.

A clock that is behind the last event may have been put right, or be wrong itself: nobody can tell. So the ledger's time
goes on from the last event, a little slower than that clock, until the clock has caught up: by its longest rise, from its
lowest reading since it fell behind. A clock that goes to and fro rises by the same seconds again and again, and they count
once. Of a rise that nobody has looked at on its way, only a little counts: it may be one jump.

Invariant: the time of an event is never before that of an earlier one. It is ahead of the true time by no more than the clock
was at its worst, and nine tenths of that clock's widest swing (of one jump: at most nine minutes), however often it swings. A
clock that is right again catches up with it after at most as long as it was ahead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from include.core.ledger.sql import Found

PACE = 0.9  # of the database's clock, while that is behind: a day ahead is caught up with in ten days
UNNOTICED_SECONDS = 1.0  # a clock that went back by less is not written down for its own sake
NOTED_SECONDS = 300.0  # how often it is written down how far the clock has risen
LONGEST_STEP_SECONDS = 600.0  # of a rise since it was written down last, so much counts


@dataclass(frozen=True)
class Time:
    """The ledger's time `now` while the database's clock shows `clock`. While that is behind: its `lowest` reading since, and its
    longest `rise` from a lowest one."""

    now: float
    clock: float
    lowest: float | None = None
    rise: float = 0.0

    def noted(self) -> dict[str, Any]:
        """What an event says of the clock: where it is not behind, nothing."""
        if self.lowest is None:
            return {}
        return {"clock": {"shows": self.clock, "lowest": self.lowest, "rise": self.rise}}


def ledger_time(found: Found, clock: float) -> Time:
    """The ledger's time while the database's clock shows `clock`."""
    if clock >= found.at:
        return Time(clock, clock)
    before = _noted_last(found)
    if before is None:
        return Time(found.at, clock, clock)
    lowest = min(before["lowest"], clock)
    rise = max(before["rise"], clock - lowest)
    return Time(found.at + PACE * min(rise - before["rise"], LONGEST_STEP_SECONDS), clock, lowest, rise)


def must_be_noted(found: Found, time: Time) -> bool:
    """Whether the clock was set back since the last event, or has risen for long since. Time goes on from what is written."""
    if time.lowest is None:
        return False
    before = _noted_last(found)
    if before is None:
        return True
    return time.lowest < before["lowest"] - UNNOTICED_SECONDS or time.rise > before["rise"] + NOTED_SECONDS


def _noted_last(found: Found) -> dict[str, float] | None:
    """What the last event says of a clock that was behind."""
    noted = json.loads(found.head_body or "{}").get("clock")
    return noted if isinstance(noted, dict) else None
