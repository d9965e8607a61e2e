"""One HTTP client for tasks and triggers: bounded in time, reads retried, writes sent once.

The thing to know before changing it: `write` never repeats a request that may have reached the remote. What is not
proved to have had no effect becomes an error without `no_effect`, and the ledger takes it from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx
import tenacity

from include.core.errors import RemoteError, TransientError, error_for_status

DETAIL_LIMIT = 300  # characters of a remote's own words in one of our messages


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
    retry_after_limit_seconds: float = 60.0  # a longer wish is handed to the caller, who need not hold a worker for it


class HttpClient:
    """An httpx client with a base URL, credentials, and Waybill's errors. Use as an async context manager.

    `transport` and `sleep` are passed in by tests and benchmarks.
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
    ):
        self.policy = policy or HttpPolicy()
        self.remote_now: float | None = None
        self.calls = 0
        self._credentials = credentials
        self._sleep = sleep
        self._authorization: str | None = None
        self._login = asyncio.Lock()
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/"),
            headers=dict(headers or {}),
            transport=transport,
            timeout=httpx.Timeout(self.policy.timeout_seconds),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=15),
        )

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def read(self, path: str, *, what: str, params: Mapping[str, Any] | None = None) -> Any:
        """GET a JSON document. Tried again on transient errors; raises the last of them when they do not end."""
        return await self._tried_again(lambda: self._once("GET", path, what=what, params=params))

    async def write(self, path: str, *, what: str, json: Any = None, guard: Callable[[], None] | None = None) -> Any:
        """POST once. `guard` is called right before the bytes leave. A 401 (proof of no effect) may lead to a second try
        with fresh credentials. The error's `no_effect` says whether the remote can have acted."""
        return await self._once("POST", path, what=what, json=json, guard=guard)

    async def write_again(
        self, path: str, *, what: str, json: Any = None, guard: Callable[[], None] | None = None
    ) -> Any:
        """POST something that may be repeated without harm (deleting one exact id, making a folder)."""
        return await self._tried_again(lambda: self._once("POST", path, what=what, json=json, guard=guard))

    async def _tried_again(self, call: Callable[[], Awaitable[Any]]) -> Any:
        policy = self.policy
        backoff = tenacity.wait_random_exponential(policy.backoff_seconds, policy.backoff_limit_seconds)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after if isinstance(error, TransientError) else None
            return asked if asked is not None else backoff(state)

        def worth_it(error: BaseException) -> bool:
            asked = getattr(error, "retry_after", None) or 0.0
            return isinstance(error, TransientError) and asked <= policy.retry_after_limit_seconds

        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(worth_it),
            stop=tenacity.stop_after_attempt(policy.read_attempts),
            wait=wait,
            sleep=self._sleep,
            reraise=True,
        ):
            with attempt:
                return await call()
        raise RemoteError("unreachable: tenacity re-raises")

    async def _once(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        guard: Callable[[], None] | None = None,
    ) -> Any:
        for refresh in (False, True):
            header = await self._header(refresh=refresh)
            if guard is not None:
                guard()
            response = await self._send(method, path, what=what, params=params, json=json, headers=header)
            if response.status_code != 401 or self._credentials is None:
                break
        return _body(response, what)

    async def _header(self, *, refresh: bool) -> dict[str, str]:
        if self._credentials is None:
            return {}
        stale = self._authorization
        async with self._login:
            # Ten calls refused at once need one new token, not ten.
            if self._authorization is None or (refresh and self._authorization == stale):
                try:
                    self._authorization = await self._credentials.authorization(self._http, refresh=refresh)
                except TransientError as error:
                    error.no_effect = True  # the request that wanted the credential has not left
                    raise
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


def _body(response: httpx.Response, what: str) -> Any:
    """The JSON of a success, else the matching error. A success that is not JSON is a doubt, not a refusal."""
    if response.is_success:
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise TransientError(f"{what} answered {response.status_code} with something that is not JSON") from None
    raise error_for_status(
        response.status_code, what, detail=_detail(response), retry_after=retry_after(response.headers, time.time())
    )


def _detail(response: httpx.Response) -> str:
    """The remote's own words, shortened. Only problem+json is quoted: an HTML page explains nothing."""
    try:
        said = response.json()
    except ValueError:
        return ""
    words = said.get("detail") or said.get("title") or said.get("message") or "" if isinstance(said, dict) else ""
    return str(words)[:DETAIL_LIMIT]


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks for (it may be a number or a date), None where it is absent or not understood."""
    value = headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdigit():
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
