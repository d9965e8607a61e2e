"""`Simulator`: what every simulated system shares: clock, agenda, journal, fault script, HTTP shell and side channel.

The one thing to know: a request runs through `Simulator._answer`, and only `_commit` touches the simulated world. Latency and
faults are added around it, and the world is settled up to the present before it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response

from simulators.common.clock import Agenda, Clock, http_date, iso_millis
from simulators.common.faults import GENERIC, FaultScript, Rule
from simulators.common.journal import Journal
from simulators.common.wire import Answer, Call, DropResponse, Operation, ProblemError, to_response, trickle

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_NOT_COMMITTED = frozenset({"status", "drop_before_commit", "non_json", "outage"})


class Knobs(BaseModel):
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
        settings: the knobs; subclasses pass their own kind.
        special_faults: names of faults that `apply_special_fault` carries out after the commit.
        gzip: compress answers for clients that ask for it.
    """

    def __init__(
        self,
        name: str,
        settings: Knobs,
        clock: Clock | None = None,
        *,
        special_faults: frozenset[str] = frozenset(),
        gzip: bool = True,
    ) -> None:
        self.name = name
        self.settings = settings
        self.clock = clock or Clock()
        self.agenda = Agenda(self.clock)
        self.journal = Journal(lambda: self.agenda.time)
        self.faults = FaultScript(special_faults)
        self.app = FastAPI(title=f"simulator of {name}", openapi_url=None, docs_url=None, redoc_url=None)
        if gzip:
            self.app.add_middleware(GZipMiddleware, minimum_size=500, compresslevel=1)
        self._add_common_controls()

    # What a subclass says about its system

    def guard(self, call: Call) -> None:
        """Checks before every operation (rate limit, credentials). Raises `ProblemError` to refuse."""

    def problem(self, status: int, title: str, detail: str) -> Answer:
        """An error answer in the manner of the simulated system."""
        return Answer(status, {"status": status, "title": title, "detail": detail})

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        """Carry out one of the simulator's own faults, after the commit."""
        raise NotImplementedError(rule.fault)

    def counters(self) -> dict[str, Any]:
        """Counts for the side channel."""
        return {"calls": dict(self.journal.calls), "statuses": dict(self.journal.statuses)}

    # Operations on the simulator that every system has

    def settle(self) -> float:
        """Bring the world up to the present and return it (simulated epoch seconds)."""
        return self.agenda.settle()

    def change_settings(self, **changes: Any) -> dict[str, Any]:
        """Change knobs at run time: all or none. Raises ValueError for unknown names and wrong values."""
        merged = type(self.settings).model_validate(self.settings.model_dump() | changes)
        self.settle()
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

    def control(self, method: str, path: str, handler: Callable[[Request], Awaitable[Any]]) -> None:
        """Serve `/_sim<path>`: JSON out, ValueError and KeyError become 400; no faults, no latency, no journal."""

        async def endpoint(request: Request) -> Response:
            self.settle()
            try:
                answer = Answer(200, await handler(request))
            except (ValueError, KeyError, TypeError, ProblemError) as error:
                detail = error.errors(include_url=False) if isinstance(error, ValidationError) else str(error)
                answer = Answer(400, {"error": type(error).__name__, "detail": str(detail)})
            return to_response(answer, {})

        self.app.router.add_route(f"/_sim{path}", endpoint, methods=[method])

    async def _serve(self, request: Request, template: str, operation: Operation) -> Response:
        started = self.clock.now()
        call = Call(
            method=request.method,
            path=request.url.path,
            template=template,
            params=dict(request.path_params),
            query=request.query_params,
            headers={key.lower(): value for key, value in request.headers.items()},
            body=await request.body(),
            base_url=str(request.base_url).rstrip("/"),
        )
        names: list[str] = []
        status: int | str = "client gone"
        try:
            answer = await self._answer(call, operation, names)
            status = answer.status if answer else "dropped"
        finally:
            self.settle()
            duration = round(self.clock.now() - started, 6)
            details = {"method": call.method, "template": template, "path": call.path, "query": str(call.query)}
            self.journal.record("request", **details, status=status, seconds=duration, faults=names)
        return to_response(answer, {"Date": http_date(self.clock.now())}) if answer else DropResponse()

    async def _answer(self, call: Call, operation: Operation, names: list[str]) -> Answer | None:
        """The answer to send, None to drop the connection; `names` collects the faults met."""
        latency = self.settings.api_latency_seconds / 2
        if latency:
            await self.clock.sleep(latency)
        now = self.settle()
        rules = self.faults.due(call.method, call.path, call.body, now)
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
            return self._commit(call, operation, special)
        if rule.fault in _NOT_COMMITTED:
            return self._refusal(rule)
        if rule.fault == "commit_delayed":
            self.agenda.schedule(self.agenda.time + rule.seconds, lambda: self._commit(call, operation, special))
            await self.clock.sleep(rule.hold)
            return None
        if rule.fault == "slow":
            await self.clock.sleep(rule.seconds)
            self.settle()
        answer = self._commit(call, operation, special)
        if rule.fault == "drop_after_commit":
            return None
        if rule.fault == "error_after_commit":
            return self.problem(rule.code or 500, "Internal server error", "Something went wrong.")
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
        answer = self.problem(code, "Service unavailable" if code == 503 else "Error", "A fault of the script.")
        if rule.problem is not None and isinstance(answer.body, dict):
            answer.body |= rule.problem
        if rule.body is not None:
            answer.body, answer.media_type = rule.body.encode(), "text/plain; charset=utf-8"
        if rule.retry_after is not None:
            answer.headers["Retry-After"] = str(rule.retry_after)
        return answer

    def _commit(self, call: Call, operation: Operation, special: list[Rule]) -> Answer:
        """Run the operation at the world's present instant; refusals become answers."""
        try:
            self.guard(call)
            answer = operation(call)
        except ProblemError as refusal:
            answer = self.problem(refusal.status, refusal.title, refusal.detail)
            answer.headers |= refusal.headers
            return answer
        for rule in special:
            self.apply_special_fault(rule, call, answer)
        return answer

    # The side channel that every system has

    def _add_common_controls(self) -> None:
        async def journal(request: Request) -> Any:
            query = request.query_params
            entries = self.journal.entries(query.get("kind"), int(query.get("since", "0")))
            return {"entries": [entry.as_dict() for entry in entries], "last_seq": len(self.journal)}

        async def faults(request: Request) -> Any:
            if request.method == "POST":
                rules = await request.json()
                ids = [self.faults.add(**rule) for rule in (rules if isinstance(rules, list) else [rules])]
                return {"ids": ids}
            if request.method == "DELETE":
                self.faults.clear(int(request.query_params["id"]) if "id" in request.query_params else None)
            return {"rules": self.faults.describe()}

        async def settings(request: Request) -> Any:
            if request.method == "PATCH":
                return self.change_settings(**await request.json())
            return self.settings.model_dump(mode="json")

        async def clock(request: Request) -> Any:
            if request.method == "POST":
                change = await request.json()
                if "speed" in change:
                    self.clock.speed = float(change["speed"])
                self.clock.advance(float(change.get("advance", 0)))
                self.settle()
            now = self.clock.now()
            return {"now": now, "at": iso_millis(now), "speed": self.clock.speed, "next_due": self.agenda.next_due()}

        async def counters(request: Request) -> Any:
            return self.counters()

        async def health(request: Request) -> Any:
            return {"name": self.name, "started": True, "process_time": time.process_time()}

        self.control("GET", "/journal", journal)
        for method in ("GET", "POST", "DELETE"):
            self.control(method, "/faults", faults)
        for method in ("GET", "PATCH"):
            self.control(method, "/settings", settings)
        for method in ("GET", "POST"):
            self.control(method, "/clock", clock)
        self.control("GET", "/counters", counters)
        self.control("GET", "/health", health)
