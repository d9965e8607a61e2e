"""The demo's scenarios: each meets the protocol, the demo names none of them, and its exit status says what came out."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from include.core import terminal
from include.core.ledger import Ledger
from include.core.receipt import Receipt, ReceiptStore
from rehearsal import demo
from rehearsal.api import Run
from rehearsal.errors import StackError
from rehearsal.scenes import SCENES
from rehearsal.scenes.scene import OnPoll, Progress, ReceiptCounts, Scene, answer_question, journal_requests
from simulators.common import SERVICES

METHODS = [name for name, _ in inspect.getmembers(Scene, inspect.isfunction) if not name.startswith("_")]
ADDRESSES = {name: f"http://127.0.0.1:{number}" for number, name in enumerate(SERVICES, start=1)}
SUCCESS = "All runs succeeded, every file is right, and the simulators' journals agree with the ledger."


# -- the list


def test_the_protocol_has_the_steps_of_a_scenario() -> None:
    assert set(METHODS) == {
        "simulators",
        "connections",
        "command_environment",
        "prepare",
        "start",
        "finish",
        "progress",
        "count",
        "check",
    }


@pytest.mark.parametrize("scene", SCENES)
def test_every_scenario_meets_the_protocol(scene: type[Scene]) -> None:
    assert scene.dag_ids and scene.activity
    for name in (*METHODS, "__init__"):
        wanted = inspect.signature(getattr(Scene, name)).parameters
        offered = inspect.signature(getattr(scene, name)).parameters
        assert list(offered)[: len(wanted)] == list(wanted), f"{scene.__name__}.{name}"
        more = list(offered.values())[len(wanted) :]
        assert all(one.default is not one.empty for one in more), f"{scene.__name__}.{name} asks for more"


@pytest.mark.parametrize("scene", SCENES)
def test_every_dag_of_a_scenario_exists(scene: type[Scene]) -> None:
    for dag_id in scene.dag_ids:
        assert Path(demo.__file__).parents[1].joinpath("dags", f"{dag_id}.py").exists()


def test_no_two_scenarios_share_a_dag() -> None:
    dag_ids = [dag_id for scene in SCENES for dag_id in scene.dag_ids]
    assert len(dag_ids) == len(set(dag_ids))


def test_the_connections_of_all_scenarios_go_together() -> None:
    connections = demo.scene_connections(SCENES, ADDRESSES)
    assert all(name.startswith("AIRFLOW_CONN_WAYBILL_") for name in connections)
    assert len(connections) >= len(SCENES)


@pytest.mark.parametrize("module", [demo, inspect.getmodule(Scene)])
def test_what_is_common_to_all_systems_names_none(module: Any) -> None:
    source = inspect.getsource(module).lower()
    words = {*SERVICES} | {scene.__module__.rsplit(".", 1)[-1] for scene in SCENES}
    words |= {scene.__name__.lower() for scene in SCENES} | {dag_id for scene in SCENES for dag_id in scene.dag_ids}
    words |= {"bucket"} if module is demo else set()
    assert {word for word in words if word in source} == set()


def test_the_demo_imports_no_module_of_a_scenario() -> None:
    tree = ast.parse(inspect.getsource(demo))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {scene.__module__ for scene in SCENES}


# -- the verdict, with a scenario that is made up


class FakeApi:
    def __init__(self) -> None:
        self.unpaused: list[str] = []

    def unpause(self, dag_id: str) -> None:
        self.unpaused.append(dag_id)


class FakeStack:
    """Starts nothing, and remembers what was asked of it."""

    last: FakeStack

    def __init__(self, home: Path, *, simulators: Sequence[str], extra_env: Callable[[Mapping[str, str]], Any]) -> None:
        self.home, self._extra_env = home, extra_env
        self.address, self.addresses = "http://127.0.0.1:1", ADDRESSES
        self.passwords = {"amy": "secret"}
        self.api = FakeApi()
        self.environment: dict[str, str] = {}
        self.stopped = False
        FakeStack.last = self

    def start_all(self) -> None:
        self.environment = dict(self._extra_env(self.addresses))

    def stop(self) -> None:
        self.stopped = True


class MadeUp:
    """Two runs that leave their receipts where the demo looks for them."""

    dag_ids: Sequence[str] = ("made_up",)
    activity = "making it up"
    states = ("success", "success")
    receipts = 2
    wrong: Sequence[str] = ()

    def __init__(self, stack: Any, ledger: Ledger) -> None:
        self.stack = stack
        self.calls: list[str] = []
        self.runs = [Run("made_up", f"run{n}__x", state, {}) for n, state in enumerate(self.states)]
        stack.scene = self

    @staticmethod
    def simulators() -> Sequence[str]:
        return ()

    @staticmethod
    def connections(addresses: Mapping[str, str]) -> dict[str, str]:
        return {"AIRFLOW_CONN_WAYBILL_MADE_UP": min(addresses.values())}

    @staticmethod
    def command_environment(addresses: Mapping[str, str]) -> dict[str, str]:
        return {"MADE_UP_ENDPOINT": min(addresses.values()), "MADE_UP_KEY": "it's a key"}

    def prepare(self) -> None:
        self.calls.append("prepare")
        assert self.stack.api.unpaused == []

    def start(self) -> None:
        self.calls.append("start")
        assert self.stack.api.unpaused == ["made_up"]

    def finish(self, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        self.calls.append("finish")
        say("somebody says yes")
        on_poll(self.runs)
        store = ReceiptStore.at((self.stack.home / "environment" / "receipts").as_uri())
        for run in self.runs[: self.receipts]:
            receipt = Receipt(dag_id=run.dag_id, run_id=run.run_id, state="complete", outcome="Well.", totals={"n": 7})
            asyncio.run(store.write(receipt))
        return self.runs

    def progress(self, runs: Sequence[Run]) -> Progress | None:
        return Progress("made_up", ("runs", "widgets"), tuple((run.run_id, "3 of 7") for run in runs))

    def count(self, receipt: Mapping[str, Any]) -> ReceiptCounts:
        return ReceiptCounts(receipt["totals"]["n"], 9, 2_000, 1)

    def check(self, receipts: Sequence[Mapping[str, Any]]) -> list[str]:
        self.calls.append("check")
        return list(self.wrong)


def made_up(**attributes: Any) -> type[Scene]:
    return type("Changed", (MadeUp,), attributes)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the demo prints, on lines so wide that no sentence is broken."""
    text = io.StringIO()
    monkeypatch.setattr(demo, "console", Console(file=text, width=200))
    yield text


