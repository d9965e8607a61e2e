"""One transaction under the write lock: rows change here and nowhere else, and each change appends its event.

Invariant: the event holds the whole row as it is after the change, so that the chain alone can rebuild the table. `audit`
checks exactly that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from include.core.errors import LedgerError
from include.core.ledger import sql
from include.core.ledger.clock import Time
from include.core.ledger.rows import Owner, Submission, canonical, long_values
from include.core.ledger.states import CLOSED, MOVES, State

GENESIS = "0" * 64


def chain_sha256(previous: str, body: str) -> str:
    """The digest that binds an event to all before it."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


def closes(old: Submission, values: dict[str, Any]) -> bool:
    """Whether this change ends a submission. Raises LedgerError for a move that the state machine does not know."""
    new_state = State(values.get("state", old.state))
    if new_state != old.state and new_state not in MOVES[old.state]:
        raise LedgerError(f"{old}: a move to {new_state} does not exist")
    if new_state == State.SENT and not values.get("external_id", old.external_id):
        raise LedgerError(f"{old}: it cannot be SENT without the remote's id")
    if "state" in values:
        values["state"] = str(new_state)
    return new_state in CLOSED and new_state != old.state


@dataclass
class Write:
    """One transaction under the write lock, at an instant of the ledger's time.

    `row` is the one that the transaction was begun for. `stored` holds the rows that it has read or changed, as they are in
    the database.
    """

    conn: Connection
    time: Time
    last_number: int
    last_sha256: str
    row: Submission | None = None
    hold: sql.Hold | None = None
    stored: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """The ledger's time."""
        return self.time.now

    @property
    def clock(self) -> float:
        """What the database's clock shows."""
        return self.time.clock

    def took_in(self, row: Mapping[Any, Any]) -> Submission:
        """A row that was just read."""
        self.stored[row["id"]] = {name: row[name] for name in sql.COLUMNS}
        return sql.submissions_of(self.conn, [row])[0]

    def insert(self, values: dict[str, Any], *, why: str) -> Submission:
        """A new row. `detail` as given by the intent."""
        detail = values["detail"]
        kept, documents = long_values(detail)
        row = dict.fromkeys(sql.COLUMNS) | values | {"detail": canonical(kept)}
        self.keep(documents)
        inserted = {name: value for name, value in row.items() if value is not None and name != "id"}
        row["id"] = int(sql.execute(self.conn, sql.INSERT, inserted).scalar_one())
        return self.record(row, None, why, None, detail, ())

    def change(
        self,
        old: Submission,
        values: dict[str, Any],
        *,
        why: str,
        who: str | None = None,
        attach: Owner | None = None,
        late_answer: str | None = None,
    ) -> Submission:
        """Changes a row and appends the event. Refuses a move that the state machine does not know.

        `attach`: another task that waits for it from now on. `late_answer`: a remote id that belongs to a replaced attempt.
        """
        if closes(old, values):
            values["closed_at"] = self.now
        detail: Mapping[str, Any] = old.detail
        if "detail" in values:
            detail = values["detail"]
            kept, documents = long_values(detail)
            values["detail"] = canonical(kept)
            before = self.stored[old.id]["detail"]
            self.keep({sha256: text for sha256, text in documents.items() if sha256 not in before})
        if values:
            statement = sql.update(tuple(sorted(values)))
            sql.execute(self.conn, statement, {**values, "id": old.id})
        if late_answer is not None:
            place = {"system": old.system, "kind": old.kind, "submission_id": old.id}
            sql.execute(self.conn, sql.INSERT_LATE_ANSWER, {**place, "external_id": late_answer})
        attached = old.attached
        if attach is not None:
            who_waits = {"submission_id": old.id, "number": self.last_number + 1, **asdict(attach)}
            sql.execute(self.conn, sql.INSERT_ATTACHMENT, who_waits)
            attached = (*attached, attach)
        return self.record({**self.stored[old.id], **values}, old.state, why, who, detail, attached, attach)

    def keep(self, documents: Mapping[str, str]) -> None:
        for sha256, content in documents.items():
            sql.execute(self.conn, sql.INSERT_DOCUMENT, {"sha256": sha256, "content": content})

    def record(
        self,
        row: dict[str, Any],
        before: State | None,
        why: str,
        who: str | None,
        detail: Mapping[str, Any],
        attached: tuple[Owner, ...],
        attach: Owner | None = None,
    ) -> Submission:
        """Appends the event of a change that was made."""
        self.last_number += 1
        self.stored[row["id"]] = row
        event: dict[str, Any] = {"number": self.last_number, "at": self.now, "before": before, "why": why, "who": who}
        if attach is not None:
            event["attached"] = asdict(attach)
        body = canonical({**event, **self.time.noted(), "row": row})
        digest = chain_sha256(self.last_sha256, body)
        values = {"number": self.last_number, "submission_id": row["id"], "at": self.now, "body": body}
        sql.execute(self.conn, sql.INSERT_EVENT, {**values, "previous_sha256": self.last_sha256, "sha256": digest})
        self.last_sha256 = digest
        owners = [list(asdict(owner).values()) for owner in attached]
        return sql.submission({**row, "attached": [[at, *who] for at, who in enumerate(owners)]}, detail)
