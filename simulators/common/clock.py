"""The simulated clock and the agenda of what happens when.

Invariant: nothing runs in the background. Whatever a remote would do by itself (a job that ends, a deletion that completes)
is an entry of the agenda, and what is due of the agenda is run in time order at the start of every request. So a
simulator gives the same history on a real clock, a fast one, a frozen one and a virtual one.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate

# Epoch seconds near 2e9 have a float resolution of 2.4e-7: a smaller remainder can never be slept away.
_RESOLUTION_SECONDS = 1e-6


class Clock:
    """Simulated time: epoch seconds that run `speed` times as fast as `source` and can be pushed forward.

    Args:
        source: monotonic seconds; `time.monotonic`, or `loop.time` of a virtual-time loop.
        epoch: simulated epoch seconds at construction; the present by default.
        speed: simulated seconds per second of the source; 0 freezes the clock, which then moves by `advance` only.
    """

    def __init__(
        self, source: Callable[[], float] = time.monotonic, *, epoch: float | None = None, speed: float = 1.0
    ) -> None:
        if speed < 0:
            raise ValueError(f"speed must not be negative, got {speed}")
        self._source = source
        self._anchor = source()
        self._base = time.time() if epoch is None else epoch
        self._speed = speed
        self._sleepers: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def speed(self) -> float:
        """Simulated seconds per second of the source."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"speed must not be negative, got {value}")
        self._base, self._anchor, self._speed = self.now(), self._source(), value
        self._wake()

    def now(self) -> float:
        """Simulated epoch seconds."""
        return self._base + (self._source() - self._anchor) * self._speed

    def advance(self, seconds: float) -> float:
        """Push the clock forward by simulated seconds, wake whoever slept into that span, and return the new time."""
        if seconds < 0:
            raise ValueError(f"the clock only moves forward, got {seconds}")
        self._base += seconds
        self._wake()
        return self.now()

    async def sleep(self, seconds: float) -> None:
        """Sleep for simulated seconds; `advance` and a change of speed are felt at once."""
        deadline = self.now() + seconds
        while (left := deadline - self.now()) > _RESOLUTION_SECONDS:
            entry = (asyncio.get_running_loop(), asyncio.Event())
            self._sleepers.add(entry)
            try:
                await asyncio.wait_for(entry[1].wait(), left / self._speed if self._speed else None)
            except TimeoutError:
                pass
            finally:
                self._sleepers.discard(entry)

    def _wake(self) -> None:
        for loop, event in list(self._sleepers):
            loop.call_soon_threadsafe(event.set)


class Agenda:
    """Future events in time order; ties keep the order in which they were scheduled.

    `time` is the instant the simulated world has reached: the time of the running event, else of the last `run_due`.
    `on_sooner` is called when something new comes before all that was planned (for whoever sleeps until `next_due`).
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.time = clock.now()
        self.on_sooner: Callable[[], object] = lambda: None
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def schedule(self, when: float, event: Callable[[], object]) -> None:
        """Run `event` at simulated epoch seconds `when` (by the next `run_due` when that is past)."""
        entry = (max(when, self.time), next(self._order), event)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self.on_sooner()

    def run_due(self) -> float:
        """Run everything due by now, in time order, and return the present."""
        now = max(self.clock.now(), self.time)
        while self._heap and self._heap[0][0] <= now:
            when, _, event = heapq.heappop(self._heap)
            self.time = when
            event()
        self.time = now
        return now

    def next_due(self) -> float | None:
        """Simulated epoch seconds of the next event, None when nothing is planned."""
        return self._heap[0][0] if self._heap else None


def iso_millis(epoch_seconds: float) -> str:
    """`2026-01-01T00:00:00.000Z`: UTC with milliseconds, rounded down."""
    return datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def http_date(epoch_seconds: float) -> str:
    """The value of a `Date` header (RFC 9110), rounded down to seconds."""
    return formatdate(int(epoch_seconds), usegmt=True)
