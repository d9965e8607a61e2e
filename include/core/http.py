"""One HTTP client for tasks and triggers: bounded in time and size, reads retried, writes sent once.

Whatever httpx raises, and every answer that is not asked for, becomes one of Waybill's errors here.

Invariant: `send` never repeats a request that may have reached the remote. What is not proved to have had no effect
becomes an error without `no_effect`, and the ledger takes it from there. No error holds a credential.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, Unpack

import httpx

from include.core.concurrency import AT_ONCE
from include.core.errors import AuthError, RemoteError, RequestError, TransientError, WaybillError, error_for_status
from include.core.http_body import Downloaded, Options, Written, request_body, too_large
from include.core.http_pace import Pace
from include.core.http_reply import Reply, bare_location, own_words, remote_time, retry_after
from include.core.text import Hide, hiding, printable

T = TypeVar("T")

for _name in ("httpx", "httpcore"):  # their own lines hold whole URLs and headers, secrets included
    logging.getLogger(_name).setLevel(logging.WARNING)

SHORT = 8  # a header's value of fewer characters is no secret, and hiding it would spoil messages


class Conflict(RemoteError):
    """409: what is there, or is just being made, does not let this happen. Whoever asked knows whether to look again."""


class Busy(TransientError):
    """429: nothing was done, and all requests to this remote shall come slower."""


@dataclass(frozen=True)
class Credential:
    """What makes a request ours: headers, and where each request is signed, a function of request and body that gives
    more of them. `secrets`: what of all this no message may repeat."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    sign: Callable[[httpx.Request, bytes | Path], Mapping[str, str]] | None = field(
        default=None, repr=False, compare=False
    )


NO_CREDENTIAL = Credential()


def usable_secret(secret: str, where: str, *, ascii_only: bool = True) -> str:
    """A secret as it may be sent: without the white space around it (a copied key ends with a line break).

    `where` names the connection. Raises AuthError where it is empty, or holds characters that no such secret has.
    """
    bare = secret.strip()
    if not bare:
        raise AuthError(f"the credential of {where} is empty: enter it")
    if not bare.isprintable() or (ascii_only and not bare.isascii()):
        raise AuthError(
            f"the credential of {where} holds a line break or another character that no header can carry: enter it again"
        )
    return bare


class Credentials(Protocol):
    """Where a credential comes from (`include.core.credentials`). `refresh`: the last one was refused, get another.

    What needs a request of its own sends it by `client`, with `signed=False`.
    """

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential: ...


@dataclass(frozen=True)
class HttpPolicy:
    """Bounds of one request (seconds) and how often a read is tried."""

    timeout_seconds: float = 30.0
    file_seconds: float = 3600.0  # a body that goes to a file or comes from one, as a whole
    read_attempts: int = 5
    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 20.0
    busy_attempts: int = 12  # how often a read that is told to slow down is tried
    retry_after_limit_seconds: float = 60.0  # a longer pause is left to the caller, who need not hold a worker for it
    body_limit_bytes: int = 256 << 20  # of an answer that is kept in memory


@dataclass(frozen=True)
class _Call:
    method: str
    path: str
    what: str
    options: Options

    @property
    def answers(self) -> Collection[int]:
        return self.options.get("answers", ())


Receive = Callable[[httpx.Response], Awaitable[bytes]]


