"""A ledger of schema 2, as the code of that time wrote it, is migrated and goes on: SQLite and PostgreSQL.

`data/ledger_schema_2.sql` holds rows in every state of then (DOUBTFUL among them), several generations, late answers, sums
that count against a quota, cancellation requests, runs that attached, and what a person resolved.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from include.core.errors import Held, LedgerError, QuotaExceeded
from include.core.ledger import InDoubt, Ledger, Owner, Quota, State, engine_for, init, schema, verify
from include.core.ledger.__main__ import main
from include.core.ledger.migrations import MIGRATIONS
from tests.include.core.ledger_world import TIMEOUT, VISIBILITY_WINDOW, Clock, Remote, intent, submit
from tests.include.core.test_ledger_audit import EVENT, ROW, tamper

DUMP = Path(__file__).parent / "data" / "ledger_schema_2.sql"
LEDGER_ID = "7da8d76e-875d-494d-aaaf-0328cd8c1c64"
HEAD = (84, "b98f23767b3873867f6289e16758aa038dc716a3627252d029ebac4b6675b9ee")  # as the code of then gave it
OLD_TABLES = ("waybill_ledger", ROW, EVENT)


def old_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of the dump, by table."""
    old = sqlite3.connect(":memory:")
    old.row_factory = sqlite3.Row
    old.executescript(DUMP.read_text())
    try:
        return {name: [dict(row) for row in old.execute(f"SELECT * FROM {name}")] for name in OLD_TABLES}
    finally:
        old.close()


@pytest.fixture
def old_url(empty_url: URL) -> URL:
    """A database with the ledger of then, not migrated."""
    if empty_url.get_backend_name() == "sqlite":
        file = sqlite3.connect(str(empty_url.database))
        file.executescript(DUMP.read_text())
        file.close()
        return empty_url
    assert init(empty_url, migrations=MIGRATIONS[:2]) == (0, 2)
    engine = engine_for(empty_url)
    with engine.begin() as conn:
        conn.exec_driver_sql("DELETE FROM waybill_ledger")
        for name, rows in old_rows().items():
            columns = list(rows[0])
            values = ", ".join(f":{column}" for column in columns)
            conn.execute(sa.text(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})"), rows)
        # The ids came with the rows: the sequence has not counted them.
        conn.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{ROW}', 'id'), max(id)) FROM {ROW}")
    engine.dispose()
    return empty_url


@pytest.fixture
def migrated(old_url: URL) -> URL:
    assert init(old_url) == (2, 4)
    return old_url


def world(url: URL) -> tuple[Ledger, Remote]:
    """The migrated ledger a day later, and a remote that has the job of the row `doubtful`."""
    clock = Clock(at=1_790_000_000.0 + 90_000)
    return Ledger(url, clock=clock, monotonic=clock), Remote(jobs={"job-found": "doubtful"})


def only(ledger: Ledger, key: str) -> Any:
    return ledger.generations("tape", "restore", key)[-1]


# -- the steps themselves ---------------------------------------------------------------------------------------------


def test_the_first_two_migrations_still_create_what_they_created(tmp_path: Path):
    init(URL.create("sqlite", database=str(tmp_path / "new.db")), migrations=MIGRATIONS[:2])
    old, new = sqlite3.connect(":memory:"), sqlite3.connect(tmp_path / "new.db")
    old.executescript(DUMP.read_text())
    shapes = [c.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall() for c in (old, new)]
    assert shapes[0] == shapes[1]
    old.close()
    new.close()


def test_all_migrations_together_make_the_tables_that_the_code_uses(empty_url: URL):
    init(empty_url)
    engine = engine_for(empty_url)
    with engine.connect() as conn:
        found = sa.inspect(conn)
        for table in schema.metadata.sorted_tables:
            columns = [(column["name"], column["nullable"]) for column in found.get_columns(table.name)]
            assert columns == [(column.name, column.nullable) for column in table.columns]
            unique = {name for c in found.get_unique_constraints(table.name) if (name := c["name"])}
            assert unique == {c.name for c in table.constraints if isinstance(c, sa.UniqueConstraint)}
    engine.dispose()


def test_the_old_ledger_is_refused_with_the_remedy_until_init(old_url: URL):
    with pytest.raises(LedgerError, match=r"schema 2, this code needs 4: stop the workers and run .*ledger init"):
        Ledger(old_url)
    assert init(old_url) == (2, 4)
    ledger = Ledger(old_url)
    assert (ledger.ledger_id, ledger.head()) == (LEDGER_ID, HEAD)
    assert init(old_url) == (4, 4)


