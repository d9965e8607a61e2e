"""Waits for a remote that is out of reach: asks again and again, says so once a minute, and gives up in the end.

Whether a call may be asked again at all is for the caller to know: what deletes after a look must look again first.

Invariant: only a TransientError is waited for, never longer than `seconds` for one call; after it has given up, every call
is tried just once, until one succeeds, so that a hundred calls do not wait a hundred times. The last try may begin just
before the end, and outlast it by its own timeout: so each try must be one request, without repetitions of its client's own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from include.core.errors import TransientError

T = TypeVar("T")
log = logging.getLogger("waybill.patience")  # without any setting of its own, Python writes warnings to stderr
_LONGEST_PAUSE_SECONDS = 30.0
_SAY_EVERY_SECONDS = 60.0


class Patience:
    """For all calls to one remote, `seconds` 0: no waiting. `who` is the remote in the lines that are said."""

    def __init__(
        self,
        seconds: float,
        *,
        who: str = "the store",
        say: Callable[[str], object] = log.warning,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        say_every: float = _SAY_EVERY_SECONDS,
    ):
        self.seconds = seconds
        self._who = who
        self._say = say
        self._now = now
        self._sleep = sleep
        self._say_every = say_every
        self._said: float | None = None
        self._given_up = False

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` gives, made anew after each TransientError while there is time. Raises the last one."""
        if self.seconds <= 0:
            return await work()
        began, pause, failures = self._now(), 0.5, 0
        while True:
            try:
                result = await self._watched(work(), began)
            except TransientError as error:
                waited = self._now() - began
                if self._given_up or waited >= self.seconds:
                    self._given_up = True
                    raise
                failures += 1
                if failures > 1:  # a single one is no outage, and a busy store answers so every now and then
                    self._line(f"{error}; waiting for {self._who}, {self._minutes(waited)}")
                wanted = max(error.retry_after or 0.0, pause * random.uniform(0.75, 1.25))
                await self._sleep(min(wanted, self.seconds - waited))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            if self._said is not None:
                self._said = None
                self._say(f"{self._who} answers again")
            self._given_up = False
            return result

    async def _watched(self, work: Coroutine[Any, Any, T], began: float) -> T:
        """The work, with a line a minute while it does not end: a remote that hangs says nothing by itself."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def remind() -> None:
            nonlocal timer
            self._line(f"no answer yet from {self._who}, {self._minutes(self._now() - began)}")
            timer = loop.call_later(self._say_every, remind)

        timer = loop.call_later(self._say_every, remind)
        try:
            return await work
        finally:
            timer.cancel()

    def _line(self, text: str) -> None:
        if self._said is None or self._now() - self._said >= self._say_every:
            self._said = self._now()
            self._say(text)

    def _minutes(self, waited: float) -> str:
        return f"{waited / 60:.0f} of {self.seconds / 60:g} minutes"
