"""The steps that bring a ledger from any earlier schema to today's, each with the names that were true when it was written.

Invariant: a released step is never edited and uses no name from `schema`, which holds today's names only. A new shape is a
new function at the end of `MIGRATIONS`; `init` applies what is missing in one transaction, so that a killed migration leaves
the old schema whole.

Events are never rewritten: the chain's digests cover their bytes. A body written before a renaming therefore keeps the old
names for ever, and `todays_names` translates them when a body is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

# Schema 1 and 2 → schema 3. Names in event bodies that were written before; each was renamed exactly once.
RENAMED_COLUMNS = {"accepted_by": "accept_deadline", "attempt_token": "fencing_token"}
RENAMED_STATES = {"DOUBTFUL": "IN_DOUBT"}

# Schema 3 → 4. Before, an owner was known by its run alone: this stands for its task and for what it asked for.
ANY = "*"

# Keys in the `detail` of rows. They are not migrated, since the last event of a row must hold the same bytes as the row:
# whoever reads one of these reads the old spelling too (`detail_value`).
RENAMED_DETAIL_KEYS = {"effect_present": "is_effective", "first_empty_walk": "first_empty_search"}
_OLD_DETAIL_KEY = {new: old for old, new in RENAMED_DETAIL_KEYS.items()}


def todays_names(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an event with columns and states named as they are now. Nothing else of it changes."""
    row = {RENAMED_COLUMNS.get(name, name): value for name, value in body["row"].items()}
    row["state"] = RENAMED_STATES.get(row["state"], row["state"])
    row.setdefault("request_sha256", ANY)
    row.setdefault("account", "")
    return {**body, "before": RENAMED_STATES.get(body["before"], body["before"]), "row": row}


def detail_value(detail: Mapping[str, Any], key: str) -> Any:
    """A value of a row's `detail`, also where it was written under the key of an earlier schema; None where it is absent."""
    return detail[key] if key in detail else detail.get(_OLD_DETAIL_KEY.get(key, key))


def _create_tables(conn: Connection) -> None:
    metadata, text = sa.MetaData(), sa.Text
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    sa.Table(
        "waybill_ledger",
        metadata,
        sa.Column("ledger_id", sa.String(36), primary_key=True),
        sa.Column("schema_version", sa.Integer, nullable=False),
    )
    sa.Table(
        "waybill_submissions",
        metadata,
        sa.Column("id", number, primary_key=True, autoincrement=True),
        sa.Column("system", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("business_key", text, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("attempt_token", sa.String(36)),
        sa.Column("external_id", text),
        sa.Column("payload_sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("task_id", sa.String(250), nullable=False),
        sa.Column("map_index", sa.Integer, nullable=False),
        sa.Column("reserved_at", sa.Double, nullable=False),
        sa.Column("sending_at", sa.Double),
        sa.Column("accepted_by", sa.Double),
        sa.Column("closed_at", sa.Double),
        sa.Column("cancel_requested_at", sa.Double),
        sa.Column("detail", text, nullable=False),
        sa.UniqueConstraint("system", "kind", "business_key", "generation", name="waybill_one_row_per_generation"),
        sa.UniqueConstraint("system", "kind", "external_id", name="waybill_one_row_per_remote_job"),
    )
    sa.Table(
        "waybill_events",
        metadata,
        sa.Column("number", number, primary_key=True, autoincrement=False),
        sa.Column("submission_id", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("body", text, nullable=False),
        sa.Column("previous_sha256", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
    )
    metadata.create_all(conn, checkfirst=False)


def _index_runs_and_states(conn: Connection) -> None:
    for index in (
        "waybill_submissions_by_run ON waybill_submissions (dag_id, run_id)",
        "waybill_submissions_by_state ON waybill_submissions (system, state)",
        "waybill_events_by_submission ON waybill_events (submission_id)",
    ):
        conn.exec_driver_sql(f"CREATE INDEX {index}")


def _rename_to_the_terms_of_the_field(conn: Connection) -> None:
    for old, new in (("accepted_by", "accept_deadline"), ("attempt_token", "fencing_token")):
        conn.exec_driver_sql(f"ALTER TABLE waybill_submissions RENAME COLUMN {old} TO {new}")
    for before, after in RENAMED_STATES.items():
        conn.exec_driver_sql(f"UPDATE waybill_submissions SET state = '{after}' WHERE state = '{before}'")


def _attachments_in_a_table(conn: Connection) -> None:
    """Who waits for what, late answers, long values and archives get tables; what is searched for gets an index."""
    metadata, text, big = sa.MetaData(), sa.Text, sa.BigInteger
    attachments = sa.Table(
        "waybill_attachments",
        metadata,
        sa.Column("submission_id", big, primary_key=True, autoincrement=False),
        sa.Column("number", big, primary_key=True, autoincrement=False),
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("task_id", sa.String(250), nullable=False),
        sa.Column("map_index", sa.Integer, nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
    )
    late_answers = sa.Table(
        "waybill_late_answers",
        metadata,
        sa.Column("system", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(40), primary_key=True),
        sa.Column("external_id", text, primary_key=True),
        sa.Column("submission_id", big, primary_key=True, autoincrement=False),
    )
    sa.Table(
        "waybill_documents",
        metadata,
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("content", text, nullable=False),
    )
    sa.Table(
        "waybill_holds",
        metadata,
        sa.Column("system", sa.String(40), primary_key=True),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("who", text, nullable=False),
        sa.Column("why", text, nullable=False),
    )
    sa.Table(
        "waybill_archives",
        metadata,
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("name", text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("events", big, nullable=False),
        sa.Column("submissions", big, nullable=False),
    )
    metadata.create_all(conn, checkfirst=False)
    for column in (f"request_sha256 VARCHAR(64) NOT NULL DEFAULT '{ANY}'", "account VARCHAR(250) NOT NULL DEFAULT ''"):
        conn.exec_driver_sql(f"ALTER TABLE waybill_submissions ADD COLUMN {column}")
    for row in conn.exec_driver_sql("SELECT id, system, kind, detail FROM waybill_submissions").mappings().all():
        detail = json.loads(row["detail"])
        for owner in attached_before(detail):
            conn.execute(attachments.insert().values(submission_id=row["id"], **owner))
        for late in detail.get("late_answers", []):
            facts = {"system": row["system"], "kind": row["kind"], "submission_id": row["id"]}
            conn.execute(late_answers.insert().values(external_id=late, **facts))
    conn.exec_driver_sql("DROP INDEX waybill_submissions_by_state")
    for index in (
        "waybill_submissions_by_state ON waybill_submissions (state, system, kind)",
        "waybill_submissions_by_deadline ON waybill_submissions (system, kind, accept_deadline)",
        "waybill_attachments_by_run ON waybill_attachments (dag_id, run_id)",
    ):
        conn.exec_driver_sql(f"CREATE INDEX {index}")


def attached_before(detail: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The attachments that a `detail` of schema 3 or earlier names, as rows of the table."""
    return [
        {
            "number": -position,
            "dag_id": dag_id,
            "run_id": run_id,
            "task_id": ANY,
            "map_index": -1,
            "request_sha256": ANY,
        }
        for position, (dag_id, run_id) in enumerate(detail.get("attached_runs", []), start=1)
    ]


MIGRATIONS: list[Callable[[Connection], None]] = [
    _create_tables,
    _index_runs_and_states,
    _rename_to_the_terms_of_the_field,
    _attachments_in_a_table,
]
SCHEMA_VERSION = len(MIGRATIONS)
