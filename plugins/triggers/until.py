"""Waiting until a time, for anybody: nothing is looked at until then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from triggers.watch import Observe, WatchTrigger

from include.core.ledger import Ledger
from include.core.watch import Observation


class UntilTrigger(WatchTrigger):
    """Wakes at its deadline. The option `counts` is what the log says meanwhile, as {"plates marked": 1}."""

    system = "time"

    @asynccontextmanager
    async def observer(self, ledger: Ledger) -> AsyncIterator[Observe]:
        counts = dict(self.options.get("counts") or {"waiting": 1})

        async def observe() -> Observation:
            return Observation(counts)

        yield observe