def test_rows_keep_all_they_held_and_events_every_byte(migrated: URL):
    ledger, _ = world(migrated)
    old = old_rows()
    names = {"accepted_by": "accept_deadline", "attempt_token": "fencing_token"}
    with ledger.reading() as conn:
        rows = [dict(row) for row in conn.execute(sa.text(f"SELECT * FROM {ROW} ORDER BY id")).mappings()]
        events = [dict(row) for row in conn.execute(sa.text(f"SELECT * FROM {EVENT} ORDER BY number")).mappings()]
    wanted = [{names.get(name, name): value for name, value in row.items()} for row in old[ROW]]
    for row in wanted:
        row["state"] = "IN_DOUBT" if row["state"] == "DOUBTFUL" else row["state"]
        row |= {"request_sha256": "*", "account": ""}
    assert rows == sorted(wanted, key=lambda row: row["id"])
    assert events == sorted(old[EVENT], key=lambda row: row["number"])
    assert {row["state"] for row in rows} == {str(state) for state in State} - {"ACCEPTED"}


# -- the chain --------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_and_receipts_of_then_still_fit(migrated: URL):
    ledger, remote = world(migrated)
    receipt = {"dag_id": "copy", "run_id": "run-1", "ledger": {"id": LEDGER_ID, "number": HEAD[0], "sha256": HEAD[1]}}
    audit = verify(ledger, [receipt])
    assert (audit.problems, audit.events, audit.submissions, audit.receipts) == ([], 84, 22, 1)
    submit(ledger, remote, intent("doubtful"))  # old and new bodies in one chain, and in the story of one row
    submit(ledger, remote, intent("new"))
    audit = verify(ledger, [receipt])
    assert (audit.problems, audit.receipts) == ([], 1)
    assert audit.events > 84


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (f"UPDATE {EVENT} SET body = replace(body, 'timeout', 'refused') WHERE number = 9", "event 9 does not fit"),
        (f"UPDATE {EVENT} SET body = replace(body, 'DOUBTFUL', 'IN_DOUBT')", "does not fit the chain"),
        (f"UPDATE {EVENT} SET body = replace(body, 'accepted_by', 'accept_deadline')", "event 1 does not fit"),
        (f"DELETE FROM {EVENT} WHERE number = 20", "event 20 is missing"),
        (f"UPDATE {ROW} SET state = 'SENT' WHERE business_key = 'doubtful'", "differs from its last event"),
        (f"UPDATE {ROW} SET state = 'DOUBTFUL' WHERE business_key = 'doubtful'", "differs from its last event"),
        (
            f"UPDATE {ROW} SET accept_deadline = accept_deadline + 1 WHERE business_key = 'sent'",
            "differs from its last",
        ),
        (f"UPDATE {ROW} SET fencing_token = 'x' WHERE business_key = 'held'", "differs from its last event"),
        (f"UPDATE {ROW} SET detail = '{{}}' WHERE business_key = 'late'", "differs from its last event"),
        (f"DELETE FROM {ROW} WHERE business_key = 'done'", "the row was deleted by hand"),
    ],
)
def test_tampering_with_what_was_written_before_is_still_found(migrated: URL, statement: str, problem: str):
    ledger, _ = world(migrated)
    with ledger.reading() as conn:
        ninth = conn.execute(sa.text(f"SELECT body FROM {EVENT} WHERE number = 9")).scalar_one()
    assert "DOUBTFUL" in ninth
    assert "timeout" in ninth
    tamper(migrated, statement)
    assert problem in "\n".join(verify(ledger).problems)


# -- going on ---------------------------------------------------------------------------------------------------------


def test_submissions_go_on_from_where_the_old_code_left_them(migrated: URL):
    ledger, remote = world(migrated)
    found = submit(ledger, remote, intent("doubtful"))
    assert (found.state, found.external_id, remote.requests) == (State.SENT, "job-found", 0)
    sent = submit(ledger, remote, intent("sent"))
    assert (sent.state, sent.external_id, sent.owners[1].run_id, remote.requests) == (
        State.SENT,
        "job-sent",
        "run-2",
        0,
    )
    with pytest.raises(InDoubt):
        submit(ledger, remote, intent("sending"))
    with pytest.raises(Held, match=r"job-x, job-y.*ledger resolve"):
        submit(ledger, remote, intent("held"))
    assert submit(ledger, remote, intent("reserved")).generation == 1
    assert submit(ledger, remote, intent("failed")).generation == 2
    assert submit(ledger, remote, intent("rejected")).generation == 2
    assert submit(ledger, remote, intent("done")).external_id == "job-done"
    with pytest.raises(InDoubt):
        submit(ledger, remote, intent("generations"))
    assert only(ledger, "generations").generation == 3
    assert verify(ledger).problems == []


