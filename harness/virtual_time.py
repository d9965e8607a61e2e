"""An event loop whose clock jumps to the next timer instead of waiting: hours of copying in milliseconds, exactly repeatable."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
EPOCH = 1_780_000_000.0


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("the virtual loop waits for nothing: a deadlock")
        if not ready and timeout:
            self.skipped += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`loop.time()` starts at 0 and moves only by timers. Threads and real sockets do not belong here."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.skipped

    def run_in_executor(  # type: ignore[override]  # typeshed wants its own type variables
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Runs at once what would run in a thread: no time passes here while a thread works."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def now(self) -> float:
        """Epoch seconds of the virtual clock."""
        return EPOCH + self.time()


def run_virtual(main: Callable[[VirtualTimeLoop], Awaitable[T]]) -> T:
    """Runs `main(loop)` to its end on virtual time."""
    loop = VirtualTimeLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main(loop))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
