"""An httpx transport to a simulator in the same event loop that behaves like a network.

Invariant: unlike `httpx.ASGITransport` it honours the client's read timeout on the loop's own time (also a virtual
one), and the simulator goes on with a request after its client has given up, as a remote would.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx


class InProcessTransport(httpx.AsyncBaseTransport):
    """Send requests straight to an ASGI app. Timeouts raise `httpx.ReadTimeout`, drops an `httpx.TransportError`."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app=app)
        self._open: set[asyncio.Task[httpx.Response]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        task = asyncio.ensure_future(self._inner.handle_async_request(request))
        self._open.add(task)
        task.add_done_callback(self._forget)
        timeout = request.extensions.get("timeout", {}).get("read")
        try:
            return await asyncio.wait_for(asyncio.shield(task), timeout)
        except TimeoutError as error:
            raise httpx.ReadTimeout("The simulator did not answer in time.", request=request) from error

    def _forget(self, task: asyncio.Task[httpx.Response]) -> None:
        self._open.discard(task)
        if not task.cancelled():
            task.exception()  # nobody else may be left to look at it
