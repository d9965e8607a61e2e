"""The S3 simulator over a real socket, with boto3: what passes through, faults, journal, clock and seed."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import boto3  # noqa: TID253
import httpx
import pytest
from awscrt import checksums
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


# Checksums, as S3 keeps them

MIB = 1024 * 1024


def crc(*pieces: bytes) -> str:
    return base64.b64encode(checksums.crc64nvme(b"".join(pieces)).to_bytes(8, "big")).decode()


def upload(store: Store, key: str = "whole", **more: Any) -> dict[str, Any]:
    options = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} | more
    made = store.client.create_multipart_upload(Bucket="one", Key=key, **options)
    return {"Bucket": "one", "Key": key, "UploadId": made["UploadId"]}


def copy_part(store: Store, place: dict[str, Any], source: str = "a", number: int = 1, **more: Any) -> dict[str, Any]:
    answer = store.client.upload_part_copy(
        **place, PartNumber=number, **({"CopySource": {"Bucket": "one", "Key": source}} | more)
    )
    return answer["CopyPartResult"]


def complete(store: Store, place: dict[str, Any], etags: list[str], **more: Any) -> dict[str, Any]:
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
    return store.client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts}, **more)


def checksum(store: Store, key: str, **more: Any) -> tuple[str | None, str | None]:
    head = store.client.head_object(Bucket="one", Key=key, ChecksumMode="ENABLED", **more)
    return head.get("ChecksumCRC64NVME"), head.get("ChecksumType")


def refused(code: str, act: Callable[..., Any], *arguments: Any, **more: Any) -> None:
    with pytest.raises(ClientError, match=code):
        act(*arguments, **more)


def test_an_object_has_a_checksum_of_the_whole_and_old_ones_have_none(store: Store):
    answer = store.put("a", b"abc")
    assert (answer["ChecksumCRC64NVME"], answer["ChecksumType"]) == (crc(b"abc"), "FULL_OBJECT")
    assert checksum(store, "a") == (crc(b"abc"), "FULL_OBJECT")
    for listing, rows in (("list_objects_v2", "Contents"), ("list_object_versions", "Versions")):
        row = getattr(store.client, listing)(Bucket="one")[rows][0]
        assert row["ChecksumAlgorithm"] == ["CRC64NVME"]
    store.put("sha", b"abc", ChecksumAlgorithm="SHA256")
    assert store.client.head_object(Bucket="one", Key="sha", ChecksumMode="ENABLED").get("ChecksumSHA256")
    store.client.copy_object(Bucket="one", Key="copy", CopySource={"Bucket": "one", "Key": "a"})
    assert checksum(store, "copy") == (crc(b"abc"), "FULL_OBJECT")
    store.server.call(lambda: store.sim.forget_checksum("one", "a"))
    assert checksum(store, "a") == (None, None)
    refused("BadDigest", store.put, "b", b"abc", ChecksumCRC64NVME=crc(b"abd"))
    refused("404", checksum, store, "b")


def test_an_uploads_checksum_is_combined_from_those_of_its_parts_also_of_copied_ones(store: Store):
    one, two, last = bytes(5 * MIB), b"x" * (6 * MIB), b"end"
    store.put("a", one)
    store.put("b", two)
    place = upload(store)
    whole = copy_part(store, place)
    assert whole["ChecksumCRC64NVME"] == crc(one)
    piece = copy_part(store, place, "b", 2, CopySourceRange=f"bytes=3-{5 * MIB + 2}")
    assert piece["ChecksumCRC64NVME"] == crc(two[3 : 5 * MIB + 3])
    sent = store.client.upload_part(**place, PartNumber=3, Body=last, ChecksumCRC64NVME=crc(last))
    assert sent["ChecksumCRC64NVME"] == crc(last)
    refused("BadDigest", store.client.upload_part, **place, PartNumber=4, Body=last, ChecksumCRC64NVME=crc(b"other"))
    etags = [whole["ETag"], piece["ETag"], sent["ETag"]]
    expected = crc(one, two[3 : 5 * MIB + 3], last)
    refused("BadDigest", complete, store, place, etags, ChecksumCRC64NVME=crc(one))
    refused("InvalidRequest", complete, store, place, etags, MpuObjectSize=7)
    refused("BadDigest", complete, store, place, etags, ChecksumType="COMPOSITE")
    answer = complete(store, place, etags, ChecksumCRC64NVME=expected, MpuObjectSize=10 * MIB + 3)
    assert (answer["ChecksumCRC64NVME"], answer["ChecksumType"]) == (expected, "FULL_OBJECT")
    assert checksum(store, "whole") == (expected, "FULL_OBJECT")


def test_an_upload_without_the_algorithm_names_no_checksum_of_a_copied_part(store: Store):
    store.put("a", bytes(5 * MIB))
    made = store.client.create_multipart_upload(Bucket="one", Key="plain")
    place = {"Bucket": "one", "Key": "plain", "UploadId": made["UploadId"]}
    part = copy_part(store, place)
    assert "ChecksumCRC64NVME" not in part
    complete(store, place, [part["ETag"]])
    assert checksum(store, "plain") == (crc(bytes(5 * MIB)), "FULL_OBJECT")


def test_a_copy_heeds_its_condition_its_version_and_the_rules_of_ranges(store: Store):
    old = store.put("a", b"o" * (5 * MIB + 1))
    new = store.put("a", b"n" * (5 * MIB + 1))
    store.put("small", b"s" * 4_000_000)
    place = upload(store)
    refused("PreconditionFailed", copy_part, store, place, CopySourceIfMatch=old["ETag"])
    assert copy_part(store, place, CopySourceIfMatch=new["ETag"])["ChecksumCRC64NVME"] == crc(b"n" * (5 * MIB + 1))
    version = {"Bucket": "one", "Key": "a", "VersionId": old["VersionId"]}
    told = copy_part(store, place, CopySource=version, CopySourceIfMatch=old["ETag"])
    assert told["ChecksumCRC64NVME"] == crc(b"o" * (5 * MIB + 1))
    refused("InvalidArgument", copy_part, store, place, CopySourceRange=f"bytes=0-{5 * MIB + 1}")
    refused("InvalidArgument", copy_part, store, place, CopySourceRange="bytes=9-3")
    refused("InvalidArgument", copy_part, store, place, CopySourceRange="bytes=5-")
    refused("InvalidRequest", copy_part, store, place, "small", CopySourceRange="bytes=0-9")


def test_an_encrypted_object_keeps_its_checksum(store: Store):
    kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "k"}
    answer = store.put("a", bytes(5 * MIB), **kms)
    assert answer["ETag"].strip('"') != hashlib.md5(bytes(5 * MIB)).hexdigest() or answer["ServerSideEncryption"]
    assert checksum(store, "a")[0] == crc(bytes(5 * MIB))
    assert copy_part(store, upload(store, **kms))["ChecksumCRC64NVME"] == crc(bytes(5 * MIB))


@pytest.mark.parametrize("fault", ["copy_swapped", "copy_short", "copy_stale", "copy_flipped"])
def test_a_spoilt_copy_is_named_for_what_it_is(store: Store, fault: str):
    right, other = b"r" * (5 * MIB + 9), b"w" * (5 * MIB + 9)
    store.put("a", other)
    store.put("a", right)
    store.put("b", other)
    expected = {"copy_swapped": other, "copy_short": right[:-1], "copy_stale": other}
    store.fault(fault=fault, method="PUT", query="partNumber=", options={"key": "b", "source": "a", "bit": 80})
    place = upload(store)
    told = copy_part(store, place)
    bad = expected.get(fault, right[:10] + bytes([right[10] ^ 1]) + right[11:])
    assert (told["ChecksumCRC64NVME"], told["ETag"].strip('"')) == (crc(bad), hashlib.md5(bad).hexdigest())
    assert copy_part(store, place)["ChecksumCRC64NVME"] == crc(right), "once only"
