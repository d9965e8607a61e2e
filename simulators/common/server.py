"""Serve a simulator over a real loopback socket, in a thread or in the running loop.

uvicorn alone cannot close a connection without an answer, which is the fault that matters most. The protocol class here
hands each request a way to abort its connection.

Invariant: it listens on loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from simulators.common.wire import ABORT

T = TypeVar("T")


class _AbortableProtocol(H11Protocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), ABORT: transport.abort}
            await inner(scope, receive, send)

        self.app = app


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs it: several share one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Wait to be stopped; uvicorn's own loop looks ten times a second, which tests feel at every stop."""
        while not self.should_exit:  # noqa: ASYNC110 - it is set from other threads too
            await asyncio.sleep(0.02)


def loopback_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises ValueError for an address that others could reach."""
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"simulators listen on loopback only, not on {host}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle off only where the protocol is spelled out; with it, every answer would take 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


def make_server(app: Any) -> uvicorn.Server:
    """A uvicorn server for `app`, to be awaited as `server.serve(sockets=[...])`; stop it by `should_exit = True`."""
    return _QuietServer(
        uvicorn.Config(
            app,
            http=_AbortableProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            date_header=False,  # the simulated clock dates the answers
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )


class RunningServer:
    """A simulator served from a thread of its own. A context manager; `url` has no trailing slash."""

    def __init__(self, app: Any, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = loopback_socket(host, port)
        name = self._socket.getsockname()
        self.url = f"http://{'[' + name[0] + ']' if ':' in name[0] else name[0]}:{name[1]}"
        self._server = make_server(app)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"simulator {self.url}", daemon=True)

    def start(self, timeout_seconds: float = 10.0) -> RunningServer:
        """Start and wait until requests are answered. Raises RuntimeError when that takes too long."""
        self._socket.listen(2048)  # from here on a client connects, and is answered once the loop runs
        self._thread.start()
        if not self._ready.wait(timeout_seconds):
            raise RuntimeError(f"simulator at {self.url} did not start in {timeout_seconds} s")
        return self

    def stop(self) -> None:
        """Stop gracefully: open answers get one second."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the server's thread, between two requests, and return its result.

        The simulators are not thread-safe: a test that shares one with a running server talks to it this way.
        """
        if self._loop is None:
            raise RuntimeError("the server is not running")
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(30)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._ready.set()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(main())

    def __enter__(self) -> RunningServer:
        return self if self._ready.is_set() else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(app: Any, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Serve `app` on loopback from a thread, already started; use it in a `with` or call `stop()`."""
    return RunningServer(app, host, port).start()
