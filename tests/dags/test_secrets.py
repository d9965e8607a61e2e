"""No secret of any connection is found anywhere after runs in which everything goes wrong, and the search can find one.

What is searched: what the process printed and logged, its arguments, every byte of Airflow's metadata database, of the
ledger and of the receipts, and what triggers carry; each for the secret itself, in base64 and URL-encoded.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from harness.plates.servers import reset_moto
from simulators.common import serve
from simulators.common.server import RunningServer
from tests.dags.conftest import Connect, World
from tests.dags.test_icav2_copy_batch import manifest_of

REGION = "ap-southeast-2"
PARAMETER = "/icav2/umccr-prod/service-user-trial-jwt-token-secret-arn"


def planted(name: str) -> str:
    """A secret that occurs nowhere else, with characters that URL encoding changes."""
    return f"{name}/{secrets.token_hex(12)}+{secrets.token_hex(4)}="


def spellings(secret: str) -> dict[str, bytes]:
    """The secret as it is, as JSON text, URL-encoded, and in base64 at each of the three offsets it may have in a text."""
    shapes = {
        "plain": secret,
        "json": json.dumps(secret)[1:-1],
        "url": quote(secret, safe=""),
        "form": quote_plus(secret),
    }
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        shapes[f"base64 at {offset}"] = text[4 if offset else 0 : -4].rstrip("=")
    return {shape: text.encode() for shape, text in shapes.items()}


def found_in(places: dict[str, bytes], hidden: dict[str, str]) -> list[str]:
    """Where which secret is found, never quoting it."""
    return [
        f"{name} ({shape}) in {place}"
        for name, secret in hidden.items()
        for shape, text in spellings(secret).items()
        for place, content in places.items()
        if text in content
    ]


@dataclass
class Vault:
    """Every secret of a test by name, and where to look for them."""

    home: Path
    world: World
    triggers: list[str] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)

    def plant(self, name: str) -> str:
        self.hidden[name] = planted(name)
        return self.hidden[name]

    def places(self, printed: str, logged: str) -> dict[str, bytes]:
        """Everything that a run leaves behind, by name."""
        files = [p for folder in (self.home, self.world.folder) for p in folder.rglob("*") if p.is_file()]
        ours = {p for p in files if p.name in ("keys.json", "passwords.json")}
        texts = {
            "standard output and error": printed,
            "log records": logged,
            "triggers and their events": "\n".join(self.triggers),
            "arguments of the process": Path("/proc/self/cmdline").read_text(),
        }
        return {str(p): p.read_bytes() for p in files if p not in ours} | {n: t.encode() for n, t in texts.items()}


class Echo:
    """ICA behind a proxy that answers some requests itself, and quotes the credentials that it was sent."""

    def __init__(self, app: Any):
        self._app = app
        self.script: list[tuple[str, str, Response | Callable[[str], Response]]] = []

    def then(self, method: str, path: str, answer: Callable[[str], Response]) -> None:
        """The next request like this is answered so; `answer` is given what the request's headers hold."""
        self.script.append((method, path, answer))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            for line in self.script:
                method, path, answer = line
                if scope["method"] == method and path in scope["path"]:
                    self.script.remove(line)
                    said = "; ".join(f"{k.decode()}: {v.decode()}" for k, v in scope["headers"])
                    await answer(said)(scope, receive, send)  # type: ignore[operator]
                    return
        await self._app(scope, receive, send)


def page(status: int) -> Callable[[str], Response]:
    """A page for people, as gateways send it, that quotes the request."""
    return lambda said: PlainTextResponse(f"<html>you sent {said}</html>", status_code=status, media_type="text/html")


@pytest.fixture
def ica(world: World) -> Iterator[tuple[Echo, RunningServer]]:
    echo = Echo(world.sim.app)
    with serve(echo) as server:
        yield echo, server


