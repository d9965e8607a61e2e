"""Waybill's own connections, resolved: the ledger, the receipts, the inputs, and (optional) Airflow's REST API for notes.

Invariant: secrets are read here and nowhere else; what leaves this module are open clients. A ledger is opened by `ledger` or
`ask_ledger` only, which close it: each holds a connection to its database.
Sync functions are for tasks and threads, the `a…` ones and `ask_ledger` for triggers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import httpx
from airflow.sdk import BaseHook, Connection
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy.engine import URL

from include.core.errors import LedgerError, RequestError
from include.core.journal import FileJournal, JournalFor, ObjectJournal
from include.core.ledger import Ledger
from include.core.ledger.schema import url_from_fields
from include.core.objects import Objects
from include.core.receipt import ReceiptStore
from include.core.text import file_name, shorten

log = logging.getLogger(__name__)
T = TypeVar("T")

LEDGER, RECEIPTS, INPUTS, AIRFLOW = "waybill_ledger", "waybill_receipts", "waybill_inputs", "waybill_airflow"
ONE_HOST_EXECUTORS = ("LocalExecutor", "SequentialExecutor")


@contextmanager
def ledger(conn_id: str = LEDGER) -> Iterator[Ledger]:
    """The open ledger, closed at the end. Raises LedgerError before anything remote is touched."""
    with Ledger(url_of(BaseHook.get_connection(conn_id))) as book:
        yield book


def check_ledger() -> None:
    """Raises LedgerError where there is no ledger, or one that cannot be trusted."""
    with ledger():
        pass


async def ask_ledger(work: Callable[[Ledger], T], conn_id: str = LEDGER) -> T:
    """What `work` finds in the ledger, for triggers: it is opened, asked and closed in a thread, since a database that does
    not answer would stop the event loop, and with it all triggers."""
    connection = await BaseHook.aget_connection(conn_id)

    def ask() -> T:
        with Ledger(url_of(connection)) as book:
            return work(book)

    return await asyncio.to_thread(ask)


def url_of(connection: Connection) -> URL:
    """The address of the ledger that a connection names. Raises LedgerError where it cannot be a ledger's."""
    fields = {name: getattr(connection, name) for name in ("conn_type", "host", "schema", "login", "password", "port")}
    try:
        url = url_from_fields({**fields, "extra": connection.extra_dejson})
    except ValueError:
        raise LedgerError(f"connection {LEDGER}: type {connection.conn_type} is not sqlite or postgres") from None
    executor = conf.get("core", "executor")
    if url.get_backend_name() == "sqlite" and executor.split(":")[0].split(".")[-1] not in ONE_HOST_EXECUTORS:
        raise LedgerError(f"connection {LEDGER}: SQLite serves one host, and {executor} may use more: give PostgreSQL")
    return url


def prefixes_of(connection: Connection) -> list[Objects]:
    """The object-store prefixes of a connection: extra `prefix` (one) or `prefixes` (a list); `options` go to the store."""
    extra = connection.extra_dejson
    given = extra.get("prefixes") or [extra.get("prefix") or connection.host]
    if not all(isinstance(prefix, str) and prefix for prefix in given):
        raise RequestError(f'connection {connection.conn_id}: give the extra {{"prefix": "file:///srv/waybill/…"}}')
    return [Objects(prefix, extra.get("options"), named_by=f"connection {connection.conn_id}") for prefix in given]


def receipts(conn_id: str = RECEIPTS) -> ReceiptStore:
    """Where receipts lie. Raises RequestError, RemoteError where the connection cannot be used; both name it."""
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        what = f'connection {conn_id} does not exist: create it with the extra {{"prefix": "file:///srv/waybill/receipts"}}'
        raise RequestError(what) from None
    return ReceiptStore(prefixes_of(connection)[0])


async def areceipts(conn_id: str = RECEIPTS) -> ReceiptStore:
    return ReceiptStore(prefixes_of(await BaseHook.aget_connection(conn_id))[0])


def inputs(conn_id: str = INPUTS) -> list[Objects]:
    """Where inputs may lie; nowhere, if the connection does not exist."""
    try:
        return prefixes_of(BaseHook.get_connection(conn_id))
    except AirflowNotFoundException:
        return []


def base_url(connection: Connection) -> str:
    """The URL of an http connection, whose host may or may not hold the scheme."""
    host = (connection.host or "").rstrip("/")
    if "://" in host:
        return host
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"


def write_note(dag_id: str, run_id: str, note: str) -> None:
    """Puts a sentence on the run in Airflow's UI, where connection waybill_airflow allows it. Never fails a task."""
    try:
        connection = BaseHook.get_connection(AIRFLOW)
        with httpx.Client(base_url=base_url(connection), timeout=15) as http:
            login = {"username": connection.login, "password": connection.password}
            token = http.post("/auth/token", json=login).raise_for_status().json()["access_token"]
            headers: dict[str, Any] = {"Authorization": f"Bearer {token}"}
            path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
            body = {"note": shorten(note, 1000, "the whole is in the receipt")}
            http.patch(path, params={"update_mask": "note"}, json=body, headers=headers).raise_for_status()
    except AirflowNotFoundException:
        return
    except Exception as error:  # a note is never worth a task, whatever the connection or the answer looks like
        log.warning("the run's note could not be written (%s); the outcome is in the receipt", type(error).__name__)


def journals(*steps: str, conn_id: str = RECEIPTS) -> JournalFor:
    """Journals by name in the folder `plates/journals/<steps>` under the receipts prefix."""
    connection = BaseHook.get_connection(conn_id)
    place = prefixes_of(connection)[0].prefix + "/".join(["plates", "journals", *map(file_name, steps)]) + "/"
    parts = urlsplit(place)
    if parts.scheme == "file":  # all workers see this folder, or they would not share receipts either
        folder = Path(unquote(parts.path))
        return lambda name: FileJournal(folder / f"{file_name(name)}.jsonl")
    options = connection.extra_dejson.get("options")
    named_by = f"connection {conn_id}"
    return lambda name: ObjectJournal(Objects(f"{place}{file_name(name)}", options, named_by=named_by))