class HttpClient:
    """An httpx client with a base URL, credentials, and Waybill's errors. Use as an async context manager.

    `name` is the id of the connection that it was made from, for messages. Credential and `headers` go to the base URL's own
    scheme, host and port alone; a request may name another URL, as one that a store has signed, and goes there without them.
    `transport`, `sleep` and `rng` (for the jitter) are passed in by tests and benchmarks. Raises RequestError for a base
    URL that is none.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials | None = None,
        *,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        policy: HttpPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ):
        self.policy = policy or HttpPolicy()
        self.remote_now: float | None = None
        self.calls = 0
        self._base = _base_url(base_url, name)
        self._headers = dict(headers or {})
        self._host = self._base.netloc.decode("ascii", "replace")
        self._connection = f"connection {name}" if name else "the connection"
        self.where = f"{self._connection} ({self._host})"
        self._credentials = credentials
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._pace = Pace(sleep)
        self._credential: Credential | None = None
        self._login = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=self._base,
            transport=transport,
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=AT_ONCE, keepalive_expiry=15),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    # -- what a caller asks for -----------------------------------------------------------------------------------

    async def read(self, path: str, *, what: str, **options: Unpack[Options]) -> Any:
        """GET a JSON document. Tried again on transient errors; raises the last of them when they do not end."""
        return await self._tried_again(_Call("GET", path, what, options), _json)

    async def write(self, path: str, *, what: str, **options: Unpack[Options]) -> Any:
        """POST once, for a JSON document. `fence` is called right before the bytes leave. A 401 (proof of no effect) may
        lead to a second try with fresh credentials. The error's `no_effect` says whether the remote can have acted."""
        return _json(await self._once(_Call("POST", path, what, options)))

    async def write_again(self, path: str, *, what: str, **options: Unpack[Options]) -> Any:
        """POST something that may be repeated without harm (deleting one exact id, making a folder)."""
        return await self._tried_again(_Call("POST", path, what, options), _json)

    async def get(self, path: str, *, what: str, **options: Unpack[Options]) -> Reply:
        """GET any body, tried again as `read` is."""
        return await self._tried_again(_Call("GET", path, what, options), _as_it_is)

    async def head(self, path: str, *, what: str, **options: Unpack[Options]) -> Reply:
        """HEAD, tried again as `read` is."""
        return await self._tried_again(_Call("HEAD", path, what, options), _as_it_is)

    async def send(self, method: str, path: str, *, what: str, **options: Unpack[Options]) -> Reply:
        """Any method with any body, once, as `write`."""
        return await self._once(_Call(method, path, what, options))

    async def send_again(self, method: str, path: str, *, what: str, **options: Unpack[Options]) -> Reply:
        """The same for what may be repeated without harm: a PUT of one whole document, a DELETE of one exact id."""
        return await self._tried_again(_Call(method, path, what, options), _as_it_is)

    async def download(
        self,
        path: str,
        target: Path,
        *,
        what: str,
        limit_bytes: int,
        size_bytes: int | None = None,
        **options: Unpack[Options],
    ) -> Downloaded:
        """GET a body into a file, which is there only when it is whole: it is written under another name first.

        Raises RemoteError for more than `limit_bytes`, TransientError for other than `size_bytes`, where that is known:
        without it, a body whose length the remote did not announce may be cut. `answers` mean nothing here.
        """
        options["headers"] = {"Accept-Encoding": "identity", **options.get("headers", {})}
        options.pop("answers", None)
        call = _Call("GET", path, what, options)

        async def once() -> Downloaded:
            part = target.with_name(f".{self._rng.getrandbits(64):016x}.part")
            written = Written(part, what, limit_bytes)
            try:
                reply = await self._once(call, written.receive)
                return await written.moved_to(target, size_bytes, reply)
            finally:
                await asyncio.to_thread(part.unlink, missing_ok=True)

        return await self._repeated(call, once)

    # -- how it is asked ------------------------------------------------------------------------------------------

    async def _tried_again(self, call: _Call, read: Callable[[Reply], T]) -> T:
        async def once() -> T:
            return read(await self._once(call))

        return await self._repeated(call, once)

    async def _repeated(self, call: _Call, once: Callable[[], Awaitable[T]]) -> T:
        policy, errors, busy = self.policy, 0, 0
        final = call.options.get("final_after", {})
        seen = Counter[int]()
        attempts = max(policy.read_attempts, *final.values()) if final else policy.read_attempts
        while True:
            try:
                return await once()
            except TransientError as error:
                if error.status is not None and error.status in final:
                    seen[error.status] += 1
                    if seen[error.status] >= final[error.status]:
                        raise RemoteError(
                            f"{error} The same answer came {seen[error.status]} times, so it is taken as final."
                        ) from None
                asked = error.retry_after or 0.0
                busy += isinstance(error, Busy)
                errors += not isinstance(error, Busy)
                spent = errors >= attempts or busy >= policy.busy_attempts
                if spent or asked > policy.retry_after_limit_seconds:
                    raise
            # The pace alone would do for a busy remote; a random pause keeps those refused together apart.
            limit = min(policy.backoff_seconds * 2.0**errors, policy.backoff_limit_seconds)
            await self._sleep(asked + limit * self._rng.random())

    async def _once(self, call: _Call, receive: Receive | None = None) -> Reply:
        credential = await self._credential_for(call)
        reply, hide = await self._exchange(call, credential, receive)
        if reply.status == 401 and 401 not in call.answers and credential is not NO_CREDENTIAL:
            fresh = await self._credential_for(
                call, refused=credential
            )  # also the same again: a gateway may be mistaken
            reply, hide = await self._exchange(call, fresh, receive)
        if 200 <= reply.status < 300 or reply.status in call.answers:
            return reply
        raise self._refusal(call, reply, hide)

    async def _exchange(self, call: _Call, credential: Credential, receive: Receive | None) -> tuple[Reply, Hide]:
        """One request and its answer, whatever its status."""
        slow = credential.sign is not None and "file" in call.options  # a whole file is read to be signed
        request, hide = (
            await asyncio.to_thread(self._request, call, credential) if slow else self._request(call, credential)
        )
        left_at = await self._pace.turn()
        fence = call.options.get("fence")
        if fence is not None:
            fence()
        reply = await self._send(call, request, hide, receive)
        self._pace.learn(reply, left_at)
        return reply, hide

    async def _credential_for(self, call: _Call, *, refused: Credential | None = None) -> Credential:
        if self._credentials is None or not call.options.get("signed", True) or not self._is_ours(call):
            return NO_CREDENTIAL
        async with self._login:
            if self._credential is None or self._credential is refused:  # ten calls refused at once need one new token
                try:
                    async with asyncio.timeout(self.policy.timeout_seconds * 2):
                        self._credential = await self._credentials.credential(self, refresh=refused is not None)
                except TransientError as error:
                    error.no_effect = True  # the request that wanted the credential has not left
                    raise
                except TimeoutError:
                    raise TransientError(
                        f"no credential for {self.where} could be had in time", no_effect=True
                    ) from None
            return self._credential

    def _is_ours(self, call: _Call) -> bool:
        """Whether a request goes to the remote that headers and credential are for."""
        if "://" not in call.path:
            return True
        try:
            return _origin(httpx.URL(call.path)) == _origin(self._base)
        except httpx.InvalidURL:
            return False

    def _request(self, call: _Call, credential: Credential) -> tuple[httpx.Request, Hide]:
        """The request, and what takes its secrets out of a message."""
        options = call.options
        body, about_body = request_body(options, call.what)
        own = {name: usable_secret(value, self.where) for name, value in credential.headers.items()}
        signed: Mapping[str, str] = {}
        try:
            headers = httpx.Headers(about_body)
            for more in (self._headers if self._is_ours(call) else {}, own, options.get("headers", {})):
                headers.update(more)
            request = self._http.build_request(
                call.method,
                call.path,
                params=options.get("params"),
                headers=headers,
                timeout=self._silence(call),
                **body,
            )
            if credential.sign is not None:
                signed = credential.sign(request, options.get("file") or request.content)
                request.headers.update(signed)
        except (httpx.InvalidURL, ValueError) as error:  # its text may quote the request
            raise RemoteError(
                f"{call.what}: the request cannot be written ({type(error).__name__}); check {self.where}",
                no_effect=True,
            ) from None
        if request.url.scheme not in ("http", "https") or not request.url.host:
            raise RemoteError(f"{call.what}: the URL is not one of http or https; check {self.where}", no_effect=True)
        given = [value for value in (*options.get("headers", {}).values(), *signed.values()) if len(value) >= SHORT]
        return request, hiding([*credential.secrets, *options.get("secrets", ()), *given])

    def _silence(self, call: _Call) -> float:
        return call.options.get("timeout_seconds", self.policy.timeout_seconds)

    async def _send(self, call: _Call, request: httpx.Request, hide: Hide, receive: Receive | None) -> Reply:
        self.calls += 1
        in_file = receive is not None or "file" in call.options
        whole = max(self.policy.file_seconds, self._silence(call)) if in_file else self._silence(call) * 2
        answered = False
        try:
            # httpx bounds each read, not their sum: a body of one byte a second would never end.
            async with asyncio.timeout(whole):
                response = await self._http.send(request, stream=True)
                answered = True
                try:
                    taken = receive if receive and response.is_success else self._in_memory(call)
                    content = await taken(response)
                finally:
                    await response.aclose()
        except (
            httpx.HTTPError,
            httpx.StreamError,
            httpx.InvalidURL,
            httpx.CookieConflict,
            ValueError,
            OSError,
        ) as error:
            raise self._no_answer(call, request, error, hide, answered=answered) from None
        self.remote_now = remote_time(response.headers) or self.remote_now
        return Reply(response.status_code, response.headers, content, call.what)

    def _no_answer(
        self, call: _Call, request: httpx.Request, error: Exception, hide: Hide, *, answered: bool
    ) -> TransientError:
        kind, host = type(error).__name__, request.url.host
        if answered or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return TransientError(f"{call.what}: no answer from {host} ({kind})")
        why = hide(printable(f"{kind}: {error}".removesuffix(": "), 160, quotes=False))
        return TransientError(f"{call.what}: no connection to {host} ({why}); check {self._connection}", no_effect=True)

    def _in_memory(self, call: _Call) -> Receive:
        async def receive(response: httpx.Response) -> bytes:
            chunks, size = [], 0
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > self.policy.body_limit_bytes:
                    raise too_large(call.what, self.policy.body_limit_bytes)
                chunks.append(chunk)
            return b"".join(chunks)

        return receive

    def _refusal(self, call: _Call, reply: Reply, hide: Hide) -> WaybillError:
        """The error for an answer; it never holds a secret of the request, though the remote may quote it."""
        asked = retry_after(reply.headers, time.time())
        location = bare_location(reply.headers.get("location", ""), hide)
        error = error_for_status(
            reply.status,
            call.what,
            detail=own_words(reply, hide),
            retry_after=asked,
            where=self.where,
            location=location,
        )
        if reply.status == 409:
            return Conflict(str(error), no_effect=True)
        if reply.status == 429:
            return Busy(str(error), retry_after=asked, no_effect=True, status=429)
        return error


def _base_url(text: str, name: str) -> httpx.URL:
    connection = f"connection {name}" if name else "the connection"
    try:
        url = httpx.URL(text.rstrip("/"))
        url.host.encode("idna")  # as the look-up of its address does
    except (httpx.InvalidURL, ValueError):
        raise RequestError(f"{connection}: its host is not a URL; give https://HOST/PATH") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise RequestError(f"{connection}: its host is not a URL of http or https; give https://HOST/PATH")
    if url.userinfo:
        raise RequestError(f"{connection}: its host holds a user; give login and password in their own fields")
    return url


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _json(reply: Reply) -> Any:
    return reply.json()


def _as_it_is(reply: Reply) -> Reply:
    return reply
