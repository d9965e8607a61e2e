"""Every interleaving of a few workers inside the real `submit_once`, with crashes, lost answers, late commits, hidden jobs.

A worker is a function of the answers that it has got: the same answers, the same next question. So a worker is kept as the
list of its answers, and is run again from its beginning to learn what it asks next. A question to the ledger is put to the
real ledger, on a database that was set back to the state in question; a question to the remote is answered by the model
below, in every way that its promises allow. Between any two questions any other worker, the network or the clock may act.

Invariant: nothing of the ledger or of `submit_once` is modelled. What is remembered (the answer of a ledger in one state to one
question) is remembered because it depends on nothing else.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType, FunctionType, MethodType
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from include.core.errors import TransientError, WaybillError
from include.core.ledger import (
    OPEN,
    Accepted,
    ClientKey,
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
NAMELESS, SAME_KEY = "the answer names nothing", "a second request under one key is dropped"
START, DONE = 0, -1  # a worker before its call; one whose call has returned
KEY = "the effect"
REMEMBERED = 1_000_000  # steps; a bound of memory alone


@dataclass(frozen=True)
class Scope:
    """How much goes wrong at most: the state space is everything within it."""

    workers: int = 3
    crashes: int = 2
    lost_answers: int = 1  # the remote acted, or never got it, and the client does not learn which
    late_commits: int = 1  # the client gives up first, and the request arrives after that
    hidden_jobs: int = 1
    partial_searches: int = 0  # a page that fails: what was found is all that is known
    refusals: int = 0  # the remote refuses without any effect: a credential that has expired, or "slow down"
    ended_jobs: int = 0  # jobs that end well: their effect is there, and whoever looks for it before sees it
    ticks: int = (
        4  # of the remote's clock, while workers are overtaken; to bring things to an end there are as many as it takes
    )
    prepares: bool = False  # the ground is cleared before it is sent
    between_writes: bool = False  # pause also between two calls to the ledger, not only at each call to the remote


# What is published: three workers, two crashes, one lost answer, one late commit, one hidden job.
FULL = {
    "absence is proved by the search": (PROVES, Scope()),
    "a second job does no harm": (HARMLESS, Scope(ticks=3)),
    "the answer names nothing": (NAMELESS, Scope(ticks=3)),
}


@dataclass(frozen=True)
class Request:
    """What has left a worker. `visible_at` None: not committed."""

    arrives_by: float
    visible_at: float | None = None
    gone: bool = False
    refused: bool = False
    key: str | None = None
    repeats: int | None = None  # the request of the same key that was first

    @property
    def under_way(self) -> bool:
        return self.visible_at is None and not self.gone and not self.refused and self.repeats is None


@dataclass(frozen=True)
class World:
    """The remote and the network. `scope` is what may still go wrong."""

    scope: Scope
    now: float = 0.0
    requests: tuple[Request, ...] = ()
    effect: bool = False
    keys: int = 0

    def spend(self, what: str) -> World | None:
        left = getattr(self.scope, what)
        return replace(self, scope=replace(self.scope, **{what: left - 1})) if left else None

    def with_request(self, index: int, **changes: Any) -> World:
        request = replace(self.requests[index], **changes)
        return replace(self, requests=(*self.requests[:index], request, *self.requests[index + 1 :]))

    def arrived(self, index: int, **changes: Any) -> World:
        """A request is there: a new job, or none where the remote has had its key before."""
        key = self.requests[index].key
        first = next(
            (i for i, r in enumerate(self.requests) if key and r.key == key and r.visible_at is not None), None
        )
        return self.with_request(index, **(changes if first is None else {"repeats": first}))

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

    @cached_property
    def key(self) -> str:
        return f"{self.name} {self.args!r} {self.more!r}"


@dataclass(frozen=True)
class Answer:
    value: Any = None
    error: BaseException | None = None

    @cached_property
    def key(self) -> str:
        return f"{type(self.error).__name__} {self.error}" if self.error else repr(self.value)


class _Tape:
    """Plays answers back to a worker, then stops it at its next question."""

    def __init__(self, answers: list[Answer]):
        self._answers = answers
        self._at = 0
        self.question: Question | None = None
        self.standing = ""  # where the worker stands: its frames, each with its place in the code and its variables

    def ask(self, question: Question) -> Any:
        if self._at < len(self._answers):
            answer = self._answers[self._at]
            self._at += 1
            if answer.error is not None:
                raise answer.error
            return answer.value
        if self.question is None:  # handlers of the worker that run while it is stopped ask too
            self.question, self.standing = question, _standing(sys._getframe(1))
        raise _Halt


_NOT_STATE = ("_", "tape", "self")  # the count of turns decides nothing: `run` lifts its limit


def _standing(frame: FrameType | None) -> str:
    """All that decides what a worker does next: the same text, the same future."""
    told = []
    while frame is not None and frame.f_code.co_name != "_next_question":
        variables = [f"{name}={value!r}" for name, value in sorted(frame.f_locals.items()) if _is_state(name, value)]
        told.append(f"{frame.f_code.co_qualname} {frame.f_lasti} {variables}")
        frame = frame.f_back
    return "\n".join(told)


def _is_state(name: str, value: Any) -> bool:
    return name not in _NOT_STATE and not isinstance(value, Intent | Probe | FunctionType | MethodType)


class _AskedLedger:
    """What a worker takes for its ledger. `monotonic` stands still, as on a suspended host: nothing may rest on it."""

    def __init__(self, tape: _Tape):
        self._tape = tape
        self.monotonic = lambda: 0.0
        self.on_step = lambda _step, _row: None

    def __repr__(self) -> str:
        return "the ledger"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **more: self._tape.ask(Question("ledger", name, args, tuple(sorted(more.items()))))


_TOKEN = re.compile(r"token-\d+")
Tokens = frozenset[str]


_INTENT = Intent("remote", "job", KEY, {"what": KEY}, Owner("explored", "run", "submit"))
_NAMES = [f"token-{number}" for number in range(100, 150)]  # of one length, none a part of another


class _Texts:
    """Texts as (number of what is the same in them but for tokens, their tokens): which token it is says nothing."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> tuple[int, tuple[str, ...]]:
        tokens = tuple(dict.fromkeys(_TOKEN.findall(text)))
        for number, token in enumerate(tokens):
            text = text.replace(token, f"#{number}#")
        return self._numbers.setdefault(text, len(self._numbers)), tokens


