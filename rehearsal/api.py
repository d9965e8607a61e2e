"""A small client of Airflow's REST API for the demo, the tests and the benchmarks.

On SQLite Airflow answers 500 "Database error" now and then, when two requests write at once (rehearsal/sqlite.py). So our
writes are sent one after the other; a refused one had no effect and is sent again.

Invariant: a run is always triggered under an id chosen here, so that a repeat is recognised (409) instead of doubled.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from rehearsal.errors import StackError

ENDED = frozenset({"success", "failed"})
TASK_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
UNMAPPED = -1
# Airflow can fail a task that is woken sooner (docs/protocols/airflow.md 2.1) (docs/protocols/airflow.md 2.1) after
# it began to wait for an answer
APPROVAL_PAUSE_SECONDS = 3.5
ATTEMPTS = 8
UNREACHABLE_SECONDS = 30  # a restarted server is back by then
_one_writer = threading.Lock()
T = TypeVar("T")


class ApiError(StackError):
    """Airflow refused a request: `status` is the HTTP status, `body` what it said."""

    def __init__(self, request: httpx.Request, response: httpx.Response) -> None:
        self.status = response.status_code
        self.body = response.text
        super().__init__(f"{request.method} {request.url.path}: HTTP {self.status}: {self.body[:2000]}")


class UnreachableError(StackError):
    """Airflow's API server does not answer, or not in time."""


class DatabaseBusyError(ApiError):
    """Airflow's database was locked: nothing happened, ask again."""


@dataclass(frozen=True)
class Run:
    """A DAG run as Airflow reports it; `raw` is the whole answer."""

    dag_id: str
    run_id: str
    state: str
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Run:
        return cls(raw["dag_id"], raw["dag_run_id"], raw["state"], raw)


