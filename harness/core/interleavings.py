"""Every interleaving of a few workers inside the real `submit_once`, with crashes, lost answers, late commits, hidden jobs.

A worker is a function of the answers that it has got: the same answers, the same next question. So a worker is kept as the
list of its answers, and is run again from its beginning to learn what it asks next. A question to the ledger is put to the
real ledger, on a database that was set back to the state in question; a question to the remote is answered by the model
below, in every way that its promises allow. Between any two questions any other worker, the network or the clock may act.

Invariant: nothing of the ledger or of `submit_once` is modelled. What is remembered (the answer of a ledger in one state to one
question) is remembered because it depends on nothing else.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from harness.core.explored_ledger import RealLedger
from harness.core.explored_remote import (
    DONE,
    FINDS,
    HARMLESS,
    NAMELESS,
    PROVES,
    REMEMBERED,
    SAME_KEY,
    START,
    TIMEOUT,
    VISIBILITY_WINDOW,
    Answer,
    Question,
    Scope,
    World,
    later,
    remote_answers,
    surroundings,
)
from harness.core.explored_worker import INTENT, AskedLedger, Client, Halt, Tape, Texts, Tokens
from include.core.errors import WaybillError
from include.core.ledger import (
    OPEN,
    ClientKey,
    DuplicateSafe,
    Probe,
    State,
    store,
    submit,
)

Place = tuple[int, int, tuple[int, ...]]  # numbers: of the ledger's state, of the remote's, of the workers' histories


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
        self._texts = Texts()
        self._ledger = RealLedger(ledger_class, self._texts)
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
        tape = Tape(answers[::-1])
        try:
            self._call(tape).send(None)
        except Halt:
            self._ends[history] = self._standings.setdefault(tape.standing, history)
            self._standing_texts.setdefault(history, self._texts(tape.standing))
            return tape.question
        except StopIteration:
            self._ends[history] = DONE
        except WaybillError:
            self._ends[history] = START  # Airflow's retry asks again
        return None

    async def _call(self, tape: Tape) -> Any:
        """What a worker does: it looks whether the effect is there, where the scope says so, and asks for it."""
        accepted = self._submit_once.__globals__["Accepted"]  # of the module that may lack a guard
        client, ledger, seen_absent = Client(tape, self._kind, accepted), AskedLedger(tape), None
        if self._scope.ended_jobs:
            rows = ledger.generations(INTENT.system, INTENT.kind, INTENT.business_key)
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
            ledger, INTENT, send=client.send, probe=probe, prepare=prepare, seen_absent=seen_absent
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
            for label, answer, remote in remote_answers(self._worlds[world], question):
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
            found = [(label, ledger, self._world(remote)) for label, remote in surroundings(now)]
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
                    _, answer, world = next(remote_answers(world, question))
                history = self._after(history, answer)
                if history == START:
                    break
            if history == DONE:
                return self._wrong((ledger, self._world(world), (DONE,))) or self._open_end(ledger, world)
            if self._kind == FINDS and self._ledger.rows[ledger][-1]["state"] == "HELD":
                return self._wrong((ledger, self._world(world), (DONE,)))
            world = later(world)
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
