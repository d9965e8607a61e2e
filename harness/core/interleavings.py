"""Every interleaving of a few workers inside the real `submit_once`, with crashes, lost answers, late commits, hidden jobs.

A worker is a function of the answers that it has got: the same answers, the same next question. So a worker is kept as the
list of its answers, and is run again from its beginning to learn what it asks next. A question to the ledger is put to the
real ledger, on a database that was set back to the state in question; a question to the remote is answered by the model
below, in every way that its promises allow. Between any two questions any other worker, the network or the clock may act.

Invariant: nothing of the ledger or of `submit_once` is modelled. What is remembered (the answer of a ledger in one state to one
question) is remembered because it depends on nothing else.
"""

from __future__ import annotations

import sqlite3
import tempfile
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from include.core.errors import TransientError, WaybillError
from include.core.ledger import (
    DuplicateSafe,
    Intent,
    Owner,
    Probe,
    RemoteSearch,
    State,
    init,
    schema,
    store,
    submit,
    verify,
)

TIMEOUT, VISIBILITY_WINDOW = 1.0, 1.0  # ticks of the remote's clock
PROVES, FINDS, HARMLESS = "absence is proved", "jobs can only be found", "a second job does no harm"
START, DONE = 0, -1  # a worker before its call; one whose call has returned
KEY = "the effect"


@dataclass(frozen=True)
class Scope:
    """How much goes wrong at most: the state space is everything within it."""

    workers: int = 3
    crashes: int = 2
    lost_answers: int = 1  # the remote acted, or never got it, and the client does not learn which
    late_commits: int = 1  # the client gives up first, and the request arrives after that
    hidden_jobs: int = 1
    partial_searches: int = 0  # a page that fails: what was found is all that is known
    ended_jobs: int = 0  # jobs that end well and are closed, so that their effect is there
    ticks: int = 4


@dataclass(frozen=True)
class Request:
    """What has left a worker. `visible_at` None: not committed."""

    arrives_by: float
    visible_at: float | None = None
    gone: bool = False

    @property
    def under_way(self) -> bool:
        return self.visible_at is None and not self.gone


@dataclass(frozen=True)
class World:
    """The remote and the network. `scope` is what may still go wrong."""

    scope: Scope
    now: float = 0.0
    requests: tuple[Request, ...] = ()

    def spend(self, what: str) -> World | None:
        left = getattr(self.scope, what)
        return replace(self, scope=replace(self.scope, **{what: left - 1})) if left else None

    def with_request(self, index: int, **changes: Any) -> World:
        request = replace(self.requests[index], **changes)
        return replace(self, requests=(*self.requests[:index], request, *self.requests[index + 1 :]))

    @property
    def jobs(self) -> list[str]:
        return [f"job-{index}" for index, request in enumerate(self.requests) if request.visible_at is not None]


class _Halt(BaseException):
    """The answers are used up: what the worker asks now is its next question."""


@dataclass(frozen=True)
class Question:
    """`subject` ledger or remote; `name` the method."""

    subject: str
    name: str
    args: tuple[Any, ...] = ()
    more: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Answer:
    value: Any = None
    error: BaseException | None = None

    @property
    def key(self) -> str:
        return f"{type(self.error).__name__} {self.error}" if self.error else repr(self.value)


class _Tape:
    """Plays answers back to a worker, then stops it at its next question."""

    def __init__(self, answers: list[Answer]):
        self._answers = answers
        self._at = 0
        self.question: Question | None = None

    def ask(self, question: Question) -> Any:
        if self._at < len(self._answers):
            answer = self._answers[self._at]
            self._at += 1
            if answer.error is not None:
                raise answer.error
            return answer.value
        # Handlers of the worker that run while it is stopped ask too; only the first question is one.
        self.question = self.question or question
        raise _Halt


class _AskedLedger:
    """What a worker takes for its ledger. `monotonic` stands still, as on a suspended host: nothing may rest on it."""

    def __init__(self, tape: _Tape):
        self._tape = tape
        self.monotonic = lambda: 0.0
        self.on_step = lambda _step, _row: None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **more: self._tape.ask(Question("ledger", name, args, tuple(sorted(more.items()))))


