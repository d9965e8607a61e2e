"""What to do about what went wrong: one mapping from causes to remedies, for the receipts of every system.

Invariant: a remedy names what a person needs (the task to clear, the connection, the people, the command, the fields).
It never only says to trigger again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from include.core.errors import (
    AuthError,
    Cancelled,
    ConflictingRequest,
    DeadlinePassed,
    Forbidden,
    Held,
    LedgerError,
    NotFound,
    QuotaExceeded,
    RemoteError,
    RequestError,
    Stopped,
    TransientError,
    Unanswered,
    VerificationError,
    WaybillError,
)
from include.core.text import few, shorten

_FIELD = re.compile(r"([a-z_][\w, ]*?)(?:\[|\.|:(?!//))")


class Cause(StrEnum):
    """Why something is not as asked: each is one thing that a person can do."""

    REFUSED = "refused"  # the request is wrong, or asks for what cannot be
    UNANSWERED = "unanswered"  # a question waits for an answer
    EXPIRED = "expired"  # a question was put, and is not open any more without an answer
    VOID = "void"  # the answer does not count
    STOPPED = "stopped"  # a person decided against it
    CANCELLED = "cancelled"  # a person took it back before it was sent
    HELD = "held"
    TRANSIENT = "transient"
    QUOTA = "quota"
    DEADLINE = "deadline"
    CREDENTIAL = "credential"
    FORBIDDEN = "forbidden"
    MISMATCH = "mismatch"
    UNVERIFIABLE = "unverifiable"
    NOT_FOUND = "not found"
    CONFLICT = "conflict"
    REMOTE = "refused by the remote"
    LEDGER = "ledger"
    LOST = "lost"  # no reason was recorded: stopped or marked by a person, or the worker was lost


# The first class that fits decides, so subclasses come before their bases.
_BY_ERROR: tuple[tuple[type[WaybillError], Cause], ...] = (
    (Forbidden, Cause.FORBIDDEN),
    (AuthError, Cause.CREDENTIAL),
    (QuotaExceeded, Cause.QUOTA),
    (TransientError, Cause.TRANSIENT),
    (RequestError, Cause.REFUSED),
    (Held, Cause.HELD),
    (Stopped, Cause.STOPPED),
    (Cancelled, Cause.CANCELLED),
    (Unanswered, Cause.EXPIRED),
    (DeadlinePassed, Cause.DEADLINE),
    (LedgerError, Cause.LEDGER),
    (NotFound, Cause.NOT_FOUND),
    (ConflictingRequest, Cause.CONFLICT),
    (VerificationError, Cause.MISMATCH),
    (RemoteError, Cause.REMOTE),
)


def cause_of(error: WaybillError) -> Cause:
    return next((cause for kind, cause in _BY_ERROR if isinstance(error, kind)), Cause.LOST)


def again_at(error: WaybillError, now: float) -> float | None:
    """When trying again makes sense (epoch seconds), where the error says so."""
    if isinstance(error, QuotaExceeded):
        return error.available_at
    wait = error.retry_after if isinstance(error, TransientError) else None
    return now + wait if wait else None


@dataclass(frozen=True)
class Problem:
    """One thing that is not as asked.

    `item` is what it concerns (a plate, a destination; empty: the run), `task` what a person would clear, `question` who
    can answer where. `advice` is what the system knows better than the general remedy, and takes its place.
    """

    cause: Cause
    why: str
    item: str = ""
    task: str = ""
    connections: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    question: str = ""
    not_before: float | None = None
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.item}: {self.why}" if self.item else self.why


def of_record(record: Mapping[str, Any], task: str, *, item: str = "", advice: str = "") -> Problem:
    """The problem of a step that did not end well, by its record."""
    index = record.get("map_index")
    task = str(record.get("task_id") or task)
    if index is not None:
        task = f"{task} [{index}]"
    facts: dict[str, Any] = {"item": item, "task": task, "advice": advice}
    state, why = record.get("state"), str(record.get("why") or "")
    if state == "refused" and "problems" in record:
        return Problem(Cause.REFUSED, why, fields=_fields(record["problems"]), **facts)
    if state == "failed":
        cause = Cause(record["cause"]) if record.get("cause") in set(Cause) else Cause.LOST
        connections = tuple(record.get("connections") or ())
        return Problem(cause, why, connections=connections, not_before=record.get("again_at"), **facts)
    if why:
        return Problem(Cause.MISMATCH, why, **facts)
    begun = "the task left no reason behind: it was stopped or marked by a person, or its worker was lost"
    return Problem(Cause.LOST, begun if record else "the task was not reached", **facts)


def _fields(problems: Sequence[Any]) -> tuple[str, ...]:
    """The fields of the conf that refusals name, each once, without what lies in them."""
    found = [_FIELD.match(str(line)) for line in problems]
    return tuple(dict.fromkeys(match[1] for match in found if match))


def problems_of_steps(steps: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """The problems of a run's steps that failed or were refused, in their order. Two steps that refuse the same request for the
    same reasons are one problem."""
    said: set[tuple[str, ...]] = set()
    found = []
    for step, record in steps.items():
        lines = tuple(map(str, record.get("problems") or ()))
        if record.get("state") in ("failed", "refused") and not (lines and lines in said):
            found.append(of_record(record, step))
            said.add(lines)
    return found


def refusals(steps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every line of every refused request, each once, by the records of the steps."""
    return list(dict.fromkeys(str(line) for record in steps.values() for line in record.get("problems") or ()))


