"""Simulators of two systems of JGI that share one catalog: GOLD (samples and analyses) and JDP (files, tape, restores).

Build them with `GoldSimulator(catalog)` and `JdpSimulator(catalog, collections)`; everything else is reached from there or under
`/_sim/`.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Clock, HttpService, Service, Setup
from simulators.globus.collections import Collections, collections_of
from simulators.jgi.catalog import ArchiveFile, Catalog
from simulators.jgi.control import add_gold_controls, add_jdp_controls
from simulators.jgi.generate import add_published, add_random
from simulators.jgi.gold import DEFAULT_OFFLINE_TOKEN, GoldWorld
from simulators.jgi.gold import add_routes as add_gold_routes
from simulators.jgi.jdp import JdpWorld
from simulators.jgi.jdp_api import add_routes as add_jdp_routes
from simulators.jgi.scenarios import SCENARIOS, seed_scenario
from simulators.jgi.service import AwakeService
from simulators.jgi.sessions import DEFAULT_SESSION
from simulators.jgi.settings import GoldSettings, JdpSettings, draw_restore
from simulators.jgi.window import Peak, sliding_peak

__all__ = [
    "DEFAULT_OFFLINE_TOKEN",
    "DEFAULT_SESSION",
    "ArchiveFile",
    "Catalog",
    "GoldSettings",
    "GoldSimulator",
    "JdpSettings",
    "JdpSimulator",
    "Peak",
    "add_published",
    "add_random",
    "catalog_of",
    "draw_restore",
    "gold_service",
    "jdp_service",
    "seed_scenario",
    "sliding_peak",
]


class GoldSimulator(GoldWorld):
    """GOLD with its API and its side channel; arguments as of `GoldWorld`."""

    def __init__(self, catalog: Catalog, clock: Clock | None = None, settings: GoldSettings | None = None) -> None:
        super().__init__(catalog, clock, settings)
        add_gold_controls(self)  # before the routes, whose last one catches every path
        add_gold_routes(self)


class JdpSimulator(JdpWorld):
    """JDP with its API and its side channel; arguments as of `JdpWorld`."""

    def __init__(self, catalog: Catalog, collections: Collections, clock: Clock | None = None, **options: Any) -> None:
        super().__init__(catalog, collections, clock, **options)
        add_jdp_controls(self)
        add_jdp_routes(self)


def catalog_of(setup: Setup) -> Catalog:
    """The catalog that GOLD and JDP of this run share, with the scenario's projects."""
    return setup.world("jgi", _seeded)


def _seeded(setup: Setup) -> Catalog:
    catalog = Catalog(setup.seed)
    return seed_scenario(catalog, setup.scenario) if setup.scenario in SCENARIOS else catalog


def gold_service(setup: Setup) -> Service:
    """GOLD for `python -m simulators`."""
    return HttpService(GoldSimulator(catalog_of(setup), setup.clock, GoldSettings(seed=setup.seed)))


def jdp_service(setup: Setup) -> Service:
    """JDP for `python -m simulators`; it moves on by itself, so that Globus sees what is purged."""
    settings = JdpSettings(seed=setup.seed)
    return AwakeService(JdpSimulator(catalog_of(setup), collections_of(setup), setup.clock, settings=settings))
