"""A remote in memory, a clock by hand, and short ways to ask: the world of the ledger's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from include.core.errors import AuthError, NotFound, RemoteError, RequestError, TransientError
from include.core.ledger import (
    DuplicateSafe,
    Intent,
    Ledger,
    Owner,
    Probe,
    Quota,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    submit_once,
)

T = TypeVar("T")
TIMEOUT, VISIBILITY_WINDOW = 30.0, 60.0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def owner(run_id: str = "run-1", dag_id: str = "copy") -> Owner:
    return Owner(dag_id, run_id, "submit")


def intent(
    key: str = "plate-7", *, payload: Any = "wells", size: int = 0, run_id: str = "run-1", **more: Any
) -> Intent:
    return Intent("tape", "restore", key, {"what": payload}, owner(run_id, **more), size_bytes=size)


@dataclass
class Clock:
    """Epoch seconds that move by hand."""

    at: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


class Crash(BaseException):
    """The process dies here: nothing after this line runs, as little as after SIGKILL."""


@dataclass
class Remote:
    """Takes jobs. `faults` are used up by one request each: `lost` (accepted, no answer), `unsent` (nothing arrived, no
    answer), `late` (accepted later by `commit`), or an error to raise without accepting."""

    now: float = 5_000.0
    jobs: dict[str, str] = field(default_factory=dict)  # id → business key
    hidden: set[str] = field(default_factory=set)
    faults: list[str | BaseException] = field(default_factory=list)
    requests: int = 0
    searches_complete: bool = True
    pending: list[str] = field(default_factory=list)
    before_send: Callable[[Submission], None] = lambda _row: None

    def accept(self, key: str) -> str:
        job = f"job-{len(self.jobs) + 1}"
        self.jobs[job] = key
        return job

    def commit(self) -> list[str]:
        """What was delayed arrives now."""
        done, self.pending = [self.accept(key) for key in self.pending], []
        return done

    async def send(self, row: Submission, fence: SendFence) -> str | Sent:
        fence()
        self.before_send(row)
        self.requests += 1
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        if fault == "late":
            self.pending.append(row.business_key)
        if fault in ("late", "unsent"):
            raise TransientError("no answer")
        job = self.accept(row.business_key)
        if fault == "lost":
            raise TransientError("no answer")
        return job

    async def search(self, row: Submission) -> RemoteSearch:
        seen = tuple(job for job, key in self.jobs.items() if key == row.business_key and job not in self.hidden)
        return RemoteSearch(seen, complete=self.searches_complete, remote_now=self.now)

    def probe(self, *, proves_absence: bool = True, harmless: DuplicateSafe | None = None) -> Probe:
        return Probe(self.search, VISIBILITY_WINDOW, TIMEOUT, proves_absence, harmless)

    def of(self, key: str) -> list[str]:
        return [job for job, of in self.jobs.items() if of == key]


def submit(ledger: Ledger, remote: Remote, what: Intent | None = None, **options: Any) -> Submission:
    """One call of submit_once against this remote."""
    probe = options.pop("probe", None) or remote.probe()
    send = options.pop("send", None) or remote.send
    return run(submit_once(ledger, what or intent(), send=send, probe=probe, **options))


def begun(ledger: Ledger, what: Intent | None = None, quota: Quota | None = None) -> Submission:
    """A row that somebody is sending."""
    attempt = ledger.begin(ledger.open(what or intent(), quota=quota), response_deadline=2 * TIMEOUT)
    assert attempt is not None
    return attempt


PROOFS = [
    (TransientError("429", no_effect=True), State.RESERVED),
    (AuthError("401"), State.RESERVED),
    (RemoteError("422", no_effect=True), State.REJECTED),
    (NotFound("404"), State.REJECTED),
    (RequestError("bad"), State.REJECTED),
]


def only(ledger: Ledger) -> Submission:
    return ledger.generations("tape", "restore", "plate-7")[-1]


def whys(ledger: Ledger) -> list[str]:
    return [body["why"] for body in ledger.event_bodies(only(ledger).id)]


def past_the_visibility_window(remote: Remote) -> None:
    remote.now += VISIBILITY_WINDOW + TIMEOUT + 1
