"""Ending a stack ends what is marked, however it hides, and nothing else. With real, small processes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rehearsal import processes
from rehearsal.__main__ import main
from rehearsal.settings import base_environment
from rehearsal.stack import Record, Stack, stop_recorded

SLEEP = ("sleep", "300")
DEAF = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)",
)


class Zoo:
    """Starts processes and ends those that a test leaves, by their own handles."""

    def __init__(self) -> None:
        self.stack_id = secrets.token_hex(8)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str], mark: str | None, **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **more} | ({processes.MARK: mark} if mark else {})
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def reap(self) -> None:
        for process in self.started:
            process.poll()

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def zoo() -> Iterator[Zoo]:
    animals = Zoo()
    yield animals
    processes.end(animals.stack_id, grace_seconds=0, reap=animals.reap)
    animals.close()


def _pids(zoo: Zoo) -> set[int]:
    return {process.pid for process in processes.members(zoo.stack_id)}


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_only_marked_processes_are_ended(zoo: Zoo) -> None:
    ours = zoo.start(SLEEP, zoo.stack_id)
    other_stack = zoo.start(SLEEP, secrets.token_hex(8))
    longer_mark = zoo.start(SLEEP, zoo.stack_id + "0")
    unmarked = zoo.start(SLEEP, None)
    named_alike = zoo.start(
        (sys.executable, "-c", "import time; time.sleep(300)", f"{processes.MARK}={zoo.stack_id}"), None
    )
    assert processes.end(zoo.stack_id, reap=zoo.reap) == 1
    assert ours.poll() is not None
    assert [process.poll() for process in (other_stack, longer_mark, unmarked, named_alike)] == [None] * 4


def test_an_orphan_in_a_group_of_its_own_is_found(zoo: Zoo) -> None:
    parent = zoo.start(("sh", "-c", "setsid sleep 300 & echo $!"), zoo.stack_id)
    _first_line(parent)
    parent.wait(60)
    deadline = time.monotonic() + 60  # between fork and exec a process has no environment to be known by
    while len(_pids(zoo)) != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_pids(zoo)) == 1
    assert processes.end(zoo.stack_id) == 1
    assert _pids(zoo) == set()


def test_a_child_that_cleaned_its_environment_is_found_by_its_parent(zoo: Zoo) -> None:
    parent = zoo.start(("sh", "-c", "env -i sleep 300 & echo $!; wait"), zoo.stack_id)
    child = psutil.Process(int(_first_line(parent)))
    deadline = time.monotonic() + 60
    while child.name() != "sleep" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.mark_of(child) is None
    assert child.pid in _pids(zoo)
    processes.end(zoo.stack_id, reap=zoo.reap)
    assert not processes.is_alive(child)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(zoo: Zoo) -> None:
    deaf = zoo.start(DEAF, zoo.stack_id)
    _first_line(deaf)
    begun = time.monotonic()
    processes.end(zoo.stack_id, grace_seconds=0.5, reap=zoo.reap)
    assert deaf.wait(1) == -9
    assert time.monotonic() - begun >= 0.5


def test_a_process_that_takes_long_to_die_on_a_busy_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: every look takes 5 s, and the process is gone at the tenth."""
    now, looks = [0.0], [0]

    monkeypatch.setattr(processes, "_signal_all", lambda *_: None)

    def found(_: str) -> list[Any]:
        looks[0] += 1
        now[0] += 5
        return [SimpleNamespace(pid=1)] if looks[0] < 10 else []

    monkeypatch.setattr(processes, "members", found)
    monkeypatch.setattr(processes, "is_alive", lambda _: looks[0] < 10)
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    assert processes.end("busy") == 1
    looks[0] = 0
    with pytest.raises(TimeoutError, match="do not end: 1"):
        processes.end("busy", kill_seconds=1)


def test_a_frozen_process_is_ended_too(zoo: Zoo) -> None:
    frozen = zoo.start(SLEEP, zoo.stack_id)
    process = psutil.Process(frozen.pid)
    process.suspend()
    deadline = time.monotonic() + 60
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)
    processes.end(zoo.stack_id, grace_seconds=0.3, reap=zoo.reap)
    assert frozen.wait(1) == -9


def test_renaming_a_process_does_not_wipe_its_mark(zoo: Zoo, tmp_path: Path) -> None:
    title = "airflow worker -- 01a1fc08-3358-7aff-ae26-bd643625166a"
    code = (
        f"import setproctitle, time; setproctitle.setproctitle({title!r}); print('named', flush=True); time.sleep(300)"
    )
    environment = base_environment(tmp_path, short_timings=False)
    renamed = zoo.start((sys.executable, "-c", code), zoo.stack_id, SPT_NOENV=environment["SPT_NOENV"])
    _first_line(renamed)
    process = psutil.Process(renamed.pid)
    assert process.cmdline()[0] == title
    assert processes.mark_of(process) == zoo.stack_id
    assert processes.task_instance_of(process) == "01a1fc08-3358-7aff-ae26-bd643625166a"


def test_a_supervisor_is_not_taken_for_its_task(zoo: Zoo) -> None:
    code = "import setproctitle, time; setproctitle.setproctitle('airflow worker -- LocalExecutor: 01a1fc08-3358-7aff-ae26')"
    supervisor = zoo.start((sys.executable, "-c", f"{code}; print('named', flush=True); time.sleep(300)"), zoo.stack_id)
    _first_line(supervisor)
    assert processes.task_instance_of(psutil.Process(supervisor.pid)) is None


def test_a_stack_is_stopped_from_another_shell_by_its_record(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Record(zoo.stack_id, str(tmp_path), "http://127.0.0.1:1", ["standalone"], 0.0).write()
    ours = zoo.start(SLEEP, zoo.stack_id)
    assert main(["status", "--home", str(tmp_path)]) == 1
    assert "does not answer" in capsys.readouterr().out
    command = [sys.executable, "-m", "rehearsal", "stop", "--home", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"ended 1 processes of the stack in {tmp_path}\n"
    assert ours.wait(5) == -15
    assert stop_recorded(tmp_path) is None
    assert main(["status", "--home", str(tmp_path)]) == 1


def test_stopping_where_nothing_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"nothing runs in {tmp_path}\n"


def test_an_unreadable_record_is_an_error_and_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.json").write_text("[]", encoding="utf-8")
    assert main(["stop", "--home", str(tmp_path)]) == 2
    assert "not the record of a stack" in capsys.readouterr().err


def test_no_connection_stands_in_a_command(tmp_path: Path) -> None:
    stack = Stack(tmp_path, components="separate", triggerers=2, extra_env={"AIRFLOW_CONN_X": "http://u:pw@h"})
    commands = [argument for name in (*stack.components, "simulators") for argument in stack._command(name)]
    assert not [argument for argument in commands if "pw" in argument or "AIRFLOW_CONN" in argument]
    assert stack.components[-1] == "triggerer-2"
    assert stack._command("triggerer-2")[-2:] == ["triggerer", "--skip-serve-logs"]
