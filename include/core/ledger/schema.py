"""Tables as they are now, and engines of the ledger, on SQLite (one host) and PostgreSQL.

Invariant: what is committed is on the disk, whole or absent, and one write lock orders all writers. Older shapes of the
tables are `migrations`' alone.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from include.core.errors import LedgerError, TransientError
from include.core.ledger.migrations import MIGRATIONS, SCHEMA_VERSION

NETWORK_FILE_SYSTEMS = (
    "9p afs beegfs ceph cifs coda glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs panfs pvfs2 smb3 smbfs vboxsf "
    "vmhgfs wekafs"
)
LOCAL_FUSE = "fuse.fuse-overlayfs"  # containers without root; all other FUSE file systems are refused
PATIENCE_SECONDS = 60  # how long a writer queues for the lock, and how long a stopped one may keep it (PostgreSQL)
MOUNTS = Path("/proc/mounts")
READ_ONLY = "waybill_read_only"  # execution option of a connection that will not write
LOCK_KEY = 0x57617962696C6C  # PostgreSQL advisory lock: "Waybill" in ASCII

metadata = sa.MetaData()
JSON_TEXT = sa.Text  # canonical JSON, kept as text: the chain hashes exactly these bytes

info = sa.Table(
    "waybill_ledger",
    metadata,
    sa.Column("ledger_id", sa.String(36), primary_key=True),
    sa.Column("schema_version", sa.Integer, nullable=False),
)

submissions = sa.Table(
    "waybill_submissions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("system", sa.String(40), nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("business_key", sa.Text, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("fencing_token", sa.String(36)),
    sa.Column("external_id", sa.Text),
    sa.Column("payload_sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("dag_id", sa.String(250), nullable=False),
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("task_id", sa.String(250), nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("reserved_at", sa.Double, nullable=False),
    sa.Column("sending_at", sa.Double),
    sa.Column("accept_deadline", sa.Double),  # the last instant at which the remote may have accepted it
    sa.Column("closed_at", sa.Double),
    sa.Column("cancel_requested_at", sa.Double),
    sa.Column("detail", JSON_TEXT, nullable=False),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("account", sa.String(250), nullable=False),  # whose quota it uses
    sa.UniqueConstraint("system", "kind", "business_key", "generation", name="waybill_one_row_per_generation"),
    sa.UniqueConstraint("system", "kind", "external_id", name="waybill_one_row_per_remote_job"),
)

events = sa.Table(
    "waybill_events",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("submission_id", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("body", JSON_TEXT, nullable=False),
    sa.Column("previous_sha256", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
)

# Who else waits for a submission, besides the task that asked first (that one is in its row).
attachments = sa.Table(
    "waybill_attachments",
    metadata,
    sa.Column("submission_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),  # of the event that attached it
    sa.Column("dag_id", sa.String(250), nullable=False),
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("task_id", sa.String(250), nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("request_sha256", sa.String(64), nullable=False),
)

# Remote ids that came as the late answer of a replaced attempt (also in `detail` of that row): a search must not adopt them.
late_answers = sa.Table(
    "waybill_late_answers",
    metadata,
    sa.Column("system", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(40), primary_key=True),
    sa.Column("external_id", sa.Text, primary_key=True),
    sa.Column("submission_id", sa.BigInteger, primary_key=True, autoincrement=False),
)

# Long values of `detail` (lists of many items), by the sha256 of their canonical JSON: rows and events hold only that.
documents = sa.Table(
    "waybill_documents",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("content", JSON_TEXT, nullable=False),
)

# Until when nothing is sent to a system, since a person said so.
holds = sa.Table(
    "waybill_holds",
    metadata,
    sa.Column("system", sa.String(40), primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)

# Files that hold the events of submissions that ended long ago.
archives = sa.Table(
    "waybill_archives",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("submissions", sa.BigInteger, nullable=False),
)


def ledger_url(connection: str) -> URL:
    """The database URL for an Airflow connection given as URI or JSON (as in `AIRFLOW_CONN_WAYBILL_LEDGER`).

    Accepts `sqlite:////absolute/path`, `postgres://…`, `postgresql://…` and the JSON form with `conn_type`, `host`,
    `schema`, `login`, `password`, `port`, `extra`. Raises LedgerError, without the value, for anything else.
    """
    try:
        if connection.lstrip().startswith("{"):
            return url_from_fields(json.loads(connection))
        url = make_url(connection)
        if url.get_backend_name() == "sqlite":
            return url_from_fields({"conn_type": "sqlite", "schema": url.database or ""})
        fields = {
            "login": url.username,
            "password": url.password,
            "host": url.host,
            "port": url.port,
            "schema": url.database,
        }
        return url_from_fields({"conn_type": url.drivername, **fields, "extra": dict(url.query)})
    except (ValueError, TypeError, sa.exc.ArgumentError):
        raise LedgerError(_NOT_UNDERSTOOD) from None


_NOT_UNDERSTOOD = (
    "connection waybill_ledger is not understood: give sqlite:////absolute/path/ledger.db or "
    "postgresql://user:password@host:5432/database"
)


def url_from_fields(fields: dict[str, Any]) -> URL:
    """The database URL from a connection's fields (`conn_type`, `host`, `schema`, `login`, `password`, `port`, `extra`).

    `extra` (a dict, or JSON as Airflow keeps it) goes to the PostgreSQL driver: sslmode and the like. Raises LedgerError.
    """
    kind = str(fields.get("conn_type") or "").split("+")[0]
    if kind == "sqlite":
        path = str(fields.get("schema") or fields.get("host") or "")
        if not path.startswith("/"):
            raise LedgerError(
                "connection waybill_ledger: SQLite needs an absolute path, as sqlite:////srv/waybill/ledger.db"
            )
        return URL.create("sqlite", database=path)
    if kind not in ("postgres", "postgresql"):
        raise LedgerError(_NOT_UNDERSTOOD)
    try:
        extra = fields.get("extra") or {}
        query = dict(json.loads(extra) if isinstance(extra, str) else extra)
        port = int(fields["port"]) if fields.get("port") else None
    except (ValueError, TypeError):
        raise LedgerError(_NOT_UNDERSTOOD) from None
    return URL.create(
        "postgresql+psycopg2",
        username=fields.get("login"),
        password=fields.get("password"),
        host=fields.get("host"),
        port=port,
        database=fields.get("schema"),
        query={name: str(value) for name, value in query.items()},
    )


def url_from_environment() -> URL:
    """The URL from AIRFLOW_CONN_WAYBILL_LEDGER, for the command line. Raises LedgerError when it is not set."""
    value = os.environ.get("AIRFLOW_CONN_WAYBILL_LEDGER")
    if not value:
        raise LedgerError("AIRFLOW_CONN_WAYBILL_LEDGER is not set: export the connection that the workers use")
    return ledger_url(value)


def _refuse_network_file_system(path: Path, mounts: str) -> None:
    """SQLite's locks are not dependable on network file systems, and the write lock is what the guarantees rest on."""
    real = str(path.resolve())
    holding = [("", "")]
    for line in mounts.splitlines():
        _device, point, kind = line.split(" ")[:3]
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)  # a space is written \040
        if real == point or real.startswith(point.rstrip("/") + "/"):
            holding.append((point, kind))
    # Of two mounts on one point the later hides the earlier.
    kind = max(reversed(holding), key=lambda mount: len(mount[0]))[1]
    if kind in NETWORK_FILE_SYSTEMS.split() or (kind.startswith("fuse.") and kind != LOCAL_FUSE):
        raise LedgerError(f"the SQLite ledger {path} lies on {kind}: use a local disk, or PostgreSQL")


