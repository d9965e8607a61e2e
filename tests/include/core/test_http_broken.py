"""Remotes, gateways and networks that break the protocol: whatever arrives, the client gives an answer or one of our errors.

Invariant: none of it is taken for a proof that nothing was done, but a refusal that the remote has said in full.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from include.core.errors import RemoteError, TransientError, WaybillError
from include.core.http import HttpClient, HttpPolicy

TLS = b"\x16"  # the first byte of a handshake
POLICY = HttpPolicy(timeout_seconds=20.0, read_attempts=1, busy_attempts=1)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class RawServer:
    """Answers each connection's first request with the bytes that the test has chosen, and closes it."""

    def __init__(self) -> None:
        self.says = OK
        self.requests = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                heard = b""
                while b"\r\n\r\n" not in heard and heard[:1] != TLS and (more := connection.recv(65536)):
                    heard += more
                if heard:
                    self.requests += 1
                    try:
                        connection.sendall(self.says)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            continue
                    except OSError:
                        pass

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(30)


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.stop()


def outcome(url: str, work: Callable[[HttpClient], Any] | None = None, **options: Any) -> Any:
    """What a write of this remote comes to: its answer, or one of our errors."""

    async def main() -> Any:
        async with HttpClient(url, name="waybill_echo", policy=POLICY, **options) as client:
            try:
                return await (work or (lambda c: c.write("/thing", what="making it", json={"a": 1})))(client)
            except WaybillError as error:
                return error

    return asyncio.run(main())


