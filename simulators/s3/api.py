"""The HTTP operations of S3: all of them are moto's, told apart there by method, path, query and headers."""

from __future__ import annotations

from simulators.s3.simulator import S3World

TEMPLATE = "/{bucket}/{key}"


def add_routes(sim: S3World) -> None:
    """Every request goes to the store."""
    sim.route_rest(sim.store, TEMPLATE)
