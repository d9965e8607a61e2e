"""How fast requests to one remote may leave.

Invariant: nothing is slowed down before the remote has asked for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from include.core.http_reply import Reply, retry_after


class Pace:
    """How fast requests may leave: at once, until the remote asks to slow down; then slower for all, and slowly faster.

    Without it fifty callers, each waiting on its own, would all come back at the same moment and be refused again.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]]):
        self._sleep = sleep
        self._gate = asyncio.Lock()
        self._interval = 0.0
        self._not_before = 0.0
        self._last_left = 0.0
        self._slowed_at = -1.0

    async def turn(self) -> float:
        """Waits for the caller's turn, and returns when it came (the loop's clock): `learn` wants it back."""
        clock = asyncio.get_running_loop().time
        if self._interval == 0.0 and clock() >= self._not_before:
            return clock()
        async with self._gate:
            wait = max(self._not_before, self._last_left + self._interval) - clock()
            if wait > 0:
                await self._sleep(wait)
            self._last_left = clock()
            return self._last_left

    def learn(self, reply: Reply, left_at: float) -> None:
        """Half as fast again after a 429, and not before its Retry-After; a little faster after anything else."""
        if reply.status != 429:
            self._interval = self._interval * 0.97 if self._interval > 0.002 else 0.0
            return
        now = asyncio.get_running_loop().time()
        asked = retry_after(reply.headers, time.time()) or 0.0
        self._not_before = max(self._not_before, now + min(asked, 60.0))
        if left_at > self._slowed_at:  # what left before the last change says nothing about the new pace
            self._interval = min(max(self._interval * 1.5, 0.02), 2.0)
            self._slowed_at = now
