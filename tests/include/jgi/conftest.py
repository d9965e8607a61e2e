"""JDP and GOLD on real sockets with clocks that stand still, a ledger and a MongoDB of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from include.core.http import HttpPolicy
from include.core.ledger import Ledger, Owner, init
from include.jgi.jdp import JdpClient, SessionToken
from include.jgi.models import Limits, Placement, StagedFile
from include.jgi.restoring import JdpAccount, Restoring
from include.jgi.tracking import Tracking
from simulators.globus.collections import JGI_COLLECTION, JGI_ROOT
from simulators.jgi import DEFAULT_SESSION, Catalog, add_random
from tests.simulators.jgi_rehearsal import START, Gold, Jdp

QUICK = HttpPolicy(read_attempts=2, backoff_seconds=0.0)
GROW, BLUE = 503568, 505022


@dataclass
class Folders:
    """Our root on JGI's collection, as Globus lists it."""

    jdp: Jdp

    async def request_ids(self) -> list[int]:
        found = self.jdp.server.call(lambda: self.jdp.collections.children(JGI_COLLECTION, f"/{JGI_ROOT}"))
        return [int(name[1:]) for name, is_folder, _ in found if is_folder]


@dataclass
class Bench:
    """Whatever one worker needs; the ledger's clock is moved by hand together with JDP's."""

    jdp: Jdp
    url: URL
    tracking: Tracking
    limits: Limits = field(default_factory=Limits)
    passed: float = 0.0
    opened: list[Ledger] = field(default_factory=list)

    def ledger(self) -> Ledger:
        book = Ledger(self.url, clock=lambda: START + self.passed)
        self.opened.append(book)
        return book

    def pass_time(self, seconds: float) -> None:
        self.passed += seconds
        self.jdp.advance(seconds)

    @asynccontextmanager
    async def restoring(self, run_id: str = "run-1", token: str = DEFAULT_SESSION) -> AsyncIterator[Restoring]:
        account = JdpAccount("nmdc", "nmdc@globusid.org", limits=self.limits)
        owner = Owner("jgi_staging", run_id, "restore")
        async with JdpClient(
            self.jdp.server.url, SessionToken(token), name="waybill_jdp", policy=QUICK, sleep=no_sleep
        ) as client:
            yield Restoring(client, self.ledger(), self.tracking, account, Folders(self.jdp), owner)

    def project(self, name: str, proposal: int, count: int, total: int) -> list[StagedFile]:
        """A project whose files are known to MongoDB, each placed once."""
        options = {"biosamples": 1, "files_each": count, "trap_rate": 0.0}
        self.jdp.server.call(lambda: add_random(self.jdp.catalog, proposal, name, total_bytes=total, **options))
        known = self.jdp.catalog.files_of_proposal(proposal)
        files = [StagedFile(one.id, one.name, one.size, name, analyses=(f"Ga{proposal}",)) for one in known]
        self.tracking.put_files(files)
        self.tracking.put_placements(
            Placement(one.jdp_file_id, one.analyses[0], name, f"/staging/{name}/{one.jdp_file_id}", one.size_bytes)
            for one in files
        )
        return list(self.tracking.files(project=name))


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))  # type: ignore[arg-type]

    return run


async def no_sleep(_seconds: float) -> None: ...


@pytest.fixture
def jdp(tmp_path: Path) -> Iterator[Jdp]:
    server = Jdp(tmp_path / "collections", Catalog())
    yield server
    server.close()


@pytest.fixture
def gold() -> Iterator[Gold]:
    server = Gold(Catalog())
    yield server
    server.close()


@pytest.fixture
def bench(jdp: Jdp, tmp_path: Path, mongo: Any) -> Iterator[Bench]:
    url = URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    init(url)
    tracking = Tracking(mongo)
    tracking.ensure_indexes()
    one = Bench(jdp, url, tracking)
    yield one
    for book in one.opened:
        book.close()