class _Client:
    """The system's side of `submit_once`, as an honest one writes it."""

    def __init__(self, tape: _Tape, kind: str, accepted: type[Accepted]):
        self._tape, self._kind, self._accepted = tape, kind, accepted

    def __repr__(self) -> str:
        return "the client"

    async def client_key(self, _row: Any) -> str:
        return str(self.ask("a new key"))

    def ask(self, name: str, *args: Any) -> Any:
        return self._tape.ask(Question("remote", name, args))

    async def prepare(self, _row: Any, fence: Any) -> None:
        self.ask("now")
        fence()

    async def send(self, row: Any, fence: Any) -> str | Accepted:
        for _logged_in_again in (False, True):
            passed = self.ask("now")  # the request arrives within its timeout, counted from the last look, or never
            fence()
            answer = str(self.ask("answer", self.ask("post", passed, row.client_key)))
            if answer != "log in again":
                return self._accepted(named_within_seconds=sys.maxsize) if self._kind == NAMELESS else answer
        raise TransientError("refused twice", no_effect=True)

    async def search(self, _row: Any) -> RemoteSearch:
        now, seen, complete = self.ask("list")
        return RemoteSearch(seen, complete=complete, remote_now=now)

    async def verified(self, _row: Any) -> bool:
        return bool(self.ask("list")[1])


