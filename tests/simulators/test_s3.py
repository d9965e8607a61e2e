"""The S3 simulator over a real socket, with boto3: what passes through, faults, journal, clock and seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3  # noqa: TID253
import httpx
import pytest
from botocore.config import Config  # noqa: TID253
from botocore.exceptions import ClientError, HTTPClientError  # noqa: TID253

from simulators.common import Clock, SimulatorSettings, serve
from simulators.s3 import S3Simulator

START = 1_800_000_000.0
ODD = "a b/é?#%20+//x"
BUSY = {"fault": "status", "code": 503, "problem": {"code": "SlowDown"}}
_session = boto3.session.Session(region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")


class Store:
    """A simulator, a client that tries once, and a versioned bucket `one`."""

    def __init__(self, seed: int = 1) -> None:
        self.sim = S3Simulator(Clock(epoch=START, speed=0), SimulatorSettings(seed=seed))
        self.server = serve(self.sim.app)
        config = Config(
            s3={"addressing_style": "path"}, proxies={}, retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
        )  # fmt: skip
        self.client: Any = _session.client("s3", endpoint_url=self.server.url, config=config)
        self.client.create_bucket(Bucket="one")
        self.client.put_bucket_versioning(Bucket="one", VersioningConfiguration={"Status": "Enabled"})

    def close(self) -> None:
        self.client.close()
        self.server.stop()

    def put(self, key: str, body: bytes = b"abc", **more: Any) -> dict[str, Any]:
        return self.client.put_object(Bucket="one", Key=key, Body=body, **more)

    def get(self, key: str, **more: Any) -> bytes:
        return self.client.get_object(Bucket="one", Key=key, **more)["Body"].read()

    def fault(self, **rule: Any) -> None:
        httpx.post(f"{self.server.url}/_sim/faults", json=rule).raise_for_status()

    def requests(self) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.server.url}/_sim/journal", params={"kind": "request"}).json()
        return [entry["details"] for entry in answer["entries"]]

    def advance(self, seconds: float) -> None:
        httpx.post(f"{self.server.url}/_sim/clock", json={"advance": seconds}).raise_for_status()


@pytest.fixture
def stores() -> Iterator[Callable[..., Store]]:
    made: list[Store] = []

    def start(**options: Any) -> Store:
        made.append(Store(**options))
        return made[-1]

    yield start
    for store in made:
        store.close()


@pytest.fixture
def store(stores: Callable[..., Store]) -> Store:
    return stores()


def test_keys_bytes_and_headers_pass_through_unchanged(store: Store):
    data = bytes(range(256)) * 40
    etag = store.put(ODD, data, Metadata={"a_b": "1", "a-c": "2"}, ContentType="image/tiff")["ETag"]
    head = store.client.head_object(Bucket="one", Key=ODD)
    assert (head["ContentLength"], head["ETag"], head["ContentType"]) == (len(data), etag, "image/tiff")
    assert head["Metadata"] == {"a_b": "1", "a-c": "2"}
    part = store.client.get_object(Bucket="one", Key=ODD, Range="bytes=100-299")
    assert part["ContentRange"] == f"bytes 100-299/{len(data)}" and part["Body"].read() == data[100:300]
    assert store.get(ODD) == data
    assert [row["Key"] for row in store.client.list_objects_v2(Bucket="one")["Contents"]] == [ODD]


def test_a_condition_that_does_not_hold_is_refused(store: Store):
    store.put("k")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        store.put("k", IfNoneMatch="*")
    with pytest.raises(ClientError, match="304"):
        store.client.get_object(
            Bucket="one", Key="k", IfNoneMatch=store.client.head_object(Bucket="one", Key="k")["ETag"]
        )


def test_objects_markers_restores_and_answers_are_dated_by_the_simulated_clock(store: Store):
    store.put("k")
    store.advance(86400)
    answer = store.client.delete_object(Bucket="one", Key="k")
    store.put("cold", StorageClass="GLACIER")
    store.client.restore_object(Bucket="one", Key="cold", RestoreRequest={"Days": 3})
    rows = store.client.list_object_versions(Bucket="one", Prefix="k")
    begin = datetime.fromtimestamp(START, UTC)
    assert rows["Versions"][0]["LastModified"] == begin
    assert (rows["DeleteMarkers"][0]["LastModified"] - begin).days == 1
    assert answer["ResponseMetadata"]["HTTPHeaders"]["date"] == "Sat, 16 Jan 2027 08:00:00 GMT"
    assert "Tue, 19 Jan 2027 08:00:00 GMT" in store.client.head_object(Bucket="one", Key="cold")["Restore"]
    assert store.client.list_buckets()["Buckets"][0]["CreationDate"] == begin


def test_two_stores_of_one_seed_draw_the_same_ids_and_share_nothing(stores: Callable[..., Store]):
    drawn = []
    for seed in (7, 7, 8):
        store = stores(seed=seed)
        assert "Contents" not in store.client.list_objects_v2(Bucket="one")
        upload = store.client.create_multipart_upload(Bucket="one", Key="m")["UploadId"]
        drawn.append((store.put("k")["VersionId"], upload))
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]


def test_motos_own_mock_in_the_same_process_is_left_alone(store: Store):
    from moto import mock_aws
    from moto.s3 import models

    store.put("k")
    with mock_aws():
        theirs: Any = boto3.session.Session(region_name="us-east-1").client("s3")
        theirs.create_bucket(Bucket="theirs")
        assert [row["Name"] for row in theirs.list_buckets()["Buckets"]] == ["theirs"]
        written = models.s3_backends["123456789012"]["aws"].buckets["theirs"].creation_date
        assert abs(written.timestamp() - time.time()) < 60
    assert store.get("k") == b"abc"


def test_a_reset_forgets_the_buckets_and_keeps_the_journal(store: Store):
    before = len(store.requests())
    httpx.post(f"{store.server.url}/_sim/reset").raise_for_status()
    assert store.client.list_buckets()["Buckets"] == []
    assert len(store.requests()) == before + 1


def test_the_journal_holds_every_request_with_its_status(store: Store):
    store.put("k")
    store.fault(method="DELETE", fault="status", code=403)
    for _ in range(2):
        try:
            store.client.delete_object(Bucket="one", Key="k")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
    changes = [(row["method"], row["path"], row["status"]) for row in store.requests() if row["method"] != "GET"]
    assert changes[2:] == [("PUT", "/one/k", 200), ("DELETE", "/one/k", 403), ("DELETE", "/one/k", 204)]


def test_a_busy_store_says_slow_down_in_xml(store: Store):
    store.put("k")
    store.fault(method="GET", path="/one/k", times=2, **BUSY)
    for _ in range(2):
        with pytest.raises(ClientError, match="SlowDown"):
            store.get("k")
    assert store.get("k") == b"abc"


def test_a_rule_tells_operations_apart_by_their_query(store: Store):
    store.fault(method="POST", query=r"^uploads$", fault="status", code=403, times=None)
    store.fault(query="partNumber=2(&|$)", fault="status", code=500, times=None)
    with pytest.raises(ClientError, match="AccessDenied"):
        store.client.create_multipart_upload(Bucket="one", Key="m")
    httpx.delete(f"{store.server.url}/_sim/faults", params={"id": 1}).raise_for_status()
    upload = {
        "Bucket": "one",
        "Key": "m",
        "UploadId": store.client.create_multipart_upload(Bucket="one", Key="m")["UploadId"],
    }
    store.client.upload_part(**upload, PartNumber=1, Body=b"x")
    with pytest.raises(ClientError, match="InternalError"):
        store.client.upload_part(**upload, PartNumber=2, Body=b"x")


def test_a_flipped_bit_changes_the_bytes_at_rest_and_nothing_that_the_store_says(store: Store):
    store.fault(method="PUT", path="/one/k", fault="flip_bit")
    store.fault(method="PUT", path="/one/k", **BUSY)
    with pytest.raises(ClientError, match="SlowDown"):
        store.put("k", b"abcdef")
    etag = store.put("k", b"abcdef")["ETag"]
    head = store.client.head_object(Bucket="one", Key="k")
    assert (head["ETag"], head["ContentLength"]) == (etag, 6)
    read = store.get("k")
    assert read != b"abcdef" and sum(one != other for one, other in zip(read, b"abcdef", strict=True)) == 1


def test_an_answer_that_is_lost_was_carried_out(store: Store):
    store.fault(method="PUT", fault="drop_after_commit")
    with pytest.raises(HTTPClientError):
        store.put("k")
    assert store.get("k") == b"abc"
    assert [row["status"] for row in store.requests() if row["method"] == "PUT"][-1] == "dropped"