class _RealLedger:
    """The real ledger on a database in memory that can be set to any state that was seen. States have numbers, from 0."""

    def __init__(self, ledger_class: type[store.Ledger]):
        with tempfile.TemporaryDirectory() as folder:
            url = URL.create("sqlite", database=str(Path(folder) / "ledger.db"))
            init(url)
            self.ledger = ledger_class(url, clock=lambda: 0.0, monotonic=lambda: 0.0)
            self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            with sqlite3.connect(str(url.database)) as on_disk:
                on_disk.backup(self._memory)
            on_disk.close()
            self.ledger.close()
        self.ledger._engine = self._in_memory()
        self._numbers: dict[str, int] = {}
        self._snapshots: list[bytes] = []
        self.rows: list[list[dict[str, Any]]] = []
        self._known: dict[tuple[int, str], tuple[Answer, int]] = {}
        self.problems: list[str] = []
        self._state = self._number()

    def _in_memory(self) -> sa.Engine:
        engine = sa.create_engine("sqlite://", creator=lambda: self._memory, poolclass=StaticPool)

        @sa.event.listens_for(engine, "begin")
        def _on_begin(conn: sa.Connection) -> None:
            conn.exec_driver_sql("BEGIN")

        return engine

    def ask(self, state: int, question: Question) -> tuple[Answer, int]:
        """What the ledger in this state answers, and the state it is in then."""
        key = (state, repr(question))
        if key not in self._known:
            self._known[key] = self._really_ask(state, question)
        return self._known[key]

    def _really_ask(self, state: int, question: Question) -> tuple[Answer, int]:
        if state != self._state:
            self._memory.deserialize(self._snapshots[state])
        tokens = iter(range(100))
        with mock.patch("uuid.uuid4", lambda: f"token-{state}-{next(tokens)}"):
            try:
                answer = Answer(getattr(self.ledger, question.name)(*question.args, **dict(question.more)))
            except WaybillError as error:
                answer = Answer(error=error)
        self._state = self._number()
        return answer, self._state

    def _number(self) -> int:
        """The number of the state that the database is in. The chain is not part of it: it says how one came here."""
        tables = [name for (name,) in self._memory.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        told = {
            name: self._memory.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in tables
            if name not in (schema.events.name, schema.info.name)
        }
        key = repr(told)
        if key not in self._numbers:
            self._numbers[key] = len(self._snapshots)
            self._snapshots.append(self._memory.serialize())
            self.rows.append([dict(row._mapping) for row in self._select()])
            if len(self._snapshots) > 1:
                self.problems += verify(self.ledger).problems
        return self._numbers[key]

    def _select(self) -> list[Any]:
        with self.ledger.reading() as conn:
            return list(conn.execute(sa.select(schema.submissions).order_by(schema.submissions.c.id)))


Step = tuple[str, Answer, World]
Place = tuple[int, World, tuple[int, ...]]  # state of the ledger, the remote, the workers (in order: none has a name)


def _remote(world: World, question: Question) -> Iterator[Step]:
    """Every answer that the remote, or the network between, can give to a worker now, and what is true then."""
    if question.name == "now":
        yield "reads the clock", Answer(world.now), world
    elif question.name == "post":
        (passed,) = question.args
        if world.now > passed + TIMEOUT:
            yield "gives up before a byte has left", Answer(error=TransientError("nothing left in time")), world
        else:
            sent = replace(world, requests=(*world.requests, Request(passed + TIMEOUT)))
            yield "sends", Answer(len(world.requests)), sent
    elif question.name == "answer":
        yield from _answers(world, *question.args)
    else:
        seen = tuple(
            f"job-{i}" for i, r in enumerate(world.requests) if r.visible_at is not None and r.visible_at <= world.now
        )
        yield f"sees {seen}", Answer((seen, True)), world
        spent = world.spend("partial_searches")
        if spent is not None:
            yield "sees a part of the list", Answer(((), False)), spent


def _answers(world: World, index: int) -> Iterator[Step]:
    request = world.requests[index]
    silence = Answer(error=TransientError("no answer"))
    if request.gone:
        yield "gets no answer", silence, world
    elif request.visible_at is not None:
        yield "gets its answer", Answer(f"job-{index}"), world
        spent = world.spend("lost_answers")
        if spent is not None:
            yield "loses its answer", silence, spent
    else:
        spent = world.spend("late_commits")
        if spent is not None:
            yield "gives up waiting", silence, spent


def _surroundings(world: World) -> Iterator[tuple[str, World]]:
    """What the network, the remote and its clock can do by themselves."""
    for index, request in enumerate(world.requests):
        if not request.under_way:
            continue
        yield f"request {index} arrives", world.with_request(index, visible_at=world.now)
        spent = world.spend("hidden_jobs")
        if spent is not None:
            visible_at = world.now + VISIBILITY_WINDOW
            yield f"request {index} arrives, its job hidden", spent.with_request(index, visible_at=visible_at)
        spent = world.spend("lost_answers")
        if spent is not None:
            yield f"request {index} is lost", spent.with_request(index, gone=True)
    in_time = all(not r.under_way or r.arrives_by > world.now for r in world.requests)
    if world.now < world.scope.ticks and in_time:
        yield "time passes", replace(world, now=world.now + 1)


@dataclass
class Found:
    """What an exploration came to. `violations`: each with the steps that lead there."""

    kind: str
    scope: Scope
    states: int = 0
    edges: int = 0
    ledger_states: int = 0
    violations: list[str] = field(default_factory=list)


class Explorer:
    """Goes through all states, depth first. `submit_once` and `ledger_class` may be ones with a guard removed."""

    def __init__(
        self,
        kind: str = PROVES,
        scope: Scope | None = None,
        *,
        submit_once: Callable[..., Coroutine[Any, Any, Any]] = submit.submit_once,
        ledger_class: type[store.Ledger] = store.Ledger,
    ):
        self._kind, self._scope, self._submit_once = kind, scope or Scope(), submit_once
        self._ledger = _RealLedger(ledger_class)
        self._histories: list[tuple[int, Answer]] = [(-1, Answer())]
        self._children: dict[tuple[int, str], int] = {}
        self._questions: list[Question | None] = []  # by history; None: the call has returned
        self._ends: dict[int, int] = {}  # history of a call that has ended → START or DONE
        self._questions.append(self._next_question(START))

    def run(self, *, violations: int = 1) -> Found:
        """Explores everything, or until so many violations were found."""
        found = Found(self._kind, self._scope)
        first: Place = (self._ledger._state, World(self._scope), (START,) * self._scope.workers)
        numbers: dict[Place, int] = {first: 0}
        places, cause = [first], [(0, "begin")]
        sources, targets, stack = array("L"), array("L"), [0]
        while stack and len(found.violations) < violations:
            number = stack.pop()
            for label, place in self._successors(places[number]):
                found.edges += 1
                known = numbers.get(place)
                if known is None:
                    known = numbers[place] = len(places)
                    places.append(place)
                    cause.append((number, label))
                    wrong = self._wrong(place)
                    if wrong:
                        found.violations.append(f"{wrong}: {_trace(cause, known)}")
                        continue
                    stack.append(known)
                sources.append(number)
                targets.append(known)
        found.states, found.ledger_states = len(places), len(self._ledger.rows)
        if not found.violations:
            ended = [number for number, place in enumerate(places) if self._is_good_end(place)]
            found.violations += [
                f"nobody can bring this to an end: {_trace(cause, number)}"
                for number in _without_way(len(places), sources, targets, ended)[:violations]
            ]
        found.violations += self._ledger.problems[:violations]
        return found

    # -- the workers --------------------------------------------------------------------------------------------------

    def _next_question(self, history: int) -> Question | None:
        answers: list[Answer] = []
        at = history
        while at != START:
            at, answer = self._histories[at]
            answers.append(answer)
        tape = _Tape(answers[::-1])
        try:
            self._call(tape).send(None)
        except _Halt:
            return tape.question
        except StopIteration:
            self._ends[history] = DONE
        except WaybillError:
            self._ends[history] = START  # Airflow's retry asks again
        return None

    def _call(self, tape: _Tape) -> Coroutine[Any, Any, Any]:
        def remote(name: str, *args: Any) -> Any:
            return tape.ask(Question("remote", name, args))

        async def prepare(_row: Any, fence: Any) -> None:
            fence()

        async def send(_row: Any, fence: Any) -> str:
            fence()
            sent = remote("post", remote("now"))
            return str(remote("answer", sent))

        async def search(_row: Any) -> RemoteSearch:
            began = remote("now")
            seen, complete = remote("list")
            return RemoteSearch(seen, complete=complete, remote_now=began)

        async def verified(_row: Any) -> bool:
            return bool(remote("list")[0])

        harmless = DuplicateSafe("it leaves what is there", verified) if self._kind == HARMLESS else None
        probe = Probe(search, VISIBILITY_WINDOW, TIMEOUT, proves_absence=self._kind == PROVES, harmless=harmless)
        intent = Intent("remote", "job", KEY, {"what": KEY}, Owner("explored", "run", "submit"))
        return self._submit_once(_AskedLedger(tape), intent, send=send, probe=probe, prepare=prepare)

    def _after(self, history: int, answer: Answer) -> int:
        """The worker that has got one more answer: its history, START or DONE."""
        key = (history, answer.key)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = len(self._histories)
            self._histories.append((history, answer))
            self._questions.append(self._next_question(child))
        return self._ends.get(child, child)

    # -- the graph ----------------------------------------------------------------------------------------------------

    def _successors(self, place: Place) -> Iterator[tuple[str, Place]]:
        ledger, world, workers = place
        for position, history in enumerate(workers):
            if history == DONE or history in workers[:position]:
                continue  # none has a name: of two alike only one need go
            for label, answer, after, remote in self._answered(ledger, world, history):
                yield (
                    f"{_name(position)} {label}",
                    (after, remote, _with(workers, position, self._after(history, answer))),
                )
            spent = world.spend("crashes") if history != START else None
            if spent is not None:
                yield f"{_name(position)} dies", (ledger, spent, _with(workers, position, START))
        for label, remote in _surroundings(world):
            yield label, (ledger, remote, workers)
        ended = world.spend("ended_jobs")
        if ended is not None:
            for row in self._ledger.ask(ledger, Question("ledger", "in_states", (State.SENT,)))[0].value:
                move = Question("ledger", "move", (row, State.DONE), (("why", "ended"),))
                yield "the job ends", (self._ledger.ask(ledger, move)[1], ended, workers)

    def _answered(self, ledger: int, world: World, history: int) -> Iterator[tuple[str, Answer, int, World]]:
        question = self._questions[history]
        assert question is not None
        if question.subject == "ledger":
            answer, after = self._ledger.ask(ledger, question)
            yield f"{question.name}: {_told(answer)}", answer, after, world
        else:
            for label, answer, remote in _remote(world, question):
                yield label, answer, ledger, remote

    # -- what must hold -----------------------------------------------------------------------------------------------

    def _wrong(self, place: Place) -> str | None:
        ledger, world, workers = place
        if len(world.jobs) > 1:
            return "two jobs for one effect"
        rows = self._ledger.rows[ledger]
        if sum(row["state"] in ("RESERVED", "SENDING", "SENT", "IN_DOUBT", "HELD") for row in rows) > 1:
            return "two open rows for one effect"
        at_rest = not any(r.under_way for r in world.requests) and all(w in (START, DONE) for w in workers)
        if at_rest and rows and not set(world.jobs) <= _known(rows) and rows[-1]["state"] not in _SEARCHED:
            return "a job is forgotten"
        return None

    def _is_good_end(self, place: Place) -> bool:
        ledger, world, _ = place
        rows = self._ledger.rows[ledger]
        if not rows or not set(world.jobs) <= _known(rows):
            return False
        return rows[-1]["state"] in ("SENT", "DONE", *(["HELD"] if self._kind == FINDS else []))


_SEARCHED = ("SENDING", "IN_DOUBT", "HELD")


def _known(rows: list[dict[str, Any]]) -> set[str]:
    """The jobs that the ledger holds, be it as a late answer."""
    return {row["external_id"] for row in rows} | {
        job for row in rows for job in ("job-0", "job-1", "job-2") if f'"{job}"' in row["detail"]
    }


def _with(workers: tuple[int, ...], position: int, history: int) -> tuple[int, ...]:
    return tuple(sorted((*workers[:position], history, *workers[position + 1 :])))


def _name(position: int) -> str:
    return f"worker {position}"


def _told(answer: Answer) -> str:
    if answer.error is not None:
        return str(answer.error)
    return str(getattr(answer.value, "state", answer.value))


def _trace(cause: list[tuple[int, str]], number: int) -> str:
    steps = []
    while number:
        number, label = cause[number]
        steps.append(label)
    return "; ".join(steps[::-1])


def _without_way(count: int, sources: array[int], targets: array[int], ends: list[int]) -> list[int]:
    """The states from which no end can be reached."""
    back: dict[int, list[int]] = {}
    for source, target in zip(sources, targets, strict=True):
        back.setdefault(target, []).append(source)
    reached, stack = set(ends), list(ends)
    while stack:
        for source in back.get(stack.pop(), ()):
            if source not in reached:
                reached.add(source)
                stack.append(source)
    return [number for number in range(count) if number not in reached]