class _RealLedger:
    """The real ledger on a database in memory that can be set to any state that was seen. States have numbers, from 0."""

    def __init__(self, ledger_class: type[store.Ledger], texts: _Texts):
        self.clock = 0.0
        with tempfile.TemporaryDirectory() as folder:
            url = URL.create("sqlite", database=str(Path(folder) / "ledger.db"))
            init(url)
            self.ledger = ledger_class(url, clock=lambda: self.clock, monotonic=lambda: 0.0)
            self.ledger.close()
            self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            with closing(sqlite3.connect(str(url.database))) as on_disk:
                on_disk.execute("PRAGMA journal_mode = DELETE")  # in memory there is no write-ahead log
                on_disk.backup(self._memory)
        self.ledger._engine = self._in_memory()
        self._texts = texts
        self._numbers: dict[str, int] = {}
        self._snapshots: list[bytes] = []
        self.texts: list[tuple[int, tuple[str, ...]]] = []
        self.rows: list[list[dict[str, Any]]] = []
        self._known: dict[tuple[int, str, str, float], tuple[Answer, int]] = {}
        self.problems: list[str] = []
        self.state = self._number()

    def _in_memory(self) -> sa.Engine:
        engine = sa.create_engine("sqlite://", creator=lambda: self._memory, poolclass=StaticPool)

        @event.listens_for(engine, "begin")
        def _on_begin(conn: sa.Connection) -> None:
            conn.exec_driver_sql("BEGIN")

        return engine

    def ask(self, state: int, question: Question, held: Tokens = frozenset(), clock: float = 0.0) -> tuple[Answer, int]:
        """What the ledger in this state answers, and the state it is in then. `held`: tokens that workers still hold.

        A new token is the first that nobody holds: so equal states have equal names far more often.
        """
        used = held.union(self.texts[state][1])
        free = [name for name in _NAMES if name not in used]
        key = (state, question.key, free[0], clock)
        if key not in self._known:
            self.clock = clock
            self._known[key] = self._really_ask(state, question, iter(free))
        return self._known[key]

    def _really_ask(self, state: int, question: Question, tokens: Iterator[str]) -> tuple[Answer, int]:
        if state != self.state:
            self._memory.deserialize(self._snapshots[state])
        with mock.patch("uuid.uuid4", lambda: next(tokens)):
            try:
                answer = Answer(getattr(self.ledger, question.name)(*question.args, **dict(question.more)))
            except WaybillError as error:
                answer = Answer(error=error)
        self.state = self._number()
        return answer, self.state

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
            self.texts.append(self._texts(key))
            self.rows.append([dict(row._mapping) for row in self._select()])
            if len(self._snapshots) > 1:
                self.problems += verify(self.ledger).problems
        return self._numbers[key]

    def _select(self) -> list[Any]:
        with self.ledger.reading() as conn:
            return list(conn.execute(sa.select(schema.submissions).order_by(schema.submissions.c.id)))


Step = tuple[str, Answer, World]
Place = tuple[int, int, tuple[int, ...]]  # numbers: of the ledger's state, of the remote's, of the workers' histories


def _remote(world: World, question: Question) -> Iterator[Step]:
    """Every answer that the remote, or the network between, can give to a worker now, and what is true then."""
    if question.name == "now":
        yield "reads the clock", Answer(world.now), world
    elif question.name == "post":
        passed, key = question.args
        if world.now > passed + TIMEOUT:
            yield "gives up before a byte has left", Answer(error=TransientError("nothing left in time")), world
        else:
            sent = replace(world, requests=(*world.requests, Request(passed + TIMEOUT, key=key)))
            yield "sends", Answer(len(world.requests)), sent
    elif question.name == "a new key":
        yield "gets a new key", Answer(f"key-{world.keys}"), replace(world, keys=world.keys + 1)
    elif question.name == "look":
        yield f"sees that the effect is {'there' if world.effect else 'not there'}", Answer(world.effect), world
    elif question.name == "answer":
        yield from _answers(world, *question.args)
    else:
        seen = tuple(
            f"job-{i}" for i, r in enumerate(world.requests) if r.visible_at is not None and r.visible_at <= world.now
        )
        yield f"sees {seen}", Answer((world.now, seen, True)), world
        spent = world.spend("partial_searches") if world.scope.partial_searches else None
        if spent is not None:
            yield "sees a part of the list", Answer((world.now, (), False)), spent


def _answers(world: World, index: int) -> Iterator[Step]:
    request = world.requests[index]
    silence = Answer(error=TransientError("no answer"))
    if request.gone:
        yield "gets no answer", silence, world
    elif request.refused:
        yield "is told to log in again", Answer("log in again"), world
        yield "is told to slow down", Answer(error=TransientError("slow down", no_effect=True)), world
    elif request.visible_at is not None or request.repeats is not None:
        job = index if request.repeats is None else request.repeats
        yield "gets its answer", Answer(f"job-{job}"), world
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
        yield f"request {index} arrives", world.arrived(index, visible_at=world.now)
        spent = world.spend("hidden_jobs")
        if spent is not None:
            visible_at = world.now + VISIBILITY_WINDOW
            yield f"request {index} arrives, its job hidden", spent.arrived(index, visible_at=visible_at)
        spent = world.spend("lost_answers")
        if spent is not None:
            yield f"request {index} is lost", spent.with_request(index, gone=True)
        spent = world.spend("refusals")
        if spent is not None:
            yield f"request {index} is refused", spent.with_request(index, refused=True)
    spent = None if world.effect or not world.jobs else world.spend("ended_jobs")
    if spent is not None:
        yield "the job ends well", replace(spent, effect=True)
    in_time = all(not r.under_way or r.arrives_by > world.now for r in world.requests)
    if world.now < world.scope.ticks and in_time:
        yield "time passes", _later(world)


