"""A proxy on loopback before a real server (S3 first of all) that breaks things by the fault script of all simulators.

It is a simulator whose one operation is to pass the request on, so *before commit* means that the upstream never saw the
request and *after commit* that it has answered. Rules are those of `simulators.common.faults`, the peculiarities of stores in
`harness.store_faults`, and one more, in this process only: `call` runs a Python function in the middle of a request,

    with proxied(bench.url) as front:
        front.add(refuse("GET", "manifest", 403, "AccessDenied"))
        front.add(call(overwrite, method="DELETE", times=1))

which gets the request and what passes it on. It answers itself, returns None to have it passed on, or raises
`ConnectionDropped` to close the connection.

Invariant: requests are answered side by side; what waits (the upstream, a function) waits in a thread of its own.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from harness.store_faults import PECULIARITIES, Forward
from simulators.common import (
    Answer,
    Call,
    Clock,
    ConnectionDropped,
    Operation,
    Rule,
    Simulator,
    SimulatorSettings,
    serve,
)
from simulators.common.server import RunningServer
from simulators.s3 import error_answer

__all__ = ["Answer", "Call", "ConnectionDropped", "Forward", "Front", "Proxy", "Request", "call", "key_of", "proxied"]

Hook = Callable[[Call, Forward], Answer | None]
RuleDict = Mapping[str, Any]
TIMEOUT_SECONDS = 60
_REQUEST_HEADERS_DROPPED = frozenset({"connection", "content-length", "transfer-encoding", "expect"})
_ANSWER_HEADERS_DROPPED = frozenset({"connection", "transfer-encoding", "date", "server"})


class Proxy(Simulator):
    """The upstream as a simulator: `forward` is its operation."""

    def __init__(self, upstream: str, clock: Clock | None = None) -> None:
        special = frozenset(PECULIARITIES) | {"call"}
        super().__init__("proxy", SimulatorSettings(), clock, special_faults=special, gzip=False, threads=64)
        self._upstream = urlsplit(upstream)
        self._hooks: list[Hook] = []

    def forward(self, request: Call) -> Answer:
        """Pass a request on, byte for byte. Raises `ConnectionDropped` where the upstream does not answer."""
        connection = http.client.HTTPConnection(str(self._upstream.hostname), self._upstream.port, TIMEOUT_SECONDS)
        headers = {n: v for n, v in request.headers.items() if n not in _REQUEST_HEADERS_DROPPED}
        headers["content-length"] = str(len(request.body))
        try:
            connection.request(request.method, request.target, body=request.body, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionDropped(f"the upstream did not answer: {error!r}") from error
        finally:
            connection.close()
        # A rule may change the body, and its length with it; a HEAD has no other way to tell it.
        dropped = _ANSWER_HEADERS_DROPPED | (frozenset() if request.method == "HEAD" else {"content-length"})
        kept = {name.lower(): value for name, value in reply.getheaders() if name.lower() not in dropped}
        return Answer(reply.status, body, None, kept)

    def register(self, hook: Hook) -> int:
        """Make a function known for rules whose fault is `call`; the number is their option `hook`."""
        self._hooks.append(hook)
        return len(self._hooks) - 1

    # What the shell asks

    def perform(self, operation: Operation, call: Call, special: list[Rule]) -> Answer:
        """Each rule is around those after it, and the innermost is the upstream."""
        step: Forward = operation
        for rule in reversed(special):
            step = partial(self._with_rule, rule, step)
        return step(call)

    def _with_rule(self, rule: Rule, forward: Forward, request: Call) -> Answer:
        if rule.fault != "call":
            return PECULIARITIES[rule.fault](request, forward, **rule.options)
        answer = self._hooks[rule.options["hook"]](request, forward)
        return forward(request) if answer is None else answer

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        return error_answer(status, (fields or {}).get("code"), (fields or {}).get("message", detail))

    def describe(self, call: Call) -> dict[str, Any]:
        return {"target": call.target, "header_names": sorted(call.headers)}


@dataclass(frozen=True)
class Request:
    """A request as the journal has it. `status` is "dropped" where the client got no answer."""

    method: str
    path: str
    target: str
    header_names: frozenset[str]
    status: int | str

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def key(self) -> str:
        return key_of(self)


def key_of(request: Call | Request) -> str:
    """The object that a request with the bucket in its path speaks of; empty for one to the bucket itself."""
    return request.path.lstrip("/").partition("/")[2]


@dataclass(frozen=True)
class Front:
    """A running proxy, for the thread of a test."""

    proxy: Proxy
    server: RunningServer

    @property
    def url(self) -> str:
        return self.server.url

    def add(self, *rules: RuleDict | Hook) -> None:
        """Add rules of the fault script, or functions, each of them called at every request."""
        for rule in rules:
            wanted = dict(call(rule) if callable(rule) else rule)
            if "hook" in wanted:
                wanted["options"] = {"hook": self.proxy.register(wanted.pop("hook"))}
            self.server.call(partial(self.proxy.faults.add, **wanted))

    def clear(self) -> None:
        """Remove all rules."""
        self.server.call(self.proxy.faults.clear)

    @property
    def requests(self) -> list[Request]:
        """Every request that has been answered or dropped, oldest first."""
        rows = [entry.details for entry in self.proxy.journal.entries("request")]
        fields = ("method", "path", "target", "status")
        return [
            Request(**{name: row[name] for name in fields}, header_names=frozenset(row["header_names"])) for row in rows
        ]

    def count(self, method: str, query: str = "") -> int:
        """Requests of a method that have such a parameter in their query."""
        return sum(one.method == method and (not query or query in one.query) for one in self.requests)


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[Front]:
    """A proxy before the server at `upstream`, on a free port."""
    proxy = Proxy(upstream)
    proxy.route_rest(proxy.forward, "/{bucket}/{key}")
    with serve(proxy.app) as server:
        yield Front(proxy, server)


# Rules that tests write often

HONOUR_BATCH_ETAGS: RuleDict = {"fault": "honour_batch_etags", "method": "POST", "query": "^delete", "times": None}


def call(hook: Hook, *, times: int | None = None, **match: Any) -> RuleDict:
    """Call a function at each request that matches."""
    return {"fault": "call", "hook": hook, "times": times, **match}


def refuse(
    method: str | None, path: str | None, status: int, code: str, *, times: int | None = None, query: str | None = None
) -> RuleDict:
    """Answer in place of the store."""
    where = {"method": method, "path": path, "query": query}
    return {"fault": "status", "code": status, "problem": {"code": code}, "times": times, **where}


def lose_answer(method: str, query: str | None = None, *, times: int | None = 1) -> RuleDict:
    """The request is carried out and the connection breaks before the answer."""
    return {"fault": "drop_after_commit", "method": method, "query": query, "times": times}


def ignore_headers(*names: str) -> RuleDict:
    """A store that does not know these headers; without `range`, one that answers a range by the whole object."""
    return {"fault": "ignore_headers", "options": {"names": names}, "times": None}


def peculiarity(fault: str, *, times: int | None = None, method: str | None = None, path: str | None = None,
                query: str | None = None, **options: Any) -> RuleDict:  # fmt: skip
    """One of `harness.store_faults`; what is left over are its options."""
    return {"fault": fault, "times": times, "method": method, "path": path, "query": query, "options": options}
