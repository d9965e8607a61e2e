"""The list of simulators, and what each must offer to be started by `python -m simulators`.

To add a simulator, add one line to `SERVICES`. Its function takes a `Setup` and returns a `Service`; an HTTP one returns
`HttpService(simulator)`, or `HttpServices` where one world has several addresses; others (SSH, SMTP) bring their own start and
stop. What several services see (a world, a folder of files) they take from their setups.

Invariant: services that are started together share one `Shared`, and nothing else.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import uvicorn

from simulators.common.clock import Clock
from simulators.common.server import loopback_socket, make_server
from simulators.common.simulator import Simulator

T = TypeVar("T")
SERVICES = {
    "globus": "simulators.globus:service",
    "icav2": "simulators.icav2:service",
    "s3": "simulators.s3:service",
    "gold": "simulators.jgi:gold_service",
    "jdp": "simulators.jgi:jdp_service",
    "mongo": "simulators.mongo:service",
}


@dataclass
class Shared:
    """What services that are started together have in common: `folder` for files, and worlds by name."""

    folder: Path
    worlds: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """How to build a simulator: the seed of all its draws, the clock it runs on, a scenario to seed.

    A simulator that has no scenario of that name starts empty. Each service has a clock of its own, since a tape is slower
    than a copy; `shared` is one for all.
    """

    clock: Clock
    seed: int = 1
    scenario: str | None = None
    shared: Shared | None = None

    @property
    def folder(self) -> Path:
        """A folder that all services see: what one writes there another may serve. Raises ValueError where there is none."""
        if self.shared is None:
            raise ValueError("this simulator keeps files: give its Setup a folder, as Shared(folder)")
        return self.shared.folder

    def world(self, name: str, make: Callable[[Setup], T]) -> T:
        """The world of this name, made by the first service that asks for it, on that one's clock."""
        if self.shared is None:
            return make(self)
        if name not in self.shared.worlds:
            self.shared.worlds[name] = make(self)
        return cast(T, self.shared.worlds[name])


class Service(Protocol):
    """Something that listens on loopback between `start` and `stop`."""

    async def start(self) -> str | Mapping[str, str]:
        """Listen on free loopback ports and return the address for the state file, or several by name."""

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


class HttpServices:
    """Several simulators as one service, as the sites of one archive are: each has its own address, by name."""

    def __init__(self, simulators: Mapping[str, Simulator]) -> None:
        self._services = {name: HttpService(simulator) for name, simulator in simulators.items()}

    async def start(self) -> Mapping[str, str]:
        return {name: await service.start() for name, service in self._services.items()}

    async def stop(self) -> None:
        for service in self._services.values():
            await service.stop()


def named(service: str, started: str | Mapping[str, str]) -> dict[str, str]:
    """The addresses of a service as the state file names them: `s3`, or `hca.archiver` and `hca.ingest`."""
    if isinstance(started, str):
        return {service: started}
    return {f"{service}.{name}": address for name, address in started.items()}


def build(name: str, setup: Setup) -> Service:
    """Build the service registered under `name`. Raises KeyError for a name that is not registered."""
    module, _, function = SERVICES[name].partition(":")
    return cast(Callable[[Setup], Service], getattr(importlib.import_module(module), function))(setup)
