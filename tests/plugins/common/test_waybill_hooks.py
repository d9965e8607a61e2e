"""Waybill's own connections: the shapes they may have, and the note that never fails a task."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseHook, Connection
from hooks import waybill
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from harness.fixtures import Connect, connections_to
from include.core.errors import LedgerError, RequestError
from include.core.ledger import Ledger
from simulators.common import serve

ROOT = Path(__file__).parents[3]


def connection(**fields: Any) -> Connection:
    return Connection(conn_id="waybill_test", **fields)


def test_the_ledger_opens_for_a_task_and_for_a_trigger(ledger: Ledger):
    with waybill.ledger() as book:
        assert book.ledger_id == ledger.ledger_id
    assert asyncio.run(waybill.ask_ledger(lambda book: book.ledger_id)) == ledger.ledger_id


@pytest.mark.parametrize("shape", ["sqlite:///{path}", '{{"conn_type": "sqlite", "host": "{path}"}}'])
def test_the_ledger_may_be_given_as_uri_or_json(ledger: Ledger, connect: Connect, tmp_path: Path, shape: str):
    connect("waybill_ledger", shape.format(path=tmp_path / "ledger.db"))
    with waybill.ledger() as book:
        assert book.ledger_id == ledger.ledger_id


def test_a_ledger_is_closed_also_where_the_work_with_it_fails(ledger: Ledger, tmp_path: Path, connect: Connect):
    ledger.close()

    def fails(_book: Ledger) -> None:
        raise ValueError

    with pytest.raises(ValueError), waybill.ledger() as book:
        fails(book)
    with pytest.raises(ValueError):
        asyncio.run(waybill.ask_ledger(fails))
    assert connections_to(book) == 0
    empty = tmp_path / "empty.db"
    empty.touch()
    connect("waybill_ledger", f"sqlite:///{empty}")
    with pytest.raises(LedgerError, match="holds no ledger") as refused, waybill.ledger():
        pass
    assert connections_to(book, empty) == 0, f"although it was refused: {refused.value}"


def test_nobody_opens_a_ledger_but_the_hook_and_nobody_forgets_to_close_it():
    """A call of `ledger()` that is not entered would open nothing, and check nothing."""
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        if path.name != "waybill.py":
            assert not [call.lineno for call in calls if call.func.id == "Ledger"], path
        entered = [item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
        entered += [arg for node in ast.walk(tree) if getattr(getattr(node, "func", None), "attr", "") == "enter_context"
                    for arg in node.args]  # fmt: skip
        lost = [call.lineno for call in calls if call.func.id == "ledger" and call not in entered]
        assert lost == [], f"{path} opens a ledger that is not closed"


def test_a_ledger_connection_of_another_type_is_refused_without_its_password():
    with pytest.raises(LedgerError) as refused:
        waybill.url_of(connection(conn_type="mysql", host="h", login="u", password="pass-5ecret", schema="d"))
    assert "pass-5ecret" not in str(refused.value)
    assert "waybill_ledger" in str(refused.value)


def test_an_unreachable_postgres_ledger_is_told_without_its_password(connect: Connect):
    connect("waybill_ledger", "postgresql://waybill:pass-5ecret@127.0.0.1:1/ledger")
    with pytest.raises(Exception, match="waybill_ledger") as failed, waybill.ledger():
        pass
    chain: BaseException | None = failed.value
    while chain is not None:
        assert "pass-5ecret" not in str(chain)
        chain = chain.__cause__


@pytest.mark.parametrize(
    ("extra", "prefixes"),
    [
        ({"prefix": "file:///srv/one"}, ["file:///srv/one/"]),
        ({"prefix": "file:///srv/one/"}, ["file:///srv/one/"]),
        ({"prefixes": ["file:///srv/one", "file:///srv/two"]}, ["file:///srv/one/", "file:///srv/two/"]),
    ],
)
def test_prefixes_may_be_one_or_many(extra: dict[str, Any], prefixes: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("include.core.objects.LocalStore", lambda *_args, **_options: None)
    found = waybill.prefixes_of(connection(conn_type="generic", extra=json.dumps(extra)))
    assert [place.prefix for place in found] == prefixes


@pytest.mark.parametrize("extra", [{}, {"prefix": ""}, {"prefix": "/srv/no/scheme"}, {"prefixes": [1]}])
def test_a_connection_without_a_usable_prefix_is_refused_with_an_example(extra: dict[str, Any]):
    with pytest.raises(RequestError, match="file:///"):
        waybill.prefixes_of(connection(conn_type="generic", extra=json.dumps(extra)))


def test_without_the_connection_of_inputs_there_are_none(metadata_database: Path):
    assert waybill.inputs() == []


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "https://ica.illumina.com/ica/rest"}, "https://ica.illumina.com/ica/rest"),
        ({"host": "https://ica.illumina.com/ica/rest/"}, "https://ica.illumina.com/ica/rest"),
        ({"host": "ica.illumina.com"}, "https://ica.illumina.com"),
        ({"host": "localhost", "port": 8080, "schema": "http"}, "http://localhost:8080"),
    ],
)
def test_an_http_connection_may_hold_its_scheme_in_the_host_or_beside_it(fields: dict[str, Any], url: str):
    assert waybill.base_url(connection(conn_type="http", **fields)) == url


# -- notes -------------------------------------------------------------------------------------------------------

LOGIN = {"username": "waybill", "password": "pass-5ecret"}


class Airflow:
    """Airflow's REST API as far as a note needs it: `notes` by path, `answer` replaces the answer to a path's end."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.answer: dict[str, Callable[[], Response]] = {}
        routes = [
            Route("/auth/token", self._token, methods=["POST"]),
            Route("/{path:path}", self._note, methods=["PATCH"]),
        ]
        self.app = Starlette(routes=routes)

    async def _token(self, request: Request) -> Response:
        if "token" in self.answer:
            return self.answer["token"]()
        good = await request.json() == LOGIN
        return JSONResponse({"access_token": "t0ken"} if good else {}, status_code=201 if good else 401)

    async def _note(self, request: Request) -> Response:
        if "note" in self.answer:
            return self.answer["note"]()
        assert request.headers["authorization"] == "Bearer t0ken"
        assert dict(request.query_params) == {"update_mask": "note"}
        self.notes[request.url.path] = (await request.json())["note"]
        return JSONResponse({})


