"""Is the ledger what it was? Reads the chain event by event, replays it, and compares it with the rows and with receipts.

Invariant: it shares no shortcut with `store`. It recomputes every digest from the stored bytes, and trusts a receipt only
for the head that the receipt names. Names of earlier schemas are translated after the digest was checked, never before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from include.core.ledger.archive import Archive, merged, stub
from include.core.ledger.migrations import attached_before, todays_names
from include.core.ledger.rows import documents_of
from include.core.ledger.schema import archives, attachments, documents, events, late_answers, submissions
from include.core.ledger.sql import ATTACHED
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
    """The chain read so far: where it stands, the last row of each submission, and who attached to it."""

    number: int = 0
    sha256: str = GENESIS
    at: float = 0.0
    whole: bool = True
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    attached: dict[int, list[tuple[Any, ...]]] = field(default_factory=dict)

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
        if "attached" in body:
            self.attached.setdefault(row["id"], []).append(
                (expected, *(body["attached"][c] for c in ATTACHED.split(", ")))
            )
        known = before == row["state"] or (
            row["state"] == "RESERVED" if before is None else row["state"] in MOVES[before]
        )
        if body["before"] != before or not known:
            return f"event {expected} makes a move that does not exist: {before} to {row['state']}"
        return None

    def attachments(self) -> set[tuple[Any, ...]]:
        """The rows of the table of attachments, as the chain has them."""
        found = {(row_id, *who) for row_id, several in self.attached.items() for who in several}
        for row_id, row in self.rows.items():
            found |= {(row_id, *who.values()) for who in attached_before(json.loads(row["detail"]))}
        return found

    def late_answers(self) -> set[tuple[Any, ...]]:
        return {
            (row["system"], row["kind"], late, row_id)
            for row_id, row in self.rows.items()
            for late in json.loads(row["detail"]).get("late_answers", [])
        }


def verify(ledger: Ledger, receipts: Iterable[Mapping[str, Any]] = (), archived: Iterable[Archive] = ()) -> Audit:
    """Checks the chain event by event, the rows against their last event, and the heads that receipts carry.

    `archived`: the files that `archive` has written; all that the ledger names are needed.
    """
    audit = Audit(ledger.ledger_id)
    heads = _receipt_heads(ledger.ledger_id, receipts, audit)
    audit.receipts += len(heads.pop((0, GENESIS), []))
    replay = _Replay()
    with ledger.reading() as conn:
        files, lacking = _needed(conn, archived)
        audit.problems += lacking
        audit.problems += [
            f"document {digest[:12]} in {one.path.name} was changed by hand"
            for one in files
            for digest in one.changed_documents()
        ]
        stream = conn.execution_options(yield_per=1000).execute(sa.select(events).order_by(events.c.number)).mappings()
        for event in merged(stream, files):
            audit.events += 1
            problem = replay.next(event)
            if problem:
                replay.whole = False
                audit.problems += [problem] if len(audit.problems) < PROBLEM_LIMIT else []
            audit.receipts += len(heads.pop((event["number"], event["sha256"]), []))
        audit.submissions = int(conn.execute(sa.select(sa.func.count()).select_from(submissions)).scalar_one())
        if replay.whole:  # after a broken chain the replay proves nothing about the tables
            audit.problems += _tables_against(conn, replay, files)
    audit.problems += [
        f"receipt {name} names event {number} {digest[:12]}, which the ledger does not hold: events were changed or lost"
        for (number, digest), names in sorted(heads.items())
        for name in names
    ]
    return audit


def _needed(conn: Connection, given: Iterable[Archive]) -> tuple[list[Archive], list[str]]:
    """Of the given files those that the ledger names, and what is said of those that it names and that are not given. (One
    that it does not name was written by an archiving that was broken off: nothing was taken out for it.)"""
    by_digest = {one.sha256: one for one in given}
    rows = conn.execute(sa.select(archives).order_by(archives.c.at)).all()
    lacking = [
        f"{row.events} events are in the archive {row.name} (sha256 {row.sha256[:12]}), which was not given, or was "
        "changed: name its folder with --archives"
        for row in rows
        if row.sha256 not in by_digest
    ]
    return [by_digest[row.sha256] for row in rows if row.sha256 in by_digest], lacking


def _tables_against(conn: Connection, replay: _Replay, files: Iterable[Archive]) -> Iterator[str]:
    """What differs between the tables and the replayed chain."""
    expected, wanted = dict(replay.rows), set[str]()
    archived_rows = {row_id for one in files for row_id in one.submission_ids}
    stream = conn.execution_options(yield_per=1000)
    for row in stream.execute(sa.select(submissions).order_by(submissions.c.id)).mappings():
        found, last = dict(row), expected.pop(row["id"], None)
        stubbed = row["id"] in archived_rows and last is not None
        if last is not None and stubbed and found["detail"] == stub(last["state"], json.loads(last["detail"])):
            found["detail"] = last["detail"]  # only the file has it all
        wanted |= set(documents_of(json.loads(row["detail"])).values())
        if last != found:
            yield f"submission {row['id']} differs from its last event: the row was changed by hand"
    for lost in sorted(expected):
        yield f"submission {lost} is missing: the row was deleted by hand"
    yield from _side_tables(conn, replay)
    kept = {one.sha256: one.content for one in stream.execute(sa.select(documents))}
    for sha256, content in kept.items():
        if hashlib.sha256(content.encode()).hexdigest() != sha256:
            yield f"document {sha256[:12]} was changed by hand"
    for sha256 in sorted(wanted - set(kept)):
        yield f"document {sha256[:12]} is missing: it was deleted by hand"


def _side_tables(conn: Connection, replay: _Replay) -> Iterator[str]:
    """What differs between the chain and the tables that repeat parts of it to be searched."""
    for table, chained in ((attachments, replay.attachments()), (late_answers, replay.late_answers())):
        stored = {tuple(row) for row in conn.execute(sa.select(table))}
        for odd in sorted(stored ^ chained, key=str):
            yield f"table {table.name} and the chain differ in {odd}: the table was changed by hand"


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