def lines_of(problems: Sequence[Problem]) -> list[str]:
    """Every problem with what it concerns, each once."""
    return list(dict.fromkeys(str(problem) for problem in problems))


def remedy_of(problems: Sequence[Problem], again: str = "") -> str:
    """What to do, one sentence per cause; what is alike is said once, for all items that it concerns.

    `again`: what a new run with the same conf does in this system, as "it copies only what is missing".
    """
    groups: dict[Problem, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(replace(problem, item="", why="", not_before=None), []).append(problem)
    return " ".join(_of_group(group, again) for group in groups.values())


def _of_group(group: Sequence[Problem], again: str) -> str:
    first = group[0]
    named = [problem.item for problem in group if problem.item]
    head = ""
    if named:
        why = shorten(first.why, 300, "the whole is in the receipt")
        head = f"{few(named, 3, 'see the items')}: " if len(named) > 1 else f"{named[0]} ({why}): "
    at = max((problem.not_before for problem in group if problem.not_before), default=None)
    return head + (first.advice or _REMEDIES[first.cause](first, again, at))


def _refused(problem: Problem, again: str, at: float | None) -> str:
    more = f" and {len(problem.fields) - 8} more, all listed in the receipt" if len(problem.fields) > 8 else ""
    what = ", ".join(problem.fields[:8]) + more if problem.fields else "what is named above"
    return f"Correct {what}, then trigger the DAG with the corrected conf; nothing was started."


def _clear(problem: Problem) -> str:
    return f"clear task {problem.task}" if problem.task else "clear the task that failed"


def _credential(problem: Problem, again: str, at: float | None) -> str:
    where = few(problem.connections, 8) or "that the error names"
    return f"Renew the credential of connection {where}, then {_clear(problem)}."


def _forbidden(problem: Problem, again: str, at: float | None) -> str:
    where = few(problem.connections, 8) or "that the error names"
    return f"Give the user of connection {where} the right that the error names, then {_clear(problem)}."


def _transient(problem: Problem, again: str, at: float | None) -> str:
    when = f", not before {_minute(at)}" if at else ""
    return (
        f"This may pass by itself, and was tried several times: {_clear(problem)} once the remote answers{when}. "
        f"{_goes_on(again)}"
    )


def _quota(problem: Problem, again: str, at: float | None) -> str:
    when = f"after {_minute(at)}" if at else "once the quota is free again"
    return f"{_clear(problem).capitalize()} {when}. {_goes_on(again)}"


def _deadline(problem: Problem, again: str, at: float | None) -> str:
    return f"The time for it was over, and what is open goes on by itself: {_clear(problem)} to wait once more. {_goes_on(again)}"


def _goes_on(again: str) -> str:
    return f"A new run with the same conf would do as well: {again}." if again else "It goes on where it stopped."


def _held(problem: Problem, again: str, at: float | None) -> str:
    return (
        "Run `python -m include.core.ledger in-doubt`: it says where to look. Then say what is true: `python -m "
        "include.core.ledger resolve ID --as sent --external-id JOB|--as reserved|--as cancelled --who NAME --why REASON`, "
        f"and {_clear(problem)}."
    )


def _unanswered(problem: Problem, again: str, at: float | None) -> str:
    return f"{problem.question or 'The people of connection waybill_approvals can answer'}."


def _expired(problem: Problem, again: str, at: float | None) -> str:
    return f"{_clear(problem).capitalize()}: it asks again. The last time, {problem.question or 'nobody answered'}."


def _void(problem: Problem, again: str, at: float | None) -> str:
    return f"{_clear(problem).capitalize()}: it asks again, about what is there now."


def _stopped(problem: Problem, again: str, at: float | None) -> str:
    return f"Mend what the question names, then {_clear(problem)}: it is checked and, where needed, asked again."


def _cancelled(problem: Problem, again: str, at: float | None) -> str:
    return f"It was cancelled on purpose, and this run does not ask again: a new run with the same conf does. {_goes_on(again)}"


def _mismatch(problem: Problem, again: str, at: float | None) -> str:
    return (
        "Compare what is named with its source, and take away what is wrong there; both copies are kept. Then "
        f"{_clear(problem)}. {_goes_on(again)}"
    )


def _unverifiable(problem: Problem, again: str, at: float | None) -> str:
    return (
        f"What is named could not be read; nothing says that it is wrong. See that it can be, then {_clear(problem)}."
    )


def _not_found(problem: Problem, again: str, at: float | None) -> str:
    return (
        "Where the conf names it, correct the conf and trigger the DAG anew; else put back what is named, then "
        f"{_clear(problem)}."
    )


def _conflict(problem: Problem, again: str, at: float | None) -> str:
    return (
        "Something else with another content is there, or is asked for, under the same name: find out whose it is, let it "
        f"end or move it away, then {_clear(problem)}."
    )


def _remote(problem: Problem, again: str, at: float | None) -> str:
    return (
        "The remote refuses this permanently, so the same again would fail: deal with the reason that it gives, then "
        f"{_clear(problem)}. {_goes_on(again)}"
    )


def _ledger(problem: Problem, again: str, at: float | None) -> str:
    return (
        f"See that connection waybill_ledger opens (`python -m include.core.ledger verify`), then {_clear(problem)}; "
        "nothing was sent without it."
    )


def _lost(problem: Problem, again: str, at: float | None) -> str:
    return (
        f"{_clear(problem).capitalize()} to go on: what was sent is found, and not sent again. "
        "Its log says more where a worker wrote one."
    )


_REMEDIES = {
    Cause.REFUSED: _refused,
    Cause.UNANSWERED: _unanswered,
    Cause.EXPIRED: _expired,
    Cause.VOID: _void,
    Cause.STOPPED: _stopped,
    Cause.CANCELLED: _cancelled,
    Cause.HELD: _held,
    Cause.TRANSIENT: _transient,
    Cause.QUOTA: _quota,
    Cause.DEADLINE: _deadline,
    Cause.CREDENTIAL: _credential,
    Cause.FORBIDDEN: _forbidden,
    Cause.MISMATCH: _mismatch,
    Cause.UNVERIFIABLE: _unverifiable,
    Cause.NOT_FOUND: _not_found,
    Cause.CONFLICT: _conflict,
    Cause.REMOTE: _remote,
    Cause.LEDGER: _ledger,
    Cause.LOST: _lost,
}


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
