"""A simulator of Globus: Auth tokens, and the Transfer service, which really moves files between collections.

Build it with `GlobusSimulator(collections, clock, settings)`; everything else is reached from there or under `/_sim/`. Auth and
Transfer are at one address: `GLOBUS_SDK_SERVICE_URL_AUTH` and `GLOBUS_SDK_SERVICE_URL_TRANSFER` get the same.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Clock, HttpService, Service, Setup
from simulators.globus.api import add_routes
from simulators.globus.collections import (
    DESTINATION_COLLECTION,
    JGI_COLLECTION,
    JGI_ROOT,
    Collections,
    Entry,
    collections_of,
)
from simulators.globus.control import add_controls
from simulators.globus.model import Endpoint
from simulators.globus.settings import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, Settings
from simulators.globus.simulator import GlobusWorld

__all__ = [
    "DEFAULT_CLIENT_ID",
    "DEFAULT_CLIENT_SECRET",
    "DESTINATION_COLLECTION",
    "JGI_COLLECTION",
    "JGI_ROOT",
    "Collections",
    "Endpoint",
    "Entry",
    "GlobusSimulator",
    "Settings",
    "collections_of",
    "service",
]


class GlobusSimulator(GlobusWorld):
    """The world with its API and its side channel; arguments as of `GlobusWorld`."""

    def __init__(
        self, collections: Collections, clock: Clock | None = None, settings: Settings | None = None, **options: Any
    ) -> None:
        super().__init__(collections, clock, settings, **options)
        add_controls(self)  # before the routes, whose last one catches every path
        add_routes(self)


def service(setup: Setup) -> Service:
    """The simulator for `python -m simulators`. It has no scenarios: what JDP restores is there to be moved."""
    simulator = GlobusSimulator(collections_of(setup), setup.clock, Settings(seed=setup.seed))
    simulator.collections.before_removal = simulator.run_due  # all services run in one event loop
    return HttpService(simulator)
