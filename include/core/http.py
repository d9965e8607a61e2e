"""One HTTP client for tasks and triggers: bounded in time, reads retried, writes sent once.

Invariant: `write` never repeats a request that may have reached the remote. What is not proved to have had no effect
becomes an error without `no_effect`, and the ledger takes it from there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, Self

import httpx

from include.core.concurrency import AT_ONCE
from include.core.errors import RemoteError, TransientError, error_for_status

DETAIL_LIMIT = 300  # characters of a remote's own words in one of our messages


class Conflict(RemoteError):
    """409: what is there, or is just being made, does not let this happen. Whoever asked knows whether to look again."""


class Busy(TransientError):
    """429: nothing was done, and all requests to this remote shall come slower."""


class Credentials(Protocol):
    """Where the Authorization header comes from. `refresh`: the last one was refused, get another."""

    async def authorization(self, http: httpx.AsyncClient, *, refresh: bool) -> str: ...


@dataclass(frozen=True)
class HttpPolicy:
    """Bounds of one request (seconds) and how often a read is tried."""

    timeout_seconds: float = 30.0
    read_attempts: int = 5
    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 20.0
    busy_attempts: int = 12  # how often a read that is told to slow down is tried
    retry_after_limit_seconds: float = 60.0  # a longer pause is left to the caller, who need not hold a worker for it


class HttpClient:
    """An httpx client with a base URL, credentials, and Waybill's errors. Use as an async context manager.

    `transport`, `sleep` and `rng` (for the jitter) are passed in by tests and benchmarks.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        policy: HttpPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ):
        self.policy = policy or HttpPolicy()
        self.remote_now: float | None = None
        self.calls = 0
        self._credentials = credentials
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._pace = Pace(sleep)
        self._authorization: str | None = None
        self._login = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=dict(headers or {}),
            transport=transport,
            timeout=httpx.Timeout(self.policy.timeout_seconds),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=AT_ONCE, keepalive_expiry=15),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def read(self, path: str, *, what: str, params: Mapping[str, Any] | None = None) -> Any:
        """GET a JSON document. Tried again on transient errors; raises the last of them when they do not end."""
        return await self._tried_again(lambda: self._once("GET", path, what=what, params=params))

    async def write(self, path: str, *, what: str, json: Any = None, fence: Callable[[], None] | None = None) -> Any:
        """POST once. `fence` is called right before the bytes leave. A 401 (proof of no effect) may lead to a second try
        with fresh credentials. The error's `no_effect` says whether the remote can have acted."""
        return await self._once("POST", path, what=what, json=json, fence=fence)

    async def write_again(
        self, path: str, *, what: str, json: Any = None, fence: Callable[[], None] | None = None
    ) -> Any:
        """POST something that may be repeated without harm (deleting one exact id, making a folder)."""
        return await self._tried_again(lambda: self._once("POST", path, what=what, json=json, fence=fence))

    async def _tried_again(self, call: Callable[[], Awaitable[Any]]) -> Any:
        policy, errors, busy = self.policy, 0, 0
        while True:
            try:
                return await call()
            except TransientError as error:
                asked = error.retry_after or 0.0
                busy += isinstance(error, Busy)
                errors += not isinstance(error, Busy)
                spent = errors >= policy.read_attempts or busy >= policy.busy_attempts
                if spent or asked > policy.retry_after_limit_seconds:
                    raise
            # The pace alone would do for a busy remote; a random pause keeps those refused together apart.
            limit = min(policy.backoff_seconds * 2.0**errors, policy.backoff_limit_seconds)
            await self._sleep(asked + limit * self._rng.random())

    async def _once(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        fence: Callable[[], None] | None = None,
    ) -> Any:
        for refresh in (False, True):
            header = await self._header(refresh=refresh)
            left_at = await self._pace.turn()
            if fence is not None:
                fence()
            response = await self._send(method, path, what=what, params=params, json=json, headers=header)
            if response.status_code != 401 or self._credentials is None:
                break
        self._pace.learn(response, left_at)
        return _body(response, what, secret=header.get("Authorization", "").rpartition(" ")[2])

    async def _header(self, *, refresh: bool) -> dict[str, str]:
        if self._credentials is None:
            return {}
        stale = self._authorization
        async with self._login:
            # Ten calls refused at once need one new token, not ten.
            if self._authorization is None or (refresh and self._authorization == stale):
                try:
                    async with asyncio.timeout(self.policy.timeout_seconds * 2):
                        self._authorization = await self._credentials.authorization(self._http, refresh=refresh)
                except TransientError as error:
                    error.no_effect = True  # the request that wanted the credential has not left
                    raise
                except TimeoutError:
                    raise TransientError("no credential could be had in time", no_effect=True) from None
        return {"Authorization": self._authorization}

    async def _send(
        self, method: str, path: str, *, what: str, headers: dict[str, str], **kwargs: Any
    ) -> httpx.Response:
        self.calls += 1
        try:
            # httpx bounds each read, not their sum: a body of one byte a second would never end.
            async with asyncio.timeout(self.policy.timeout_seconds * 2):
                response = await self._http.request(method, path, headers=headers, **kwargs)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TransientError(f"{what}: no connection ({type(error).__name__})", no_effect=True) from None
        except (httpx.TransportError, TimeoutError) as error:
            raise TransientError(f"{what}: no answer ({type(error).__name__})") from None
        except httpx.InvalidURL:
            raise RemoteError(f"{what}: the URL is not valid; check the connection's host", no_effect=True) from None
        self.remote_now = remote_time(response.headers) or self.remote_now
        return response


