"""The list of simulators, and what each must offer to be started by `python -m simulators`.

To add a simulator, add one line to `SERVICES`. Its function takes a `Setup` and returns a `Service`; an HTTP one returns
`HttpService(simulator)`, others (SSH, SMTP) bring their own start and stop.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import uvicorn

from simulators.common.clock import Clock
from simulators.common.server import loopback_socket, make_server
from simulators.common.simulator import Simulator

SERVICES = {
    "icav2": "simulators.icav2:service",
    "s3": "simulators.s3:service",
}


@dataclass(frozen=True)
class Setup:
    """How to build a simulator: the seed of all its draws, the clock it runs on, a scenario to seed.

    A simulator that has no scenario of that name starts empty.
    """

    clock: Clock
    seed: int = 1
    scenario: str | None = None


class Service(Protocol):
    """Something that listens on loopback between `start` and `stop`."""

    async def start(self) -> str:
        """Listen on a free loopback port and return the address for the state file."""

    async def stop(self) -> None:
        """Stop listening."""


class HttpService:
    """A `Simulator` as a service in the running event loop."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        bound = loopback_socket()
        bound.listen(2048)
        self._server = make_server(self.simulator.app)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task


def build(name: str, setup: Setup) -> Service:
    """Build the service registered under `name`. Raises KeyError for a name that is not registered."""
    module, _, function = SERVICES[name].partition(":")
    return cast(Callable[[Setup], Service], getattr(importlib.import_module(module), function))(setup)
