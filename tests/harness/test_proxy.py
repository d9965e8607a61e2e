"""The proxy before a store: what passes through, the fault script, and functions in the middle of a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3  # noqa: TID253
import httpx
import pytest
from botocore.config import Config  # noqa: TID253
from botocore.exceptions import ClientError, HTTPClientError  # noqa: TID253

from harness import proxy
from harness.proxy import Front, proxied
from simulators.common import serve
from simulators.s3 import S3Simulator

_session = boto3.session.Session(region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")


def client_of(url: str) -> Any:
    """A client that tries once."""
    config = Config(s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 1})
    return _session.client("s3", endpoint_url=url, config=config)


@pytest.fixture
def store() -> Iterator[Any]:
    """A client of the store itself, with a bucket `one`."""
    with serve(S3Simulator().app) as server:
        client = client_of(server.url)
        client.create_bucket(Bucket="one")
        yield client
        client.close()


@pytest.fixture
def front(store: Any) -> Iterator[Front]:
    with proxied(store.meta.endpoint_url) as running:
        yield running


@pytest.fixture
def client(front: Front) -> Iterator[Any]:
    made = client_of(front.url)
    yield made
    made.close()


def keys(store: Any) -> list[str]:
    return [row["Key"] for row in store.list_objects_v2(Bucket="one").get("Contents", [])]


def test_requests_and_answers_pass_unchanged(client: Any, front: Front):
    data, key = bytes(range(256)) * 40, "a b/é?#%20+//x"
    etag = client.put_object(Bucket="one", Key=key, Body=data, Metadata={"a_b": "1"})["ETag"]
    head = client.head_object(Bucket="one", Key=key)
    assert (head["ContentLength"], head["ETag"], head["Metadata"]) == (len(data), etag, {"a_b": "1"})
    part = client.get_object(Bucket="one", Key=key, Range="bytes=5-9")
    assert part["ContentRange"] == f"bytes 5-9/{len(data)}" and part["Body"].read() == data[5:10]
    assert [(one.method, one.key, one.status) for one in front.requests] == [
        ("PUT", key, 200), ("HEAD", key, 200), ("GET", key, 206),
    ]  # fmt: skip
    assert "range" in front.requests[2].header_names


def test_a_line_break_in_a_path_reaches_the_upstream(front: Front):
    assert httpx.get(f"{front.url}/one/new%0Aline").status_code == 404
    assert front.requests[0].key == "new\nline"


def test_what_is_refused_never_reaches_the_store(client: Any, store: Any, front: Front):
    front.add(proxy.refuse("PUT", r"/k$", 403, "SomeCode", times=1))
    with pytest.raises(ClientError, match="SomeCode"):
        client.put_object(Bucket="one", Key="k", Body=b"x")
    assert keys(store) == []
    client.put_object(Bucket="one", Key="k", Body=b"x")
    assert keys(store) == ["k"]


def test_a_lost_answer_was_carried_out(client: Any, store: Any, front: Front):
    front.add(proxy.lose_answer("PUT"))
    with pytest.raises(HTTPClientError):
        client.put_object(Bucket="one", Key="k", Body=b"x")
    assert keys(store) == ["k"] and front.requests[0].status == "dropped"


def test_a_delayed_commit_reaches_the_store_by_itself_after_the_client_has_gone(client: Any, store: Any, front: Front):
    front.add({"fault": "commit_delayed", "method": "PUT", "seconds": 0.3})
    with pytest.raises(HTTPClientError):
        client.put_object(Bucket="one", Key="k", Body=b"x")
    assert keys(store) == []
    deadline = time.monotonic() + 10
    while keys(store) != ["k"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_function_acts_before_or_after_the_store_and_may_close_the_connection(client: Any, store: Any, front: Front):
    seen: list[list[str]] = []

    def look(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        seen.append(keys(store))
        answer = forward(request)
        seen.append(keys(store))
        return answer

    def lose(request: proxy.Call, forward: proxy.Forward) -> None:
        forward(request)
        raise proxy.ConnectionDropped("lost")

    front.add(proxy.call(look, method="PUT", times=1), proxy.call(lose, path="second"))
    client.put_object(Bucket="one", Key="first", Body=b"x")
    assert seen == [[], ["first"]]
    with pytest.raises(HTTPClientError):
        client.put_object(Bucket="one", Key="second", Body=b"x")
    assert keys(store) == ["first", "second"]


def test_a_function_that_waits_keeps_no_other_request_from_being_answered(client: Any, front: Front):
    waiting, go_on = threading.Event(), threading.Event()

    def wait(_: proxy.Call, __: proxy.Forward) -> None:
        waiting.set()
        assert go_on.wait(10)

    front.add(proxy.call(wait, path="slow"))
    slow = threading.Thread(target=lambda: client.put_object(Bucket="one", Key="slow", Body=b"x"))
    slow.start()
    assert waiting.wait(10)
    client.put_object(Bucket="one", Key="fast", Body=b"x")
    assert [one.key for one in front.requests] == ["fast"]
    go_on.set()
    slow.join(10)
    assert [one.key for one in front.requests] == ["fast", "slow"]


def test_rules_around_one_request_nest_in_their_order(client: Any, store: Any, front: Front):
    def overwrite(_: proxy.Call, __: proxy.Forward) -> None:
        store.put_object(Bucket="one", Key="k", Body=b"theirs")

    client.put_object(Bucket="one", Key="k", Body=b"mine")
    etag = client.head_object(Bucket="one", Key="k")["ETag"]
    front.add(proxy.call(overwrite, method="POST"), proxy.HONOUR_BATCH_ETAGS)
    answer = client.delete_objects(Bucket="one", Delete={"Objects": [{"Key": "k", "ETag": etag}]})
    assert [row["Code"] for row in answer["Errors"]] == ["PreconditionFailed"] and keys(store) == ["k"]


def test_peculiarities_of_stores(client: Any, store: Any, front: Front):
    for key in ("a", "b"):
        store.put_object(Bucket="one", Key=key, Body=b"abcdef")
    front.add(
        proxy.peculiarity("hide_from_listing", query="list-type=", text="<Key>a</Key>"), proxy.ignore_headers("range")
    )
    assert keys(client) == ["b"]
    whole = client.get_object(Bucket="one", Key="a", Range="bytes=0-1")
    assert whole["ResponseMetadata"]["HTTPStatusCode"] == 200 and whole["Body"].read() == b"abcdef"
    front.clear()
    assert keys(client) == ["a", "b"]


def test_an_upstream_that_is_gone_is_a_closed_connection():
    with proxied("http://127.0.0.1:1") as running, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{running.url}/one/k")
