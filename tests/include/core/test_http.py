"""The HTTP client: bounded in time, reads tried again, writes sent once, and what its errors prove."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest

from harness.virtual_time import run_virtual
from include.core.concurrency import map_by_key
from include.core.errors import AuthError, Forbidden, NotFound, RemoteError, TransientError, WaybillError
from include.core.http import Busy, Conflict, Credential, HttpClient, HttpPolicy
from include.core.http_reply import remote_time, retry_after

NOW = "Thu, 01 Jan 2026 00:00:00 GMT"
Answer = httpx.Response | Exception | float


class Remote(httpx.AsyncBaseTransport):
    """Answers from a list, and notes when it was asked. A number is a silence of so many seconds."""

    def __init__(self, *answers: Answer):
        self.answers = list(answers)
        self.asked: list[float] = []
        self.headers: list[httpx.Headers] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(asyncio.get_running_loop().time())
        self.headers.append(request.headers)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return ok()
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def ok(body: Any = None) -> httpx.Response:
    return httpx.Response(200, json={"fine": True} if body is None else body)


def refuse(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json={"detail": "so it is"}, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def ask(remote: Remote, call: Callable[[HttpClient], Any], credentials: Any = None, **policy: Any) -> Any:
    async def main(_loop: Any) -> Any:
        client = HttpClient(
            "http://h.test/base/", credentials, transport=remote, policy=HttpPolicy(**policy), rng=random.Random(1)
        )
        async with client:
            return await call(client)

    return run_virtual(main)


def read(client: HttpClient) -> Any:
    return client.read("/thing", what="reading the thing")


def write(client: HttpClient) -> Any:
    return client.write("/thing", what="making the thing", json={"a": 1})


def failure(remote: Remote, call: Callable[[HttpClient], Any], **more: Any) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        ask(remote, call, **more)
    return caught.value


@pytest.mark.parametrize(
    "trouble", [refuse(500), refuse(503), httpx.ReadError("x"), httpx.Response(200, content=b"<html>")]
)
def test_a_read_is_tried_again_until_it_succeeds(trouble):
    remote = Remote(trouble, trouble, ok())
    assert ask(remote, read) == {"fine": True}
    assert len(remote.asked) == 3


def test_a_read_that_never_succeeds_raises_the_last_error_after_its_attempts():
    remote = Remote(refuse(503))
    error = failure(remote, read, read_attempts=4)
    assert isinstance(error, TransientError)
    assert "reading the thing answered 503: so it is" in str(error)
    assert len(remote.asked) == 4


@pytest.mark.parametrize(
    ("status", "kind", "no_effect"),
    [(400, RemoteError, True), (401, AuthError, True), (403, Forbidden, True), (404, NotFound, True), (409, Conflict, True),
     (422, RemoteError, True), (429, Busy, True), (408, TransientError, False), (500, TransientError, False),
     (502, TransientError, False), (503, TransientError, False), (302, TransientError, False), (407, TransientError, True),
     (425, TransientError, False), (418, RemoteError, True), (999, TransientError, False)],
)  # fmt: skip
def test_a_write_is_sent_once_and_its_error_says_what_is_proved(status, kind, no_effect):
    remote = Remote(refuse(status))
    error = failure(remote, write)
    assert type(error) is kind
    assert error.no_effect is no_effect
    assert len(remote.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "no_effect"),
    [(httpx.ConnectError("x"), True), (httpx.ConnectTimeout("x"), True), (httpx.PoolTimeout("x"), True),
     (httpx.ReadTimeout("x"), False), (httpx.WriteError("x"), False), (httpx.RemoteProtocolError("x"), False),
     (httpx.Response(200, content=b"<html>"), False), (1e6, False)],
)  # fmt: skip
def test_only_a_connection_that_never_was_proves_that_nothing_was_done(trouble, no_effect):
    remote = Remote(trouble)
    error = failure(remote, write)
    assert isinstance(error, TransientError)
    assert error.no_effect is no_effect
    assert len(remote.asked) == 1


def test_a_permanent_error_of_a_read_is_not_tried_again():
    remote = Remote(refuse(404))
    failure(remote, read)
    assert len(remote.asked) == 1


def test_an_answer_that_never_ends_is_given_up_in_time():
    remote = Remote(1e6)
    assert "TimeoutError" in str(failure(remote, read, read_attempts=1, timeout_seconds=30.0))


def test_a_call_has_its_own_timeout():
    async def call(client: HttpClient) -> float:
        with pytest.raises(TransientError, match="TimeoutError") as caught:
            await client.write("/thing", what="x", timeout_seconds=7.0)
        assert not caught.value.no_effect
        return asyncio.get_running_loop().time()

    assert ask(Remote(1e6), call, timeout_seconds=30.0) == 14.0


def test_retry_after_is_kept_to_and_a_long_one_is_handed_to_the_caller():
    remote = Remote(refuse(503, Retry_After="7"), ok())
    ask(remote, read)
    assert 7 <= remote.asked[1] - remote.asked[0] < 9
    long = Remote(refuse(503, Retry_After="3600"))
    assert failure(long, read).retry_after == 3600.0
    assert len(long.asked) == 1


def test_without_retry_after_the_pauses_grow_and_are_bounded():
    remote = Remote(refuse(500))
    failure(remote, read, read_attempts=12, backoff_seconds=1.0, backoff_limit_seconds=8.0)
    pauses = [b - a for a, b in pairwise(remote.asked)]
    assert max(pauses) <= 8.0
    assert pauses[0] <= 2.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", 5.0), (" 5 ", 5.0), ("9999999999", 3600.0), ("9" * 400, 3600.0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
     ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0), ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
     ("soon", None), ("-3", None), ("²", None), ("", None), (None, None)],
)  # fmt: skip
def test_retry_after_may_be_a_number_or_a_date_on_the_remotes_clock(value, seconds):
    headers = {"date": NOW} | ({"retry-after": value} if value is not None else {})
    assert retry_after(headers, 0.0) == seconds


def test_the_remotes_clock_comes_from_its_date_header():
    remote = Remote(httpx.Response(200, json={}, headers={"Date": NOW}))

    async def call(client: HttpClient) -> float | None:
        assert client.remote_now is None
        await read(client)
        return client.remote_now

    assert ask(remote, call) == remote_time({"date": NOW}) == 1_767_225_600.0
    assert remote_time({"date": "nonsense"}) is None


class Keys:
    """Hands out tokens t1, t2, …"""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0):
        self.count = 0
        self.error = error
        self.seconds = seconds

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        self.count += 1
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return Credential({"Authorization": f"Bearer t{self.count}"}, (f"t{self.count}",))


def test_a_refused_credential_is_renewed_once_even_for_a_write_since_401_proves_no_effect():
    keys, remote = Keys(), Remote(refuse(401), ok())
    assert ask(remote, write, keys) == {"fine": True}
    assert [headers["authorization"] for headers in remote.headers] == ["Bearer t1", "Bearer t2"]
    stubborn = Remote(refuse(401))
    assert type(failure(stubborn, write, credentials=Keys())) is AuthError
    assert len(stubborn.asked) == 2


def test_a_credential_that_cannot_be_had_proves_that_the_request_did_not_leave():
    remote = Remote(ok())
    assert failure(remote, write, credentials=Keys(TransientError("no answer"))).no_effect
    assert failure(remote, write, credentials=Keys(seconds=1e6)).no_effect
    assert remote.asked == []


def test_the_guard_is_asked_right_before_each_sending():
    asked = []
    remote = Remote(refuse(401), ok())
    ask(remote, lambda c: c.write("/x", what="x", fence=lambda: asked.append(1)), Keys())
    assert len(asked) == 2

    def no() -> None:
        raise TransientError("lost", no_effect=True)

    silent = Remote(ok())
    assert failure(silent, lambda c: c.write("/x", what="x", fence=no)).no_effect
    assert silent.asked == []


def test_after_a_429_all_callers_come_slower_and_later_faster_again():
    class Limited(Remote):
        """At most ten requests a second, with a burst of five."""

        tokens, last = 5.0, 0.0
        refused = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            now = asyncio.get_running_loop().time()
            self.tokens, self.last = min(5.0, self.tokens + (now - self.last) * 10.0), now
            self.asked.append(now)
            if self.tokens < 1:
                self.refused += 1
                return refuse(429)
            self.tokens -= 1
            return ok()

    remote = Limited(ok())

    async def call(client: HttpClient) -> int:
        return len(await map_by_key(range(300), lambda _: read(client), at_once=40))

    assert ask(remote, call) == 300
    assert remote.refused < 60
    assert remote.asked[-1] < 40


def test_without_any_429_nothing_is_slowed_down():
    remote = Remote(ok())

    async def call(client: HttpClient) -> Any:
        return await map_by_key(range(500), lambda _: read(client))

    ask(remote, call)
    assert max(remote.asked) == 0.0


def test_gathering_waits_for_all_asks_each_once_and_raises_what_went_wrong():
    asked: list[int] = []

    async def one(key: int) -> int:
        asked.append(key)
        await asyncio.sleep(key)
        if key == 2:
            raise NotFound("two")
        return key * 10

    async def main(_loop: Any) -> None:
        assert await map_by_key([3, 1, 3], one) == {3: 30, 1: 10}
        assert asked == [3, 1]
        with pytest.raises(NotFound, match="two"):
            await map_by_key([2, 5], one)
        assert asked == [3, 1, 2, 5]

    run_virtual(main)


def test_an_error_that_is_an_answer_is_an_answer():
    async def one(_key: int) -> Exception:
        return NotFound("not raised")

    async def main(_loop: Any) -> None:
        assert isinstance((await map_by_key([1], one))[1], NotFound)

    run_virtual(main)


def test_no_more_than_so_many_are_asked_at_once():
    running, peak = 0, 0

    async def one(_key: int) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1

    run_virtual(lambda _loop: map_by_key(range(20), one, at_once=4))
    assert peak == 4


def test_html_is_not_quoted_and_long_words_are_cut():
    html = httpx.Response(500, content=b"<html>secret stack trace</html>")
    assert "stack" not in str(failure(Remote(html), write))
    long = httpx.Response(400, json={"detail": "x" * 5000})
    assert len(str(failure(Remote(long), write))) < 600
    for odd in ([], "text", None, {"detail": {"a": 1}}):
        assert "400" in str(failure(Remote(httpx.Response(400, json=odd)), write))


def test_a_remote_that_quotes_our_credential_is_told_without_it():
    words = "x" * 280 + " not allowed: Bearer t1"
    remote = Remote(httpx.Response(403, json={"detail": words}))
    said = str(failure(remote, write, credentials=Keys()))
    assert "t1" not in said
    assert "not allowed" in said