def engine_for(url: URL, *, must_exist: bool = True, mounts: str | None = None) -> Engine:
    """An engine whose write transactions are whole or absent, and on the disk when they end.

    On SQLite a transaction takes the write lock when it begins (`read_only` does not), on PostgreSQL by `lock`.
    `mounts` replaces the text of /proc/mounts. Raises LedgerError where SQLite cannot be trusted there.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, must_exist=must_exist, mounts=mounts)
    patience = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": PATIENCE_SECONDS * 1000,
    }
    engine = sa.create_engine(
        url,
        # Under any other level the statement that waits for the lock would fix what the transaction sees, before it has it.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=2,
        hide_parameters=True,
        connect_args={name: value for name, value in patience.items() if name not in url.query},
    )

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: sa.Dialect, _record: Any, args: Any, options: Any) -> Any:
        try:
            return dialect.connect(*args, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            raise _not_connected(url, str(error)) from None

    return engine


# psycopg2 has no SQLSTATE for a connection that was refused (tried), so the server's words decide. One that speaks another
# language than English is taken for one that is away.
_WHY_REFUSED = {
    "password authentication failed": "28P01, wrong password or user",
    "no password supplied": "28P01, no password is given",
    "no pg_hba.conf entry": "28000, the server lets nobody in from here",
    "is not permitted to log in": "28000, this user may not log in",
    'role ".*" does not exist': "28000, there is no such user",
    'database ".*" does not exist': "3D000, there is no such database",
}


def _not_connected(url: URL, said: str) -> LedgerError | TransientError:
    """Why there is no connection: a refused login is not mended by waiting. The server's words may quote the URL: not told."""
    secret = str(url.password or "")
    where = "its host" if secret and secret in str(url.host) else f"{url.host}:{url.port or 5432}"
    why = next((why for words, why in _WHY_REFUSED.items() if re.search(words, said)), None)
    if why is not None:
        return LedgerError(f"PostgreSQL at {where} refuses the login ({why}): correct connection waybill_ledger")
    if "could not translate host name" in said:
        where = f"{where}, a host that is not known here,"
    return TransientError(
        f"the ledger's PostgreSQL at {where} does not answer now. Check connection waybill_ledger if this lasts"
    )