def run_demo(home: Path, scene: type[Scene], **options: Any) -> int:
    make_stack: Any = FakeStack
    return demo.demo(home, [scene], make_stack=make_stack, **options)


def test_the_exit_status_is_0_when_all_is_well(tmp_path: Path, printed: io.StringIO) -> None:
    assert run_demo(tmp_path, made_up()) == 0
    text = printed.getvalue()
    assert SUCCESS in text
    assert "somebody says yes" in text
    assert text.count("widgets") == 1, "one progress table stays"
    assert text.count("3 of 7") == 2
    for cell in ("run0", "Well.", "7 of 9", "2.0 kB"):
        assert cell in text
    assert FakeStack.last.stopped
    assert FakeStack.last.scene.calls == ["prepare", "start", "finish", "check"]  # type: ignore[attr-defined]
    assert FakeStack.last.environment["AIRFLOW_CONN_WAYBILL_MADE_UP"] == "http://127.0.0.1:1"
    assert "AIRFLOW_CONN_WAYBILL_LEDGER" in FakeStack.last.environment


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"states": ("success", "failed")}, "wrong: run run1__x is failed"),
        ({"states": ("success", "running")}, "wrong: run run1__x is running"),
        ({"receipts": 1}, "wrong: no receipt of run1__x"),
        ({"wrong": ["a widget is bent"]}, "wrong: a widget is bent"),
    ],
)
def test_the_exit_status_is_1_and_says_what_is_wrong(
    tmp_path: Path, printed: io.StringIO, attributes: dict[str, Any], sentence: str
) -> None:
    assert run_demo(tmp_path, made_up(**attributes)) == 1
    assert sentence in printed.getvalue()
    assert SUCCESS not in printed.getvalue()
    assert "check" in FakeStack.last.scene.calls  # type: ignore[attr-defined]
    assert FakeStack.last.stopped


def test_a_run_that_nobody_expected_is_wrong(tmp_path: Path) -> None:
    scene: Any = made_up()(FakeStack(tmp_path, simulators=(), extra_env=dict), None)  # type: ignore[arg-type]
    receipts = [{"dag_id": "made_up", "run_id": run_id} for run_id in ("run0__x", "run1__x", "other")]
    assert demo.verdict(scene, scene.runs, receipts) == [
        "a receipt of other, a run of made_up that was not expected",
    ]


