"""`Simulator`: what every simulated system shares: clock, agenda, journal, fault script, HTTP shell and side channel.

A system's own package gives it operations: the module of the same name holds the world, others its API and its controls,
and the package's `__init__` mounts them, so that no module of a simulator needs one above it.

Invariant: a request runs through `Simulator._answer`, and only `_commit` touches the simulated world. Latency and faults are
added around it, and what is due of the agenda is run before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulators.common.clock import Agenda, Clock, http_date
from simulators.common.controls import (
    clock_controls,
    fault_controls,
    journal_controls,
    settings_controls,
    state_controls,
)
from simulators.common.faults import GENERIC, NOT_COMMITTED, FaultScript, Rule
from simulators.common.journal import Journal
from simulators.common.wire import (
    Answer,
    Call,
    ConnectionDropped,
    DropResponse,
    Operation,
    ProblemError,
    to_response,
    trickle,
)

Fields = dict[str, Any]


class SimulatorSettings(BaseModel):
    """Base of every simulator's settings: typed, checked on assignment, unknown names refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    seed: int = 1
    api_latency_seconds: float = 0.0
    """Half of it passes before the commit, half after."""


class Simulator:
    """One simulated system.

    Args:
        name: registry name, as `icav2`.
        clock: simulated time; by default the real one.
        settings: subclasses pass their own kind.
        special_faults: names of the system's own faults, which `perform` carries out.
        gzip: compress answers for clients that ask for it.
        threads: more than 0 runs each commit in one of so many threads. For a simulator whose operations wait for something
            outside of it, so that others are answered meanwhile; its operations and faults must bear being run at once.
    """

    def __init__(
        self,
        name: str,
        settings: SimulatorSettings,
        clock: Clock | None = None,
        *,
        special_faults: frozenset[str] = frozenset(),
        gzip: bool = True,
        threads: int = 0,
    ) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock or Clock()
        self.agenda = Agenda(self.clock)
        self.journal = Journal(lambda: self.agenda.time)
        self.faults = FaultScript(special_faults)
        self.app = FastAPI(
            title=f"simulator of {name}", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
        )
        if gzip:
            self.app.add_middleware(GZipMiddleware, minimum_size=500, compresslevel=1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name) if threads else None
        self._delayed: set[asyncio.Task[None]] = set()
        self._add_common_controls()

    # What a subclass says about its system

    def guard(self, call: Call) -> None:
        """Checks before every operation (rate limit, credentials). Raises `ProblemError` to refuse."""

    def problem(self, status: int, title: str, detail: str, fields: Fields | None = None) -> Answer:
        """An error answer in the manner of the simulated system; `fields` are a rule's changes to it."""
        return Answer(status, {"status": status, "title": title, "detail": detail} | (fields or {}))

    def perform(self, operation: Operation, call: Call, special: list[Rule]) -> Answer:
        """Carry out an operation with those of the system's own faults that are due; by default they act after it."""
        answer = operation(call)
        for rule in special:
            self.apply_special_fault(rule, call, answer)
        return answer

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        """Carry out one of the simulator's own faults, after the commit."""
        raise NotImplementedError(rule.fault)

    def describe(self, call: Call) -> dict[str, Any]:
        """What the journal says of a request beyond method, path, query, status, seconds and faults."""
        return {}

    def counters(self) -> dict[str, Any]:
        """Counts for the side channel."""
        return {"calls": dict(self.journal.calls), "statuses": dict(self.journal.statuses)}

    # Operations on the simulator that every system has

    def run_due(self) -> float:
        """Bring the world up to the present and return it (simulated epoch seconds)."""
        return self.agenda.run_due()

    def change_settings(self, **changes: Any) -> dict[str, Any]:
        """Change settings at run time: all or none. Raises ValueError for unknown names and wrong values."""
        merged = type(self.settings).model_validate(self.settings.model_dump() | changes)
        self.run_due()
        for name in changes:
            setattr(self.settings, name, getattr(merged, name))
        return self.settings.model_dump(mode="json")

    # The HTTP shell

    def route(self, method: str, template: str, operation: Operation, prefixes: tuple[str, ...] = ("",)) -> None:
        """Serve `operation` for a method and a path template, under each prefix, with faults and journal."""

        async def endpoint(request: Request) -> Response:
            return await self._serve(request, template, operation)

        for prefix in prefixes:
            self.app.router.add_route(prefix + template, endpoint, methods=[method])

    def route_rest(self, operation: Operation, template: str) -> None:
        """Serve `operation` for whatever no route takes, any method and any path (a template knows no line breaks)."""

        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self._serve(Request(scope, receive), template, operation)
            await response(scope, receive, send)

        self.app.router.default = endpoint

    def control(self, method: str, path: str, handler: Callable[[Request], Awaitable[Any]]) -> None:
        """Serve `/_sim<path>`: JSON out, ValueError and KeyError become 400; no faults, no latency, no journal."""

        async def endpoint(request: Request) -> Response:
            self.run_due()
            try:
                answer = Answer(200, await handler(request))
            except (ValueError, KeyError, TypeError, ProblemError) as error:
                detail = error.errors(include_url=False) if isinstance(error, ValidationError) else str(error)
                answer = Answer(400, {"error": type(error).__name__, "detail": str(detail)})
            return to_response(answer, {})

        self.app.router.add_route(f"/_sim{path}", endpoint, methods=[method])

    async def _serve(self, request: Request, template: str, operation: Operation) -> Response:
        started = self.clock.now()
        call = await _call_of(request, template)
        names: list[str] = []
        status: int | str = "client gone"
        try:
            answer = await self._answer(call, operation, names)
            status = answer.status if answer else "dropped"
        except ConnectionDropped:
            answer, status = None, "dropped"
        finally:
            self.run_due()
            duration = round(self.clock.now() - started, 6)
            details = {"method": call.method, "template": template, "path": call.path, "query": call.raw_query}
            details |= self.describe(call)
            self.journal.record("request", **details, status=status, seconds=duration, faults=names)
        return to_response(answer, {"Date": http_date(self.clock.now())}) if answer else DropResponse()

    async def _answer(self, call: Call, operation: Operation, names: list[str]) -> Answer | None:
        """The answer to send, None to drop the connection; `names` collects the faults met."""
        latency = self.settings.api_latency_seconds / 2
        if latency:
            await self.clock.sleep(latency)
        now = self.run_due()
        rules = self.faults.due(call.method, call.path, call.raw_query, call.body, now)
        names.extend(rule.fault for rule in rules)
        special = [rule for rule in rules if rule.fault not in GENERIC]
        transport = next((rule for rule in rules if rule.fault in GENERIC), None)
        answer = await self._with_fault(transport, call, operation, special)
        if answer and answer.hold_seconds:
            await self.clock.sleep(answer.hold_seconds + 1e-5)  # a sleep may end a microsecond early
        if latency:
            await self.clock.sleep(latency)
        return answer

    async def _with_fault(
        self, rule: Rule | None, call: Call, operation: Operation, special: list[Rule]
    ) -> Answer | None:
        if rule is None:
            return await self._commit(call, operation, special)
        if rule.fault in NOT_COMMITTED:
            return self._refusal(rule)
        if rule.fault == "commit_delayed":
            self._commit_later(rule.seconds, call, operation, special)
            await self.clock.sleep(rule.hold)
            return None
        if rule.fault == "slow":
            await self.clock.sleep(rule.seconds)
            self.run_due()
        answer = await self._commit(call, operation, special)
        return await self._after_commit(rule, answer)

    async def _after_commit(self, rule: Rule, answer: Answer) -> Answer | None:
        if rule.fault == "drop_after_commit":
            return None
        if rule.fault == "error_after_commit":
            return self.problem(
                rule.code or 500, "Internal server error", "Something went wrong.", **rule.problem or {}
            )
        if rule.fault == "hold_after_commit":
            await self.clock.sleep(rule.seconds)
        if rule.fault == "slow_body":
            return trickle(answer, self.clock, rule.seconds, rule.chunks)
        return answer

    def _refusal(self, rule: Rule) -> Answer | None:
        if rule.fault == "drop_before_commit":
            return None
        if rule.fault == "non_json":
            page = rule.body or "<html><head><title>Gateway</title></head><body>Please try again later.</body></html>"
            return Answer(rule.code or 200, page.encode(), "text/html; charset=utf-8")
        code = rule.code or (503 if rule.fault == "outage" else 500)
        title = "Service unavailable" if code == 503 else "Error"
        answer = self.problem(code, title, "A fault of the script.", rule.problem)
        if rule.body is not None:
            answer.body, answer.media_type = rule.body.encode(), "text/plain; charset=utf-8"
        if rule.retry_after is not None:
            answer.headers["Retry-After"] = str(rule.retry_after)
        return answer

    async def _commit(self, call: Call, operation: Operation, special: list[Rule]) -> Answer:
        """Between the begin and the end of this lies the line that the faults are named by."""
        if self._threads is None:
            return self._commit_now(call, operation, special)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._commit_now, call, operation, special)

    def _commit_now(self, call: Call, operation: Operation, special: list[Rule]) -> Answer:
        """Run the operation at the world's present instant; refusals become answers."""
        try:
            self.guard(call)
            return self.perform(operation, call, special)
        except ProblemError as refusal:
            answer = self.problem(refusal.status, refusal.title, refusal.detail)
            answer.headers |= refusal.headers
            return answer

    def _commit_later(self, seconds: float, call: Call, operation: Operation, special: list[Rule]) -> None:
        """An entry of the agenda; where operations reach outside, a task, since nothing there waits for the next request."""
        if self._threads is None:
            self.agenda.schedule(self.agenda.time + seconds, lambda: self._commit_now(call, operation, special))
            return

        async def later() -> None:
            await self.clock.sleep(seconds)
            await self._commit(call, operation, special)

        task = asyncio.ensure_future(later())
        self._delayed.add(task)
        task.add_done_callback(self._delayed.discard)

    def _add_common_controls(self) -> None:
        """The side channel that every system has."""
        for method, path, handler in (
            *journal_controls(self.journal),
            *fault_controls(self.faults),
            *clock_controls(self.clock, self.agenda),
            *settings_controls(lambda: self.settings.model_dump(mode="json"), self.change_settings),
            *state_controls(self.name, self.counters),
        ):
            self.control(method, path, handler)


async def _call_of(request: Request, template: str) -> Call:
    scope = request.scope
    query = scope["query_string"].decode("latin-1")
    raw_path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
    return Call(
        method=request.method,
        path=scope["path"],
        template=template,
        params=dict(request.path_params),
        query=request.query_params,
        headers={key.lower(): value for key, value in request.headers.items()},
        body=await request.body(),
        base_url=str(request.base_url).rstrip("/"),
        target=f"{raw_path}?{query}" if query else raw_path,
    )