@dataclass(frozen=True)
class TaskInstance:
    """One try's view of a task (or of one mapped index of it); `raw` is the whole answer."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> TaskInstance:
        return cls(raw["task_id"], raw["map_index"], raw["state"], raw["try_number"], raw)


def new_run_id(prefix: str = "rehearsal") -> str:
    return f"{prefix}__{datetime.now(UTC):%Y%m%dT%H%M%S}_{secrets.token_hex(3)}"


class Api:
    """Airflow's API as one user. Every method raises ApiError where Airflow refuses, StackError at a timeout.

    All timeouts are for a machine of the usual speed: they are multiplied by `slowness`.
    """

    def __init__(
        self, address: str, user: str, password: str, *, transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic, slowness: float = 1.0,
    ) -> None:  # fmt: skip
        self.address, self.user, self._password = address, user, password
        self._token: str | None = None
        self._sleep, self._clock, self._slowness = sleep, clock, slowness
        # Proxy settings of the caller must not apply: the address is on loopback.
        self._client = httpx.Client(base_url=address, timeout=60 * slowness, trust_env=False, transport=transport)

    def close(self) -> None:
        self._client.close()

    # -- requests

    def token(self) -> str:
        """A token of this user, fetched once and again after Airflow refuses it."""
        if self._token is None:
            body = {"username": self.user, "password": self._password}
            response = self._client.post("/auth/token", json=body)
            if response.status_code != 201:
                raise ApiError(response.request, response)
            self._token = response.json()["access_token"]
        return self._token

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request with this user's token, and once more with a fresh one if that is refused."""
        try:
            with nullcontext() if method == "GET" else _one_writer:
                response = self._authorized(method, path, **options)
                if response.status_code == 401:
                    self._token = None
                    response = self._authorized(method, path, **options)
        except httpx.TransportError as error:
            raise UnreachableError(f"{method} {self.address}{path}: {type(error).__name__}: {error}") from error
        return response

    def _authorized(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._client.request(method, path, headers={"Authorization": f"Bearer {self.token()}"}, **options)

    def _repeated(
        self, send: Callable[[], T], errors: type[StackError] | tuple[type[StackError], ...], pauses: Iterator[float]
    ) -> T:
        """The answer of `send`, repeated after each of `errors` as long as there are `pauses`; then that error is raised."""
        while True:
            try:
                return send()
            except errors:
                pause = next(pauses, None)
                if pause is None:
                    raise
                self._sleep(pause)

    def _each_second_until(self, deadline: float) -> Iterator[float]:
        while self._clock() < deadline:
            yield 1.0

    def _deadline(self, seconds: float) -> float:
        return self._clock() + seconds * self._slowness

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send `method` to `path` (below the address; `options` as in httpx) and return the decoded JSON, if any."""
        return self._repeated(
            lambda: _decoded(self._send(method, path, **options)), DatabaseBusyError, _growing_pauses()
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET below /api/v2; repeated for 30 s when the connection fails, as it does while a server restarts."""
        pauses = self._each_second_until(self._deadline(UNREACHABLE_SECONDS))
        return self._repeated(lambda: self.request("GET", f"/api/v2{path}", params=params), UnreachableError, pauses)

    # -- DAGs

    def import_errors(self) -> dict[str, str]:
        """Stack trace by file of each DAG file that does not load."""
        return {
            error["filename"]: error["stack_trace"] for error in self.get("/importErrors", limit=100)["import_errors"]
        }

    def wait_dag(self, dag_id: str, timeout_seconds: float = 60) -> None:
        """Wait until the DAG processor has stored the DAG."""

        def stored() -> bool:
            try:
                return bool(self.get(f"/dags/{dag_id}"))
            except ApiError as error:
                if error.status != 404:
                    raise
                return False

        def missing() -> str:
            return f"DAG {dag_id} does not appear; import errors: {self.import_errors() or 'none'}"

        self._until(stored, timeout_seconds, missing)

    def unpause(self, dag_id: str, timeout_seconds: float = 60) -> None:
        """Let the DAG run, as soon as it is there."""
        self.wait_dag(dag_id, timeout_seconds)
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Start no further runs of it by its schedule."""
        self.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})

    def ensure_pool(self, name: str, slots: int, description: str, *, include_deferred: bool = False) -> None:
        """The pool of that name, made unless it is there; a task whose pool is missing never starts."""
        pool = {"name": name, "slots": slots, "description": description, "include_deferred": include_deferred}
        self._unless_there("/api/v2/pools", pool)

    def ensure_connection(self, conn_id: str, fields: Mapping[str, Any]) -> None:
        """A connection that is kept in Airflow's database, made unless it is there."""
        self._unless_there("/api/v2/connections", {"connection_id": conn_id, **fields})

    def _unless_there(self, path: str, thing: Mapping[str, Any]) -> None:
        try:
            self.request("POST", path, json=dict(thing))
        except ApiError as error:
            if error.status != 409:
                raise

    # -- runs

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None, run_id: str | None = None) -> Run:
        """Start a run. A repeat of our own lost or refused request finds the first; a foreign run of that id is ApiError 409."""
        run_id = run_id or new_run_id()
        body = {"logical_date": None, "conf": conf or {}, "dag_run_id": run_id}
        sent = 0

        def send() -> Run:
            nonlocal sent
            sent += 1
            response = self._send("POST", f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns", json=body)
            if response.status_code == 409 and sent > 1:
                return self.run(dag_id, run_id)
            return Run.parse(_decoded(response))

        return self._repeated(send, (DatabaseBusyError, UnreachableError), _growing_pauses())

    def run(self, dag_id: str, run_id: str) -> Run:
        return Run.parse(self.get(_run(dag_id, run_id)))

    def runs(self, dag_id: str = "~") -> list[Run]:
        """The latest hundred runs of the DAG (of all, if none is named), newest first."""
        return [
            Run.parse(raw) for raw in self.get(f"/dags/{dag_id}/dagRuns", limit=100, order_by="-run_after")["dag_runs"]
        ]

    def wait(self, dag_id: str, run_id: str, timeout_seconds: float = 300) -> Run:
        """Wait until the run has ended, as a success or not. Raises StackError, with its tasks' states, when time is up."""
        seen = self.run(dag_id, run_id)

        def ended() -> bool:
            nonlocal seen
            seen = self.run(dag_id, run_id)
            return seen.state in ENDED

        def where() -> str:
            tasks = ", ".join(f"{_name(task)} {task.state}" for task in self.task_instances(dag_id, run_id))
            return f"{dag_id} {run_id} is {seen.state}, not {' or '.join(sorted(ENDED))}: {tasks}"

        self._until(ended, timeout_seconds, where)
        return seen

    def wait_all(
        self, runs: Sequence[Run], timeout_seconds: float, on_poll: Callable[[Sequence[Run]], object] = lambda _: None
    ) -> list[Run]:
        """The runs as they are once all have ended, or time is up. `on_poll` is called with them about once a second."""
        deadline = self._deadline(timeout_seconds)
        while True:
            seen = [self.run(run.dag_id, run.run_id) for run in runs]
            on_poll(seen)
            if all(run.state in ENDED for run in seen) or self._clock() >= deadline:
                return seen
            self._sleep(1)

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> Run:
        """What "Mark run as …" does in the UI: success, failed or queued."""
        return Run.parse(self.request("PATCH", f"/api/v2{_run(dag_id, run_id)}", json={"state": state}))

    def delete_run(self, dag_id: str, run_id: str) -> None:
        self.request("DELETE", f"/api/v2{_run(dag_id, run_id)}")

    # -- tasks

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Every task instance of the run, mapped indexes one by one."""
        found: list[TaskInstance] = []
        while True:
            page = self.get(f"{_run(dag_id, run_id)}/taskInstances", limit=100, offset=len(found))
            found += [TaskInstance.parse(raw) for raw in page["task_instances"]]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def task(self, dag_id: str, run_id: str, task_id: str, map_index: int = UNMAPPED) -> TaskInstance:
        return TaskInstance.parse(self.get(_task(dag_id, run_id, task_id, map_index)))

    def wait_task(
        self, dag_id: str, run_id: str, task_id: str, timeout_seconds: float = 120, *,
        states: Collection[str] = TASK_ENDED, map_index: int = UNMAPPED,
    ) -> TaskInstance:  # fmt: skip
        """Wait until the task is in one of `states`; a mapped index may not exist yet when the wait begins."""
        seen: TaskInstance | None = None

        def reached() -> bool:
            nonlocal seen
            try:
                seen = self.task(dag_id, run_id, task_id, map_index)
            except ApiError as error:
                if error.status != 404:
                    raise
            return seen is not None and seen.state in states

        self._until(
            reached, timeout_seconds, lambda: f"{dag_id} {run_id} {task_id}: {seen}, not {sorted(states)}", every=0.3
        )
        if seen is None:
            raise StackError(f"{dag_id} {run_id} has no task {task_id}")
        return seen

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = UNMAPPED) -> None:
        """What "Mark … as" does in the UI: success, failed or skipped."""
        self.request("PATCH", f"/api/v2{_task(dag_id, run_id, task_id, map_index)}", json={"new_state": state})

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str | tuple[str, int]] | None = None
    ) -> list[TaskInstance]:
        """Clear tasks (names, or name and map index; None: all) of a run, so that they run again; returns them."""
        body: dict[str, Any] = {
            "dry_run": False, "dag_run_id": run_id, "only_failed": False,
            "include_downstream": False, "reset_dag_runs": True,
        }  # fmt: skip
        if task_ids is not None:
            body["task_ids"] = [task if isinstance(task, str) else list(task) for task in task_ids]
        answer = self.request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)
        return [TaskInstance.parse(raw) for raw in answer["task_instances"]]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = UNMAPPED) -> Any:
        """The value a task left under `key`, or None if there is none."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/xcomEntries/{quote(key, safe='')}"
        try:
            return self.get(path, map_index=map_index, deserialize=False)["value"]
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    # -- questions to people

    def question(self, dag_id: str, run_id: str, task_id: str, map_index: int = UNMAPPED) -> dict[str, Any]:
        """What an approval task asks: subject, body, options, and the answer once there is one."""
        asked: dict[str, Any] = self.get(f"{_task(dag_id, run_id, task_id, map_index)}/hitlDetails")
        return asked

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, map_index: int = UNMAPPED) -> dict[str, Any]:
        """Answer an approval task as this user, APPROVAL_PAUSE_SECONDS after it is `awaiting_input` and not sooner."""
        path = f"/api/v2{_task(dag_id, run_id, task_id, map_index)}/hitlDetails"
        body = {"chosen_options": [option], "params_input": {}}
        answered: dict[str, Any] = self.request("PATCH", path, json=body)
        return answered

    def _until(
        self, reached: Callable[[], bool], timeout_seconds: float, failure: Callable[[], str], every: float = 0.5
    ) -> None:
        deadline = self._deadline(timeout_seconds)
        while not reached():
            if self._clock() >= deadline:
                raise StackError(f"after {timeout_seconds * self._slowness:.0f} s: {failure()}")
            self._sleep(every)


def _growing_pauses() -> Iterator[float]:
    """Pauses between ATTEMPTS, doubled each time up to 5 s, with a random part so that two callers do not keep step."""
    for number in range(ATTEMPTS - 1):
        yield min(0.5 * 2**number + random.random(), 5.0)


def _decoded(response: httpx.Response) -> Any:
    if response.status_code == 500 and "Database error" in response.text:
        raise DatabaseBusyError(response.request, response)
    if response.is_error:
        raise ApiError(response.request, response)
    return response.json() if response.content else None


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"


def _task(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """The path of a task instance. Unlike the UI's, it always carries the index, -1 for a task that is not mapped."""
    return f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}/{map_index}"


def _name(task: TaskInstance) -> str:
    return task.task_id if task.map_index == UNMAPPED else f"{task.task_id}[{task.map_index}]"
