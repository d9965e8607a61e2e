"""Tables, migrations and engines of the ledger, on SQLite (one host) and PostgreSQL.

The thing to know before changing it: a released migration is never edited. A new shape is a new function at the end of
`MIGRATIONS`; `init` applies what is missing in one transaction, so a killed migration leaves the old schema whole.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from include.core.errors import LedgerError

NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "lustre",
    "gpfs",
    "ceph",
    "glusterfs",
}
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
    sa.Column("attempt_token", sa.String(36)),
    sa.Column("external_id", sa.String(200)),
    sa.Column("payload_sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("dag_id", sa.String(250), nullable=False),
    sa.Column("run_id", sa.String(250), nullable=False),
    sa.Column("task_id", sa.String(250), nullable=False),
    sa.Column("map_index", sa.Integer, nullable=False),
    sa.Column("reserved_at", sa.Double, nullable=False),
    sa.Column("sending_at", sa.Double),
    sa.Column("accepted_by", sa.Double),  # the last instant at which the remote may have accepted it
    sa.Column("closed_at", sa.Double),
    sa.Column("cancel_requested_at", sa.Double),
    sa.Column("detail", JSON_TEXT, nullable=False),
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


def _tables(conn: Connection) -> None:
    metadata.create_all(conn, tables=[info, submissions, events], checkfirst=False)


def _look_up_by_run_and_state(conn: Connection) -> None:
    sa.Index("waybill_submissions_by_run", submissions.c.dag_id, submissions.c.run_id).create(conn)
    sa.Index("waybill_submissions_by_state", submissions.c.system, submissions.c.state).create(conn)
    sa.Index("waybill_events_by_submission", events.c.submission_id).create(conn)


MIGRATIONS: list[Callable[[Connection], None]] = [_tables, _look_up_by_run_and_state]
SCHEMA_VERSION = len(MIGRATIONS)


def ledger_url(connection: str) -> URL:
    """The database URL for an Airflow connection given as URI or JSON (as in `AIRFLOW_CONN_WAYBILL_LEDGER`).

    Accepts `sqlite:////absolute/path`, `postgres://…`, `postgresql://…` and the JSON form with `conn_type`, `host`,
    `schema`, `login`, `password`, `port`. Raises LedgerError, without the value, for anything else.
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
        raise LedgerError(
            "connection waybill_ledger is not understood: give sqlite:////absolute/path/ledger.db or "
            "postgresql://user:password@host:5432/database"
        ) from None


def url_from_fields(fields: dict[str, Any]) -> URL:
    """The database URL from a connection's fields (`conn_type`, `host`, `schema`, `login`, `password`, `port`, `extra`)."""
    kind = str(fields.get("conn_type") or "").split("+")[0]
    if kind == "sqlite":
        path = str(fields.get("schema") or fields.get("host") or "")
        if not path.startswith("/"):
            raise LedgerError(
                "connection waybill_ledger: SQLite needs an absolute path, as sqlite:////srv/waybill/ledger.db"
            )
        return URL.create("sqlite", database=path)
    if kind in ("postgres", "postgresql"):
        extra = fields.get("extra") or {}
        query = {k: str(v) for k, v in extra.items()} if isinstance(extra, dict) else {}
        port = fields.get("port")
        return URL.create(
            "postgresql+psycopg2",
            username=fields.get("login"),
            password=fields.get("password"),
            host=fields.get("host"),
            port=int(port) if port else None,
            database=fields.get("schema"),
            query=query,
        )
    raise ValueError(kind)


def url_from_environment() -> URL:
    """The URL from AIRFLOW_CONN_WAYBILL_LEDGER, for the command line. Raises LedgerError when it is not set."""
    value = os.environ.get("AIRFLOW_CONN_WAYBILL_LEDGER")
    if not value:
        raise LedgerError("AIRFLOW_CONN_WAYBILL_LEDGER is not set: export the connection that the workers use")
    return ledger_url(value)


def _refuse_network_file_system(path: Path) -> None:
    """SQLite's locks are not dependable on network file systems, and the write lock is what the guarantees rest on."""
    mounts = (
        [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        if Path("/proc/mounts").exists()
        else []
    )
    real = str(path.resolve())
    under = [(m[1], m[2]) for m in mounts if real == m[1] or real.startswith(m[1].rstrip("/") + "/")]
    if under and max(under)[1] in NETWORK_FILE_SYSTEMS:
        raise LedgerError(f"the SQLite ledger {path} lies on {max(under)[1]}: use a local disk, or PostgreSQL")


def engine_for(url: URL, *, must_exist: bool = True) -> Engine:
    """An engine whose transactions take the ledger's one write lock when they begin. Reads use `Ledger.read`."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True, pool_size=2, connect_args={"connect_timeout": 10})
    path = Path(url.database or "")
    if must_exist and not path.is_file():
        raise LedgerError(
            f"there is no ledger at {path}: an operator creates it with `python -m include.core.ledger init`"
        )
    if not path.parent.is_dir():
        raise LedgerError(f"the folder {path.parent} of the ledger does not exist: create it, writable for the workers")
    _refuse_network_file_system(path.parent)
    engine = sa.create_engine(url, connect_args={"timeout": 60, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.isolation_level = None  # SQLAlchemy, not pysqlite, says BEGIN
        dbapi_connection.execute("PRAGMA busy_timeout = 60000")
        dbapi_connection.execute("PRAGMA journal_mode = WAL")
        # FULL: an intent must be on the disk before its request leaves, also if the power fails in between.
        dbapi_connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _on_begin(conn: Connection) -> None:
        # A reader must not queue for the write lock; WAL gives it a consistent snapshot.
        conn.exec_driver_sql("BEGIN" if conn.get_execution_options().get(READ_ONLY) else "BEGIN IMMEDIATE")

    return engine


def lock(conn: Connection) -> None:
    """Takes the one write lock; on SQLite the transaction already holds it."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})


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
    try:
        with engine_for(url, must_exist=False).begin() as conn:
            lock(conn)
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
    except sa.exc.DBAPIError as error:
        raise LedgerError(
            f"the ledger cannot be opened: {type(error.orig).__name__}. Check connection waybill_ledger"
        ) from None


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
