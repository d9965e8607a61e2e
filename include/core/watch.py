"""Waiting for remote work: one loop for triggers, for workers that do not defer, and for benchmarks on a virtual clock.

What is here: when waiting helps against an error (`may_pass`), what a task waits for (`waited_for`), one bulk look at many
items (`BulkWatch`) with the rules for waking a worker (`Wake`), a look that needs something open (`Opened`), and the loop
(`watch`).

Invariant: watching only reads, and ends with a reason to wake, never with a result: whoever wakes looks for itself. So it
may run twice, stall, or die, and nothing breaks. And it always ends, whatever a look raises: in wake, deadline or lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from include.core.errors import LONGEST_WAIT_SECONDS, AuthError, Forbidden, QuotaExceeded, TransientError, WaybillError
from include.core.ledger import Ledger, Owner, State, Submission

log = logging.getLogger(__name__)

QUOTA_PAUSE_SECONDS = 60.0  # the least: a window frees its bytes one submission after the other

# -- errors -----------------------------------------------------------------------------------------------------------


def may_pass(error: BaseException) -> bool:
    """Whether waiting may mend it: a remote in trouble, a full quota, or a credential that is just being renewed.

    The one rule for watches, legs and Airflow's retries. A right that is lacking (Forbidden) is no such thing.
    """
    if isinstance(error, AuthError):
        return not isinstance(error, Forbidden)
    return isinstance(error, WaybillError) and error.retryable


def asked_pause(error: BaseException, now: float) -> float | None:
    """For how many seconds the error asks to wait, None where it does not say."""
    if isinstance(error, QuotaExceeded):
        return max(QUOTA_PAUSE_SECONDS, error.available_at - now)
    asked = error.retry_after if isinstance(error, TransientError) else None
    return min(asked, LONGEST_WAIT_SECONDS) if asked else None


def said_of(error: BaseException) -> str:
    """An error in a log line: our own in its words, any other by its name and place, since its text may hold a secret."""
    if isinstance(error, WaybillError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return type(error).__name__ + "".join(f" in {Path(frame.filename).name}:{frame.lineno}" for frame in place)


# -- one look at many items -------------------------------------------------------------------------------------------


def waited_for(ledger: Ledger, owner: Owner, system: str) -> list[Submission]:
    """What this task waits for: jobs that the remote has accepted, be they its own or another's that it attached to."""
    rows = [row for row in ledger.of_owner(owner) if row.system == system]
    return [row for row in rows if row.state == State.SENT and row.external_id]


@dataclass(frozen=True)
class Observation:
    """What one bulk look saw. `wake`: why a worker is needed now, None while there is nothing to do but wait."""

    counts: Mapping[str, int]
    wake: str | None = None
    warnings: tuple[str, ...] = ()


Observe = Callable[[], Awaitable[Observation]]


@dataclass(frozen=True)
class Item:
    """What a remote says of one item: its own word, whether that is an end, and a good one. What is not `known` runs on."""

    state: str
    ended: bool = False
    good: bool = False
    known: bool = True


class Wake(StrEnum):
    """What a worker is wanted for before all items have ended."""

    NOTHING = "nothing"  # it only tells how all ended
    FAILURE = "failure"  # it sends again what failed
    END = "end"  # any end frees a slot for what waits, or a pass is cheap


