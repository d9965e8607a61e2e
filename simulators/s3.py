"""A simulator of S3: moto's semantics (versions, conditions, multipart) on a real socket, with faults and a journal.

The one thing to know before changing it: it is no proof that a condition holds on a real store, only that ours are sent
and heeded. moto ignores some (per-key ETags in DeleteObjects), and nothing may be concluded from that.

Side channel, as JSON: GET `/_sim/journal` (every change that was asked for, with its status), POST `/_sim/faults`
(`{"method": "PUT", "key": "part of a key", "fault": "flip_bit|slow_down|hold", "count": 1, "seconds": 0}`), DELETE the same.
`flip_bit` changes one bit of the object at rest, after a successful write: same size, same ETag, no error.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from simulators.common.registry import Service, Setup
from simulators.common.server import loopback_socket

ACCOUNT = "123456789012"  # moto's own
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


@dataclass
class S3Fault:
    """One rule: the next `count` requests of a method whose key contains `key`."""

    method: str
    key: str
    fault: str
    count: int = 1
    seconds: float = 0.0

    def takes(self, method: str, key: str) -> bool:
        return self.count > 0 and self.method == method and self.key in key


class S3Application:
    """A WSGI application around moto's: side channel first, then faults, then moto, then what happens at rest."""

    def __init__(self, inner: Callable[[Environ, StartResponse], Iterable[bytes]]):
        self._inner = inner
        self._faults: list[S3Fault] = []
        self._lock = threading.Lock()
        self.journal: list[dict[str, Any]] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        method, path = str(environ["REQUEST_METHOD"]), unquote(str(environ["PATH_INFO"]))
        if path.startswith("/_sim/"):
            return self._side_channel(method, path, environ, start_response)
        fault = self._fault(method, path)
        if fault is not None and fault.fault == "slow_down":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_BUSY]
        if fault is not None and fault.fault == "hold":
            time.sleep(fault.seconds)
        statuses: list[str] = []

        def note(status: str, *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, *rest)

        answer = list(self._inner(environ, note))
        status = int(statuses[0].split(" ")[0])
        if method in ("PUT", "POST", "DELETE"):
            entry = {"method": method, "path": path, "query": str(environ.get("QUERY_STRING", "")), "status": status}
            with self._lock:
                self.journal.append({**entry, "at": time.time()})
        if fault is not None and fault.fault == "flip_bit" and status == 200:
            flip_bit(path)
        return answer

    def _fault(self, method: str, path: str) -> S3Fault | None:
        with self._lock:
            for rule in self._faults:
                if rule.takes(method, path):
                    rule.count -= 1
                    return rule
        return None

    def _side_channel(self, method: str, path: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body: Any = None
        if path == "/_sim/journal" and method == "GET":
            body = self.journal
        elif path == "/_sim/faults" and method == "POST":
            rule = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            with self._lock:
                self._faults.append(S3Fault(**rule))
            body = len(self._faults)
        elif path == "/_sim/faults" and method == "DELETE":
            with self._lock:
                self._faults.clear()
            body = 0
        start_response("404 Not Found" if body is None else "200 OK", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]


def flip_bit(path: str) -> None:
    """Changes one bit in the middle of a stored object, `/bucket/key`, behind the store's back."""
    from moto.s3.models import s3_backends

    bucket, _, key = path.lstrip("/").partition("/")
    stored = s3_backends[ACCOUNT]["aws"].buckets[bucket].keys[key]
    etag = stored.etag  # computed before, and kept: nobody told the store
    data = bytearray(stored.value)
    data[len(data) // 2] ^= 1
    stored.value = bytes(data)
    stored._etag = etag.strip('"')


class S3Service:
    """moto in a thread of this process, on a free loopback port."""

    def __init__(self) -> None:
        self._server: Any = None
        self._thread: threading.Thread | None = None

    async def start(self) -> str:
        return await asyncio.to_thread(self._start)

    def _start(self) -> str:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: Any, **__: Any) -> None:
                """One line per request would hide everything else."""

        bound = loopback_socket()
        bound.listen(256)
        host, port = bound.getsockname()[:2]
        app = S3Application(DomainDispatcherApplication(create_backend_app))
        self._server = make_server(host, port, app, threaded=True, request_handler=Quiet, fd=bound.detach())
        self._thread = threading.Thread(target=self._server.serve_forever, name="s3 simulator", daemon=True)
        self._thread.start()
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()


def service(setup: Setup) -> Service:
    """The simulator for `python -m simulators`. It draws nothing and has no clock, so the setup is not used."""
    return S3Service()