def _later(world: World) -> World:
    """One tick on. Of what is past the time is forgotten, since it makes no difference any more."""
    now = world.now + 1
    requests = tuple(
        replace(r, arrives_by=0.0, visible_at=r.visible_at if r.visible_at > now else 0.0)
        if r.visible_at is not None
        else r
        for r in world.requests
    )
    return replace(world, now=now, requests=requests)


@dataclass
class Found:
    """What an exploration came to. `violations`: each with the steps that lead there."""

    kind: str
    scope: Scope
    states: int = 0
    edges: int = 0
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
        self.found = Found(kind, self._scope)
        # Where a row stands of which a job may exist that it does not know yet; under one key asking again is no second job.
        self._found_later = ("SENDING", "IN_DOUBT", "ACCEPTED", "HELD", *(("RESERVED",) if kind == SAME_KEY else ()))
        self._texts = _Texts()
        self._ledger = _RealLedger(ledger_class, self._texts)
        self._worlds: list[World] = []
        self._world_numbers: dict[World, int] = {}
        self._steps_known: dict[tuple[int, int, int, Tokens], list[tuple[str, int, int, int]]] = {}
        self._surroundings_known: dict[tuple[int, int], list[tuple[str, int, int]]] = {}
        self._ends_alone: dict[tuple[int, int], str | None] = {}
        self._standings: dict[str, int] = {}  # where a worker stands → the first history that brings it there
        self._standing_texts: dict[int, tuple[int, tuple[str, ...]]] = {DONE: (DONE, ())}
        self._histories: list[tuple[int, Answer]] = [(-1, Answer())]
        self._children: dict[tuple[int, str], int] = {}
        self._questions: list[Question | None] = []  # by history; None: the call has returned
        self._ends: dict[int, int] = {}  # history → the first one that stands where it stands, START or DONE
        self._questions.append(self._next_question(START))

    def run(self, *, violations: int = 1) -> Found:
        """Explores everything, or until so many violations were found."""
        with mock.patch.dict(self._submit_once.__globals__, MAX_TURNS=sys.maxsize):
            return self._explore(violations)

    def _explore(self, violations: int) -> Found:
        found = self.found
        first: Place = (self._ledger.state, self._world(World(self._scope)), (START,) * self._scope.workers)
        seen = {hash(self._key(first))}  # of ten million states two have one hash with a probability of one in 400,000
        labels: dict[str, int] = {}
        cause, how = array("L", [0]), array("L", [0])  # by state: from which, by which step
        stack = [(0, first)]
        while stack and len(found.violations) < violations:
            number, place = stack.pop()
            for label, then in self._successors(place):
                found.edges += 1
                key = hash(self._key(then))
                if key in seen:
                    continue
                seen.add(key)
                known = len(cause)
                cause.append(number)
                how.append(labels.setdefault(label, len(labels)))
                wrong = self._wrong(then) or self._wrong_at_the_end(then)
                if wrong:
                    found.violations.append(f"{wrong}: {_trace(cause, how, list(labels), known)}")
                else:
                    stack.append((known, then))
            found.states = len(cause)
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
            self._ends[history] = self._standings.setdefault(tape.standing, history)
            self._standing_texts.setdefault(history, self._texts(tape.standing))
            return tape.question
        except StopIteration:
            self._ends[history] = DONE
        except WaybillError:
            self._ends[history] = START  # Airflow's retry asks again
        return None

    async def _call(self, tape: _Tape) -> Any:
        """What a worker does: it looks whether the effect is there, where the scope says so, and asks for it."""
        accepted = self._submit_once.__globals__["Accepted"]  # of the module that may lack a guard
        client, ledger, seen_absent = _Client(tape, self._kind, accepted), _AskedLedger(tape), None
        if self._scope.ended_jobs:
            rows = ledger.generations(_INTENT.system, _INTENT.kind, _INTENT.business_key)
            if not rows or rows[-1].state not in OPEN:
                if client.ask("look"):
                    return None
                seen_absent = rows[-1].generation if rows else 0
        harmless = DuplicateSafe("it leaves what is there", client.verified) if self._kind == HARMLESS else None
        keys = ClientKey(client.client_key, valid_seconds=sys.maxsize) if self._kind == SAME_KEY else None
        proves = self._kind in (PROVES, NAMELESS)
        probe = Probe(client.search, VISIBILITY_WINDOW, TIMEOUT, proves, harmless, keys)
        prepare = client.prepare if self._scope.prepares else None
        return await self._submit_once(
            ledger, _INTENT, send=client.send, probe=probe, prepare=prepare, seen_absent=seen_absent
        )

    def _after(self, history: int, answer: Answer) -> int:
        """The worker that has got one more answer: its history, START or DONE."""
        key = (history, answer.key)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = len(self._histories)
            self._histories.append((history, answer))
            self._questions.append(self._next_question(child))
        return self._ends[child]

    def _key(self, place: Place) -> tuple[Any, ...]:
        """Two places with one key have the same future: they differ by nothing but the names of tokens."""
        ledger, world, workers = place
        names: dict[str, int] = {}

        def told(text: tuple[int, tuple[str, ...]]) -> tuple[int, ...]:
            return (text[0], *(names.setdefault(token, len(names)) for token in text[1]))

        of_ledger = told(self._ledger.texts[ledger])
        standing = sorted((self._standing_texts[worker] for worker in workers), key=lambda text: text[0])
        return of_ledger, world, tuple(told(text) for text in standing)

    # -- the graph ----------------------------------------------------------------------------------------------------

    def _world(self, world: World) -> int:
        number = self._world_numbers.setdefault(world, len(self._worlds))
        if number == len(self._worlds):
            self._worlds.append(world)
        return number

    def _clock(self, world: World) -> float:
        """The ledger's clock. It stands still, so that nothing can rest on it, but where a claim runs out by it."""
        return world.now if self._scope.prepares else 0.0

    def _successors(self, place: Place) -> Iterator[tuple[str, Place]]:
        ledger, world, workers = place
        held = frozenset(token for worker in workers for token in self._standing_texts[worker][1])
        for position, history in enumerate(workers):
            if history == DONE or history in workers[:position]:
                continue  # none has a name: of two alike only one need go
            for label, after, remote, then in self._steps(ledger, world, history, held):
                yield f"{_name(position)} {label}", (after, remote, _with(workers, position, then))
        for label, after, remote in self._surroundings(ledger, world):
            yield label, (after, remote, workers)

    def _steps(self, ledger: int, world: int, history: int, held: Tokens) -> list[tuple[str, int, int, int]]:
        """What a worker can come to with its next step: label, the states of ledger and remote then, its history."""
        key = (ledger, world, history, held)
        if key not in self._steps_known:
            if len(self._steps_known) > REMEMBERED:
                self._steps_known.clear()
            self._steps_known[key] = list(self._find_steps(*key))
        return self._steps_known[key]

    def _find_steps(self, ledger: int, world: int, history: int, held: Tokens) -> Iterator[tuple[str, int, int, int]]:
        question = self._questions[history]
        if question is not None and question.subject == "remote":
            for label, answer, remote in _remote(self._worlds[world], question):
                then, after = self._on_to_a_pause(self._after(history, answer), ledger, world, held)
                yield label, after, self._world(remote), then
        else:
            then, after = self._on_to_a_pause(history, ledger, world, held, least=1)
            yield "goes on", after, world, then
        spent = self._worlds[world].spend("crashes") if history != START else None
        if spent is not None:
            yield "dies", ledger, self._world(spent), START

    def _surroundings(self, ledger: int, world: int) -> list[tuple[str, int, int]]:
        """What can happen without any worker."""
        key = (ledger, world)
        if key not in self._surroundings_known:
            now = self._worlds[world]
            found = [(label, ledger, self._world(remote)) for label, remote in _surroundings(now)]
            if now.effect:
                for row in self._ledger.ask(ledger, Question("ledger", "in_states", (State.SENT,)))[0].value:
                    move = Question("ledger", "move", (row, State.DONE), (("why", "ended"),))
                    found.append(("its row is closed", self._ledger.ask(ledger, move)[1], world))
            self._surroundings_known[key] = found
        return self._surroundings_known[key]

    def _on_to_a_pause(self, history: int, ledger: int, world: int, held: Tokens, least: int = 0) -> tuple[int, int]:
        """The worker's calls to the ledger up to where it may be overtaken; at least so many."""
        limit = least if self._scope.between_writes else 1000
        while limit > 0 and history != DONE:
            question = self._questions[history]
            if question is None or question.subject != "ledger" or (history == START and not least):
                break
            answer, ledger = self._ledger.ask(ledger, question, held, self._clock(self._worlds[world]))
            history, limit, least = self._after(history, answer), limit - 1, 0
            held |= set(self._standing_texts[history][1])
        return history, ledger

    # -- what must hold -----------------------------------------------------------------------------------------------

    def _wrong(self, place: Place) -> str | None:
        ledger, number, workers = place
        world, rows = self._worlds[number], self._ledger.rows[ledger]
        if len(world.jobs) > 1:
            return "two jobs for one effect"
        if sum(row["state"] in _OPEN for row in rows) > 1:
            return "two open rows for one effect"
        at_rest = not any(r.under_way for r in world.requests) and all(w in (START, DONE) for w in workers)
        if at_rest and rows and not set(world.jobs) <= _known(rows) and rows[-1]["state"] not in self._found_later:
            return "a job is forgotten"
        return None

    def _wrong_at_the_end(self, place: Place) -> str | None:
        """All workers die here, and what is under way arrives, or is lost; then one worker alone must bring it to its end."""
        ledger, world, _ = place
        key = (ledger, world)
        if key not in self._ends_alone:
            calm = [_calm(self._worlds[world], arrives=arrives) for arrives in (True, False)]
            self._ends_alone[key] = next(filter(None, (self._alone(ledger, one) for one in calm)), None)
        return self._ends_alone[key]

    def _alone(self, ledger: int, world: World) -> str | None:
        for _ in range(_TURNS):
            history = START
            while history != DONE:
                question = self._questions[history]
                if question is not None and question.subject == "ledger":
                    tokens = frozenset(self._standing_texts[history][1])
                    answer, ledger = self._ledger.ask(ledger, question, tokens, self._clock(world))
                else:
                    assert question is not None
                    world = _calm(world, arrives=True)
                    _, answer, world = next(_remote(world, question))
                history = self._after(history, answer)
                if history == START:
                    break
            if history == DONE:
                return self._wrong((ledger, self._world(world), (DONE,))) or self._open_end(ledger, world)
            if self._kind == FINDS and self._ledger.rows[ledger][-1]["state"] == "HELD":
                return self._wrong((ledger, self._world(world), (DONE,)))
            world = _later(world)
        return "one worker alone cannot bring it to its end"

    def _open_end(self, ledger: int, world: World) -> str | None:
        """Its call has returned: the effect's one job must be in the ledger."""
        rows = self._ledger.rows[ledger]
        return None if world.jobs and set(world.jobs) <= _known(rows) else "a job that the ledger does not know"


