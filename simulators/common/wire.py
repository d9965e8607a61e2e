"""Requests and answers as plain values, and the ways in which an answer can fail to arrive.

Invariant: an operation is a synchronous function from `Call` to `Answer`. That is what lets a fault commit it late, after the
client has gone, and what makes each commit atomic.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.datastructures import QueryParams
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from simulators.common.clock import Clock

ABORT = "waybill.simulator.abort"  # ASGI extension of our server: a function that closes the connection at once


@dataclass(frozen=True)
class Call:
    """One request, taken apart. `params` are the path parameters, header names are lower case.

    `path` is decoded; `target` is path and query as they were sent, for those to whom the encoding matters.
    """

    method: str
    path: str
    template: str
    params: dict[str, str]
    query: QueryParams
    headers: dict[str, str]
    body: bytes
    base_url: str
    target: str = ""

    @property
    def raw_query(self) -> str:
        """The query string as it was sent."""
        return self.target.partition("?")[2]

    def json(self) -> Any:
        """The body as JSON. Raises `ProblemError` 400 when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ProblemError(400, "Bad request", f"The body is not JSON: {error}") from error


@dataclass
class Answer:
    """What an operation decided. `ref` names what was created, for faults that act on it. `media_type` None adds none.

    `hold_seconds`: the system itself answers that much later. `stream`: a body that is made while it is sent.
    """

    status: int
    body: Any = None
    media_type: str | None = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    ref: str | None = None
    hold_seconds: float = 0.0
    stream: AsyncIterator[bytes] | None = None

    def content(self) -> bytes:
        if self.body is None:
            return b""
        if isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode()


class ProblemError(Exception):
    """A refusal that becomes an error answer of the simulated system."""

    def __init__(self, status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers or {}


Operation = Callable[[Call], Answer]


class ConnectionDropped(httpx.RemoteProtocolError):
    """What an in-process client sees where a real one sees its connection closed without an answer.

    An operation raises it to have the connection closed.
    """


class DropResponse(Response):
    """Closes the connection without a byte; without a socket, raises `ConnectionDropped`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is None:
            raise ConnectionDropped("Server disconnected without sending a response.")
        abort()
        while (await receive())["type"] != "http.disconnect":  # until the server has noticed: else it answers 500
            continue


def to_response(answer: Answer, headers: dict[str, str]) -> Response:
    """The answer as Starlette sends it; 204 and 304 carry neither body nor content type."""
    merged = headers | answer.headers
    if answer.stream is not None:
        return StreamingResponse(answer.stream, answer.status, merged, answer.media_type)
    if answer.status in (204, 304):
        return Response(status_code=answer.status, headers=merged)
    return Response(answer.content(), answer.status, merged, answer.media_type)


def trickle(answer: Answer, clock: Clock, seconds: float, chunks: int) -> Answer:
    """The same answer whose body comes in `chunks` pieces spread over simulated seconds."""
    content = answer.content()
    size = max(1, -(-len(content) // chunks))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            await clock.sleep(seconds / chunks)
            yield content[start : start + size]

    return Answer(answer.status, None, answer.media_type, answer.headers, answer.ref, stream=pieces())