def answer(*lines: bytes, body: bytes = b"", status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([status, *lines, b"Connection: close", b"", body])


BROKEN = {
    "nothing": b"",
    "no http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "http 0.9": b"<html>hello</html>",
    "half a status line": b"HTTP/1.1 20",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "headers cut": b"HTTP/1.1 200 OK\r\nContent-Le",
    "header without a name": answer(b": x", body=b"{}"),
    "header with a zero byte": answer(b"X-A: a\0b", body=b"{}"),
    "header of a megabyte": answer(b"X-A: " + b"a" * (1 << 20), body=b"{}"),
    "body cut": answer(b"Content-Length: 100", body=b"{}"),
    "length negative": answer(b"Content-Length: -1", body=b"{}"),
    "length no number": answer(b"Content-Length: many", body=b"{}"),
    "two lengths": answer(b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
    "chunk size no number": answer(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunks cut": answer(b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n"),
    "transfer encoding unknown": answer(b"Transfer-Encoding: gzip, chunked", body=b"{}"),
    "gzip that is none": answer(b"Content-Encoding: gzip", body=b"{}"),
    "gzip cut": answer(b"Content-Encoding: gzip", body=gzip.compress(b'{"a": 1}' * 99)[:30]),
    "gzip damaged": answer(b"Content-Encoding: gzip", body=gzip.compress(b'{"a": 1}')[:-6] + b"abcdef"),
    "deflate that is none": answer(b"Content-Encoding: deflate", body=b"{}"),
    "zstd that is none": answer(b"Content-Encoding: zstd", body=b"{}"),
    "switching protocols": answer(status=b"HTTP/1.1 101 Switching Protocols"),
    "only a continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "json cut": answer(body=b'{"a": '),
    "json not utf-8": answer(body=b'{"a": "\xff"}'),
    "json of great depth": answer(body=b"[" * 200_000),
    "a number of 5,000 digits": answer(body=b"9" * 5000),
    "html": answer(b"Content-Type: text/html", body=b"<html>please log in</html>"),
    "redirect nowhere": answer(status=b"HTTP/1.1 302 Found"),
    "redirect to no url": answer(b"Location: http://[half", status=b"HTTP/1.1 302 Found"),
    "redirect to another scheme": answer(b"Location: ftp://h/x", status=b"HTTP/1.1 301 Moved"),
    "redirect with bad characters": answer(b"Location: http://h/\xff\x01 x", status=b"HTTP/1.1 307 Moved"),
    "redirect to an odd port": answer(b"Location: http://h:port/", status=b"HTTP/1.1 303 See Other"),
    "status 600": answer(status=b"HTTP/1.1 600 Odd"),
    "status 999": answer(status=b"HTTP/1.1 999 Odd"),
    "500 with a broken body": answer(b"Content-Length: 50", body=b"{", status=b"HTTP/1.1 500 Error"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_a_transient_error_that_proves_nothing(raw: RawServer, name: str):
    raw.says, before = BROKEN[name], raw.requests
    error = outcome(raw.url)
    assert isinstance(error, TransientError), error
    assert not error.no_effect
    assert str(error).startswith("making it")
    assert raw.requests == before + 1
    read = outcome(raw.url, lambda client: client.read("/thing", what="reading it"))
    assert isinstance(read, TransientError)


HARMLESS = {
    "empty": (answer(b"Content-Length: 0"), None),
    "204 with a body": (answer(status=b"HTTP/1.1 204 No Content", body=b"oops"), None),
    "a continue before": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, {}),
    "no length": (answer(body=b'{"a": 1}'), {"a": 1}),
    "unknown charset": (answer(b"Content-Type: application/json; charset=x-klingon", body=b"{}"), {}),
    "byte order mark": (answer(body=b'\xef\xbb\xbf{"a": 1}'), {"a": 1}),
    "broken cookies": (
        answer(b"Set-Cookie: =;;; expires=Thu, 99 Zzz; port=\x22x\x22", b"Set-Cookie: ", body=b"{}"),
        {},
    ),
    "odd dates": (answer(b"Date: Thu, 99 Zzz 99999", b"Retry-After: -inf", body=b"{}"), {}),
    "old protocol": (answer(body=b"{}", status=b"HTTP/1.0 200 OK"), {}),
    "no reason": (answer(body=b"{}", status=b"HTTP/1.1 200"), {}),
    "letters of latin-1": (answer(b"X-A: \xe9\xff", body=b"{}"), {}),
    "gzip": (answer(b"Content-Encoding: gzip", body=gzip.compress(b'{"a": 1}')), {"a": 1}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_whole_is_an_answer(raw: RawServer, name: str):
    raw.says, expected = HARMLESS[name]
    assert outcome(raw.url) == expected


@pytest.mark.parametrize(
    "date", ["Thu, 99 Zzz", "Fri, 31 Dec 99999 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "\xff"]
)
def test_a_retry_after_that_nobody_understands_is_none(raw: RawServer, date: str):
    raw.says = answer(b"Retry-After: " + date.encode("latin-1"), status=b"HTTP/1.1 503 Busy")
    error = outcome(raw.url)
    assert isinstance(error, TransientError)
    assert error.retry_after in (None, 0.0, 3600.0)


class OneClient:
    """One client for many requests, since each new one costs more than its request."""

    def __init__(self, url: str):
        self.loop = asyncio.new_event_loop()
        self.client = HttpClient(url, name="waybill_echo", policy=POLICY)

    def ask(self) -> Any:
        try:
            return self.loop.run_until_complete(self.client.write("/thing", what="making it", json={}))
        except WaybillError as error:
            return error

    def close(self) -> None:
        self.loop.run_until_complete(self.client.__aexit__())
        self.loop.close()


@pytest.fixture(scope="module")
def client(raw: RawServer) -> Iterator[OneClient]:
    shared = OneClient(raw.url)
    yield shared
    shared.close()


@settings(
    max_examples=1000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_answer_whatever_its_bytes_raises_anything_but_our_errors(
    raw: RawServer, client: OneClient, data: st.DataObject
):
    """Whole answers with some bytes cut, doubled, replaced or put in."""
    whole = data.draw(st.sampled_from([OK, *BROKEN.values(), *(says for says, _ in HARMLESS.values())]))[:20_000]
    says = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        at, length = data.draw(st.integers(0, len(says))), data.draw(st.integers(0, 8))
        says[at : at + length] = data.draw(st.one_of(st.binary(max_size=8), st.just(bytes(says[at : at + 2 * length]))))
    raw.says = bytes(says)
    got = client.ask()
    if isinstance(got, WaybillError) and got.no_effect:  # only for a refusal
        assert b" 4" in raw.says, (raw.says, got)


def test_a_cookie_is_not_kept_so_that_a_broken_one_stops_no_later_request(raw: RawServer, client: OneClient):
    raw.says = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=\xc3\xa4\xff; Path=/\r\nContent-Length: 2\r\n\r\n{}"
    assert client.ask() == {}
    raw.says = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    assert client.ask() == {}


# -- what httpx raises ------------------------------------------------------------------------------------------------


class Raising(httpx.AsyncBaseTransport):
    def __init__(self, error: Exception):
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


class RaisingBody(httpx.AsyncByteStream):
    def __init__(self, error: Exception):
        self.error = error

    async def __aiter__(self) -> Any:
        yield b"{"
        raise self.error


class LateRaising(Raising):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=RaisingBody(self.error))


def kinds(base: type[Exception]) -> set[type[Exception]]:
    """The class and those below it, as far as they are of httpx or of Python: other libraries derive theirs."""
    mine = [kind for kind in base.__subclasses__() if kind.__module__.split(".")[0] in ("httpx", "builtins", "ssl")]
    return {base}.union(*(kinds(kind) for kind in mine))


NOT_RAISED_BY_A_TRANSPORT = {
    httpx.HTTPStatusError,  # by raise_for_status alone, which nobody calls here
}
ALL = sorted(
    kinds(httpx.HTTPError) | kinds(httpx.StreamError) | {httpx.InvalidURL, httpx.CookieConflict, ssl.SSLError, OSError,
    TimeoutError, UnicodeError} - NOT_RAISED_BY_A_TRANSPORT,
    key=lambda kind: kind.__name__,
)  # fmt: skip
BEFORE_IT_LEFT = {httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout}


def made(kind: type[Exception]) -> Exception:
    if kind in (httpx.StreamConsumed, httpx.StreamClosed, httpx.ResponseNotRead, httpx.RequestNotRead):
        return kind()
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://h")
        return httpx.HTTPStatusError("x", request=request, response=httpx.Response(500, request=request))
    return kind("GEHEIM")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_everything_that_httpx_raises_is_one_of_our_errors(kind: type[Exception]):
    error = outcome("http://h.test", transport=Raising(made(kind)))
    assert isinstance(error, TransientError), error
    assert error.no_effect == (kind in BEFORE_IT_LEFT)
    late = outcome("http://h.test", transport=LateRaising(made(kind)))
    assert isinstance(late, TransientError)
    assert not late.no_effect


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("ftp://h/x", {}),
        ("http://h:port/", {}),
        ("/x\x00y", {}),
        ("/x", {"headers": {"X-A": "é"}}),
        ("/x", {"json": float("nan")}),
    ],
)
def test_a_request_that_cannot_be_written_sends_nothing_and_is_final(
    raw: RawServer, path: str, options: dict[str, Any]
):
    before = raw.requests
    error = outcome(raw.url, lambda client: client.send("POST", path, what="making it", **options))
    assert type(error) is RemoteError
    assert error.no_effect
    assert raw.requests == before


def test_no_tls_where_tls_is_expected_is_no_connection(raw: RawServer):
    error = outcome(raw.url.replace("http:", "https:"))
    assert isinstance(error, TransientError)
    assert error.no_effect
    assert "no connection to 127.0.0.1 (Connect" in str(error)
