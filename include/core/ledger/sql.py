"""The ledger's statements, written once per database as plain SQL: composing them anew each time costs more than running them.

Invariant: every statement is a constant of this module or composed from names of columns; values are always bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import Connection, CursorResult

from include.core.ledger.rows import DOCUMENT, Owner, Submission, documents_of
from include.core.ledger.schema import submissions
from include.core.ledger.states import State

COLUMNS = tuple(submissions.c.keys())
INSTANTS = ("reserved_at", "sending_at", "accept_deadline", "closed_at", "cancel_requested_at")
ATTACHED = "dag_id, run_id, task_id, map_index, request_sha256"
CHUNK = 500  # values in one IN list
_HEAD = "(SELECT number, sha256, at FROM waybill_events ORDER BY number DESC LIMIT 1)"
_WHOLE_HEAD = "(SELECT * FROM waybill_events ORDER BY number DESC LIMIT 1)"
_BY_ID = "SELECT * FROM waybill_submissions WHERE id = :id"
_LAST = (
    "SELECT * FROM waybill_submissions WHERE system = :system AND kind = :kind AND business_key = :business_key "
    "ORDER BY generation DESC LIMIT 1"
)
_INSERTED = tuple(
    name
    for name in COLUMNS
    if name not in ("id", "external_id", "sending_at", "accept_deadline", "closed_at", "cancel_requested_at")
)
INSERT = f"INSERT INTO waybill_submissions ({', '.join(_INSERTED)}) VALUES ({', '.join(f':{n}' for n in _INSERTED)}) RETURNING id"
INSERT_EVENT = (
    "INSERT INTO waybill_events (number, submission_id, at, body, previous_sha256, sha256) "
    "VALUES (:number, :submission_id, :at, :body, :previous_sha256, :sha256)"
)
INSERT_ATTACHMENT = (
    f"INSERT INTO waybill_attachments (submission_id, number, {ATTACHED}) "
    "VALUES (:submission_id, :number, :dag_id, :run_id, :task_id, :map_index, :request_sha256)"
)
INSERT_LATE_ANSWER = (
    "INSERT INTO waybill_late_answers (system, kind, external_id, submission_id) "
    "VALUES (:system, :kind, :external_id, :submission_id)"
)
INSERT_DOCUMENT = "INSERT INTO waybill_documents (sha256, content) VALUES (:sha256, :content) ON CONFLICT DO NOTHING"
REPLACE_HOLD = (
    "INSERT INTO waybill_holds (system, until, who, why) VALUES (:system, :until, :who, :why) "
    "ON CONFLICT (system) DO UPDATE SET until = excluded.until, who = excluded.who, why = excluded.why"
)
OF_RUN = (
    "s.id IN (SELECT id FROM waybill_submissions WHERE dag_id = :dag_id AND run_id = :run_id "
    "UNION ALL SELECT submission_id FROM waybill_attachments WHERE dag_id = :dag_id AND run_id = :run_id)"
)
_CLOCK = {"sqlite": "(julianday('now') - 2440587.5) * 86400.0", "postgresql": "extract(epoch FROM clock_timestamp())"}
_ARRAY = {
    "sqlite": ("json_group_array", "json_array"),
    "postgresql": ("json_agg", "json_build_array"),
}


@lru_cache(maxsize=64)
def spelled(statement: str, dialect: str) -> str:
    """A statement with `:name` for its values, as the driver of this database wants it."""
    if dialect == "sqlite":
        return statement
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement.replace("%", "%%"))


def execute(conn: Connection, statement: str, values: Mapping[str, Any]) -> CursorResult[Any]:
    return conn.exec_driver_sql(spelled(statement, conn.dialect.name), dict(values))


@lru_cache(maxsize=8)
def row_columns(dialect: str) -> str:
    """The columns of a row of `waybill_submissions AS s`, and who attached to it as one JSON array."""
    group, array = _ARRAY[dialect]
    attached = ", ".join(f"a.{name}" for name in ("number", *ATTACHED.split(", ")))
    found = f"(SELECT {group}({array}({attached})) FROM waybill_attachments a WHERE a.submission_id = s.id)"
    return ", ".join([*(f"s.{name}" for name in COLUMNS), f"{found} AS attached"])


@lru_cache(maxsize=16)
def _head_and_row(dialect: str, which: str) -> str:
    clock = _CLOCK[dialect]
    return (
        f"SELECT h.number AS head_number, h.sha256 AS head_sha256, h.at AS head_at, {clock} AS clock, "
        "h.submission_id AS head_submission_id, h.body AS head_body, "
        f"k.until AS hold_until, k.who AS hold_who, k.why AS hold_why, {row_columns(dialect)} "
        f"FROM (SELECT 1 AS one) AS o LEFT JOIN {_WHOLE_HEAD} AS h ON 1 = 1 "
        f"LEFT JOIN ({which}) AS s ON 1 = 1 LEFT JOIN waybill_holds AS k ON k.system = s.system"
    )


@dataclass(frozen=True)
class Hold:
    """A person's word that nothing is sent to a system until an instant (by the database's clock)."""

    system: str
    until: float
    who: str
    why: str


@dataclass(frozen=True)
class Found:
    """What a transaction starts from: the head of the chain, the database's clock, and the row asked for, if it exists.

    `head_body`: the last event, where the transaction was not begun by a swap.
    """

    number: int | None
    sha256: str | None
    at: float
    clock: float
    row: Mapping[str, Any] | None
    hold: Hold | None = None
    head_submission_id: int | None = None
    head_body: str | None = None


def head_and_row(conn: Connection, *, id: int | None = None, key: Mapping[str, str] | None = None) -> Found:
    """The head, the clock and one row (by id, or the newest generation of a key) in one statement."""
    which, values = (_LAST, key) if key is not None else (_BY_ID, {"id": id})
    row = execute(conn, _head_and_row(conn.dialect.name, which), values or {}).mappings().one()
    clock, at = float(row["clock"]), float(row["head_at"] or 0.0)
    found = dict(row) if row["id"] is not None else None
    hold = Hold(row["system"], row["hold_until"], row["hold_who"], row["hold_why"]) if row["hold_until"] else None
    last = row["head_submission_id"], row["head_body"]
    return Found(row["head_number"], row["head_sha256"], at, clock, found, hold, *last)


def select(conn: Connection, where: str, values: Mapping[str, Any]) -> list[Submission]:
    """Rows as values, in the order in which they were reserved."""
    statement = f"SELECT {row_columns(conn.dialect.name)} FROM waybill_submissions AS s WHERE {where} ORDER BY s.id"
    rows = execute(conn, statement, values).mappings().all()
    return submissions_of(conn, rows)


@lru_cache(maxsize=64)
def _swap(dialect: str, names: tuple[str, ...], later: tuple[str, ...], own_clock: bool) -> str:
    clock = ":clock" if own_clock else _CLOCK[dialect].replace("clock_timestamp", "statement_timestamp")
    now = f"CAST({clock} AS DOUBLE PRECISION)"
    changes = [f"{name} = :{name}" for name in names] + [f"{name} = {now} + :after_{name}" for name in later]
    head = ", ".join(f"(SELECT {name} FROM {_HEAD} AS h_{name}) AS head_{name}" for name in ("number", "sha256", "at"))
    seen = " AND ".join(f"coalesce({name}, '') = :seen_{name}" for name in ("fencing_token", "external_id"))
    returned = row_columns(dialect).replace("s.", "waybill_submissions.")
    return (
        f"UPDATE waybill_submissions SET {', '.join(changes)} WHERE id = :id AND state = :seen_state AND {seen} "
        "AND detail = :seen_detail AND cancel_requested_at IS NULL AND NOT EXISTS "
        f"(SELECT 1 FROM waybill_holds WHERE waybill_holds.system = waybill_submissions.system AND until > {now}) "
        f"AND NOT EXISTS (SELECT 1 FROM {_HEAD} AS t WHERE t.at > {now}) "
        f"RETURNING {returned}, {head}, {now} AS clock"
    )


def swap(
    conn: Connection,
    seen: Mapping[str, Any],
    values: Mapping[str, Any],
    later: Mapping[str, float],
    clock: float | None,
) -> Found | None:
    """Changes a row if it is exactly as it was `seen`, its system is not on hold, and the clock is not behind the last event: all
    that a transaction starts from, and the change itself, in one statement. `later`: columns that become the ledger's time and
    so many seconds."""
    statement = _swap(conn.dialect.name, tuple(sorted(values)), tuple(sorted(later)), clock is not None)
    asked = {**values, **{f"after_{name}": seconds for name, seconds in later.items()}, "id": seen["id"]}
    asked |= {f"seen_{name}": seen[name] or "" for name in ("fencing_token", "external_id", "state", "detail")}
    row = execute(conn, statement, asked | ({} if clock is None else {"clock": clock})).mappings().first()
    if row is None:
        return None
    # SQLite's RETURNING gives whole seconds as integers, a later SELECT as floats: the chain holds one spelling.
    found = dict(row) | {name: float(row[name]) for name in INSTANTS if row[name] is not None}
    return Found(row["head_number"], row["head_sha256"], float(row["head_at"] or 0.0), float(row["clock"]), found)


@lru_cache(maxsize=64)
def update(names: tuple[str, ...]) -> str:
    return f"UPDATE waybill_submissions SET {', '.join(f'{name} = :{name}' for name in names)} WHERE id = :id"


def one_of(name: str, values: Sequence[str]) -> tuple[str, dict[str, str]]:
    """`name IN (…)` with its values bound."""
    bound = {f"v{number}": value for number, value in enumerate(values)}
    return f"{name} IN ({', '.join(f':{key}' for key in bound)})", bound


def documents(conn: Connection, digests: Sequence[str]) -> dict[str, Any]:
    """The content of documents by sha256; one that is lost is absent (`audit` says so)."""
    found: dict[str, Any] = {}
    for start in range(0, len(digests), CHUNK):
        where, values = one_of("sha256", digests[start : start + CHUNK])
        for row in execute(conn, f"SELECT sha256, content FROM waybill_documents WHERE {where}", values):
            found[row.sha256] = json.loads(row.content)
    return found


def submissions_of(conn: Connection, rows: Sequence[Mapping[Any, Any]]) -> list[Submission]:
    """Database rows as values, long values of their `detail` put back."""
    details = [_parsed(row["detail"]) for row in rows]
    wanted = {
        digest
        for row, detail in zip(rows, details, strict=True)
        if DOCUMENT in row["detail"]
        for digest in documents_of(detail).values()
    }
    contents = documents(conn, sorted(wanted)) if wanted else {}
    if contents:
        details = [
            {**detail, **{name: contents[sha] for name, sha in documents_of(detail).items() if sha in contents}}
            for detail in details
        ]
    return [submission(row, detail) for row, detail in zip(rows, details, strict=True)]


@lru_cache(maxsize=4096)
def _parsed(detail: str) -> Mapping[str, Any]:
    """A `detail` as a value. A pass over many destinations reads the same rows again and again."""
    return MappingProxyType(json.loads(detail))


_FIELDS = tuple(
    name for name in Submission.__dataclass_fields__ if name not in ("owner", "state", "detail", "attached")
)


def submission(row: Mapping[Any, Any], detail: Mapping[str, Any]) -> Submission:
    """A database row as a value."""
    owner = Owner(row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["request_sha256"])
    attached = row["attached"] or []
    if isinstance(attached, str):  # SQLite knows JSON as text only
        attached = json.loads(attached) if attached != "[]" else []
    others = tuple(Owner(*who) for _number, *who in sorted(attached, key=lambda one: abs(one[0])))
    fields = {name: row[name] for name in _FIELDS}
    return Submission(**fields, owner=owner, state=State(row["state"]), detail=detail, attached=others)
