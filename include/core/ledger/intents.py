"""What may be asked: an intent, an owner or a hold that a database would refuse, or cut, is refused before anything is written.

Invariant: it names the field and the value, and says what to give instead.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from include.core.errors import RequestError
from include.core.ledger.odd_values import KEY_LIMIT, unstorable
from include.core.ledger.rows import Intent, Owner, canonical
from include.core.ledger.states import State
from include.core.text import printable


def check_intent(intent: Intent) -> None:
    """Refuses what one of the databases would refuse, or cut, before anything is written."""
    texts = {"system": (intent.system, 40), "kind": (intent.kind, 40), "account": (intent.account, 250)}
    problems = [
        f"{name} {printable(text)} {why} (at most 40 characters; of account 250)"
        for name, (text, limit) in texts.items()
        if (why := unstorable(text, limit))
    ]
    if why := unstorable(intent.business_key):
        problems.append(f"business_key {printable(intent.business_key)} {why}: give a digest")
    size = intent.size_bytes
    if not isinstance(size, int) or not 0 <= size < 2**63:
        problems.append(f"size_bytes {printable(size)} must be a whole number that is not negative")
    for name, value in (("payload", intent.payload), ("detail", intent.detail)):
        try:
            canonical(dict(value))
        except (ValueError, TypeError, RecursionError) as error:
            problems.append(
                f"{name} cannot be written as JSON ({error}): give texts, finite numbers, lists and objects"
            )
    _refuse(
        [*problems, *_odd_owner(intent.owner)],
        f"{printable(intent.system, quotes=False)}/{printable(intent.kind, quotes=False)}",
    )


def _odd_owner(owner: Owner) -> list[str]:
    texts = {"dag_id": (owner.dag_id, 250), "run_id": (owner.run_id, 250), "task_id": (owner.task_id, 250)}
    texts["request_sha256"] = (owner.request_sha256, 64)
    return [
        f"{name} {printable(text)} of its owner {why}: give it another id"
        for name, (text, limit) in texts.items()
        if (why := unstorable(text, limit))
    ]


def _refuse(problems: Sequence[str], what: str) -> None:
    if problems:
        raise RequestError(f"{what}: {problem}" for problem in problems)


def reserved(intent: Intent, generation: int, now: float) -> dict[str, Any]:
    return {
        "system": intent.system,
        "kind": intent.kind,
        "business_key": intent.business_key,
        "generation": generation,
        "state": State.RESERVED,
        "fencing_token": str(uuid.uuid4()),
        "payload_sha256": intent.payload_sha256,
        "size_bytes": intent.size_bytes,
        "dag_id": intent.owner.dag_id,
        "run_id": intent.owner.run_id,
        "task_id": intent.owner.task_id,
        "map_index": intent.owner.map_index,
        "request_sha256": intent.owner.request_sha256,
        "account": intent.account,
        "reserved_at": now,
        "detail": dict(intent.detail),
    }


def check_owner(owner: Owner, what: str) -> None:
    """Refuses an owner that cannot be written down."""
    _refuse(_odd_owner(owner), what)


def check_hold(system: str, who: str, why: str) -> None:
    """Refuses a hold that cannot be written down."""
    given = {"system": (system, 40), "who": (who, KEY_LIMIT), "why": (why, KEY_LIMIT)}
    odd = {name: (text, reason) for name, (text, n) in given.items() if (reason := unstorable(text, n))}
    _refuse([f"{name} {printable(text)} {reason}: give another" for name, (text, reason) in odd.items()], "hold")