@pytest.fixture
def vault(world: World, metadata_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """Notes every trigger and event on its way, since those of `dag.test()` leave no rows."""
    from airflow.sdk.definitions import dag as dag_module

    kept = Vault(metadata_database.parent, world)
    run_inline = dag_module._run_inline_trigger

    def noting(trigger: Any, ti: Any) -> Any:
        event = run_inline(trigger, ti)
        kept.triggers.append(json.dumps([trigger.serialize(), event and event.payload]))
        return event

    monkeypatch.setattr(dag_module, "_run_inline_trigger", noting)
    yield kept
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Connection).delete()


@pytest.fixture
def store(connect: Connect) -> Callable[..., None]:
    """A connection in Airflow's own database, as a person would enter it, and in the environment.

    The second only because a trigger that `dag.test()` runs in line does not find the first.
    """

    def give(conn_id: str, **fields: Any) -> None:
        from airflow.models.connection import Connection
        from airflow.utils.session import create_session

        connect(conn_id, json.dumps(fields))
        extra = fields.pop("extra", None)
        with create_session() as session:
            session.query(Connection).filter(Connection.conn_id == conn_id).delete()
            session.add(Connection(conn_id=conn_id, extra=json.dumps(extra) if extra else None, **fields))

    return give


@pytest.fixture
def notes(vault: Vault, store: Callable[..., None]) -> Iterator[list[str]]:
    """Airflow's own API for notes: it refuses the first login, quoting it, and then gives a token."""
    password, token = vault.plant("waybill_airflow-password"), vault.plant("airflow-token")
    written: list[str] = []
    logins: list[str] = []

    async def login(request: Request) -> Response:
        logins.append((await request.body()).decode())
        return PlainTextResponse(logins[0], 401) if len(logins) == 1 else JSONResponse({"access_token": token}, 201)

    async def note(request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {token}"
        written.append((await request.json())["note"])
        return PlainTextResponse(f"Bearer {token}", 500)

    routes = [Route("/auth/token", login, methods=["POST"]), Route("/{path:path}", note, methods=["PATCH"])]
    with serve(Starlette(routes=routes)) as server:
        store("waybill_airflow", conn_type="http", host=server.url, login="waybill", password=password)
        yield written
        assert password in logins[0], "the planted password was used"


@pytest.fixture
def api_key(vault: Vault, ica: tuple[Echo, RunningServer], store: Callable[..., None]) -> str:
    key = vault.plant("ica-api-key")
    vault.world.call(lambda sim: sim.tokens.add_user("planted", key))
    store("waybill_icav2", conn_type="http", host=ica[1].url, password=key)
    return key


def issued_tokens(vault: Vault) -> None:
    """Every token that ICA made from the key is as secret as the key."""
    for number, token in enumerate(vault.world.call(lambda sim: list(sim.tokens._issued))):
        vault.hidden[f"ica-token-{number}"] = token


def search(vault: Vault, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> list[str]:
    for database in (vault.home / "airflow.db", vault.world.folder / "ledger.db"):
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    out, error = capfd.readouterr()
    return found_in(vault.places(out + error, caplog.text), vault.hidden)


def test_an_api_key_is_found_nowhere_after_a_run_with_every_fault(
    vault: Vault, api_key: str, ica: tuple[Echo, RunningServer], world: World,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    echo, _ = ica
    wanted = manifest_of(4)
    world.seed(wanted)
    echo.then("POST", "/api/tokens", page(401))
    assert world.run({"manifest": wanted}, retries=0).state == "failed"
    echo.then("POST", "/api/tokens", page(500))
    echo.then("POST", "/api/tokens", page(200))
    echo.then("GET", "/data", page(401))
    echo.then("GET", "/data", page(200))
    echo.then("GET", "/data", page(500))
    echo.then("POST", "dataCopyBatch", page(403))
    echo.then("POST", "dataCopyBatch", page(400))
    echo.then("GET", "/api/jobs", page(401))
    echo.then("GET", "/api/jobs", page(502))
    echo.then("GET", "/api/jobs", page(200))
    world.call(lambda sim: sim.faults.add(fault="drop_before_commit", method="GET", path="/data", after=3, times=2))
    world.call(lambda sim: sim.faults.add(fault="drop_after_commit", method="POST", path="dataCopyBatch", times=1))
    run = world.run({"manifest": wanted, "max_resubmissions": 1})
    assert run.state == "failed", "one destination is refused for good"
    assert len(world.missing(wanted)) == 2
    assert echo.script == [], "every planned fault was met"
    assert vault.triggers, "the run deferred"
    issued_tokens(vault)
    assert len(vault.hidden) >= 3
    assert search(vault, capfd, caplog) == []


def test_a_token_kept_by_aws_is_found_nowhere_also_when_it_is_refused(
    vault: Vault, notes: list[str], ica: tuple[Echo, RunningServer], store: Callable[..., None], world: World,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    from moto.server import ThreadedMotoServer

    echo, server = ica
    key_id, key = "AKIAWAYBILLREHEARSAL", vault.plant("aws-secret-key")
    wanted = manifest_of(2)
    world.seed(wanted)
    aws = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    aws.start()
    try:
        url = "http://{}:{}".format(*aws.get_host_and_port())
        reset_moto(url)  # what moto holds belongs to the process, and other tests put things there too
        import boto3

        keys = {"region_name": REGION, "endpoint_url": url, "aws_access_key_id": key_id, "aws_secret_access_key": key}
        token = world.call(lambda sim: sim.tokens._make(sim.tokens.users["service"], from_key=False))
        vault.hidden["kept-jwt"] = token
        secret = boto3.client("secretsmanager", **keys).create_secret(
            Name="service-user", SecretString=json.dumps({"token": token})
        )
        boto3.client("ssm", **keys).put_parameter(Name=PARAMETER, Value=secret["ARN"], Type="String")
        store(
            "waybill_aws",
            conn_type="aws",
            login=key_id,
            password=key,
            extra={"region_name": REGION, "endpoint_url": url},
        )
        store(
            "waybill_icav2", conn_type="http", host=server.url, extra={"ssm_parameter": PARAMETER, "json_key": "token"}
        )
        echo.then("GET", "/data", page(401))
        assert world.run({"manifest": wanted}).state == "success"
        world.call(lambda sim: sim.tokens.revoke_all())  # nobody renews it: refused, read again, refused
        refused = world.run({"manifest": {**wanted, **manifest_of(3)}}, retries=0)
        assert refused.state == "failed"
        assert echo.script == []
        assert len(notes) == 1, "the second run's outcome was written as a note"
        assert search(vault, capfd, caplog) == []
    finally:
        aws.stop()


def test_the_password_of_a_ledger_that_does_not_answer_is_found_nowhere(
    vault: Vault, store: Callable[..., None], world: World, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    password = vault.plant("ledger-password")
    store(
        "waybill_ledger", conn_type="postgres", host="127.0.0.1", port=1, login="waybill", password=password, schema="l"
    )
    wanted = manifest_of(1)
    world.seed(wanted)
    run = world.run({"manifest": wanted}, retries=0)
    assert run.state == "failed"
    assert run.receipt["state"] == "incomplete", "the receipt is written without a ledger"
    assert search(vault, capfd, caplog) == []


def test_a_secret_that_is_left_somewhere_is_found(
    vault: Vault, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    secret = vault.plant("left-on-purpose")
    name = vault.home / "left"
    for number, text in enumerate(
        [secret, quote(secret, safe=""), json.dumps({"a": secret}), base64.b64encode(f"x{secret}y".encode()).decode(),
         base64.b64encode(f"user:{secret}".encode()).decode(), base64.b64encode(f"{secret}".encode()).decode()]
    ):  # fmt: skip
        name.write_text(f"{number} {text} after")
        assert search(vault, capfd, caplog), number
        name.unlink()
    with sqlite3.connect(vault.world.folder / "ledger.db") as connection:
        connection.execute("CREATE TABLE left_here (value TEXT)")
        connection.execute("INSERT INTO left_here VALUES (?)", (f"Bearer {secret}",))
    connection.close()
    assert [line for line in search(vault, capfd, caplog) if "ledger.db" in line]
    print(secret)
    os.write(2, secret.encode())
    assert [line for line in search(vault, capfd, caplog) if "standard output" in line]
    vault.triggers.append(secret)
    assert [line for line in search(vault, capfd, caplog) if "triggers" in line]
