"""How a stack judges health and reports failure, without booting one (tests/airflow boots one)."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rehearsal import database, processes
from rehearsal.errors import StackError
from rehearsal.stack import Stack


class Health(HTTPServer):
    """Answers /monitor/health with what the test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answer: dict[str, Any] = {"metadatabase": {"status": "healthy"}}
        for key in ("scheduler", "triggerer", "dag_processor"):
            self.beat(key, time.time() + 60)

    def beat(self, key: str, at: float, status: str = "healthy") -> None:
        self.answer[key] = {"status": status, f"latest_{key}_heartbeat": datetime.fromtimestamp(at, UTC).isoformat()}


class _Answer(BaseHTTPRequestHandler):
    server: Health

    def do_GET(self) -> None:
        body = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def health() -> Iterator[Health]:
    server = Health()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class Dummies(Stack):
    """Components that sleep, or print and fail, instead of Airflow's."""

    failing: str | None = None

    def _command(self, name: str) -> list[str]:
        if name == self.failing:
            return [sys.executable, "-c", "print('no such table'); raise SystemExit(3)"]
        return ["sleep", "300"]


@pytest.fixture
def stack(tmp_path: Path, health: Health, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dummies]:
    monkeypatch.setattr(database, "prepare", lambda *_args, **_options: None)
    dummies = Dummies(tmp_path, components="separate", simulators=None)
    dummies.address = f"http://127.0.0.1:{health.server_port}"
    yield dummies
    dummies.stop()


def test_all_components_start_and_stop_leaves_none(stack: Dummies) -> None:
    with stack:
        assert {process.name() for process in stack.members()} == {"sleep"}
        assert len(stack.members()) == 4
        assert (stack.home / "stack.json").exists()
    assert stack.members() == []
    assert not (stack.home / "stack.json").exists()


def test_a_component_that_ends_at_once_is_reported_with_the_end_of_its_log(stack: Dummies, health: Health) -> None:
    stack.failing = "scheduler"
    health.beat("scheduler", 0)
    with pytest.raises(StackError, match=r"(?s)scheduler ended.*no such table"):
        stack.start_all(10)
    assert stack.members() == []


def test_a_component_is_healthy_only_by_a_sign_of_life_since_its_start(stack: Dummies, health: Health) -> None:
    health.beat("triggerer", time.time() - 5)
    with pytest.raises(StackError, match="triggerer: no sign of life yet"):
        stack.start_all(1)


def test_a_component_killed_on_purpose_is_not_waited_for(stack: Dummies, health: Health) -> None:
    stack.start_all(10)
    before = stack.pids("scheduler")
    assert stack.kill("scheduler") == before
    assert stack.pids("scheduler") == []
    health.beat("scheduler", time.time() - 60, "unhealthy")
    stack.wait_healthy(1)
    stack.start("scheduler")
    with pytest.raises(StackError, match="scheduler: unhealthy"):
        stack.wait_healthy(0.5)
    health.beat("scheduler", time.time() + 60)
    stack.wait_healthy(1)


def test_a_component_is_started_once_and_killed_only_while_it_runs(stack: Dummies) -> None:
    stack.start_all(10)
    with pytest.raises(StackError, match="triggerer is running already"):
        stack.start("triggerer")
    first = stack.pids("triggerer")[0]
    assert stack.restart("triggerer") != first
    stack.kill("triggerer")
    with pytest.raises(StackError, match="triggerer is not running"):
        stack.kill("triggerer")


def test_a_stack_ends_what_ran_in_its_home_before(stack: Dummies, health: Health) -> None:
    stack.start_all(10)
    second = Dummies(stack.home, components="separate", simulators=None)
    second.address = stack.address
    with second:
        assert processes.members(stack.stack_id) == []
        assert len(second.members()) == 4


def test_connections_can_be_made_from_the_addresses_of_the_simulators(tmp_path: Path) -> None:
    stack = Stack(tmp_path, extra_env=lambda addresses: {"AIRFLOW_CONN_X": addresses["icav2"]})
    stack.addresses = {"icav2": "http://127.0.0.1:5"}
    stack._finish_environment()
    assert stack.environment["AIRFLOW_CONN_X"] == "http://127.0.0.1:5"


def test_several_triggerers_need_separate_components(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="separate"):
        Stack(tmp_path, triggerers=2)


def test_a_database_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "airflow.db").write_text("mine", encoding="utf-8")
    database.prepare(tmp_path, {}, templates=tmp_path / "templates")
    assert (tmp_path / "airflow.db").read_text(encoding="utf-8") == "mine"
