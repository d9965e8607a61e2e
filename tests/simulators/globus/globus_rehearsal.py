"""The simulated Globus as the real globus-sdk sees it, on a clock that stands still until a test moves it.

Invariant: what a test asks of the API goes through the SDK and a socket; only seeding, the clock and the journal are reached
directly, in the server's own thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import globus_sdk.transport  # noqa: TID253
from globus_sdk.scopes import TransferScopes  # noqa: TID253

from simulators.common import Clock, RunningServer
from simulators.globus import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    DESTINATION_COLLECTION,
    JGI_COLLECTION,
    Collections,
    GlobusSimulator,
    Settings,
)

T = TypeVar("T")
START = 1_800_000_000.0
ROOT = "/73709/R1"
AT_ONCE = globus_sdk.transport.RetryConfig(backoff=lambda context: 0.0)


class Switch:
    """An ASGI app that hands each request to the simulator of the present test: one server is enough for all."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def at(seconds: float) -> str:
    """The ISO time so many seconds after the start of a test."""
    return datetime.fromtimestamp(START + seconds, UTC).isoformat()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Globus:
    """A simulator of its own for one test, a client of the SDK, and short words for what tests do."""

    def __init__(self, server: RunningServer, folder: Path, **settings: Any) -> None:
        self._server = server
        self.url = server.url
        self.clock = Clock(epoch=START, speed=0)
        self.files = Collections(folder)
        chosen = {"accept_seconds": 0.0, "file_seconds": 0.0, "task_bytes_per_second": 100.0} | settings
        self.sim = GlobusSimulator(self.files, self.clock, Settings(**chosen))
        self.client = self.new_client()

    def on(self, function: Callable[[], T]) -> T:
        """Run something in the server's thread."""
        return self._server.call(function)

    # Clients

    def new_client(self, client_id: str = DEFAULT_CLIENT_ID, secret: str = DEFAULT_CLIENT_SECRET) -> Any:
        """A TransferClient of a ClientApp that repeats at once, and asks for its token at the first call."""
        config = globus_sdk.GlobusAppConfig(token_storage="memory")
        app = globus_sdk.ClientApp("rehearsal", client_id=client_id, client_secret=secret, config=config)
        return globus_sdk.TransferClient(app=app, retry_config=AT_ONCE)

    def bare_client(self, scope: str = str(TransferScopes.all)) -> Any:
        """A TransferClient over a ConfidentialAppAuthClient, the other way to authorize."""
        auth = globus_sdk.ConfidentialAppAuthClient(DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET)
        authorizer = globus_sdk.ClientCredentialsAuthorizer(auth, scope)
        return globus_sdk.TransferClient(authorizer=authorizer, retry_config=AT_ONCE)

    # Files

    def seed(self, *names: str, size: int = 100) -> list[tuple[str, str]]:
        """Put small real files into a restored folder; their paths there and at the destination."""
        return [self.put(name, f"{name} ".encode().ljust(size, b".")[:size]) for name in names]

    def put(self, name: str, data: bytes) -> tuple[str, str]:
        path = f"{ROOT}/{name}"
        self.files.put(JGI_COLLECTION, path, data=data, modified=START - 1000)
        return path, f"/staging/{name}"

    def arrived(self) -> dict[str, str]:
        """The files of the destination by path, with their MD5."""
        return {path: entry.md5 for path, entry in self.files.files(DESTINATION_COLLECTION)}

    def source_md5(self, name: str) -> str:
        entry = self.files.entry(JGI_COLLECTION, f"{ROOT}/{name}")
        assert entry is not None
        return entry.md5

    # Tasks

    def document(self, pairs: list[tuple[str, str]], checksums: dict[str, str] | None = None, **options: Any) -> Any:
        """A submission of the SDK."""
        options = {"verify_checksum": True, "submission_id": self.client.get_submission_id()["value"]} | options
        data = globus_sdk.TransferData(JGI_COLLECTION, DESTINATION_COLLECTION, **options)
        for source, destination in pairs:
            data.add_item(source, destination, external_checksum=(checksums or {}).get(source, globus_sdk.MISSING))
        return data

    def submit(self, pairs: list[tuple[str, str]], **options: Any) -> str:
        """Submit and return the task's id."""
        return str(self.client.submit_transfer(self.document(pairs, **options))["task_id"])

    def task(self, task_id: str) -> Any:
        return self.client.get_task(task_id).data

    def status(self, task_id: str) -> tuple[str, str | None]:
        task = self.task(task_id)
        return task["status"], task["nice_status"]

    def moved(self, task_id: str) -> list[Any]:
        return list(self.client.paginated.task_successful_transfers(task_id).items())

    def skipped(self, task_id: str) -> list[Any]:
        return list(self.client.paginated.task_skipped_errors(task_id).items())

    def codes(self, task_id: str) -> list[str]:
        """The codes of a task's events, oldest first."""
        return [event["code"] for event in self.client.paginated.task_event_list(task_id).items()][::-1]

    # Time, faults, truth

    def advance(self, seconds: float) -> None:
        def push() -> None:
            self.clock.advance(seconds)
            self.sim.run_due()

        self.on(push)

    def fault(self, fault: str, **rule: Any) -> None:
        self.sim.faults.add(fault=fault, **rule)

    def fault_of_submission(self, fault: str, times: int | None = 1, **options: Any) -> None:
        """A fault of the task that the next submission makes."""
        self.fault(fault, method="POST", path="/transfer$", options={"times": times} | options)

    def afflict(self, task_id: str, fault: str, seconds: float = 0.0, **options: Any) -> None:
        self.on(lambda: self.sim.afflict(task_id, fault, seconds, **options))

    def journal(self, kind: str) -> list[dict[str, Any]]:
        return [entry.details for entry in self.sim.journal.entries(kind)]

    def calls(self, path: str) -> list[int | str]:
        """The statuses of the requests to this path."""
        return [entry["status"] for entry in self.journal("request") if entry["path"].endswith(path)]

    def counters(self) -> dict[str, Any]:
        return self.on(self.sim.counters)