class Pace:
    """How fast requests may leave: at once, until the remote asks to slow down; then slower for all, and slowly faster.

    Without it fifty callers, each waiting on its own, would all come back at the same moment and be refused again.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]]):
        self._sleep = sleep
        self._gate = asyncio.Lock()
        self._interval = 0.0
        self._not_before = 0.0
        self._last_left = 0.0
        self._slowed_at = -1.0

    async def turn(self) -> float:
        """Waits for the caller's turn, and returns when it came (the loop's clock): `learn` wants it back."""
        clock = asyncio.get_running_loop().time
        if self._interval == 0.0 and clock() >= self._not_before:
            return clock()
        async with self._gate:
            wait = max(self._not_before, self._last_left + self._interval) - clock()
            if wait > 0:
                await self._sleep(wait)
            self._last_left = clock()
            return self._last_left

    def learn(self, response: httpx.Response, left_at: float) -> None:
        """Half as fast again after a 429, and not before its Retry-After; a little faster after anything else."""
        if response.status_code != 429:
            self._interval = self._interval * 0.97 if self._interval > 0.002 else 0.0
            return
        now = asyncio.get_running_loop().time()
        asked = retry_after(response.headers, time.time()) or 0.0
        self._not_before = max(self._not_before, now + min(asked, 60.0))
        if left_at > self._slowed_at:  # what left before the last change says nothing about the new pace
            self._interval = min(max(self._interval * 1.5, 0.02), 2.0)
            self._slowed_at = now


def _body(response: httpx.Response, what: str, *, secret: str) -> Any:
    """The JSON of a success, else the matching error, which never holds `secret`, though the remote may quote it.

    A success that is not JSON leaves the request in doubt; it is no refusal.
    """
    if response.is_success:
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise TransientError(f"{what} answered {response.status_code} with something that is not JSON") from None
    status, asked = response.status_code, retry_after(response.headers, time.time())
    error = error_for_status(status, what, detail=_detail(response, secret), retry_after=asked)
    if status == 409:
        raise Conflict(str(error), no_effect=True)
    if status == 429:
        raise Busy(str(error), retry_after=asked, no_effect=True)
    raise error


def _detail(response: httpx.Response, secret: str) -> str:
    """The remote's own words, shortened and without our credential. An HTML page explains nothing and is not quoted."""
    try:
        said = response.json()
    except ValueError:
        return ""
    words = said.get("detail") or said.get("title") or said.get("message") or "" if isinstance(said, dict) else ""
    told = str(words).replace(secret, "…") if secret else str(words)
    return told[:DETAIL_LIMIT]


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks for (it may be a number or a date), None where it is absent or not understood."""
    value = headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - (remote_time(headers) or now))
    except ValueError:
        return None


def remote_time(headers: Mapping[str, str]) -> float | None:
    """The remote's clock (epoch seconds) from the Date header."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return None
