"""A local Airflow and the simulated remotes, on free loopback ports, with everything they write below one folder.

    with Stack(Path(".waybill/rehearsal"), extra_env=connections) as stack:
        run = stack.api.trigger("plate_backup", {...})

Invariant: `stop` finds processes by a mark in their environment, not by the handles kept here, so it also ends what a
killed component left behind, and works from another shell (`python -m rehearsal stop`).
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx
import psutil

from rehearsal import database, processes, settings
from rehearsal.api import Api, TaskInstance
from rehearsal.errors import StackError

SIMULATORS = "simulators"
API_SERVER, SCHEDULER, DAG_PROCESSOR, TRIGGERER = "api-server", "scheduler", "dag-processor", "triggerer"
STANDALONE = "standalone"
HEALTH_KEYS = {SCHEDULER: "scheduler", TRIGGERER: "triggerer", DAG_PROCESSOR: "dag_processor"}
NOT_RUNNING = "not running"
USUAL_BOOT_SECONDS = 25.0  # from the first component's start until all are healthy, on two cores with little else to do
TAIL_LINES = 25
# Connections are made by the caller, from the addresses of the simulators by name.
ExtraEnv = Mapping[str, str] | Callable[[Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True)
class Record:
    """What `<home>/stack.json` tells other shells about a running stack; nothing in it is secret."""

    stack_id: str
    home: str
    address: str
    components: list[str]
    started_at: float

    @classmethod
    def read(cls, home: Path) -> Record | None:
        try:
            return cls(**json.loads((home / "stack.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise StackError(f"{home / 'stack.json'} is not the record of a stack: {error}") from error

    def write(self) -> None:
        path = Path(self.home) / "stack.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def stop_recorded(home: Path) -> int | None:
    """End the stack recorded in `home`, whoever started it. Returns how many processes there were, None without record."""
    record = Record.read(home)
    if record is None:
        return None
    count = processes.end(record.stack_id)
    (home / "stack.json").unlink(missing_ok=True)
    return count


class Stack:
    """One local Airflow.

    home: folder for everything it writes; one stack at a time, what ran there before is ended by `start_all`.
    components: "standalone" (one `airflow standalone`) or "separate" (each component killable by name).
    short_timings: Airflow notices dead components within seconds (rehearsal/short_timings.env).
    triggerers: how many triggerers in "separate": `triggerer`, `triggerer-2`, ...
    extra_env: added to the environment of every Airflow process, as AIRFLOW_CONN_...; or a function that makes it
        from the simulators' addresses by name.
    simulators: arguments of `python -m simulators` (besides --state-file); None starts none.
    """

    def __init__(
        self, home: Path, *, short_timings: bool = False, components: Literal["standalone", "separate"] = "standalone",
        triggerers: int = 1, extra_env: ExtraEnv | None = None, simulators: Sequence[str] | None = (),
    ) -> None:  # fmt: skip
        self.home = home.resolve()
        self.stack_id = secrets.token_hex(8)
        self.addresses: dict[str, str] = {}
        self._simulators = simulators
        self._extra_env = extra_env
        self._short_timings = short_timings
        if components == "standalone":
            if triggerers != 1:
                raise StackError("several triggerers need components='separate'")
            self.components = [STANDALONE]
        else:
            more = [f"{TRIGGERER}-{number}" for number in range(2, triggerers + 1)]
            self.components = [API_SERVER, SCHEDULER, DAG_PROCESSOR, TRIGGERER, *more]
        ports = settings.free_ports(3)
        self.ports = dict(zip(("api", "worker_logs", "trigger_logs"), ports, strict=True))
        self.address = f"http://127.0.0.1:{self.ports['api']}"
        self.environment: dict[str, str] = {}
        self.passwords: dict[str, str] = {}
        self.slowness = 1.0
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._started_at: dict[str, float] = {}
        self._killed: set[str] = set()
        self._apis: dict[str, Api] = {}

    # -- the whole

    def __enter__(self) -> Stack:
        return self.start_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_all(self, timeout_seconds: float = 600) -> Stack:
        """Start simulators and Airflow and wait until all of it is healthy; whatever fails, nothing is left running.

        How long that takes says how slow the machine is now: from here on all waits are multiplied by `slowness`.
        """
        stop_recorded(self.home)
        try:
            self._prepare()
            if self._simulators is not None:
                self.start(SIMULATORS)
                self._read_addresses()
            self._finish_environment()
            begun = time.monotonic()
            for name in self.components:
                self.start(name)
            self.wait_healthy(timeout_seconds)
            self.slowness = max(1.0, (time.monotonic() - begun) / USUAL_BOOT_SECONDS)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> int:
        """End every process of this stack, orphans included, and only those; returns how many there were."""
        for api in self._apis.values():
            api.close()
        self._apis.clear()
        count = processes.end(self.stack_id, reap=self._reap)
        self._running.clear()
        record = Record.read(self.home)
        if record and record.stack_id == self.stack_id:
            (self.home / "stack.json").unlink(missing_ok=True)
        return count

    def wait_healthy(self, timeout_seconds: float = 120) -> None:
        """Wait until Airflow calls every component healthy that was not killed, by a sign of life since its last start."""
        deadline = time.monotonic() + timeout_seconds * self.slowness
        while problems := self._problems():
            dead = [name for name in problems if problems[name] == NOT_RUNNING]
            if dead or time.monotonic() > deadline:
                why = "ended" if dead else f"not healthy after {timeout_seconds:.0f} s"
                detail = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
                tails = "".join(self._tail(name) for name in dead or self._running)
                raise StackError(f"{', '.join(dead) or 'Airflow'} {why} ({detail}){tails}")
            time.sleep(0.3)

    # -- one component

    def start(self, name: str) -> int:
        """Start one component, or SIMULATORS, that is not running; returns its process id."""
        if name in self._running and self._running[name].poll() is None:
            raise StackError(f"{name} is running already")
        if name == SIMULATORS:
            self._state_file.unlink(missing_ok=True)
        with self.log_path(name).open("ab") as log:
            # A session of its own: Ctrl-C in the terminal, or killing one component's group, does not reach it.
            self._running[name] = subprocess.Popen(
                self._command(name), env=self.environment, cwd=self.home / "airflow", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started_at[name] = time.time()
        self._killed.discard(name)
        return self._running[name].pid

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL, *, tree: bool = False) -> list[int]:
        """Send `sig` to a component's first process; with `tree` also to all its descendants. Returns the ids hit.

        SIGSTOP and SIGCONT suspend and resume it. After SIGKILL or SIGTERM the process is waited for.
        """
        process = self._process(name)
        targets = [process, *(processes.descendants(process) if tree else [])]
        hit = []
        for target in targets:
            try:
                target.send_signal(sig)
                hit.append(target.pid)
            except psutil.NoSuchProcess:
                continue
        if sig in {signal.SIGKILL, signal.SIGTERM}:
            self._killed.add(name)
            try:
                self._running[name].wait(30 * self.slowness)
            except subprocess.TimeoutExpired as error:
                raise StackError(f"{name} does not end within 30 s of {sig.name}{self._tail(name)}") from error
        return hit

    def restart(self, name: str, *, tree: bool = False) -> int:
        """Kill a component (SIGKILL) if it runs, and start it again; does not wait until it is healthy."""
        if self.is_running(name):
            self.kill(name, tree=tree)
        return self.start(name)

    def is_running(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def pids(self, name: str) -> list[int]:
        """A running component's process id, then those of its descendants; empty if it is not running."""
        if not self.is_running(name):
            return []
        process = self._process(name)
        return [process.pid, *(child.pid for child in processes.descendants(process))]

    def log_path(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    # -- processes that Airflow starts

    def members(self) -> list[psutil.Process]:
        """Every living process of this stack."""
        return processes.members(self.stack_id)

    def task_processes(self, task: TaskInstance | None = None) -> list[psutil.Process]:
        """Processes that run a task's code, also orphaned ones; with `task` only those of that try of it."""
        wanted = None if task is None else task.raw["id"]
        found = [(process, processes.task_instance_of(process)) for process in self.members()]
        return [process for process, running in found if running and wanted in {None, running}]

    # -- the API

    @property
    def api(self) -> Api:
        """Airflow's API as `admin`."""
        return self.api_as("admin")

    def api_as(self, user: str) -> Api:
        """Airflow's API as admin, amy (role op), uli (user) or vic (viewer)."""
        if user not in self._apis:
            self._apis[user] = Api(self.address, user, self.passwords[user], slowness=self.slowness)
        return self._apis[user]

    # -- inside

    def _prepare(self) -> None:
        for folder in ("logs", "user", "airflow"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self.passwords = settings.passwords(self.home)
        self.environment = {
            **settings.base_environment(self.home, short_timings=self._short_timings),
            **settings.port_environment(self.ports),
            processes.MARK: self.stack_id,
        }
        # Written before the first process exists, so that `stop` from another shell never misses one.
        Record(self.stack_id, str(self.home), self.address, self.components, time.time()).write()
        database.prepare(self.home / "airflow", self.environment)

    def _finish_environment(self) -> None:
        extra = self._extra_env(self.addresses) if callable(self._extra_env) else self._extra_env
        self.environment |= extra or {}

    def _command(self, name: str) -> list[str]:
        airflow = [sys.executable, "-m", "airflow"]
        if name == SIMULATORS:
            return [
                sys.executable,
                "-m",
                "simulators",
                "--state-file",
                str(self._state_file),
                *(self._simulators or ()),
            ]
        if name.startswith(TRIGGERER):
            return [*airflow, TRIGGERER, "--skip-serve-logs"]
        return [*airflow, name, *(["--skip-serve-logs"] if name == SCHEDULER else [])]

    @property
    def _state_file(self) -> Path:
        return self.home / "simulators.json"

    def _read_addresses(self, timeout_seconds: float = 240) -> None:
        """Wait for the simulators' state file, which appears, whole, when all of them answer."""
        deadline = time.monotonic() + timeout_seconds
        while not self._state_file.exists():
            if not self.is_running(SIMULATORS) or time.monotonic() > deadline:
                raise StackError(f"the simulators do not start{self._tail(SIMULATORS)}")
            time.sleep(0.1)
        self.addresses = json.loads(self._state_file.read_text(encoding="utf-8"))

    def _process(self, name: str) -> psutil.Process:
        if not self.is_running(name):
            raise StackError(f"{name} is not running")
        return psutil.Process(self._running[name].pid)

    def _reap(self) -> None:
        for process in self._running.values():
            process.poll()

    def _problems(self) -> dict[str, str]:
        """What is not well, by component; empty if all is. Components that were killed on purpose do not count."""
        expected = [name for name in self._running if name not in self._killed]
        problems = {name: NOT_RUNNING for name in expected if not self.is_running(name)}
        try:
            with httpx.Client(trust_env=False, timeout=10) as client:
                health = client.get(f"{self.address}/api/v2/monitor/health").raise_for_status().json()
        except httpx.HTTPError as error:
            return problems | {self.components[0]: f"does not answer: {type(error).__name__}"}
        if health["metadatabase"]["status"] != "healthy":
            problems["metadatabase"] = str(health["metadatabase"]["status"])
        for name, key in HEALTH_KEYS.items():
            if name in self._killed:
                continue
            problem = self._problem_of(name, health[key].get("status"), health[key].get(f"latest_{key}_heartbeat"))
            if problem:
                problems.setdefault(name, problem)
        return problems

    def _problem_of(self, name: str, status: str | None, heartbeat: str | None) -> str | None:
        """A component is well if its last sign of life is younger than its process: an older one is its predecessor's."""
        started_at = self._started_at.get(name, self._started_at.get(STANDALONE, 0.0))
        if status != "healthy":
            return status or "unknown"
        if heartbeat is None or datetime.fromisoformat(heartbeat).timestamp() < started_at:
            return "no sign of life yet"
        return None

    def _tail(self, name: str) -> str:
        path = self.log_path(name)
        if not path.exists():
            return f"\n--- {name}: no log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join((f"\n--- the end of {path}:", *lines))
