"""Is the ledger what it was? Reads the chain event by event, replays it, and compares it with the rows and with receipts.

Invariant: it shares no shortcut with `store`. It recomputes every digest from the stored bytes, and trusts a receipt only
for the head that the receipt names. Names of earlier schemas are translated after the digest was checked, never before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from include.core.ledger.migrations import todays_names
from include.core.ledger.schema import events, submissions
from include.core.ledger.states import MOVES
from include.core.ledger.store import Ledger
from include.core.ledger.transaction import GENESIS, chain_sha256

PROBLEM_LIMIT = 100  # a ledger that is broken everywhere needs no longer list


@dataclass
class Audit:
    """What was checked, and everything that is wrong (empty: the ledger is whole)."""

    ledger_id: str
    events: int = 0
    submissions: int = 0
    receipts: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Replay:
    """The chain read so far: where it stands, and the last row that each submission had."""

    number: int = 0
    sha256: str = GENESIS
    at: float = 0.0
    whole: bool = True
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def next(self, event: Mapping[Any, Any]) -> str | None:
        """Takes in one event. Returns what is wrong with it; reading goes on from what is stored."""
        expected, previous, last_at = self.number + 1, self.sha256, self.at
        self.number, self.sha256, self.at = event["number"], event["sha256"], event["at"]
        if event["number"] != expected:
            return f"event {expected} is missing (found {event['number']})"
        if event["previous_sha256"] != previous or event["sha256"] != chain_sha256(previous, event["body"]):
            return f"event {expected} does not fit the chain: it, or the one before, was changed"
        body = todays_names(json.loads(event["body"]))
        row = body["row"]
        if (body["number"], body["at"], row["id"]) != (expected, event["at"], event["submission_id"]):
            return f"event {expected}: its columns and its body differ"
        if event["at"] < last_at:
            return f"event {expected} is older than the one before"
        before = self.rows.get(row["id"], {}).get("state")
        self.rows[row["id"]] = row
        known = before == row["state"] or (
            row["state"] == "RESERVED" if before is None else row["state"] in MOVES[before]
        )
        if body["before"] != before or not known:
            return f"event {expected} makes a move that does not exist: {before} to {row['state']}"
        return None


def verify(ledger: Ledger, receipts: Iterable[Mapping[str, Any]] = ()) -> Audit:
    """Checks the chain event by event, the rows against their last event, and the heads that receipts carry."""
    audit = Audit(ledger.ledger_id)
    heads = _receipt_heads(ledger.ledger_id, receipts, audit)
    audit.receipts += len(heads.pop((0, GENESIS), []))
    replay = _Replay()
    with ledger.reading() as conn:
        stream = conn.execution_options(yield_per=1000)
        for event in stream.execute(sa.select(events).order_by(events.c.number)).mappings():
            audit.events += 1
            problem = replay.next(event)
            if problem:
                replay.whole = False
                audit.problems += [problem] if len(audit.problems) < PROBLEM_LIMIT else []
            audit.receipts += len(heads.pop((event["number"], event["sha256"]), []))
        chain_is_whole = replay.whole
        for row in stream.execute(sa.select(submissions).order_by(submissions.c.id)).mappings():
            audit.submissions += 1
            # After a broken chain the replay proves nothing about the rows.
            if replay.rows.pop(row["id"], None) != dict(row) and chain_is_whole:
                audit.problems.append(
                    f"submission {row['id']} differs from its last event: the row was changed by hand"
                )
    if chain_is_whole:
        audit.problems += [f"submission {lost} is missing: the row was deleted by hand" for lost in sorted(replay.rows)]
    audit.problems += [
        f"receipt {name} names event {number} {digest[:12]}, which the ledger does not hold: events were changed or lost"
        for (number, digest), names in sorted(heads.items())
        for name in names
    ]
    return audit


def _receipt_heads(
    ledger_id: str, receipts: Iterable[Mapping[str, Any]], audit: Audit
) -> dict[tuple[int, str], list[str]]:
    """Which (number, sha256) each receipt says was the head. A receipt of another ledger is a problem by itself.

    A receipt without one (its run ended before it had opened the ledger) says nothing.
    """
    heads: dict[tuple[int, str], list[str]] = {}
    for receipt in receipts:
        name = f"{receipt.get('dag_id')}/{receipt.get('run_id')}"
        ledger = receipt.get("ledger")
        if not ledger:
            continue
        if ledger.get("id") != ledger_id:
            audit.problems.append(f"receipt {name} belongs to ledger {ledger.get('id')}, not to this one")
        else:
            heads.setdefault((int(ledger.get("number", -1)), str(ledger.get("sha256"))), []).append(name)
    return heads
