"""Random interleavings of workers that submit, crash, stall and answer late, against a small model of a remote.

`submit_once` runs as it is, but its `prepare`, `send` and `search` stop at every point where a real worker
may be overtaken; the machine decides who goes on. A crash leaves the coroutine where it stands, as SIGKILL would: nothing
after that point runs. The model keeps the promises that a probe declares: what a client sent reaches the remote within
the request timeout or never, and a job is visible within the visibility window after its acceptance.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import URL

from include.core.errors import RemoteError, TransientError, WaybillError
from include.core.ledger import (
    OPEN,
    DuplicateSafe,
    Intent,
    Ledger,
    Probe,
    RemoteSearch,
    SendFence,
    State,
    Submission,
    init,
    submit_once,
    verify,
)
from tests.include.core.ledger_world import Clock, owner

TIMEOUT, VISIBILITY_WINDOW = 10.0, 20.0
PROVES, FINDS, HARMLESS = "proves", "finds", "harmless"
KEYS = {"key-a": PROVES, "key-b": PROVES, "key-c": FINDS, "key-d": HARMLESS}
WORKERS = range(3)


class Pause:
    """Here another worker may overtake."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


@dataclass
class Request:
    """What a worker has sent, and what became of it."""

    key: str
    generation: int
    arrives_by: float
    fate: str = "under way"  # committed | lost | refused
    job: str = ""


@dataclass
class World:
    """The remote: requests under way, jobs with the instant at which they become visible."""

    now: float = 1_000.0
    requests: list[Request] = field(default_factory=list)
    visible_at: dict[str, float] = field(default_factory=dict)

    def commit(self, request: Request, *, hidden: bool) -> None:
        request.fate, request.job = "committed", f"job-{len(self.visible_at) + 1}"
        self.visible_at[request.job] = self.now + (VISIBILITY_WINDOW if hidden else 0.0)

    def under_way(self) -> list[Request]:
        return [request for request in self.requests if request.fate == "under way"]

    def committed(self, key: str) -> list[Request]:
        return [request for request in self.requests if request.key == key and request.fate == "committed"]

    async def send(self, row: Submission, fence: SendFence) -> str:
        await Pause()
        fence()
        passed = self.now
        await Pause()
        if self.now > passed + TIMEOUT:
            raise TransientError("the client gave up before a byte left")
        request = Request(row.business_key, row.generation, passed + TIMEOUT)
        self.requests.append(request)
        await Pause()
        await Pause()
        if request.fate == "committed":
            return request.job
        if request.fate == "refused":
            raise RemoteError("refused", no_effect=True)
        raise TransientError("no answer")

    async def search(self, row: Submission) -> RemoteSearch:
        await Pause()
        began = self.now
        seen = [r.job for r in self.committed(row.business_key) if self.visible_at[r.job] <= self.now]
        await Pause()
        return RemoteSearch(tuple(seen), complete=True, remote_now=began)

    def probe(self, key: str) -> Probe:
        async def verified(_row: Submission) -> bool:
            return bool(self.committed(key))

        duplicate_safe = DuplicateSafe("it skips what is there", verified) if KEYS[key] == HARMLESS else None
        return Probe(
            self.search, VISIBILITY_WINDOW, TIMEOUT, proves_absence=KEYS[key] == PROVES, harmless=duplicate_safe
        )


async def prepare(_row: Submission, fence: SendFence) -> None:
    await Pause()
    fence()


