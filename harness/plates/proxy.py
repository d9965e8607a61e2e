"""A loopback proxy before an S3 server that breaks things on purpose, or makes the server honour what it ignores.

A rule sees the request and may answer itself, let it pass, pass it on and lose the answer, or change the answer.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).split("/", 2)[2] if self.path.count("/") > 1 else ""


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


DROP = object()
Forward = Callable[[Request], Answer]
Rule = Callable[[Request, Forward], Any]


@dataclass
class Proxy:
    url: str
    rules: list[Rule] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)

    def count(self, method: str, **query: object) -> int:
        return sum(r.method == method and all(name in r.query for name in query) for r in self.log)


def error(status: int, code: str) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml"}, body)


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    target = urlsplit(upstream)
    proxy = Proxy("")

    def forward(request: Request) -> Answer:
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
        try:
            headers = {n: v for n, v in request.headers.items() if n.lower() not in ("connection", "content-length")}
            headers["Content-Length"] = str(len(request.body))
            connection.request(request.method, request.path, body=request.body, headers=headers)
            reply = connection.getresponse()
            data = reply.read()
            kept = {n: v for n, v in reply.getheaders() if n.lower() not in ("connection", "transfer-encoding")}
            return Answer(reply.status, kept, data)
        finally:
            connection.close()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            request = Request(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
            proxy.log.append(request)
            answer: Any = None
            for rule in list(proxy.rules):
                answer = rule(request, forward)
                if answer is not None:
                    break
            if answer is DROP:
                self.close_connection = True
                self.connection.close()
                return
            reply: Answer = answer or forward(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in ("content-length", "date", "server"):
                    self.send_header(name, value)
            head = self.command == "HEAD"
            size = next((v for n, v in reply.headers.items() if n.lower() == "content-length"), "0")
            self.send_header("Content-Length", size if head else str(len(reply.body)))
            self.end_headers()
            if not head:
                self.wfile.write(reply.body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def once(rule: Rule, times: int = 1) -> Rule:
    """The rule for its first answers only."""
    left = [times]

    def limited(request: Request, forward: Forward) -> Any:
        if left[0] <= 0:
            return None
        answer = rule(request, forward)
        if answer is not None:
            left[0] -= 1
        return answer

    return limited


def lose_answer(method: str, **query: object) -> Rule:
    """The request is carried out and the connection breaks before the answer."""

    def rule(request: Request, forward: Forward) -> Any:
        if request.method == method and all(name in request.query for name in query):
            forward(request)
            return DROP
        return None

    return rule


def refuse(method: str, match: str, status: int, code: str) -> Rule:
    def rule(request: Request, _: Forward) -> Any:
        return error(status, code) if request.method == method and re.search(match, request.path) else None

    return rule


def ignore_headers(*names: str) -> Rule:
    """A store that does not know these headers."""

    def rule(request: Request, forward: Forward) -> Any:
        headers = {n: v for n, v in request.headers.items() if n.lower() not in names}
        if len(headers) == len(request.headers):
            return None
        return forward(Request(request.method, request.path, headers, request.body))

    return rule


def honour_batch_etags(request: Request, forward: Forward) -> Any:
    """DeleteObjects as S3 has it: a key whose ETag is not the one given is refused, by key, inside a 200."""
    if request.method != "POST" or "delete" not in request.query:
        return None
    errors, kept = "", ""
    for row in re.findall(r"<Object>.*?</Object>", request.body.decode(), re.DOTALL):
        key = unescape(re.search(r"<Key>(.*?)</Key>", row, re.DOTALL)[1])  # type: ignore[index]
        wanted = re.search(r"<ETag>(.*?)</ETag>", row)
        path = "/" + urlsplit(request.path).path.strip("/") + "/" + http_quote(key)
        there = forward(Request("HEAD", path, _anonymous(request), b""))
        etag = next((v for n, v in there.headers.items() if n.lower() == "etag"), "")
        if wanted is None:
            kept += row
        elif there.status == 404:
            errors += f"<Error><Key>{escape(key)}</Key><Code>NoSuchKey</Code></Error>"
        elif unescape(wanted[1], {"&quot;": '"'}).strip('"') != etag.strip('"'):
            errors += f"<Error><Key>{escape(key)}</Key><Code>PreconditionFailed</Code></Error>"
        else:
            kept += re.sub(r"<ETag>.*?</ETag>", "", row)
    reply = "<DeleteResult>" + errors + "</DeleteResult>"
    if kept:
        headers = {n: v for n, v in request.headers.items() if n.lower() not in ("content-md5", "x-amz-checksum-crc32")}
        answer = forward(Request("POST", request.path, headers, f"<Delete>{kept}</Delete>".encode()))
        reply = answer.body.decode().replace("</DeleteResult>", errors + "</DeleteResult>")
    return Answer(200, {"Content-Type": "application/xml"}, reply.encode())


def http_quote(key: str) -> str:
    from urllib.parse import quote

    return quote(key)


def _anonymous(request: Request) -> dict[str, str]:
    return {n: v for n, v in request.headers.items() if n.lower() in ("host", "authorization", "x-amz-date")}
