"""Waiting for remote work: one loop for triggers, for workers that do not defer, and for benchmarks on a virtual clock.

Invariant: watching only reads, and ends with a reason to wake, never with a result: whoever wakes looks for itself. So it
may run twice, stall, or die, and nothing breaks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from include.core.errors import AuthError, TransientError, WaybillError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observation:
    """What one bulk look saw. `wake`: why a worker is needed now, None while there is nothing to do but wait."""

    counts: Mapping[str, int]
    wake: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WatchEnd:
    """The one event that a watch ends with."""

    kind: Literal["wake", "deadline", "lost"]
    why: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WatchPolicy:
    """How often to look. Seconds. The interval grows with the age of the wait: short jobs are seen early, long ones cheaply.

    `quiet_seconds`: silence at the start. Airflow 3.3 can fail a healthy task that is woken within seconds of deferring
    (docs/protocols/airflow.md 2.1), so a trigger waits 3 s; a worker that watches by itself needs none.
    """

    quiet_seconds: float = 3.0
    first_poll_seconds: float = 1.0
    poll_seconds: float = 30.0
    growth: float = 0.1
    jitter: float = 0.2
    error_budget: int = 60  # about four hours with the pauses below
    error_poll_seconds: float = 300.0
    log_every_seconds: float = 60.0

    def interval(self, age: float, rng: random.Random) -> float:
        steady = min(max(self.first_poll_seconds, age * self.growth), max(self.poll_seconds, self.first_poll_seconds))
        return steady * (1 + self.jitter * (rng.random() - 0.5))

    def after_error(self, errors: int, asked: float | None, rng: random.Random) -> float:
        grown = min(self.first_poll_seconds * 2.0 ** min(errors, 16), self.error_poll_seconds)
        return max(asked or 0.0, grown * (0.5 + rng.random() / 2))


async def watch(
    observe: Callable[[], Awaitable[Observation]],
    *,
    deadline: float,
    policy: WatchPolicy,
    since: float | None = None,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rng: random.Random | None = None,
    say: Callable[[str], None] = log.info,
) -> WatchEnd:
    """Looks until a worker is needed. `deadline` and `since` (start of the whole wait) are absolute epoch seconds.

    Transient errors (and a refused credential, which may be renewed) use up the budget; only a full success restores it.
    When it is used up, or the remote refuses the look permanently, the watch is `lost`.
    """
    rng = rng or random.Random()
    begun = since if since is not None else now()
    seen: Mapping[str, int] = {}
    errors, last_said, last_line = 0, float("-inf"), ""
    pause = policy.quiet_seconds
    while True:
        if now() + pause >= deadline:
            await sleep(max(0.0, deadline - now()))
            return WatchEnd("deadline", "the deadline of this wait has come", seen)
        await sleep(pause)
        try:
            observation = await observe()
        except (TransientError, AuthError) as error:
            errors += 1
            if errors >= policy.error_budget:
                return WatchEnd("lost", f"{errors} looks in a row failed, the last: {error}", seen)
            pause = policy.after_error(errors, getattr(error, "retry_after", None), rng)
            say(f"look {errors} of at most {policy.error_budget} failed ({error}); next in {pause:.0f} s")
            continue
        except WaybillError as error:  # waiting does not mend it; the worker that looks next says what to do
            return WatchEnd("lost", f"the look was refused: {error}", seen)
        errors, seen = 0, observation.counts
        for warning in observation.warnings:
            log.warning(warning)
        if observation.wake:
            return WatchEnd("wake", observation.wake, seen)
        pause = policy.interval(now() - begun, rng)
        line = ", ".join(f"{count} {name}" for name, count in seen.items())
        if line != last_line or now() - last_said >= policy.log_every_seconds:
            say(f"{line}; next look in {pause:.0f} s, deadline in {(deadline - now()) / 60:.0f} min")
            last_line, last_said = line, now()
