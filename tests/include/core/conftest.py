"""Every ledger test runs on SQLite and on PostgreSQL, where a PostgreSQL server is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from harness import postgres
from harness.sshd import Sshd, sshd
from include.core.ledger import Ledger, init
from tests.include.core.ledger_world import Clock, Remote


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    programs = postgres.binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed under /usr/lib/postgresql")
    server = postgres.Cluster(programs)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """A database without a ledger."""
    if request.param == "sqlite":
        return URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    return request.getfixturevalue("cluster").new_schema()


@pytest.fixture
def url(empty_url: URL) -> URL:
    """A database with an empty ledger."""
    init(empty_url)
    return empty_url


@pytest.fixture
def open_ledger(url: URL) -> Iterator[Callable[..., Ledger]]:
    """Opens the ledger anew, as another worker would."""
    opened: list[Ledger] = []

    def open_one(**options: Any) -> Ledger:
        opened.append(Ledger(url, **options))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(open_ledger: Callable[..., Ledger], clock: Clock) -> Ledger:
    """A ledger whose clock stands until a test moves it."""
    return open_ledger(clock=clock, monotonic=clock)


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    """Without an sshd these tests fail, and say what to install: they must not be skipped unseen."""
    with sshd() as running:
        yield running


@pytest.fixture
def faulty() -> Iterator[Sshd]:
    with sshd(faults=True) as running:
        yield running
