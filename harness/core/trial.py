"""One trial of the conformance kit: what a system declares, a world for it, and processes that live and die there.

Invariant: what is true is read from the simulator's own journal and state, never from our client.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from harness.core.memory import Memory
from harness.core.mortal_ledger import Killed, MortalLedger
from include.core.errors import ConflictingRequest, TransientError, WaybillError
from include.core.ledger import Ledger, Owner, State, Submission, init, verify
from simulators.common import Clock, Simulator

EPOCH = 1_780_000_000.0
TURNS = 40  # of one process, until what it does must have come to its end
STEPS = ("intent", "sending", "answered", "recorded")  # of `submit_once`
ACCESSES = 60  # to the ledger by one process, at most; each is a place to die or to be overtaken
MEMORY = Path("/dev/shm")  # these ledgers need not survive the power
READS = ("GET", "HEAD", "OPTIONS")


class NotConforming(AssertionError):
    """The remote's code is not what it must be. Names what is not true, and what the journal says."""


class EndsRed(NotConforming):
    """It ends with an error of ours: a person is told. Right where there is something to tell."""


class Worker:
    """A task of the system at work: what its operator, or its command line, does with the system's own code."""

    async def ask(self) -> float | None:
        """One turn: sees to it that the effect comes true. Seconds until the next turn; None: it is there, and closed."""
        raise NotImplementedError

    async def watch(self) -> object:
        """One look, as the trigger takes it; where the remote can be watched."""
        raise NotImplementedError

    async def cancel(self, row: Submission) -> object:
        """Ends the job of a row; where the remote can cancel."""
        raise NotImplementedError


@dataclass
class Process:
    """What one process of ours has: its own connection to the ledger and its own clients, and a clock that is moved by hand."""

    simulator: Simulator
    ledger: MortalLedger
    owner: Owner
    sleep: Callable[[float], Awaitable[None]]
    skew: float = 0.0
    """By how much its host's clock is wrong. It may change."""


class Remote:
    """What a system declares of itself and of its remote. Without a default: what every system has.

    Facts are the remote's (docs/protocols), not our client's: they say what may happen, and the client must bear it.
    """

    name: str
    write: Mapping[str, Any]
    """Fields of a fault rule that choose the one request (or command) by which the remote is changed."""
    late_seconds: float = 0.0
    """How long a request may be under way after its client has given up."""
    hidden_seconds: float = 0.0
    """How long an accepted job may be in no list; 0: never."""
    hide: str = "hide_job"
    """The simulator's fault that hides a new job."""
    later_page: Mapping[str, Any] | None = None
    """Fields of a fault rule that choose the second page of the list that is searched; None: it has one page."""
    logins: Sequence[str] = ()
    """Path templates of requests that fetch a credential: they are no writes."""
    names_jobs: bool = True
    """Whether the ledger's external ids are the remote's."""
    finds_only: bool = False
    """Whether its search proves nothing where it finds nothing: the ledger holds such a row, and a person says what is true."""
    repeats_do_no_harm: str = ""
    """Why a second write changes nothing. Then `harm` judges, and the number of writes does not matter."""
    can_watch: bool = True
    can_cancel: bool = False
    refusal: Mapping[str, Any] = {"fault": "status", "code": 422, "problem": {"detail": "…"}}
    """A rule (without what it chooses) for a refusal in which the remote quotes what it was sent: `…` is the secret."""

    def world(self, clock: Clock) -> AbstractContextManager[Simulator]:
        """A fresh simulator on this clock, with everything that the one intent needs."""
        raise NotImplementedError

    def worker(self, process: Process) -> AbstractAsyncContextManager[Worker]:
        """The system's own code, as a task runs it, for the one intent."""
        raise NotImplementedError

    def effects(self, simulator: Simulator) -> Sequence[str]:
        """By the journal: the ids of what the remote has accepted for the one intent."""
        raise NotImplementedError

    def harm(self, simulator: Simulator) -> Sequence[str]:
        """By the journal or the state of the world: what was changed that nobody asked for."""
        return ()

    def present(self, simulator: Simulator) -> bool:
        """By the state of the world: whether the effect is there now, whole. Asked whenever a worker says so."""
        return True

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        """What may keep an accepted effect from being there, whole: jobs that fail, and jobs that say nothing of it. Each
        is arranged before the worker begins, for the first thing it sends. `present` judges."""
        return {}

    def add_alike(self, simulator: Simulator) -> Sequence[str]:
        """Makes jobs of other people that resemble ours, each in all but one respect, or in the case of its letters alone.
        Returns their ids."""
        return ()

    def add_twin(self, simulator: Simulator) -> None:
        """Makes another job that is ours in every respect, as somebody does who starts it by hand."""

    def add_crowd(self, simulator: Simulator) -> None:
        """Makes so many jobs of other people that ours is on a later page of the list."""

    def add_namesake(self, simulator: Simulator) -> None:
        """Makes another job under the name of ours, where the remote lets two have one name."""

    def cancelled(self, simulator: Simulator) -> Sequence[str]:
        """By the journal: the ids of the jobs that were cancelled."""
        return ()

    def secrets(self, simulator: Simulator) -> Sequence[str]:
        """The credentials in use."""
        return ()


