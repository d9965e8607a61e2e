"""Fixtures that the tests of every system need: Waybill's own connections in a folder of the test, and quick triggers.

`tests/conftest.py` imports them, so that they are there for all tests. Airflow is imported only by a test that uses one that
needs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from include.core.ledger import Ledger, init, ledger_url
from include.core.watch import WatchPolicy
from simulators.mongo import MongoServer

Connect = Callable[[str, str], None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Gives Airflow a connection for the length of a test, as JSON or URI."""

    def give(conn_id: str, value: str) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)

    return give


@pytest.fixture
def ledger(tmp_path: Path, connect: Connect, receipts_folder: Path) -> Iterator[Ledger]:
    """The ledger that connection waybill_ledger names; no step begins without a place for its record either."""
    connection = f"sqlite:///{tmp_path / 'ledger.db'}"
    init(ledger_url(connection))
    connect("waybill_ledger", connection)
    book = Ledger(ledger_url(connection))
    yield book
    book.close()
    assert connections_to(book) == 0, "somebody has opened the ledger and not closed it"


def connections_to(ledger: Ledger, place: Path | None = None) -> int:
    """How many connections this process holds to a SQLite ledger, or to the file `place`."""
    path, held = str(place or ledger._engine.url.database), 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            held += str(descriptor.readlink()) == path
    return held


@pytest.fixture(scope="session")
def mongo_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of one stand-in of MongoDB for all tests."""
    server = MongoServer(tmp_path_factory.mktemp("mongo"))
    with asyncio.Runner() as runner:
        yield runner.run(server.start())
        runner.run(server.stop())


@pytest.fixture(scope="session")
def mongo_uri(request: pytest.FixtureRequest) -> str:
    """The server that WAYBILL_TEST_MONGO_URI names, or the stand-in."""
    return os.environ.get("WAYBILL_TEST_MONGO_URI") or str(request.getfixturevalue("mongo_stand_in"))


@pytest.fixture
def mongo(mongo_uri: str) -> Iterator[Any]:
    """A database of the test's own."""
    from pymongo import MongoClient

    with MongoClient[dict[str, Any]](mongo_uri, tz_aware=True) as client:
        name = f"waybill_test_{uuid.uuid4().hex[:12]}"
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def receipts_folder(tmp_path: Path, connect: Connect) -> Path:
    """Where the documents of connection waybill_receipts lie."""
    folder = tmp_path / "receipts"
    connect("waybill_receipts", json.dumps({"conn_type": "generic", "extra": {"prefix": folder.as_uri()}}))
    return folder


@pytest.fixture
def inputs_folder(tmp_path: Path, connect: Connect) -> Path:
    """Where inputs may lie by connection waybill_inputs."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    connect("waybill_inputs", json.dumps({"conn_type": "generic", "extra": {"prefixes": [folder.as_uri()]}}))
    return folder


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triggers look at once: nothing here can be woken too early."""
    monkeypatch.setattr("triggers.watch.WatchPolicy", partial(WatchPolicy, quiet_seconds=0.05, first_poll_seconds=0.1))
