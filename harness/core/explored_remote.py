"""The remote and the network as they are explored: every answer that their promises allow, and what is true then.

Invariant: what may still go wrong is a part of the state, so that the states are finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from include.core.errors import TransientError

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


Step = tuple[str, Answer, World]


def remote_answers(world: World, question: Question) -> Iterator[Step]:
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


def surroundings(world: World) -> Iterator[tuple[str, World]]:
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
        yield "time passes", later(world)


def later(world: World) -> World:
    """One tick on. Of what is past the time is forgotten, since it makes no difference any more."""
    now = world.now + 1
    requests = tuple(
        replace(r, arrives_by=0.0, visible_at=r.visible_at if r.visible_at > now else 0.0)
        if r.visible_at is not None
        else r
        for r in world.requests
    )
    return replace(world, now=now, requests=requests)
