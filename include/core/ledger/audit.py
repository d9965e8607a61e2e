"""Is the ledger what it was? Walks the chain, replays it, and compares it with the rows and with receipts.

The thing to know before changing it: it must share no shortcut with `store`. It recomputes every digest from the stored
bytes, and trusts a receipt only for the head that the receipt names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from include.core.ledger.schema import events, submissions
from include.core.ledger.store import GENESIS, Ledger, chain_sha256


@dataclass
class Audit:
    """What was checked, and everything that is wrong (empty: the ledger is whole)."""

    ledger_id: str
    events: int = 0
    submissions: int = 0
    receipts: int = 0
    problems: list[str] = field(default_factory=list)


def verify(ledger: Ledger, receipts: Iterable[Mapping[str, Any]] = ()) -> Audit:
    """Checks the chain event by event, the rows against their last event, and the heads that receipts carry."""
    audit = Audit(ledger.ledger_id)
    heads = _receipt_heads(ledger.ledger_id, receipts, audit)
    replayed: dict[int, dict[str, Any]] = {}
    previous, last_at = GENESIS, 0.0
    with ledger._read() as conn:
        for event in conn.execute(sa.select(events).order_by(events.c.number)).mappings():
            audit.events += 1
            problem = _event_problem(event, audit.events, previous, last_at)
            if problem:
                audit.problems.append(problem)
                break
            previous, last_at = event["sha256"], event["at"]
            replayed[event["submission_id"]] = json.loads(event["body"])["row"]
            audit.receipts += len(heads.pop((event["number"], event["sha256"]), []))
        rows = {row["id"]: dict(row) for row in conn.execute(sa.select(submissions)).mappings()}
    audit.submissions = len(rows)
    audit.problems += [
        f"receipt {name} names event {number} {digest[:12]}, which the ledger does not hold: events were changed or lost"
        for (number, digest), names in sorted(heads.items())
        for name in names
    ]
    for submission_id in sorted(rows.keys() | replayed.keys()):
        if rows.get(submission_id) != replayed.get(submission_id):
            audit.problems.append(
                f"submission {submission_id} differs from its last event: the row was changed by hand"
            )
    return audit


def _event_problem(event: Mapping[Any, Any], expected: int, previous: str, last_at: float) -> str | None:
    body = json.loads(event["body"])
    number = event["number"]
    if number != expected:
        return f"event {expected} is missing (found {number})"
    if event["previous_sha256"] != previous or event["sha256"] != chain_sha256(previous, event["body"]):
        return f"event {number} does not fit the chain: it, or the one before, was changed"
    if (body["number"], body["at"], body["row"]["id"]) != (number, event["at"], event["submission_id"]):
        return f"event {number}: its columns and its body differ"
    if event["at"] < last_at:
        return f"event {number} is older than the one before"
    return None


def _receipt_heads(
    ledger_id: str, receipts: Iterable[Mapping[str, Any]], audit: Audit
) -> dict[tuple[int, str], list[str]]:
    """Which (number, sha256) each receipt says was the head. A receipt of another ledger is a problem by itself."""
    heads: dict[tuple[int, str], list[str]] = {}
    for receipt in receipts:
        name = f"{receipt.get('dag_id')}/{receipt.get('run_id')}"
        ledger = receipt.get("ledger") or {}
        if ledger.get("id") != ledger_id:
            audit.problems.append(f"receipt {name} belongs to ledger {ledger.get('id')}, not to this one")
        else:
            heads.setdefault((ledger["number"], ledger["sha256"]), []).append(name)
    return heads
