"""A worker that is explored: the real `submit_once`, played back from the answers that it has got, up to its next question.

Invariant: what it does next depends on its answers alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FrameType, FunctionType, MethodType
from typing import Any

from harness.core.explored_remote import KEY, NAMELESS, Answer, Question
from include.core.errors import TransientError
from include.core.ledger import (
    Accepted,
    Intent,
    Owner,
    Probe,
    RemoteSearch,
)


class Halt(BaseException):
    """The answers are used up: what the worker asks now is its next question."""


class Tape:
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
        raise Halt


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


class AskedLedger:
    """What a worker takes for its ledger. `monotonic` stands still, as on a suspended host: nothing may rest on it."""

    def __init__(self, tape: Tape):
        self._tape = tape
        self.monotonic = lambda: 0.0
        self.on_step = lambda _step, _row: None

    def __repr__(self) -> str:
        return "the ledger"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **more: self._tape.ask(Question("ledger", name, args, tuple(sorted(more.items()))))


TOKEN = re.compile(r"token-\d+")
Tokens = frozenset[str]


INTENT = Intent("remote", "job", KEY, {"what": KEY}, Owner("explored", "run", "submit"))
NAMES = [f"token-{number}" for number in range(100, 150)]  # of one length, none a part of another


class Texts:
    """Texts as (number of what is the same in them but for tokens, their tokens): which token it is says nothing."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> tuple[int, tuple[str, ...]]:
        tokens = tuple(dict.fromkeys(TOKEN.findall(text)))
        for number, token in enumerate(tokens):
            text = text.replace(token, f"#{number}#")
        return self._numbers.setdefault(text, len(self._numbers)), tokens


class Client:
    """The system's side of `submit_once`, as an honest one writes it."""

    def __init__(self, tape: Tape, kind: str, accepted: type[Accepted]):
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