def _sqlite(url: URL, *, must_exist: bool, mounts: str | None) -> Engine:
    path = Path(url.database or "")
    if not path.parent.is_dir():
        raise LedgerError(f"the folder {path.parent} of the ledger does not exist: create it, writable for the workers")
    if must_exist and not path.is_file():
        raise LedgerError(
            f"there is no ledger at {path}: an operator creates it with `python -m include.core.ledger init`"
        )
    if mounts is None:
        mounts = MOUNTS.read_text() if MOUNTS.exists() else ""
    _refuse_network_file_system(path, mounts)
    # Not `rwc` for a worker: a ledger that vanished must be missed, not made anew and empty.
    name = f"file:{quote(str(path))}?mode={'rw' if must_exist else 'rwc'}"

    def connect() -> sqlite3.Connection:
        # Isolation level None: SQLAlchemy, not the driver, says BEGIN.
        connection = sqlite3.connect(
            name, uri=True, timeout=PATIENCE_SECONDS, check_same_thread=False, isolation_level=None
        )
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        # FULL: an intent must be on the disk before its request leaves, also if the power fails in between.
        connection.execute("PRAGMA synchronous = FULL")
        if mode != "wal":
            connection.close()
            raise LedgerError(f"the SQLite ledger {path} cannot use a write-ahead log there: use a local disk")
        return connection

    engine = sa.create_engine(url, creator=connect, hide_parameters=True)

    @event.listens_for(engine, "begin")
    def _on_begin(conn: Connection) -> None:
        # A reader must not queue for the write lock; WAL gives it a consistent snapshot.
        conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get(READ_ONLY) else "BEGIN IMMEDIATE")

    return engine


def read_only(conn: Connection) -> Connection:
    """The connection, for reading one consistent snapshot without the write lock."""
    if conn.dialect.name == "postgresql":
        return conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return conn.execution_options(**{READ_ONLY: True})


def lock(conn: Connection) -> None:
    """Takes the one write lock; on SQLite the transaction already holds it.

    On PostgreSQL also bounds the wait for it and how long a stopped worker may sit on it, and insists on a commit that is
    on the disk when it is answered, whatever the server's default is.
    """
    if conn.dialect.name == "postgresql":
        conn.exec_driver_sql(
            f"SET LOCAL lock_timeout = '{PATIENCE_SECONDS}s';"
            f"SET LOCAL idle_in_transaction_session_timeout = '{PATIENCE_SECONDS}s';"
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';"
            f"SELECT pg_advisory_xact_lock({LOCK_KEY})"
        )


