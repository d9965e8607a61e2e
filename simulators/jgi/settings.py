"""The settings of the GOLD and JDP simulators, and the random draws of restores.

Invariant: a draw depends on (seed, ids asked for, how often they were asked for) and on the settings only, never on the order
in which requests come in. So two planners can be compared on the same draws.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import Field

from simulators.common import SimulatorSettings
from simulators.globus.collections import JGI_COLLECTION, JGI_ROOT

HOUR = 3600.0
DAY = 24 * HOUR


class GoldSettings(SimulatorSettings):
    """Every setting of the GOLD simulator; times in simulated seconds."""

    token_seconds: float = Field(default=12 * HOUR, gt=0)
    forbidden: list[str] = Field(default_factory=list)
    """Ids (biosample, proposal, sequencing project) that answer 403: not this user's."""


class JdpSettings(SimulatorSettings):
    """Every setting of the JDP simulator; sizes in bytes, times in simulated seconds."""

    # API
    session_seconds: float | None = Field(default=None, gt=0)
    """How long a session token is good for; None: until it is revoked."""
    max_page_groups: int = Field(default=50, ge=1)
    max_search_ids: int = Field(default=50, ge=1)
    max_ids: int = Field(default=750, ge=1)
    too_many_status: int = Field(default=400, ge=400, le=499)
    collection: str = JGI_COLLECTION
    globus_root: str = JGI_ROOT
    manifest_style: Literal["quoted", "unquoted", "either"] = "either"

    # The window
    window: Literal["off", "refuse", "hold"] = "off"
    """What happens to a request that does not fit: nothing, a 4xx, or it is accepted and waits in status new."""
    window_bytes: int = Field(default=10**13, ge=0)
    window_seconds: float = Field(default=DAY, gt=0)
    window_status: int = Field(default=400, ge=400, le=499)

    # How long a restore takes: a wait that is drawn, then the tape
    new_seconds: float = Field(default=120.0, ge=0)
    wait_median_seconds: float = Field(default=HOUR / 2, ge=0)
    wait_sigma: float = Field(default=1.0, ge=0)
    """Of the lognormal distribution: with 1, one request in 40 waits seven times the median."""
    wait_max_seconds: float = Field(default=DAY, ge=0)
    slow_rate: float = Field(default=0.0, ge=0, le=1)
    slow_seconds: float = Field(default=4 * DAY, ge=0)
    """So many requests wait that long in place of the wait that is drawn."""
    drives: int = Field(default=8, ge=1)
    mount_seconds: float = Field(default=90.0, ge=0)
    seek_seconds: float = Field(default=60.0, ge=0)
    """From one end of a cartridge to the other."""
    stream_bytes_per_second: float = Field(default=3e8, gt=0)

    # How long files stay on disk
    life_days: float = Field(default=14.0, gt=0)
    purge_within_seconds: float = Field(default=6 * HOUR, ge=0)
    """The purge of a day begins so long after midnight at the latest, mostly at three quarters of it."""


class RestoreDraw(NamedTuple):
    """How long a request waits before its tapes are mounted."""

    wait_seconds: float
    slow: bool


def draw_restore(seed: int, ids: Iterable[str], attempt: int, settings: JdpSettings) -> RestoreDraw:
    """The draw of the `attempt`-th request (from 1) for these ids, in any order."""
    key = f"{seed}|{','.join(sorted(ids))}|{attempt}"
    source = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
    normal, slow = source.gauss(0, 1), source.random() < settings.slow_rate
    drawn = settings.wait_median_seconds * math.exp(settings.wait_sigma * normal)
    return RestoreDraw(settings.slow_seconds if slow else min(drawn, settings.wait_max_seconds), slow)


def draw_purge(seed: int, day: int, settings: JdpSettings) -> float:
    """How long after midnight the purge of a day (days since the epoch) runs."""
    latest = settings.purge_within_seconds
    return random.Random(f"{seed}|purge|{day}").triangular(0.0, latest, 0.75 * latest)
