"""Real processes, real SIGKILL: one intent is submitted, its worker dies at a chosen instant, others carry on.

Invariant: this process only forks, waits and judges. It never opens a ledger while a child
runs (SQLite's locks do not survive a fork), and it takes the truth from the remote's journal, not from the ledger.
Children are forked from here with everything imported, so that a death costs a few milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy.engine import URL

from harness.core.journal_server import JournalServer
from include.core.errors import TransientError
from include.core.http import HttpClient, HttpPolicy
from include.core.ledger import (
    AttemptLost,
    InDoubt,
    Intent,
    Ledger,
    LookAgain,
    Owner,
    Probe,
    RemoteSearch,
    SendFence,
    State,
    Submission,
    submit_once,
    verify,
)

BEFORE = "before the intent"
KILLS = (BEFORE, "intent", "sending", "accepted", "answered", "recorded", "any instant")
OTHERS = ("commit delayed", "job hidden", "two workers", "paused holder", "stale look", "clock steps")
SCENARIOS = KILLS + OTHERS
# Generous: on a loaded machine the server itself is late, and must still keep what the probe declares.
REQUEST_TIMEOUT_SECONDS = 1.0
VISIBILITY_WINDOW_SECONDS = 1.0
LIFETIME_SECONDS = 40.0  # of one child; a deadlock becomes a failure, not a hanging test


@dataclass(frozen=True)
class Outcome:
    """What the remote's journal and the ledger say after one intent: `jobs` it has, `forgotten` of them in no row."""

    scenario: str
    seed: int
    jobs: int
    forgotten: int
    problems: tuple[str, ...]

    @property
    def good(self) -> bool:
        return (self.jobs, self.forgotten, self.problems) == (1, 0, ())


@dataclass(frozen=True)
class Asked:
    """One intent and how it is disturbed."""

    server: JournalServer
    url: URL
    scenario: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.scenario} {self.seed}"


def _client(server: JournalServer, *, patient: bool = False) -> HttpClient:
    transport = httpx.AsyncHTTPTransport(verify=False)  # plain HTTP: loading certificates would cost more than the test
    # The client bounds a whole request by twice its timeout.
    timeout = LIFETIME_SECONDS if patient else REQUEST_TIMEOUT_SECONDS / 2
    policy = HttpPolicy(timeout_seconds=timeout, read_attempts=3, backoff_seconds=0.01)
    return HttpClient(server.address, transport=transport, policy=policy)


async def _submit(
    asked: Asked, client: HttpClient, ledger: Ledger, faults: dict[str, float], seen_absent: int | None
) -> Submission:
    async def send(row: Submission, fence: SendFence) -> str:
        answer = await client.write("/jobs", what="POST /jobs", json={"key": row.business_key, **faults}, fence=fence)
        return str(answer["id"])

    async def search(row: Submission) -> RemoteSearch:
        page, jobs, began = 0, list[str](), None
        while page is not None:
            seen = await client.read(f"/jobs?page={page}", what="GET /jobs")
            began = seen["now"] if began is None else began
            jobs += [job["id"] for job in seen["jobs"] if job["key"] == row.business_key]
            page = seen["next"]
        return RemoteSearch(tuple(jobs), complete=True, remote_now=float(began))

    owner = Owner("kills", f"run-{os.getpid()}", "submit")
    intent = Intent("journal", "job", asked.key, {"key": asked.key}, owner)
    probe = Probe(search, VISIBILITY_WINDOW_SECONDS, REQUEST_TIMEOUT_SECONDS, proves_absence=True)
    return await submit_once(ledger, intent, send=send, probe=probe, seen_absent=seen_absent)


def _clock_of(scenario: str) -> Callable[[], float] | None:
    """The database's clock, or where clocks step, one of this process's own that is up to an hour off."""
    if scenario != "clock steps":
        return None
    offset = random.Random(os.getpid()).choice((-3_600.0, 0.0, 3_600.0))
    return lambda: time.time() + offset


def _worker(asked: Asked, *, die_at: str = "", stop_at: str = "", patient: bool = False, **faults: float) -> None:
    """A task: opens the ledger and submits, trying again as Airflow would, until the row is SENT.

    One that stops at its `look` has seen before that nothing is there.
    """

    def on_step(step: str, _row: Submission | None) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    async def until_sent() -> None:
        async with _client(asked.server, patient=patient) as client:
            ledger = Ledger(asked.url, clock=_clock_of(asked.scenario), on_step=on_step)
            on_step(BEFORE, None)
            on_step("look", None)
            seen_absent = 0 if stop_at == "look" else None
            while True:
                try:
                    await _submit(asked, client, ledger, faults, seen_absent)
                    return
                except LookAgain:
                    seen_absent = None  # it looks, and sees what is there now
                except TransientError as error:
                    if stop_at and isinstance(error, AttemptLost):
                        os._exit(3)  # what the paused holder is expected to find
                    await asyncio.sleep(min(error.retry_after or 0.1, 2.5) if isinstance(error, InDoubt) else 0.05)

    asyncio.run(until_sent())


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a child. Its exit status is 0, or 1 with the traceback on stderr; it never outlives its time."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(int(LIFETIME_SECONDS) + 1)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reap(child: int, *, killed: bool = False) -> int:
    """Waits for a child. `killed`: it must have died by SIGKILL, else the scenario did not do what it says."""
    status = os.waitpid(child, 0)[1]
    if killed and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise RuntimeError(f"the child was not killed at its step: status {status}")
    return status


def must_end_well(child: int) -> None:
    status = reap(child)
    if status:
        raise RuntimeError(f"a worker did not come to its end: status {status}")