@dataclass
class Trial:
    """One world, and the processes that live and die in it."""

    remote: Remote
    simulator: Simulator
    clock: Clock
    url: URL
    troubles: list[str] = field(default_factory=list)  # every error that a process met, with its traceback
    opened: list[Ledger] = field(default_factory=list)

    # -- processes ------------------------------------------------------------------------------------------------

    def process(
        self, *, run_id: str = "run-1", skew: float = 0.0, on_step: Callable[[str, Submission], None] | None = None
    ) -> Process:
        """A process. `skew`: by how much its host's clock is wrong."""
        ledger = MortalLedger(
            self.url,
            clock=lambda: self.clock.now() + process.skew,
            # A suspended host's monotonic clock stands still: nothing may rest on it.
            monotonic=lambda: 0.0,
            on_step=on_step or (lambda _step, _row: None),
        )
        self.opened.append(ledger)
        owner = Owner("conformance", run_id, "submit")
        process = Process(self.simulator, ledger, owner, self.pass_time, skew)
        return process

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(max(seconds, 0.0))
        await asyncio.sleep(0)

    async def live(self, process: Process) -> None:
        """A task from its begin to its end, with Airflow's retries."""
        async with self.remote.worker(process) as worker:
            await self._to_its_end(worker)

    async def _to_its_end(self, worker: Worker) -> None:
        for _ in range(TURNS):
            try:
                wait = await self.turn(worker)
            except TransientError as error:
                wait = error.retry_after or 5.0
            except EndsRed:
                if not self._a_person_decides():
                    raise
                continue
            if wait is None:
                return
            await self.pass_time(max(wait, 0.1))
        raise NotConforming(f"it does not come to its end in {TURNS} turns: {self.troubles[-1:]}")

    def _a_person_decides(self) -> bool:
        """Of rows that are held since nothing was found: by what is in the journal. Whether there was one."""
        if not self.remote.finds_only:
            return False
        self.simulator.run_due()
        effects, decided = list(self.remote.effects(self.simulator)), False
        with open_ledger(self.url) as ledger:
            for row in ledger.in_states(State.HELD):
                if row.detail.get("candidates"):
                    continue
                unknown = sorted(set(effects) - ledger.known(row.system, row.kind, effects))
                state, job = (State.SENT, unknown[0]) if unknown else (State.RESERVED, None)
                ledger.move(row, state, why="by the remote's own records", who="a person", external_id=job)
                decided = True
        return decided

    async def turn(self, worker: Worker) -> float | None:
        """One `ask`. Raises TransientError as it does, EndsRed for other errors of ours, and NotConforming."""
        try:
            wait = await worker.ask()
        except NotConforming:
            raise  # of another process, which lived while this one stood still
        except Exception as error:
            self.note(error)
            if isinstance(error, TransientError):
                raise
            told = f"{type(error).__name__}: {error}"
            if isinstance(error, ConflictingRequest) and "payload" in told:
                raise NotConforming(f"its payload differs between two workers: {told}") from error
            if isinstance(error, WaybillError):
                raise EndsRed(f"it ends with {told}") from error
            raise NotConforming(f"it breaks with {told}") from error
        if wait is None and not self.remote.present(self.simulator):
            raise NotConforming("green that is not there: it says that all is done, and the effect is not there, whole")
        return wait

    async def once(self, process: Process) -> None:
        """One turn of a process, which then ends."""
        async with self.remote.worker(process) as worker:
            with suppress(TransientError):
                await self.turn(worker)

    async def die(self, process: Process) -> bool:
        """The same as `live` for a process that is to be killed, and remembers nothing then. Whether it was."""
        try:
            async with self.remote.worker(process) as worker:
                memory = Memory(type(worker))
                try:
                    await self._to_its_end(worker)
                except Killed:
                    memory.forget()
                    raise
        except Killed:
            return True
        return False

    def beside(self, run_id: str = "run-1") -> None:
        """Another process lives from begin to end while the caller stands still, in whatever it is doing."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self.live(self.process(run_id=run_id)))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def note(self, error: BaseException) -> None:
        self.troubles.append("".join(traceback.format_exception(error)))

    def fault(self, **rule: Any) -> None:
        self.simulator.faults.add(**rule)

    # -- judging --------------------------------------------------------------------------------------------------

    def requests(self, since: int = 0, until: int | None = None) -> list[dict[str, Any]]:
        """What was asked of the remote, by its journal, without logins; between two lengths of the journal."""
        entries = self.simulator.journal.entries(since=since)[: None if until is None else until - since]
        return [e.details for e in entries if e.kind == "request" and e.details["template"] not in self.remote.logins]

    def writes(self, since: int = 0, until: int | None = None) -> list[str]:
        """Requests that may change something."""
        asked = self.requests(since, until)
        return words([request for request in asked if request["method"] not in READS])

    def rows(self) -> list[Submission]:
        with open_ledger(self.url) as ledger:
            rows: list[Submission] = ledger.in_states(*State)
        return rows

    def judge(self, lie: str) -> None:
        """Everything late has arrived. There must be one effect, known to the ledger, and nothing else."""
        self.clock.advance(self.remote.late_seconds + self.remote.hidden_seconds + 1.0)
        self.simulator.run_due()
        effects, rows = list(self.remote.effects(self.simulator)), self.rows()
        harm = list(self.remote.harm(self.simulator))
        if harm:
            raise NotConforming(f"{lie}: {'; '.join(harm)}")
        if not effects:
            raise NotConforming(f"{lie}: the journal has no effect, and the worker says that it is there")
        if len(effects) > 1 and not self.remote.repeats_do_no_harm:
            raise NotConforming(f"{lie}: the journal has {len(effects)} effects for one intent: {', '.join(effects)}")
        if self.remote.names_jobs:
            known = {row.external_id for row in rows if row.external_id}
            with open_ledger(self.url) as ledger:
                forgotten = set(effects) - {job for r in rows for job in ledger.known(r.system, r.kind, effects)}
            if forgotten or known - set(effects):
                told = f"the journal has {sorted(effects)}, the ledger {sorted(known)}"
                raise NotConforming(f"{lie}: {told}")
        with open_ledger(self.url) as ledger:
            problems = verify(ledger).problems
        if problems:
            raise NotConforming(f"the ledger's chain is broken: {problems[0]}")


@contextmanager
def open_ledger(url: URL) -> Any:
    ledger = Ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def trial(remote: Remote) -> Any:
    """A fresh world with an empty ledger."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        url = URL.create("sqlite", database=str(Path(folder) / "ledger.db"))
        init(url)
        clock = Clock(lambda: 0.0, epoch=EPOCH, speed=0.0)
        with remote.world(clock) as simulator:
            one = Trial(remote, simulator, clock, url)
            try:
                yield one
            finally:
                for ledger in one.opened:
                    ledger.close()


def words(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{request['method']} {request['path']}" for request in requests]
