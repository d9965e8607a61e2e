"""A simulator of ICAv2 (Illumina Connected Analytics): project data, tokens, copy batches and their jobs.

The one thing to know: build it with `IcaSimulator(clock, settings)`; everything else is reached from there or under `/_sim/`.
"""

from __future__ import annotations

from simulators.common import HttpService, Service, Setup
from simulators.icav2.scenarios import SCENARIOS, seed_scenario
from simulators.icav2.settings import Draw, Outcome, Override, Settings, destination_key, draw
from simulators.icav2.simulator import IcaSimulator, files_by_path
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


def service(setup: Setup) -> Service:
    """The simulator for `python -m simulators`."""
    simulator = IcaSimulator(setup.clock, Settings(seed=setup.seed))
    if setup.scenario in SCENARIOS:
        seed_scenario(simulator, setup.scenario)
    return HttpService(simulator)
