"""Globus of a test, on loopback, on a clock of its own that runs fast, and the connection that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness.fixtures import Connect
from include.core.ledger import Ledger
from simulators.globus import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET, DESTINATION_COLLECTION, JGI_COLLECTION
from tests.include.globus.conftest import World


@pytest.fixture
def world(tmp_path: Path, ledger: Ledger, connect: Connect, request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        world = World(tmp_path, ledger, stack, speed=60.0)
        connect("waybill_globus", json.dumps(connection(world)))
        yield world


def connection(world: World, **extra: Any) -> dict[str, Any]:
    given = {
        "source_collection": JGI_COLLECTION,
        "source_root": "/73709",
        "destination_collection": DESTINATION_COLLECTION,
        "destination_root": "/staging",
        "mount": str(world.mount),
    }
    return {
        "conn_type": "generic",
        "host": world.server.url,
        "login": DEFAULT_CLIENT_ID,
        "password": DEFAULT_CLIENT_SECRET,
        "extra": given | extra,
    }