@dataclass
class BulkWatch:
    """Many items by one call: `look` is given the ids that have not ended, and answers with an Item for each it knows.

    Once ended is ended: a late or reordered answer brings nothing back to life. What an answer leaves out runs on. Without
    any ids it waits for a time. `expected`: how many the worker saw at work before it began to wait; where there are fewer
    now, another worker has closed some meanwhile, and a worker is wanted at once.
    `words` name the three counts, of which the first follows `noun`.
    """

    ids: Collection[str]
    look: Callable[[Collection[str]], Awaitable[Mapping[str, Item]]]
    wake: Wake = Wake.NOTHING
    noun: str = "jobs"
    words: tuple[str, str, str] = ("passed", "running", "failed")
    ended: dict[str, Item] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    expected: int = 0

    async def observe(self) -> Observation:
        left = [one for one in self.ids if one not in self.ended]
        found = await self.look(left) if left else {}
        self.ended |= {one: item for one, item in found.items() if item.ended and one not in self.ended}
        good = sum(item.good for item in self.ended.values())
        bad, running = len(self.ended) - good, len(self.ids) - len(self.ended)
        counts = dict(zip((f"{self.noun} {self.words[0]}", *self.words[1:]), (good, running, bad), strict=True))
        return Observation(counts, self._why(running, bad), self._warnings(found))

    def _why(self, running: int, bad: int) -> str | None:
        if len(self.ids) < self.expected:
            return f"{self.expected - len(self.ids)} {self.noun} were closed by another worker meanwhile"
        if not self.ids:
            return None
        if not running:
            return f"no {self.noun} are {self.words[1]} any more"
        if bad and self.wake != Wake.NOTHING:
            return f"{bad} {self.noun} have failed"
        if self.ended and self.wake == Wake.END:
            return f"{len(self.ended)} {self.noun} have ended"
        return None

    def _warnings(self, found: Mapping[str, Item]) -> tuple[str, ...]:
        odd = {item.state: one for one, item in found.items() if not item.known and item.state not in self.warned}
        self.warned.update(odd)
        return tuple(
            f"{one} is {state}, a status that Waybill does not know: such {self.noun} count as {self.words[1]}"
            for state, one in odd.items()
        )


class Opened:
    """A look through something that must be open (a client, a connection): `opening` gives the look while it is open.

    It is opened by the first look, and closed after one that failed: the next opens it anew, since what it looked through
    may be lost. A failure to open is a failed look. Use as an async context manager.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Observe]]):
        self._opening = opening
        self._open = AsyncExitStack()
        self._look: Observe | None = None

    async def observe(self) -> Observation:
        try:
            if self._look is None:
                self._look = await self._open.enter_async_context(self._opening())
            return await self._look()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._look = None
        try:
            await self._open.aclose()
        except Exception as error:  # what is lost cannot always be closed in good order
            log.info("not closed in good order: %s", said_of(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


# -- the loop ---------------------------------------------------------------------------------------------------------


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
    `look_seconds`: a look that takes longer has failed.
    """

    quiet_seconds: float = 3.0
    first_poll_seconds: float = 1.0
    poll_seconds: float = 30.0
    growth: float = 0.1
    jitter: float = 0.2
    error_budget: int = 60  # about four hours with the pauses below
    error_poll_seconds: float = 300.0
    look_seconds: float = 1800.0
    log_every_seconds: float = 60.0

    def interval(self, age: float, rng: random.Random) -> float:
        steady = min(max(self.first_poll_seconds, age * self.growth), max(self.poll_seconds, self.first_poll_seconds))
        return steady * (1 + self.jitter * (rng.random() - 0.5))

    def after_error(self, errors: int, asked: float | None, rng: random.Random) -> float:
        grown = min(self.first_poll_seconds * 2.0 ** min(errors, 16), self.error_poll_seconds)
        return max(asked or 0.0, grown * (0.5 + rng.random() / 2))


async def watch(
    observe: Observe,
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

    What a look raises uses up the budget, whatever it is; only a full success restores it. When it is used up, or waiting
    cannot mend the error (`may_pass`), the watch is `lost`: the worker that looks next says what to do.
    """
    rng = rng or random.Random()
    begun = since if since is not None else now()
    seen: Mapping[str, int] = {}
    errors, last_said, last_line = 0, float("-inf"), ""
    pause = policy.quiet_seconds
    while True:
        if now() + pause >= deadline:
            await sleep(max(0.0, deadline - now()))
            return WatchEnd("deadline", "it is time to look again", seen)
        await sleep(pause)
        try:
            async with asyncio.timeout(policy.look_seconds):
                observation = await observe()
        except Exception as error:
            if isinstance(error, WaybillError) and not may_pass(error):
                return WatchEnd("lost", f"the look was refused: {error}", seen)
            errors += 1
            if errors >= policy.error_budget:
                return WatchEnd("lost", f"{errors} looks in a row failed, the last: {said_of(error)}", seen)
            pause = policy.after_error(errors, asked_pause(error, now()), rng)
            say(f"look {errors} of at most {policy.error_budget} failed ({said_of(error)}); next in {pause:.0f} s")
            continue
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
