"""The REST client against scripted answers: what is sent again, and what is not."""

from __future__ import annotations

import json

import httpx
import pytest

from rehearsal.api import Api, ApiError, DatabaseBusyError, Run, UnreachableError
from rehearsal.errors import StackError

RUN = {"dag_id": "d", "dag_run_id": "r", "state": "queued"}
BUSY = httpx.Response(500, json={"detail": {"reason": "Database error"}})
Script = list[httpx.Response | Exception]


def _client(script: Script, tokens: int = 9) -> tuple[Api, list[httpx.Request]]:
    """A client whose requests get the scripted answers in turn, and the requests it made. Its pauses take no time."""
    client, seen, _ = _client_on_a_clock(script, tokens)
    return client, seen


def _client_on_a_clock(
    script: Script, tokens: int = 9, request_seconds: float = 0.0, slowness: float = 1.0
) -> tuple[Api, list[httpx.Request], list[float]]:
    """The same with the pauses it made, on a clock that only pauses and requests move."""
    now = 0.0
    pauses: list[float] = []
    seen: list[httpx.Request] = []
    issued = iter(range(1, tokens + 1))

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now
        now += request_seconds
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": f"token{next(issued)}"})
        seen.append(request)
        next_one = script.pop(0)
        if isinstance(next_one, Exception):
            raise next_one
        return next_one

    transport = httpx.MockTransport(answer)
    client = Api(
        "http://127.0.0.1:1", "amy", "secret", transport=transport, sleep=sleep, clock=lambda: now, slowness=slowness
    )
    return client, seen, pauses


def test_a_trigger_lost_on_the_way_is_repeated_under_the_same_run_id_and_found() -> None:
    client, seen = _client([httpx.ReadTimeout("lost"), httpx.Response(409, json={}), httpx.Response(200, json=RUN)])
    assert client.trigger("d", {"a": 1}).run_id == "r"
    first, second = (json.loads(request.content) for request in seen[:2])
    assert first == second
    assert first["logical_date"] is None
    assert seen[2].url.path.endswith(f"/dagRuns/{first['dag_run_id']}")


def test_a_busy_database_is_asked_again_and_given_up_in_the_end() -> None:
    client, seen = _client([BUSY, httpx.Response(200, json=RUN)])
    assert client.trigger("d", run_id="r").state == "queued"
    client, seen = _client([BUSY] * 20)
    with pytest.raises(DatabaseBusyError):
        client.request("PATCH", "/api/v2/x")
    assert len(seen) == 8


def test_pauses_grow_between_the_attempts_and_end_at_five_seconds() -> None:
    client, _, pauses = _client_on_a_clock([BUSY] * 20)
    with pytest.raises(DatabaseBusyError):
        client.trigger("d", run_id="r")
    assert len(pauses) == 7
    for pause, least in zip(pauses, (0.5, 1, 2, 4, 5, 5, 5), strict=True):
        assert least <= pause <= min(least + 1, 5)


def test_a_read_is_repeated_each_second_while_a_server_restarts() -> None:
    lost = httpx.ConnectError("refused")
    client, _, pauses = _client_on_a_clock([lost, lost, httpx.Response(200, json=RUN)])
    assert client.run("d", "r").state == "queued"
    assert pauses == [1, 1]


def test_a_read_is_given_up_half_a_minute_after_it_began() -> None:
    client, seen, pauses = _client_on_a_clock([httpx.ConnectTimeout("lost")] * 100, request_seconds=9)
    with pytest.raises(UnreachableError, match="ConnectTimeout"):
        client.run("d", "r")
    assert (len(seen), pauses) == (3, [1, 1])  # the first also fetched the token: 18 s, 28 s, 38 s


def test_on_a_slow_machine_all_waits_are_longer() -> None:
    client, _, pauses = _client_on_a_clock([httpx.Response(404, json={})] * 200, slowness=3.0)
    with pytest.raises(StackError, match="after 30 s"):
        client.wait_task("d", "r", "t", 10, states={"success"})
    assert 29 <= sum(pauses) <= 31


def test_what_is_refused_after_all_is_not_repeated_as_a_busy_database_would_be() -> None:
    client, seen = _client([BUSY, httpx.Response(400, json={"detail": "no"})])
    with pytest.raises(ApiError, match="400"):
        client.request("PATCH", "/api/v2/x")
    assert len(seen) == 2


def test_a_foreign_run_of_the_same_id_is_not_taken_for_ours() -> None:
    client, _ = _client([httpx.Response(409, json={})])
    with pytest.raises(ApiError) as refused:
        client.trigger("d", run_id="r")
    assert refused.value.status == 409


@pytest.mark.parametrize("status", [400, 403, 422, 500])
def test_a_refusal_is_not_repeated_and_says_what_airflow_said(status: int) -> None:
    client, seen = _client([httpx.Response(status, json={"detail": "Invalid input for param n"})])
    with pytest.raises(ApiError, match=r"POST /api/v2/dags/d/dagRuns: HTTP .*param n"):
        client.trigger("d")
    assert len(seen) == 1


def test_an_expired_token_is_renewed_once() -> None:
    client, seen = _client(
        [httpx.Response(401), httpx.Response(200, json=RUN), httpx.Response(401), httpx.Response(401)]
    )
    assert client.run("d", "r").state == "queued"
    assert [request.headers["authorization"] for request in seen] == ["Bearer token1", "Bearer token2"]
    with pytest.raises(ApiError, match="401"):
        client.run("d", "r")


def test_a_wait_says_where_the_run_stands_when_time_is_up() -> None:
    running = httpx.Response(200, json=RUN | {"state": "running"})
    task = {"task_id": "t", "map_index": 2, "state": "deferred", "try_number": 1}
    client, _ = _client([running, running, httpx.Response(200, json={"task_instances": [task], "total_entries": 1})])
    with pytest.raises(StackError, match=r"d r is running, not failed or success: t\[2\] deferred"):
        client.wait("d", "r", timeout_seconds=0)


def test_waiting_for_several_runs_shows_each_look_and_ends_with_the_last() -> None:
    running, done = (
        httpx.Response(200, json=RUN | {"state": "running"}),
        httpx.Response(200, json=RUN | {"state": "failed"}),
    )
    client, _ = _client([done, running, done, done])
    looks: list[list[str]] = []
    runs = [Run("d", "r", "queued", {}), Run("d", "r", "queued", {})]
    ended = client.wait_all(runs, 60, lambda seen: looks.append([run.state for run in seen]))
    assert looks == [["failed", "running"], ["failed", "failed"]]
    assert [run.state for run in ended] == ["failed", "failed"]


def test_runs_that_do_not_end_in_time_are_told_as_they_are() -> None:
    client, _ = _client([httpx.Response(200, json=RUN | {"state": "running"})] * 9)
    assert [run.state for run in client.wait_all([Run("d", "r", "queued", {})], 5)] == ["running"]


def test_a_pool_that_is_there_already_is_kept() -> None:
    client, seen = _client([httpx.Response(409, json={}), httpx.Response(403, json={})])
    client.ensure_pool("p", 4, "why")
    assert json.loads(seen[0].content) == {"name": "p", "slots": 4, "description": "why", "include_deferred": False}
    with pytest.raises(ApiError, match="403"):
        client.ensure_pool("p", 4, "why")


def test_names_are_quoted_in_paths() -> None:
    client, seen = _client([httpx.Response(200, json=RUN)])
    client.run("d", "manual__2026-01-01T00:00:00+00:00")
    assert seen[0].url.raw_path.endswith(b"/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00")