@pytest.fixture
def airflow(connect: Connect) -> Iterator[Airflow]:
    api = Airflow()
    with serve(api.app) as server:
        host = {"conn_type": "http", "host": server.url, "login": "waybill", "password": "pass-5ecret"}
        connect("waybill_airflow", json.dumps(host))
        yield api


RUN = "/api/v2/dags/icav2_copy_batch/dagRuns/manual__2026-01-02T03:04:05+00:00"


def note(text: str = "All 4 files are at their destinations.") -> None:
    waybill.write_note("icav2_copy_batch", "manual__2026-01-02T03:04:05+00:00", text)


def test_the_outcome_becomes_the_note_of_the_run_cut_to_what_airflow_takes(airflow: Airflow):
    note("x" * 5000)
    assert len(airflow.notes[RUN]) == 1000
    assert airflow.notes[RUN].endswith("… (cut, 5000 characters in all: the whole is in the receipt)")


def test_without_the_connection_no_note_is_written(metadata_database: Path, caplog: pytest.LogCaptureFixture):
    note()
    assert "could not be written" not in caplog.text


BAD_ANSWERS = [
    lambda: Response(status_code=403),
    lambda: Response(status_code=500),
    lambda: PlainTextResponse("Bearer t0ken pass-5ecret", status_code=201),
    lambda: JSONResponse({"other": 1}, status_code=201),
    lambda: JSONResponse(["access_token"], status_code=201),
]


@pytest.mark.parametrize("place", ["token", "note"])
@pytest.mark.parametrize("number", range(len(BAD_ANSWERS)))
def test_a_note_that_cannot_be_written_fails_nothing_and_tells_no_secret(
    airflow: Airflow, caplog: pytest.LogCaptureFixture, place: str, number: int
):
    airflow.answer[place] = BAD_ANSWERS[number]
    note()
    assert "pass-5ecret" not in caplog.text
    assert "t0ken" not in caplog.text
    if place == "token":
        assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        '{"conn_type": "http", "host": "http://127.0.0.1:1"}',
        '{"conn_type": "http", "host": "http://127.0.0.1:99999999"}',
        '{"conn_type": "http", "host": "http://[no-address"}',
        '{"conn_type": "http"}',
    ],
)
def test_a_connection_for_notes_that_leads_nowhere_fails_nothing(
    connect: Connect, caplog: pytest.LogCaptureFixture, value: str
):
    connect("waybill_airflow", value)
    note()
    assert "could not be written" in caplog.text


def test_no_hook_reads_a_connection_before_it_is_used(monkeypatch: pytest.MonkeyPatch):
    from hooks.icav2 import ICAv2Hook
    from operators.icav2.copy_batch import ICAv2CopyBatchOperator
    from sensors.icav2_jobs import ICAv2JobsSensor

    monkeypatch.setattr(BaseHook, "get_connection", classmethod(lambda *_: pytest.fail("read when the DAG is parsed")))
    ICAv2Hook()
    ICAv2CopyBatchOperator(task_id="copy", plan={}, request={})
    ICAv2JobsSensor(task_id="wait", job_ids=[])