# SQLite's words for what waiting does not mend; all its other operational errors (busy, full, I/O) may pass.
_LASTING = "SQLITE_ERROR SQLITE_CANTOPEN SQLITE_READONLY SQLITE_PERM SQLITE_AUTH SQLITE_CORRUPT SQLITE_NOTADB"


@contextmanager
def plain_errors(doing: str) -> Iterator[None]:
    """Database errors become Waybill's, by name only: a driver's text may quote the URL, and so a password."""
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise LedgerError(
            f"the ledger refuses a second row for the same effect or the same remote job ({_name(error)})"
        ) from None
    except (sa.exc.OperationalError, sa.exc.InternalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        name = _name(error)
        if any(lasting in name for lasting in _LASTING.split()):
            raise LedgerError(f"the ledger cannot be {doing} ({name}). Check connection waybill_ledger") from None
        raise TransientError(
            f"the ledger cannot be {doing} now ({name}). Check connection waybill_ledger if this lasts"
        ) from None
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        raise LedgerError(f"the ledger cannot be {doing} ({_name(error)}). Check connection waybill_ledger") from None
    except UnicodeError:
        raise LedgerError(f"the ledger cannot be {doing}: what was asked holds bytes that are no UTF-8 text") from None


def _name(error: Exception) -> str:
    """What kind of error: the driver's class and SQLite's or PostgreSQL's code."""
    orig = getattr(error, "orig", None) or error
    code = getattr(orig, "sqlite_errorname", None) or getattr(orig, "pgcode", None)
    return f"{type(orig).__name__} {code}" if code else type(orig).__name__


def schema_version(conn: Connection) -> int | None:
    """The version of the schema in this database, None where there is no ledger."""
    if not sa.inspect(conn).has_table(info.name):
        return None
    return conn.execute(sa.select(info.c.schema_version)).scalar()


def init(url: URL, *, migrations: list[Callable[[Connection], None]] | None = None) -> tuple[int, int]:
    """Creates the ledger or migrates an older one, in one transaction. Returns (version before, version now).

    Raises LedgerError for a schema newer than this code, before anything is changed.
    """
    steps = MIGRATIONS if migrations is None else migrations
    engine = engine_for(url, must_exist=False)
    try:
        with plain_errors("opened"), engine.begin() as conn:
            lock(conn)
            _refuse_other_encodings(conn)
            before = schema_version(conn) or 0
            if before > len(steps):
                raise LedgerError(_newer(before, len(steps)))
            for step in steps[before:]:
                step(conn)
            if before == 0:
                conn.execute(info.insert().values(ledger_id=str(uuid.uuid4()), schema_version=len(steps)))
            else:
                conn.execute(info.update().values(schema_version=len(steps)))
            return before, len(steps)
    finally:
        engine.dispose()


def _refuse_other_encodings(conn: Connection) -> None:
    """File names hold every script; a database of another encoding refuses some of them in the middle of a run."""
    if conn.dialect.name != "postgresql":
        return
    encoding = str(conn.exec_driver_sql("SHOW server_encoding").scalar_one())
    if encoding != "UTF8":
        raise LedgerError(
            f"the database keeps text as {encoding}, and the ledger needs UTF8: create another one, as "
            "CREATE DATABASE waybill ENCODING 'UTF8' TEMPLATE template0, and name it in connection waybill_ledger"
        )


def check_schema(conn: Connection) -> str:
    """The ledger's id. Raises LedgerError when the schema is missing, older or newer than this code."""
    version = schema_version(conn)
    if version is None:
        raise LedgerError(
            "the database holds no ledger: an operator creates it with `python -m include.core.ledger init`"
        )
    if version > SCHEMA_VERSION:
        raise LedgerError(_newer(version, SCHEMA_VERSION))
    if version < SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger has schema {version}, this code needs {SCHEMA_VERSION}: stop the workers and run "
            "`python -m include.core.ledger init`"
        )
    return str(conn.execute(sa.select(info.c.ledger_id)).scalar_one())


def _newer(found: int, known: int) -> str:
    return f"the ledger has schema {found}, newer than the {known} that this code knows: upgrade Waybill on this host"
