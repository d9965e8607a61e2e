"""A simulator of S3: moto's semantics (versions, conditions, multipart, restore) with this project's faults and journal.

Build it with `S3Simulator(clock, settings)`; the side channel under `/_sim/` is that of every simulator, and POST `/reset`.
It is no proof that a condition holds on a real store, only that ours are sent and heeded: moto ignores some (ETags of single
keys in DeleteObjects), and nothing may be concluded from that.
"""

from __future__ import annotations

from simulators.common import Clock, HttpService, Service, Setup, SimulatorSettings
from simulators.s3.api import add_routes
from simulators.s3.control import add_controls
from simulators.s3.errors import error_answer
from simulators.s3.simulator import S3World

__all__ = ["S3Simulator", "error_answer", "service"]


class S3Simulator(S3World):
    """The world with its API and its side channel; arguments as of `S3World`."""

    def __init__(self, clock: Clock | None = None, settings: SimulatorSettings | None = None) -> None:
        super().__init__(clock, settings)
        add_controls(self)
        add_routes(self)


def service(setup: Setup) -> Service:
    """The simulator for `python -m simulators`. It has no scenarios: every one starts without buckets."""
    return HttpService(S3Simulator(setup.clock, SimulatorSettings(seed=setup.seed)))
