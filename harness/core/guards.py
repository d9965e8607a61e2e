"""The guards of `submit_once` and of the ledger, each as the text that it is made of: what exploring must miss when it is gone.

Invariant: a guard's text is in its module exactly once; whoever changes the guard changes it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core.explored_remote import PROVES, SAME_KEY, Scope
from harness.core.interleavings import Explorer, Found
from include.core.ledger import store, submit

TWO = Scope(workers=2, crashes=1, ticks=3)
LOOKED = Scope(
    workers=2, crashes=0, lost_answers=0, late_commits=0, hidden_jobs=0, ended_jobs=1, ticks=0, between_writes=True
)


@dataclass(frozen=True)
class Guard:
    """`instead` is what stands there when the guard is removed; `scope` in which that must be seen."""

    name: str
    module: ModuleType
    text: str
    instead: str
    scope: Scope = TWO
    kind: str = PROVES


GUARDS = [
    Guard(
        "one open row per effect",
        store,
        "            if last is not None and last.state in OPEN:\n",
        "            if False:\n",
    ),
    Guard(
        "what the caller saw is not older than the newest generation",
        store,
        "last.generation > seen_absent",
        "False",
        LOOKED,
    ),
    Guard(
        "RESERVED becomes SENDING for one alone",
        store,
        "            if now.state != State.RESERVED or now.fencing_token != row.fencing_token:\n                return None\n",
        "            if now.state not in (State.RESERVED, State.SENDING):\n                return None\n",
    ),
    Guard(
        "the fence makes the row SENDING before the bytes leave",
        submit,
        "self.attempt = self.ledger.begin(self.row, response_deadline=2 * window, quota=self.quota)",
        "self.attempt = self.row",
    ),
    Guard(
        "the fence looks again before the same request is sent once more",
        submit,
        "        if now.state != mine.state or now.fencing_token != mine.fencing_token:\n",
        "        if False:\n",
        Scope(workers=2, crashes=0, refusals=1, hidden_jobs=0, ticks=3),
    ),
    Guard(
        "what is found SENDING is in doubt",
        submit,
        'ledger.move(row, State.IN_DOUBT, why="found sending, without its sender")',
        'ledger.move(row, State.RESERVED, why="found sending, without its sender")',
    ),
    Guard(
        "an answer that proves nothing leaves it in doubt",
        submit,
        'ledger.move(attempt, State.IN_DOUBT, why=f"no answer: {error}")',
        'ledger.move(attempt, State.RESERVED, why=f"no answer: {error}")',
    ),
    Guard(
        "a sender's proof is about its own attempt",
        submit,
        "        if now.fencing_token == attempt.fencing_token and now.state in (State.SENDING, State.IN_DOUBT):\n",
        "        if now.state in (State.SENDING, State.IN_DOUBT):\n",
        Scope(workers=2, crashes=0, refusals=1, hidden_jobs=0, ticks=3),
    ),
    Guard(
        "the visibility window",
        submit,
        "        probe.visibility_window_seconds\n        + probe.request_timeout_seconds\n",
        "        probe.request_timeout_seconds\n",
    ),
    Guard(
        "the time in which a request may arrive",
        submit,
        "        probe.visibility_window_seconds\n        + probe.request_timeout_seconds\n",
        "        probe.visibility_window_seconds\n",
    ),
    Guard(
        "an empty search counts for the attempt that it was made for",
        submit,
        '    if first is None or first["token"] != row.fencing_token:\n',
        "    if first is None:\n",
    ),
    Guard(
        "a search that is not complete proves nothing",
        submit,
        "    if not found.complete:\n",
        "    if False:\n",
        Scope(workers=2, crashes=1, partial_searches=1, ticks=3),
    ),
    Guard(
        "a row moves only from the state and attempt that was seen",
        store,
        "            if now.state != row.state or now.fencing_token != row.fencing_token:\n                return now\n",
        "            if now.state != row.state:\n                return now\n",
    ),
    Guard(
        "what a search finds is of no attempt",
        submit,
        "            return ledger.record_found(row, fresh[0])\n",
        '            return ledger.record_sent(row, fresh[0], why="found by probe")\n',
    ),
    Guard(
        "the client key that is there wins",
        store,
        "            if now.client_key is not None or now.state != State.RESERVED:\n                return now\n",
        "",
        Scope(workers=2, crashes=1, late_commits=0, ticks=2),
        SAME_KEY,
    ),
    Guard(
        "under one client key every answer is about one job",
        store,
        " or now.client_key is not None\n            if now.state in NAMEABLE",
        "\n            if now.state in NAMEABLE",
        Scope(workers=2, crashes=1, late_commits=0, ticks=2),
        SAME_KEY,
    ),
]


def removed(guard: Guard) -> ModuleType:
    """The module without the guard, as a module of its own."""
    text = Path(str(guard.module.__file__)).read_text("utf-8")
    if text.count(guard.text) != 1:
        raise ValueError(f"the guard {guard.name!r} is not as it is written down in {__file__}")
    module = ModuleType(guard.module.__name__)
    module.__file__ = guard.module.__file__
    exec(compile(text.replace(guard.text, guard.instead), str(guard.module.__file__), "exec"), vars(module))
    return module


def explore_without(guard: Guard) -> Found:
    """Explores until the first violation."""
    module = removed(guard)
    patched: dict[str, Any] = {}
    if guard.module is submit:
        patched["submit_once"] = module.submit_once
    else:
        patched["ledger_class"] = module.Ledger
    return Explorer(guard.kind, guard.scope, **patched).run()
