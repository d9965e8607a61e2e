"""One transaction under the write lock: rows change here and nowhere else, and each change appends its event.

Invariant: the event holds the whole row as it is after the change, so that the chain alone can rebuild the table. `audit`
checks exactly that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from include.core.errors import LedgerError, QuotaExceeded, RequestError
from include.core.ledger.rows import Intent, Quota, Submission, canonical, submission
from include.core.ledger.schema import events, submissions
from include.core.ledger.states import CLOSED, MOVES, UNCERTAIN, State

GENESIS = "0" * 64


def chain_sha256(previous: str, body: str) -> str:
    """The digest that binds an event to all before it."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def head(conn: Connection) -> tuple[int, str]:
    """Number and sha256 of the last event; (0, GENESIS) in a ledger without any."""
    row = conn.execute(sa.select(events.c.number, events.c.sha256).order_by(events.c.number.desc()).limit(1)).first()
    return (int(row.number), str(row.sha256)) if row is not None else (0, GENESIS)


@dataclass
class Write:
    """One transaction under the write lock. `now` never runs backwards, whatever the host's clock does."""

    conn: Connection
    now: float
    last_number: int
    last_sha256: str

    def row(self, submission_id: int) -> Submission:
        found = self.conn.execute(sa.select(submissions).where(submissions.c.id == submission_id)).mappings().first()
        if found is None:
            raise LedgerError(f"the ledger has no submission {submission_id}")
        return submission(found)

    def last(self, intent: Intent) -> Submission | None:
        """The newest generation of this effect."""
        c = submissions.c
        key = (c.system == intent.system, c.kind == intent.kind, c.business_key == intent.business_key)
        query = sa.select(submissions).where(*key).order_by(c.generation.desc()).limit(1)
        row = self.conn.execute(query).mappings().first()
        return submission(row) if row is not None else None

    def insert(self, values: dict[str, Any], *, why: str) -> Submission:
        new_id = self.conn.execute(submissions.insert().values(**values).returning(submissions.c.id)).scalar_one()
        return self._record(int(new_id), None, why, None)

    def change(self, old: Submission, values: dict[str, Any], *, why: str, who: str | None = None) -> Submission:
        """Changes a row and appends the event. Refuses a move that the state machine does not know."""
        new_state = State(values.get("state", old.state))
        if new_state != old.state and new_state not in MOVES[old.state]:
            raise LedgerError(f"{old}: a move to {new_state} does not exist")
        if new_state == State.SENT and not values.get("external_id", old.external_id):
            raise LedgerError(f"{old}: it cannot be SENT without the remote's id")
        if new_state in CLOSED and new_state != old.state:
            values["closed_at"] = self.now
        if "detail" in values:
            values["detail"] = canonical(values["detail"])
        self.conn.execute(submissions.update().where(submissions.c.id == old.id).values(**values))
        return self._record(old.id, old.state, why, who)

    def _record(self, submission_id: int, before: State | None, why: str, who: str | None) -> Submission:
        row = dict(self.conn.execute(sa.select(submissions).where(submissions.c.id == submission_id)).mappings().one())
        self.last_number += 1
        body = canonical(
            {"number": self.last_number, "at": self.now, "before": before, "why": why, "who": who, "row": row}
        )
        digest = chain_sha256(self.last_sha256, body)
        values = {"number": self.last_number, "submission_id": submission_id, "at": self.now, "body": body}
        self.conn.execute(events.insert().values(**values, previous_sha256=self.last_sha256, sha256=digest))
        self.last_sha256 = digest
        return submission(row)

    def check_quota(self, intent: Intent, quota: Quota) -> None:
        """Raises QuotaExceeded where this intent does not fit into the window now, RequestError where it never can."""
        if intent.size_bytes > quota.limit_bytes:
            raise RequestError(
                f"{intent.business_key} asks for {intent.size_bytes} bytes, more than the whole quota of "
                f"{quota.limit_bytes} bytes per {quota.window_seconds:.0f} s: split it"
            )
        span = quota.window_seconds + quota.margin_seconds
        c = submissions.c
        counted = sa.or_(c.state.in_([str(s) for s in UNCERTAIN]), c.accept_deadline > self.now - span)
        query = sa.select(c.size_bytes, c.accept_deadline, c.state).where(
            c.system == intent.system, c.kind == intent.kind, counted
        )
        rows = self.conn.execute(query).all()
        over = sum(r.size_bytes for r in rows) + intent.size_bytes - quota.limit_bytes
        if over <= 0:
            return
        available_at = self.now + span
        for row in sorted((r for r in rows if r.state not in UNCERTAIN), key=lambda r: float(r.accept_deadline)):
            over -= row.size_bytes
            if over <= 0:
                available_at = row.accept_deadline + span
                break
        raise QuotaExceeded(
            f"{intent.system}/{intent.kind}: {intent.size_bytes} bytes do not fit into the quota of {quota.limit_bytes} bytes "
            f"per {quota.window_seconds:.0f} s now; they will in {available_at - self.now:.0f} s",
            available_at=available_at,
        )