def test_a_search_that_the_old_code_began_is_ended_by_the_new(migrated: URL):
    """`first_empty_walk` of then is today's `first_empty_search`."""
    ledger, remote = world(migrated)
    remote.now = 5_000.0 + VISIBILITY_WINDOW + TIMEOUT + 1
    row = submit(ledger, remote, intent("doubtful, searched once"))
    assert (row.state, row.generation, remote.requests) == (State.SENT, 1, 1)
    with pytest.raises(InDoubt):  # one that was never searched for begins now
        submit(ledger, remote, intent("quota b", size=500))


@pytest.mark.parametrize(("key", "requests"), [("superseded there", 0), ("superseded absent", 1)])
def test_an_effect_that_the_old_code_saw_is_not_made_again(migrated: URL, key: str, requests: int):
    """`effect_present` of then is today's `is_effective`."""
    ledger, remote = world(migrated)
    submit(ledger, remote, intent(key))
    assert remote.requests == requests


def test_quotas_late_answers_and_cancellation_requests_still_count(migrated: URL):
    ledger, _ = world(migrated)
    clock = Clock(at=1_790_000_100.0)
    soon = Ledger(migrated, clock=clock, monotonic=clock)
    with pytest.raises(QuotaExceeded):
        soon.open(intent("another", size=200), quota=Quota(limit_bytes=1000))
    soon.open(intent("another", size=100), quota=Quota(limit_bytes=1000))
    assert ledger.known("tape", "restore", ["job-late-1", "job-late-2", "job-0"]) == {"job-late-1", "job-late-2"}
    assert {row.business_key for row in ledger.in_states(*State) if row.cancel_requested_at} == {
        "cancelled",
        "to cancel",
        "doubtful, to cancel",
    }
    # Of then only the run is known: whichever of its tasks asks is the one that had attached.
    attached = Owner("other_dag", "run-1", "x", 3, "a" * 64)
    assert only(ledger, "generations").belongs_to(attached)
    assert ledger.attach(only(ledger, "generations"), attached) == only(ledger, "generations")
    assert [row.id for row in ledger.of_owner(attached)] == [only(ledger, "generations").id]


def test_the_command_line_lists_it_in_todays_words(
    old_url: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("AIRFLOW_CONN_WAYBILL_LEDGER", old_url.render_as_string(hide_password=False))

    def call(*argv: str) -> tuple[int, str, str]:
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    assert call("show")[0] == 2
    status, said, _ = call("init")
    assert (status, said) == (0, f"ledger {LEDGER_ID} migrated (schema 4)\n")
    status, said, _ = call("in-doubt")
    assert (status, said.count("\tIN_DOUBT"), said.count("\tHELD"), said.count("\tSENDING")) == (1, 5, 1, 1)
    assert said.endswith("7 in doubt\n")
    status, said, _ = call("show", "--all")
    assert (status, len(said.splitlines())) == (0, 22)
    status, said, _ = call("show", "5")
    assert (status, "SENDING → IN_DOUBT" in said, "IN_DOUBT → HELD" in said, "DOUBTFUL" in said) == (
        0,
        True,
        True,
        False,
    )
    status, said, note = call("settle", "5", "--as", "reserved", "--who", "amy", "--why", "asked the vendor")
    assert (status, "resolved by amy" in said, note) == (0, True, "`settle` is now called `resolve`\n")
    status, said, note = call("doubts")
    assert (status, said.endswith("6 in doubt\n"), note) == (1, True, "`doubts` is now called `in-doubt`\n")
    assert call("verify")[:2] == (
        0,
        f"ledger {LEDGER_ID} is whole: 85 events, 22 submissions, "
        "receipts were not looked at (name them with --receipts)\n",
    )


def test_old_bodies_are_read_with_todays_names(migrated: URL):
    bodies = Ledger(migrated).event_bodies(5)
    assert [body["before"] for body in bodies] == [None, "RESERVED", "SENDING", "IN_DOUBT"]
    assert all(set(body["row"]) == {column.name for column in schema.submissions.columns} for body in bodies)
    assert "DOUBTFUL" not in json.dumps(bodies)
