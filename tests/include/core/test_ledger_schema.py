"""Creating, migrating and refusing ledgers; broken and full databases; URLs and their secrets."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sqlite3
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from harness import postgres
from include.core.errors import LedgerError, TransientError
from include.core.ledger import Ledger, State, engine_for, init, ledger_url, schema, url_from_fields, verify
from tests.include.core.ledger_world import Remote, begun, intent, submit


def add_a_table(conn: Connection) -> None:
    conn.execute(sa.text("CREATE TABLE waybill_more (number INTEGER)"))


NEXT = [*schema.MIGRATIONS, add_a_table]


def test_init_creates_once_and_keeps_what_is_there(empty_url: URL):
    assert init(empty_url) == (0, schema.SCHEMA_VERSION)
    ledger = Ledger(empty_url)
    row = ledger.open(intent())
    assert init(empty_url) == (schema.SCHEMA_VERSION, schema.SCHEMA_VERSION)
    assert Ledger(empty_url).ledger_id == ledger.ledger_id
    assert Ledger(empty_url).get(row.id) == row


def test_two_ledgers_of_one_process_have_ids_of_their_own(tmp_path: Path):
    urls = [URL.create("sqlite", database=str(tmp_path / f"{n}.db")) for n in range(2)]
    for url in urls:
        init(url)
    assert len({Ledger(url).ledger_id for url in urls}) == 2


def test_a_ledger_that_is_not_there_is_refused_and_not_made(empty_url: URL):
    for _ in range(2):
        with pytest.raises(LedgerError, match="ledger init"):
            Ledger(empty_url)


def test_a_sqlite_ledger_that_vanishes_is_missed_and_not_made_anew(tmp_path: Path):
    url = URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    init(url)
    ledger = Ledger(url)
    ledger.close()
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(LedgerError, match="CANTOPEN"):
        ledger.open(intent())
    assert not (tmp_path / "ledger.db").exists()


def test_an_older_ledger_is_refused_until_it_is_migrated(url: URL, monkeypatch: pytest.MonkeyPatch):
    row = begun(Ledger(url))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(NEXT))
    with pytest.raises(LedgerError, match=r"stop the workers and run .*init"):
        Ledger(url)
    assert init(url, migrations=NEXT) == (4, 5)
    assert Ledger(url).get(row.id) == row
    assert verify(Ledger(url)).problems == []


def test_a_newer_ledger_is_refused_by_workers_and_by_init(url: URL):
    init(url, migrations=NEXT)
    for refused in (lambda: Ledger(url), lambda: init(url)):
        with pytest.raises(LedgerError, match="upgrade Waybill"):
            refused()


def test_a_migration_killed_half_way_leaves_the_old_ledger_whole(url: URL):
    row = begun(Ledger(url))

    def killed(_conn: Connection) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        init(url, migrations=[*NEXT, killed])
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert Ledger(url).get(row.id) == row
    assert init(url, migrations=NEXT) == (4, 5)


def test_a_table_without_its_version_is_no_ledger(url: URL):
    engine = engine_for(url)
    with engine.begin() as conn:
        conn.execute(schema.info.delete())
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(url)


# -- where SQLite may lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "lustre", "fuse.sshfs", "fuse.s3fs"])
def test_sqlite_is_refused_on_network_file_systems(tmp_path: Path, kind: str):
    url = URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    mounts = f"/dev/sda / ext4 rw 0 0\nfiler:/x {tmp_path} {kind} rw 0 0\n"
    with pytest.raises(LedgerError, match=f"lies on {kind}"):
        engine_for(url, must_exist=False, mounts=mounts)


def test_the_mount_that_holds_the_file_decides(tmp_path: Path):
    odd = tmp_path / "a b"
    odd.mkdir()
    escaped = str(odd).replace(" ", "\\040")
    root, here = "/dev/sda / ext4 rw 0 0\n", f"filer:/x {escaped} nfs4 rw 0 0\n"
    url = URL.create("sqlite", database=str(odd / "ledger.db"))
    with pytest.raises(LedgerError):
        engine_for(url, must_exist=False, mounts=root + here)
    for mounts in (
        "filer:/ / nfs4 rw 0 0\n" + f"/dev/sdb {escaped} xfs rw 0 0\n",
        here + f"/dev/sdb {escaped} xfs rw 0 0\n",  # mounted over
        root + here.replace("a\\040b ", "a "),
        root + f"overlay {escaped} fuse.fuse-overlayfs rw 0 0\n",
        "",
    ):
        engine_for(url, must_exist=False, mounts=mounts)


def test_a_link_to_a_network_file_system_is_seen_through(tmp_path: Path):
    (tmp_path / "filer").mkdir()
    (tmp_path / "filer" / "ledger.db").touch()
    (tmp_path / "ledger.db").symlink_to(tmp_path / "filer" / "ledger.db")
    url = URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    with pytest.raises(LedgerError, match="nfs"):
        engine_for(url, mounts=f"/dev/sda / ext4 rw 0 0\nfiler:/x {tmp_path}/filer nfs rw 0 0\n")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(LedgerError, match=r"folder .*/nowhere"):
        init(URL.create("sqlite", database=str(tmp_path / "nowhere" / "ledger.db")))


@pytest.mark.parametrize("name", ["a b?c#d%41.db", "ledger ünïcode.db"])
def test_odd_file_names_name_the_right_file(tmp_path: Path, name: str):
    url = URL.create("sqlite", database=str(tmp_path / name))
    init(url)
    Ledger(url).open(intent())
    assert (tmp_path / name).is_file()


# -- trouble with the database ----------------------------------------------------------------------------------------


def sqlite_at(tmp_path: Path) -> URL:
    url = URL.create("sqlite", database=str(tmp_path / "ledger.db"))
    init(url)
    return url


def test_sqlite_commits_reach_the_disk_and_readers_do_not_wait(tmp_path: Path):
    ledger = Ledger(sqlite_at(tmp_path))
    row = ledger.open(intent())
    with ledger._write(), ledger.reading() as conn:  # a writer is at work
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert ledger.get(row.id) == row


def test_a_locked_database_is_transient_and_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.1)
    ledger, remote = Ledger(sqlite_at(tmp_path)), Remote()
    holder = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransientError, match="SQLITE_BUSY"):
        submit(ledger, remote)
    holder.execute("ROLLBACK")
    assert remote.requests == 0
    assert submit(ledger, remote).state == State.SENT
    holder.close()


def test_a_full_disk_is_transient_and_nothing_is_sent_or_half_written(tmp_path: Path):
    ledger, remote = Ledger(sqlite_at(tmp_path)), Remote()
    ledger._engine.dispose()

    def full(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")

    sa.event.listen(ledger._engine, "connect", full)
    with pytest.raises(TransientError, match="SQLITE_FULL"):
        for number in range(200):
            submit(ledger, remote, intent(f"key-{number}"))
    sa.event.remove(ledger._engine, "connect", full)
    ledger.close()
    # The one that found it full may have been accepted: the next try searches, and does not send again.
    for number in range(200):
        submit(ledger, remote, intent(f"key-{number}"))
    assert remote.requests == len(remote.jobs) == 200
    assert verify(ledger).problems == []


@pytest.mark.parametrize("cut", [1, 40, 3_000, 4_200])
def test_a_torn_write_leaves_the_last_whole_record(tmp_path: Path, cut: int):
    ledger = Ledger(sqlite_at(tmp_path))
    for number in range(5):
        ledger.open(intent(f"key-{number}"))
    torn = tmp_path / "torn"
    torn.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):  # as the disk had it when the power went
        shutil.copy(tmp_path / name, torn / name)
    wal = torn / "ledger.db-wal"
    os.truncate(wal, wal.stat().st_size - cut)
    audit = verify(Ledger(URL.create("sqlite", database=str(torn / "ledger.db"))))
    assert (audit.problems, audit.events, audit.submissions) == ([], 4, 4)


@pytest.mark.parametrize("content", [b"this is no database, but long enough to look like one" * 40, b"short"])
def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path, content: bytes):
    (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError, match="NOTADB"):
        Ledger(URL.create("sqlite", database=str(tmp_path / "ledger.db")))


def test_a_read_only_ledger_is_refused_at_the_first_write(tmp_path: Path):
    ledger = Ledger(sqlite_at(tmp_path))
    ledger.close()
    sa.event.listen(ledger._engine, "connect", lambda connection, _record: connection.execute("PRAGMA query_only = 1"))
    with pytest.raises(LedgerError, match="READONLY"):
        ledger.open(intent())


# -- PostgreSQL alone -------------------------------------------------------------------------------------------------


@pytest.fixture
def pg(cluster: postgres.Cluster) -> URL:
    url = cluster.new_schema()
    init(url)
    return url


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_the_servers_default_isolation_does_not_fork_the_chain(cluster: postgres.Cluster, pg: URL, level: str):
    options = f"{pg.query['options']} -c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    ledgers = [Ledger(pg.update_query_dict({"options": options})) for _ in range(4)]
    problems: list[Exception] = []

    def write(ledger: Ledger, name: int) -> None:
        try:
            for number in range(15):
                ledger.open(intent(f"key-{name}-{number}"))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(ledger, name)) for name, ledger in enumerate(ledgers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert (verify(ledgers[0]).problems, ledgers[0].head()[0]) == ([], 60)


def test_a_server_that_answers_before_its_disk_is_not_believed(pg: URL):
    options = f"{pg.query['options']} -c synchronous_commit=off"
    ledger = Ledger(pg.update_query_dict({"options": options}))
    with ledger._write() as tx:
        assert tx.conn.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_a_worker_that_stops_inside_a_transaction_does_not_stop_the_others(pg: URL, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 1)
    child = os.fork()
    if child == 0:
        with Ledger(pg)._write():
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    try:
        ledger = Ledger(pg)
        for left in (2, 1, 0):
            try:
                ledger.open(intent())
                break
            except TransientError:  # the wait may end just before the server ends the idle session
                assert left
        assert ledger.head()[0] == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lost_connection_is_transient_and_the_next_call_works(cluster: postgres.Cluster, pg: URL):
    ledger = Ledger(pg)
    with pytest.raises(TransientError, match="cannot be written now"), ledger._write() as tx:
        mine = tx.conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        cluster.execute(f"SELECT pg_terminate_backend({mine})")
        tx.conn.exec_driver_sql("SELECT 1")
    assert ledger.open(intent()).state == State.RESERVED
    assert verify(ledger).problems == []


def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(cluster: postgres.Cluster, pg: URL):
    ledger = Ledger(pg)
    ledger.open(intent())
    cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )
    assert len(ledger.in_states(State.RESERVED)) == 1


def test_a_server_that_is_away_is_transient(cluster: postgres.Cluster, pg: URL):
    with pytest.raises(TransientError, match="does not answer now"):
        Ledger(pg.set(port=1))


# -- URLs and secrets -------------------------------------------------------------------------------------------------

SECRET = "s3cr3t-of-the-ledger"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"password": "another"}, "28P01, wrong password or user"),
        ({"username": "nobody"}, "28P01, wrong password or user"),
        ({"password": None}, "28P01, no password is given"),
        ({"database": "nowhere"}, "3D000, there is no such database"),
    ],
)
def test_a_refused_login_is_not_mended_by_waiting(pg: URL, wrong: dict[str, str], why: str):
    for open_it in (init, Ledger):
        with pytest.raises(LedgerError, match=why) as refused:
            open_it(pg._replace(**wrong))  # `set` takes None for "as it was"
        assert f"127.0.0.1:{pg.port}" in str(refused.value)
        assert "waybill_ledger" in str(refused.value)


def test_a_host_that_is_not_known_is_named_and_may_come_back(pg: URL):
    with pytest.raises(TransientError, match=r"db\.invalid:\d+, a host that is not known here"):
        Ledger(pg.set(host="db.invalid"))


def test_a_database_that_is_not_utf8_is_refused_by_init_with_the_remedy(cluster: postgres.Cluster):
    cluster.execute("CREATE DATABASE old ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    old = cluster.url().set(database="old")
    with pytest.raises(LedgerError, match=r"keeps text as SQL_ASCII.*ENCODING 'UTF8' TEMPLATE template0"):
        init(old)
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger(old)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://waybill:{SECRET}@db:5432/waybill",
        f"postgres://waybill:{SECRET}@db:5432/waybill",
        f"postgresql+psycopg2://waybill:{SECRET}@db:5432/waybill",
        json.dumps(
            {
                "conn_type": "postgres",
                "host": "db",
                "port": "5432",
                "login": "waybill",
                "password": SECRET,
                "schema": "waybill",
            }
        ),
    ],
)
def test_every_spelling_of_a_postgresql_connection_gives_one_url(text: str):
    assert (
        ledger_url(text).render_as_string(hide_password=False)
        == f"postgresql+psycopg2://waybill:{SECRET}@db:5432/waybill"
    )


@pytest.mark.parametrize(
    "text",
    ["sqlite:////srv/ledger.db", "sqlite:///%2Fsrv%2Fledger.db", '{"conn_type":"sqlite","schema":"/srv/ledger.db"}'],
)
def test_every_spelling_of_a_sqlite_connection_gives_one_path(text: str):
    assert ledger_url(text).database == "/srv/ledger.db"


@pytest.mark.parametrize("extra", [{"sslmode": "require"}, '{"sslmode": "require"}'])
def test_extras_of_a_connection_reach_the_driver(extra: object):
    assert url_from_fields({"conn_type": "postgres", "host": "db", "extra": extra}).query == {"sslmode": "require"}
    assert ledger_url("postgresql://db/waybill?sslmode=require").query == {"sslmode": "require"}


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///ledger.db",
        "sqlite://",
        f"mysql://u:{SECRET}@db/x",
        f"postgresql://u:{SECRET}@db:port/x",
        f"not a url {SECRET}",
        f'{{"conn_type": "postgres", "password": "{SECRET}", "port": "x{SECRET}"}}',
        f'{{"conn_type": "postgres", "extra": "{SECRET}"}}',
        f'{{"password": "{SECRET}"',
        f"{SECRET}://db/x",
    ],
)
def test_a_connection_that_is_not_understood_is_refused_without_its_text(text: str):
    with pytest.raises(LedgerError, match="waybill_ledger") as caught:
        ledger_url(text)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_no_error_and_no_log_shows_the_password(
    cluster: postgres.Cluster, pg: URL, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.DEBUG)
    ledger = Ledger(pg)
    said: list[str] = [repr(ledger._engine), str(ledger._engine)]
    wrong = {
        "port": pg.set(port=1),
        "password": pg.set(password=postgres.PASSWORD + "x"),
        "host": pg.set(host=f"{postgres.PASSWORD}.invalid"),
        "option": pg.update_query_dict({postgres.PASSWORD: "1"}),
        "database": pg.set(database="absent"),
    }
    for url in wrong.values():
        for call in (lambda url=url: Ledger(url), lambda url=url: init(url)):
            with pytest.raises((LedgerError, TransientError)) as caught:
                call()
            said.append("".join(traceback.format_exception(caught.value)))
    cluster.execute(f"ALTER TABLE {str(pg.query['options']).split('=')[1]}.waybill_submissions DROP COLUMN size_bytes")
    with pytest.raises(LedgerError) as failed:
        ledger.open(intent(postgres.PASSWORD))
    said.append("".join(traceback.format_exception(failed.value)))
    assert postgres.PASSWORD not in "".join(said) + caplog.text


def test_statements_are_reported_without_their_values(url: URL):
    with pytest.raises(sa.exc.DBAPIError) as caught, engine_for(url).begin() as conn:
        conn.execute(sa.text("INSERT INTO nowhere VALUES (:value)"), {"value": SECRET})
    assert "[parameters" not in str(caught.value)


def test_the_environment_names_the_ledger(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AIRFLOW_CONN_WAYBILL_LEDGER", raising=False)
    with pytest.raises(LedgerError, match="AIRFLOW_CONN_WAYBILL_LEDGER"):
        schema.url_from_environment()
    monkeypatch.setenv("AIRFLOW_CONN_WAYBILL_LEDGER", "sqlite:////srv/ledger.db")
    assert schema.url_from_environment().database == "/srv/ledger.db"


def test_times_of_both_databases_keep_their_fractions(open_ledger: Callable[..., Ledger]):
    ledger = open_ledger(clock=lambda: 1_800_000_000.123456)
    assert ledger.open(intent()).reserved_at == 1_800_000_000.123456
