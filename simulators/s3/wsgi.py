"""From a `Call` to a WSGI application in the same process and back.

Invariant: nothing of the request or the answer is decoded, encoded, compressed or dropped on the way, except what names one
connection (RFC 9110, 7.6.1) and the date, which is the simulated clock's.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from simulators.common import Answer, Call

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
# The shell has read the body as a whole, so what says how it came is no longer true.
_OF_ONE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"})
_OF_THE_SHELL = _OF_ONE_CONNECTION | {"date", "server"}


def ask(application: Application, call: Call) -> Answer:
    """Put a request to the application and collect its answer."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], object]:
        started.append((status, headers))
        return lambda data: None

    body = b"".join(application(environ_of(call), start_response))
    status, headers = started[-1]
    kept = {name: value for name, value in headers if name.lower() not in _OF_THE_SHELL}
    return Answer(int(status.split(" ")[0]), body, None, kept)


def environ_of(call: Call) -> dict[str, Any]:
    """The request as PEP 3333 has it, with the path as it was sent in RAW_URI and REQUEST_URI."""
    path, _, query = call.target.partition("?")
    host, _, port = call.headers.get("host", "localhost").partition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": call.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": call.target,
        "REQUEST_URI": call.target,
        "SERVER_NAME": host,
        "SERVER_PORT": port or "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(call.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in call.headers.items():
        if name not in _OF_ONE_CONNECTION:
            environ[environ_key(name)] = value
    environ["CONTENT_LENGTH"] = str(len(call.body))
    return environ


def environ_key(header: str) -> str:
    """The name of a header in the environ."""
    key = header.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
