"""The side channel that every simulator has under `/_sim/`: journal, fault script, settings, clock, counters, health.

Each function takes the one thing it shows and returns what the shell serves: method, path, handler.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from simulators.common.clock import Agenda, Clock, iso_millis
from simulators.common.faults import FaultScript
from simulators.common.journal import Journal

Handler = Callable[[Request], Awaitable[Any]]
Controls = list[tuple[str, str, Handler]]


def journal_controls(journal: Journal) -> Controls:
    """GET `/journal?kind=&since=`: entries after the number `since`, of one kind when given."""

    async def show(request: Request) -> Any:
        query = request.query_params
        entries = journal.entries(query.get("kind"), int(query.get("since", "0")))
        return {"entries": [entry.as_dict() for entry in entries], "last_seq": len(journal)}

    return [("GET", "/journal", show)]


def fault_controls(faults: FaultScript) -> Controls:
    """GET `/faults`: the rules; POST one rule or a list; DELETE all, or `?id=`."""

    async def show(_: Request) -> Any:
        return {"rules": faults.describe()}

    async def add(request: Request) -> Any:
        rules = await request.json()
        return {"ids": [faults.add(**rule) for rule in (rules if isinstance(rules, list) else [rules])]}

    async def clear(request: Request) -> Any:
        faults.clear(int(request.query_params["id"]) if "id" in request.query_params else None)
        return {"rules": faults.describe()}

    return [("GET", "/faults", show), ("POST", "/faults", add), ("DELETE", "/faults", clear)]


def settings_controls(show: Callable[[], dict[str, Any]], change: Callable[..., dict[str, Any]]) -> Controls:
    """GET `/settings`; PATCH some of them, all or none."""

    async def settings(_: Request) -> Any:
        return show()

    async def patch(request: Request) -> Any:
        return change(**await request.json())

    return [("GET", "/settings", settings), ("PATCH", "/settings", patch)]


def clock_controls(clock: Clock, agenda: Agenda) -> Controls:
    """GET `/clock`; POST `{"advance": seconds, "speed": number}`."""

    def state() -> dict[str, Any]:
        now = clock.now()
        return {"now": now, "at": iso_millis(now), "speed": clock.speed, "next_due": agenda.next_due()}

    async def show(_: Request) -> Any:
        return state()

    async def push(request: Request) -> Any:
        change = await request.json()
        if "speed" in change:
            clock.speed = float(change["speed"])
        clock.advance(float(change.get("advance", 0)))
        agenda.run_due()
        return state()

    return [("GET", "/clock", show), ("POST", "/clock", push)]


def state_controls(name: str, counters: Callable[[], dict[str, Any]]) -> Controls:
    """GET `/counters` and `/health`."""

    async def count(_: Request) -> Any:
        return counters()

    async def health(_: Request) -> Any:
        return {"name": name, "started": True, "process_time": time.process_time()}

    return [("GET", "/counters", count), ("GET", "/health", health)]