def test_a_changed_ledger_is_wrong(tmp_path: Path, printed: io.StringIO) -> None:
    def finish(self: Any, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        runs = MadeUp.finish(self, say, on_poll)
        path = self.stack.home / "environment" / "receipts" / "made_up" / "run0__x" / "receipt.json"
        receipt = json.loads(path.read_text())
        receipt["ledger"] = {"id": "another", "number": 3, "sha256": "0" * 64}
        path.write_text(json.dumps(receipt))
        return runs

    assert run_demo(tmp_path, made_up(finish=finish)) == 1
    assert "ledger" in printed.getvalue()


def test_a_scenario_without_a_table_shows_what_it_does(tmp_path: Path, printed: io.StringIO) -> None:
    assert run_demo(tmp_path, made_up(progress=lambda self, runs: None)) == 0
    assert "widgets" not in printed.getvalue()


def test_what_the_stack_cannot_do_ends_the_demo_with_its_message(tmp_path: Path, printed: io.StringIO) -> None:
    def finish(self: Any, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        raise StackError("after 300 s: nobody asked")

    assert run_demo(tmp_path, made_up(finish=finish)) == 1
    assert "wrong: after 300 s: nobody asked" in printed.getvalue()
    assert FakeStack.last.stopped


def test_an_interruption_leaves_nothing_running(tmp_path: Path, printed: io.StringIO) -> None:
    def start(self: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, made_up(start=start))
    assert FakeStack.last.stopped


def test_what_is_kept_running_is_shown_with_its_logins(tmp_path: Path, printed: io.StringIO) -> None:
    assert run_demo(tmp_path, made_up(), keep=True) == 0
    assert not FakeStack.last.stopped
    assert "login amy / secret" in printed.getvalue()


def test_two_scenarios_may_share_a_connection_but_not_disagree() -> None:
    other = made_up(connections=staticmethod(lambda addresses: {"AIRFLOW_CONN_WAYBILL_MADE_UP": "elsewhere"}))
    same = made_up()
    assert demo.scene_connections([made_up(), same], ADDRESSES) == same.connections(ADDRESSES)
    with pytest.raises(StackError, match="AIRFLOW_CONN_WAYBILL_MADE_UP"):
        demo.scene_connections([made_up(), other], ADDRESSES)


def test_a_demo_begins_without_what_the_one_before_left(tmp_path: Path) -> None:
    for name in ("environment", "airflow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    (tmp_path / "passwords.json").touch()
    assert list(demo.new_environment(tmp_path).iterdir()) == []
    assert not (tmp_path / "airflow").exists()
    assert (tmp_path / "passwords.json").exists()


# -- what scenarios share


class _Journal(BaseHTTPRequestHandler):
    body: Any = None

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/_sim/journal" else 404)
        self.end_headers()
        self.wfile.write(json.dumps(_Journal.body).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def simulator() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Journal)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_journals_requests_are_read_and_nothing_else(simulator: str) -> None:
    request = {"method": "DELETE", "path": "/b/k", "query": "", "status": 204}
    other = {"seq": 2, "kind": "job_finished", "details": {"job_id": "1"}}
    _Journal.body = {"entries": [{"seq": 1, "kind": "request", "details": request}, other], "last_seq": 2}
    assert journal_requests(simulator) == [request]


def test_a_question_is_answered_by_the_user_who_may_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Asking:
        def __init__(self, user: str) -> None:
            self.user = user

        def wait_task(self, *where: Any, states: set[str]) -> None:
            calls.append((self.user, "waits", *where, *states))

        def question(self, *where: Any) -> dict[str, str]:
            return {"subject": "Delete?"}

        def answer(self, *what: Any) -> None:
            calls.append((self.user, "answers", *what))

    class Stack:
        api = Asking("admin")
        api_as = Asking

    stack: Any = Stack()
    monkeypatch.setattr("rehearsal.scenes.scene.time.sleep", lambda seconds: calls.append(seconds))
    assert answer_question(stack, "d", "r", "Reject", user="amy") == "Delete?"
    assert calls == [
        ("admin", "waits", "d", "r", "approval", 300, "awaiting_input"),
        3.5,
        ("amy", "answers", "d", "r", "approval", "Reject"),
    ]


def test_a_demo_that_is_kept_prints_what_the_command_lines_need(tmp_path: Path, printed: io.StringIO) -> None:
    assert run_demo(tmp_path, made_up(), keep=True) == 0
    text = printed.getvalue()
    for name, address in ADDRESSES.items():
        assert f"Simulator {name}: {address}" in text
    commands = tmp_path / "environment" / "commands.env"
    assert f". {commands}" in text
    names = ("AIRFLOW_CONN_WAYBILL_LEDGER", "MADE_UP_ENDPOINT", "MADE_UP_KEY")
    shown = "; ".join(f'echo "${name}"' for name in names)
    done = subprocess.run(["sh", "-c", f". {commands}; {shown}"], capture_output=True, text=True, check=True)
    ledger, endpoint, key = done.stdout.splitlines()
    assert ledger == f"sqlite:///{tmp_path / 'environment' / 'ledger.db'}"
    assert (endpoint, key) == (min(ADDRESSES.values()), "it's a key")


def test_a_table_in_a_pipe_is_whole_and_can_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.table(("run", "outcome"), [("plates-approve", "x " * 400)])
    shown = capsys.readouterr().out
    assert "│ plates-approve │ x x x" in shown and shown.count("x ") == 400 and "…" not in shown
    assert max(map(len, shown.splitlines())) <= 160
