"""`AwakeService`: a simulator that moves on at its time, also while nobody asks it anything.

Invariant: what happens, and when in simulated time, is the agenda's alone; this only makes it happen in time for others who look
at what it changes, as Globus does at files that JDP purges.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from simulators.common import HttpService, Simulator


class AwakeService(HttpService):
    """An `HttpService` that runs what is due of its simulator's agenda when it is due."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator)
        self._sooner = asyncio.Event()
        self._awake: asyncio.Task[None] | None = None
        simulator.agenda.on_sooner = self._sooner.set

    async def start(self) -> str:
        address = await super().start()
        self._awake = asyncio.create_task(self._move_on())
        return address

    async def stop(self) -> None:
        if self._awake is not None:
            self._awake.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._awake
        await super().stop()

    async def _move_on(self) -> None:
        while True:
            now = self.simulator.run_due()
            self._sooner.clear()
            due = self.simulator.agenda.next_due()
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._sooner.wait())]
            if due is not None:
                waits.append(asyncio.ensure_future(self.simulator.clock.sleep(due - now)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