_TURNS = 12


def _calm(world: World, *, arrives: bool) -> World:
    """Nothing is under way any more, and nothing more goes wrong."""
    for index, request in enumerate(world.requests):
        if request.under_way:
            world = world.arrived(index, visible_at=world.now) if arrives else world.with_request(index, gone=True)
    scope = replace(
        world.scope,
        crashes=0,
        lost_answers=0,
        late_commits=0,
        hidden_jobs=0,
        partial_searches=0,
        refusals=0,
        ended_jobs=0,
    )
    return replace(world, scope=scope)


_OPEN = tuple(str(state) for state in OPEN)


def _known(rows: list[dict[str, Any]]) -> set[str]:
    """The jobs that the ledger holds, be it as a late answer."""
    return {row["external_id"] for row in rows} | {
        job for row in rows for job in ("job-0", "job-1", "job-2") if f'"{job}"' in row["detail"]
    }


def _with(workers: tuple[int, ...], position: int, history: int) -> tuple[int, ...]:
    return (*workers[:position], history, *workers[position + 1 :])


def _name(position: int) -> str:
    return f"worker {position}"


def _trace(cause: array[int], how: array[int], labels: list[str], number: int) -> str:
    steps = []
    while number:
        steps.append(labels[how[number]])
        number = cause[number]
    return "; ".join(steps[::-1])
