"""Waiting until a time, for anybody: nothing is looked at until then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from triggers.watch import WatchTrigger

from include.core.watch import Observation, Observe


class UntilTrigger(WatchTrigger):
    """Wakes at its deadline. Options: `counts`, what the log says meanwhile, as {"plates marked": 1}; `system` and
    `can_cancel` of the task that waits, whose jobs may run meanwhile."""

    system = "time"
    can_cancel = False

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.system = self.options.get("system", self.system)
        self.can_cancel = self.options.get("can_cancel", self.can_cancel)

    @asynccontextmanager
    async def observer(self) -> AsyncIterator[Observe]:
        counts = dict(self.options.get("counts") or {"waiting": 1})

        async def observe() -> Observation:
            return Observation(counts)

        yield observe