def play(asked: Asked) -> None:
    """One intent through its scenario, until a worker has seen it SENT."""
    rng = random.Random(asked.seed)
    scenario, server = asked.scenario, asked.server
    if scenario in ("before the intent", "intent", "sending", "answered", "recorded"):
        reap(fork(lambda: _worker(asked, die_at=scenario)), killed=True)
    elif scenario == "accepted":  # the remote holds its answer back until the worker is dead
        child = fork(lambda: _worker(asked, patient=True, hold=LIFETIME_SECONDS))
        server.wait_for(asked.key)
        time.sleep(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        reap(child, killed=True)
    elif scenario in ("any instant", "clock steps"):
        for _ in range(rng.randint(1, 3)):
            child = fork(lambda: _worker(asked, hold=rng.random() * 0.01))
            time.sleep(rng.random() * 0.04)
            os.kill(child, signal.SIGKILL)
            reap(child)  # a fast one may have ended before
    elif scenario == "commit delayed":  # the client gives up first, and the job comes into being after that
        late = REQUEST_TIMEOUT_SECONDS + rng.random() * VISIBILITY_WINDOW_SECONDS * 0.8
        child = fork(lambda: _worker(asked, delay=late, hold=late))
        must_end_well(child)
    elif scenario == "job hidden":
        hidden = VISIBILITY_WINDOW_SECONDS * rng.random() * 0.9
        child = fork(lambda: _worker(asked, die_at="answered", hidden=hidden))
        reap(child, killed=True)
    elif scenario == "two workers":
        for child in [fork(lambda: _worker(asked, hold=rng.random() * 0.05)) for _ in range(2)]:
            must_end_well(child)
    elif scenario in STOPPED:
        STOPPED[scenario](asked)
    must_end_well(fork(lambda: _worker(asked)))


def _play_paused_holder(asked: Asked) -> None:
    """A worker stops after its compare-and-set; another takes over and sends; then the first wakes up."""
    holder = fork(lambda: _worker(asked, stop_at="sending"))
    _, status = os.waitpid(holder, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"the holder did not stop: {status}")
    try:
        must_end_well(fork(lambda: _worker(asked)))
    finally:
        os.kill(holder, signal.SIGCONT)
    status = reap(holder)
    if os.waitstatus_to_exitcode(status) != 3:
        raise RuntimeError(f"the paused holder did not see that it had lost its attempt: {status}")


def _play_stale_look(asked: Asked) -> None:
    """A worker stops after it has looked; another does everything, and its effect is there; then the first goes on."""
    looked = fork(lambda: _worker(asked, stop_at="look"))
    _, status = os.waitpid(looked, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise RuntimeError(f"the worker did not stop after its look: {status}")
    try:
        must_end_well(fork(lambda: _worker(asked)))
        must_end_well(fork(lambda: _close(asked)))
    finally:
        os.kill(looked, signal.SIGCONT)
    must_end_well(looked)


def _close(asked: Asked) -> None:
    """The job has ended well, and its row is closed."""
    ledger = Ledger(asked.url)
    (row,) = ledger.generations("journal", "job", asked.key)
    ledger.move(row, State.DONE, why="ended")


STOPPED = {"paused holder": _play_paused_holder, "stale look": _play_stale_look}


def run_scenario(server: JournalServer, url: URL, scenario: str, seeds: range) -> list[Outcome]:
    """Plays one scenario for all seeds, each with a key of its own, and judges them by journal and ledger."""
    troubles: dict[int, str] = {}
    for seed in seeds:
        try:
            play(Asked(server, url, scenario, seed))
        except RuntimeError as error:
            troubles[seed] = str(error)
    return judge(server, url, scenario, seeds, troubles)


def judge(server: JournalServer, url: URL, scenario: str, seeds: range, troubles: dict[int, str]) -> list[Outcome]:
    ledger = Ledger(url)
    try:
        broken = tuple(verify(ledger).problems)
        keys = {seed: Asked(server, url, scenario, seed).key for seed in seeds}
        rows = ledger.latest("journal", "job", list(keys.values()))
    finally:
        ledger.close()
    outcomes = []
    for seed, key in keys.items():
        jobs = server.jobs_of(key)
        generations = rows.get(key, [])
        written = {row.external_id for row in generations} | {
            j for r in generations for j in r.detail.get("late_answers", [])
        }
        trouble = (troubles[seed],) if seed in troubles else ()
        outcomes.append(Outcome(scenario, seed, len(jobs), len(set(jobs) - written), broken + trouble))
    return outcomes


def in_parallel(work: list[Callable[[], Any]], at_once: int = 6) -> list[Any]:
    """Results of functions that run in forked children, in order: scenarios mostly wait, so several share two cores."""
    results: dict[int, Any] = {}
    running: dict[int, tuple[int, int]] = {}  # read end of a pipe → (index, pid)
    waiting = list(enumerate(work))
    while waiting or running:
        while waiting and len(running) < at_once:
            index, function = waiting.pop(0)
            running |= _start(index, function)
        for pipe in select.select(list(running), [], [])[0]:
            index, child = running.pop(pipe)
            with os.fdopen(pipe, "rb") as reading:
                answer = reading.read()
            os.waitpid(child, 0)
            if not answer:
                raise RuntimeError(f"scenario {index} died")
            results[index] = json.loads(answer)
    return [results[index] for index in range(len(work))]


def _start(index: int, function: Callable[[], Any]) -> dict[int, tuple[int, int]]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return {reading: (index, child)}
    try:
        os.close(reading)
        answer = json.dumps(function()).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
