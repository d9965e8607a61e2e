"""From connections to MongoDB, GOLD and JDP: what is wrong is named by connection and field, and no secret is told."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from harness.fixtures import Connect
from include.core.errors import AuthError, NotFound, RequestError, TransientError
from include.jgi.models import Limits

SECRET = "s3cret/w@rd"
MONGO = {"conn_type": "mongo", "host": "127.0.0.1", "port": 9, "schema": "workflow", "login": "me", "password": SECRET}
QUICK = {"directConnection": True, "serverSelectionTimeoutMS": 50}


def opened(connect: Connect, **fields: Any) -> None:
    from hooks.mongo import tracking

    connect("waybill_mongo", json.dumps({**MONGO, **fields}))
    with tracking() as kept:
        kept.projects()


def test_mongodb_opens_by_its_connection_and_closes(connect: Connect, mongo_uri: str, mongo: Any) -> None:
    from hooks.mongo import tracking

    host, port = mongo_uri.partition("//")[2].partition("/")[0].split(":")
    fields = {"conn_type": "mongo", "host": host, "port": int(port), "schema": mongo.name}
    connect("waybill_mongo", json.dumps({**fields, "extra": {"directConnection": True, "collections": {"files": "f"}}}))
    with tracking() as kept:
        kept.ensure_indexes()
        client = kept._database.client
        with pytest.raises(NotFound, match="not known in connection waybill_mongo"):
            kept.project("grow")
    assert "f" in mongo.list_collection_names()
    assert client._closed


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema": ""}, "schema is empty"),
        ({"host": "", "schema": ""}, "host and schema is empty"),
        ({"conn_type": "http"}, "its type is http; choose mongo"),
        ({"extra": {"noSuchOption": 1}}, "check its extras"),
        ({"extra": {"serverSelectionTimeoutMS": "soon"}}, "check its extras"),
        ({"extra": {"collections": {"fyles": "x"}}}, "fyles"),
    ],
)
def test_a_mongo_connection_that_is_wrong_is_named(connect: Connect, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=f"connection waybill_mongo: .*{said}"):
        opened(connect, **{"extra": QUICK, **fields})


def test_a_server_that_is_away_is_told_without_its_address_or_password(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(TransientError, match="waybill_mongo: MongoDB is out of reach") as caught,
    ):
        opened(connect, extra=QUICK)
    for secret in (SECRET, "s3cret%2Fw%40rd"):
        assert secret not in caplog.text + repr(caught.value)
    assert "127.0.0.1" not in str(caught.value)


JDP = {
    "conn_type": "http",
    "host": "https://files.jgi.doe.gov",
    "login": "nmdc",
    "password": "Bearer /api/sessions/abc",
    "extra": {"globus_user": "nmdc@globusid.org"},
}


def account(connect: Connect, **fields: Any) -> Any:
    from hooks.jgi import JdpHook

    connect("waybill_jdp", json.dumps({**JDP, **fields}))
    return JdpHook().account()


def test_jdp_s_limits_are_the_connection_s(connect: Connect) -> None:
    extra = {"globus_user": "u", "window_bytes": 1e12, "window_seconds": 60, "margin_seconds": 0, "request_ids": "10"}
    found = account(connect, extra=extra)
    assert (found.name, found.globus_user) == ("nmdc", "u")
    assert found.limits == Limits(window_bytes=10**12, window_seconds=60.0, margin_seconds=0.0, request_ids=10)
    assert (found.quota.limit_bytes, found.quota.span, found.quota.doubt_expires) == (10**12, 60.0, True)
    assert account(connect).limits == Limits()


def test_everything_that_is_wrong_with_jdp_s_connection_is_told_at_once(connect: Connect) -> None:
    extra = {
        "window_bytes": 0,
        "request_ids": 7.5,
        "max_attempts": "many",
        "window_seconds": -1,
        "disk_life_days": "nan",
        "margin_seconds": True,
    }
    with pytest.raises(RequestError) as caught:
        account(connect, login=" ", extra=extra)
    told = caught.value.problems
    assert all(one.startswith("connection waybill_jdp: ") for one in told)
    for name in (*extra, "globus_user", "login"):
        assert any(f"{name}: " in one for one in told), (name, told)


@pytest.mark.parametrize("name", ["Gold", "Jdp"])
def test_a_connection_without_a_token_says_where_to_give_it(connect: Connect, name: str) -> None:
    import hooks.jgi

    hook = getattr(hooks.jgi, f"{name}Hook")()
    connect(f"waybill_{name.lower()}", json.dumps({**JDP, "password": ""}))
    with pytest.raises(AuthError, match=f"waybill_{name.lower()} holds no credential: give the token as password"):
        hook.client()
