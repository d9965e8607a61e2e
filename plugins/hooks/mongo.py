"""From the connection `waybill_mongo` (type mongo) to the database of JGI's files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote_plus

from airflow.sdk import BaseHook
from airflow.sdk.log import mask_secret

from include.core.errors import RequestError
from include.jgi.tracking import Tracking

CONN_ID = "waybill_mongo"
SECONDS = {"serverSelectionTimeoutMS": 20_000, "connectTimeoutMS": 10_000, "socketTimeoutMS": 60_000}


@contextmanager
def tracking(conn_id: str = CONN_ID) -> Iterator[Tracking]:
    """The open database, closed at the end.

    Connection fields: host, port, login, password, schema (the database); extra `collections` renames collections, all other
    extras are options of pymongo's client (`directConnection`, `tls`, `authSource`, `replicaSet`, timeouts).
    Raises RequestError naming the connection where a field is missing or no option.
    """
    from airflow.providers.mongo.hooks.mongo import MongoHook
    from pymongo.errors import ConfigurationError

    connection = BaseHook.get_connection(conn_id)
    if connection.password:
        mask_secret(connection.password)
        mask_secret(quote_plus(connection.password))
    lacking = [name for name in ("host", "schema") if not getattr(connection, name)]
    if connection.conn_type != "mongo":
        raise RequestError(f"connection {conn_id}: its type is {connection.conn_type}; choose mongo")
    if lacking:
        raise RequestError(
            f"connection {conn_id}: {' and '.join(lacking)} is empty; schema is the database, as workflow"
        )
    try:
        hook = MongoHook(conn_id)
        names: dict[str, Any] = hook.extras.pop("collections", None) or {}
        hook.extras = {"tz_aware": True, **SECONDS, **hook.extras}
        database = hook.get_conn()[str(connection.schema)]
        kept = Tracking(database, names, named_by=f"connection {conn_id}")
    except (ConfigurationError, TypeError, ValueError) as error:
        raise RequestError(f"connection {conn_id}: {type(error).__name__}; check its extras") from None
    with hook:
        yield kept