def drive(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Lets it run to its next pause. True when it has come to its end, however."""
    try:
        coroutine.send(None)
    except (StopIteration, WaybillError):
        return True
    return False


class Workers(RuleBasedStateMachine):
    @initialize()
    def create(self) -> None:
        shared = Path("/dev/shm")  # a memory disk where there is one: durability is not what is tried here
        self.folder = Path(tempfile.mkdtemp(prefix="waybill-machine-", dir=shared if shared.is_dir() else None))
        url = URL.create("sqlite", database=str(self.folder / "ledger.db"))
        init(url)
        self.clock, self.world = Clock(), World()
        # A suspended host's monotonic clock stands still: what is proved here must not rest on it.
        self.ledger = Ledger(url, clock=self.clock, monotonic=lambda: 0.0)
        self.at_work: dict[int, Coroutine[Any, Any, Submission]] = {}
        self.dead: list[Awaitable[Submission]] = []

    def submission(self, key: str, run: int = 0) -> Coroutine[Any, Any, Submission]:
        intent = Intent("tape", KEYS[key], key, {"key": key}, owner(f"run-{run}"))
        return submit_once(self.ledger, intent, send=self.world.send, probe=self.world.probe(key), prepare=prepare)

    # -- what workers do ----------------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from(WORKERS), key=st.sampled_from(sorted(KEYS)), steps=st.integers(0, 8))
    def work(self, worker: int, key: str, steps: int) -> None:
        """Starts a submission, or goes on with the one at hand."""
        if worker not in self.at_work:
            self.at_work[worker] = self.submission(key, worker)
        for _ in range(steps + 1):
            if drive(self.at_work[worker]):
                del self.at_work[worker]
                return

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.dead.append(self.at_work.pop(data.draw(st.sampled_from(sorted(self.at_work)))))

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def terminate(self, data: st.DataObject) -> None:
        """Airflow ends the task in an orderly way."""
        coroutine = self.at_work.pop(data.draw(st.sampled_from(sorted(self.at_work))))
        try:
            coroutine.throw(asyncio.CancelledError())
        except (asyncio.CancelledError, WaybillError):
            pass

    # -- what the remote and the clocks do ----------------------------------------------------------------------------

    @precondition(lambda self: self.world.under_way())
    @rule(data=st.data(), fate=st.sampled_from(["visible", "visible", "hidden", "lost", "refused"]))
    def arrive(self, data: st.DataObject, fate: str) -> None:
        self.end(data.draw(st.sampled_from(self.world.under_way())), fate)

    def end(self, request: Request, fate: str) -> None:
        if fate in ("lost", "refused"):
            request.fate = fate
        else:
            self.world.commit(request, hidden=fate == "hidden")

    @rule(
        seconds=st.sampled_from([1.0, TIMEOUT, VISIBILITY_WINDOW, VISIBILITY_WINDOW + TIMEOUT]),
        fate=st.sampled_from(["hidden", "lost"]),
    )
    def pass_time(self, seconds: float, fate: str) -> None:
        for request in self.world.under_way():
            if request.arrives_by < self.world.now + seconds:
                self.world.now, then = request.arrives_by, self.world.now
                self.end(request, fate)
                self.world.now = then
        self.world.now += seconds
        self.clock.at += seconds

    @rule(step=st.sampled_from([-3_600.0, 3_600.0]))
    def step_the_hosts_clock(self, step: float) -> None:
        self.clock.at += step

    # -- what people and engines do -----------------------------------------------------------------------------------

    @rule(key=st.sampled_from(sorted(KEYS)), failed=st.booleans())
    def end_the_job(self, key: str, failed: bool) -> None:
        for row in self.ledger.generations("tape", KEYS[key], key):
            if row.state == State.SENT:
                self.ledger.move(row, State.FAILED if failed else State.DONE, why="ended")

    @rule(key=st.sampled_from(sorted(KEYS)))
    def request_cancellation(self, key: str) -> None:
        for row in self.ledger.generations("tape", KEYS[key], key):
            self.ledger.request_cancel(row, who="amy", why="test")

    @rule()
    def resolve(self) -> None:
        """A person looks at the remote when nothing is under way any more, and says what is true."""
        for row in self.ledger.in_states(State.HELD):
            known = self.ledger.known(row.system, row.kind, list(self.world.visible_at))
            jobs = [r.job for r in self.world.committed(row.business_key) if r.job not in known]
            quiet = not any(r.key == row.business_key for r in self.world.under_way())
            if len(jobs) == 1:
                self.ledger.move(row, State.SENT, why="found", who="amy", external_id=jobs[0])
            elif not jobs and quiet:
                self.ledger.move(row, State.RESERVED, why="not there", who="amy")

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def no_generation_has_two_jobs(self) -> None:
        if not hasattr(self, "world"):
            return
        for key in KEYS:
            generations = [request.generation for request in self.world.committed(key)]
            assert len(generations) == len(set(generations)), f"{key} has two jobs in one generation: {generations}"

    @invariant()
    def no_effect_has_two_open_rows(self) -> None:
        if not hasattr(self, "ledger"):
            return
        rows = self.ledger.in_states(*OPEN)
        assert len(rows) == len({row.business_key for row in rows})

    @invariant()
    def the_chain_tells_the_table(self) -> None:
        if hasattr(self, "ledger"):
            assert verify(self.ledger).problems == []

    def teardown(self) -> None:
        """All dies, all arrives, all becomes visible; then one worker per key ends what is open. Nothing is forgotten."""
        if not hasattr(self, "ledger"):
            return
        try:
            self.dead += self.at_work.values()
            self.clock.at = max(self.clock.at, self.ledger.now())  # the host's clock is put right
            self.pass_time(10 * (VISIBILITY_WINDOW + TIMEOUT), "hidden")
            self.pass_time(VISIBILITY_WINDOW, "lost")
            for _ in range(8):
                self.go_on()
            self.no_generation_has_two_jobs()
            self.the_chain_tells_the_table()
            for key, kind in KEYS.items():
                jobs = {request.job for request in self.world.committed(key)}
                assert jobs == self.ledger.known("tape", kind, sorted(jobs)), f"{key}: a job is forgotten"
            assert {row.state for row in self.ledger.in_states(*OPEN)} <= {State.SENT}
        finally:
            self.ledger.move = lambda *_args, **_more: None  # type: ignore[method-assign,assignment] # the dead stay silent
            for coroutine in self.dead:
                coroutine.close()  # type: ignore[attr-defined]
            self.ledger.close()
            shutil.rmtree(self.folder)

    def go_on(self) -> None:
        """A fresh worker for every open row, a patient remote."""
        for row in self.ledger.in_states(*(OPEN - {State.SENT})):
            coroutine = self.submission(row.business_key)
            while not drive(coroutine):
                for request in self.world.under_way():
                    self.end(request, "visible")
        self.resolve()
        self.pass_time(VISIBILITY_WINDOW + TIMEOUT, "lost")


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def play(examples: int, steps: int, *, derandomize: bool) -> None:
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=QUIET,
    )
    run_state_machine_as_test(Workers, settings=how)


@pytest.mark.cpu_seconds(300)
def test_no_interleaving_makes_a_duplicate_or_forgets_a_job():
    play(120, 40, derandomize=True)


@pytest.mark.full
@pytest.mark.cpu_seconds(1800)
def test_no_interleaving_makes_a_duplicate_or_forgets_a_job_in_many_more():
    play(2_000, 60, derandomize=False)
