"""A simulator of ICAv2 (Illumina Connected Analytics): project data, tokens, copy batches and their jobs.

Build it with `IcaSimulator(clock, settings)`; everything else is reached from there or under `/_sim/`.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Clock, HttpService, Service, Setup
from simulators.icav2.api import add_routes
from simulators.icav2.control import add_controls
from simulators.icav2.scenarios import SCENARIOS, seed_scenario
from simulators.icav2.settings import Draw, Outcome, Override, Settings, destination_key, draw
from simulators.icav2.simulator import IcaWorld, files_by_path
from simulators.icav2.tokens import DEFAULT_API_KEY

__all__ = [
    "DEFAULT_API_KEY",
    "Draw",
    "IcaSimulator",
    "Outcome",
    "Override",
    "Settings",
    "destination_key",
    "draw",
    "files_by_path",
    "seed_scenario",
    "service",
]


class IcaSimulator(IcaWorld):
    """The world with its API and its side channel; arguments as of `IcaWorld`."""

    def __init__(self, clock: Clock | None = None, settings: Settings | None = None, **options: Any) -> None:
        super().__init__(clock, settings, **options)
        add_controls(self)  # before the routes, whose last one catches every path
        add_routes(self)


def service(setup: Setup) -> Service:
    """The simulator for `python -m simulators`."""
    simulator = IcaSimulator(setup.clock, Settings(seed=setup.seed))
    if setup.scenario in SCENARIOS:
        seed_scenario(simulator, setup.scenario)
    return HttpService(simulator)
