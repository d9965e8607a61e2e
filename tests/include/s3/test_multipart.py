"""The one multipart upload: from a stream, without a journal, new or over what is there, and with answers lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, new_bench, run
from harness.proxy import proxied
from include.core.errors import WaybillError
from include.s3.bucket import Bucket, Head
from include.s3.errors import ConcurrentWriter, ObjectExists
from include.s3.multipart import PartDone, Upload
from include.s3.pieces import Pieces

MIB = 1024 * 1024
DATA = servers.noise("stream", 12 * MIB)


@pytest.fixture(scope="module", params=["moto", "rclone"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = servers.moto() if request.param == "moto" else servers.rclone(tmp_path_factory.mktemp("rclone"))
    with server as made:
        yield made


@pytest.fixture
def bench(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = new_bench(url, tmp_path_factory.mktemp("journals"))
    yield made
    made.access.close()


async def stream(data: bytes, step: int) -> AsyncIterator[memoryview]:
    for at in range(0, len(data), step):
        yield memoryview(data)[at : at + step]


async def upload(bucket: Bucket, data: bytes = DATA, *, overwrite: bool = False, step: int = 700_001) -> Head:
    made: Upload[PartDone] = Upload(bucket, "k", overwrite=overwrite)
    await made.begin()
    async for part in made.send_stream(stream(data, step), 5 * MIB):
        await made.finished(part)
    try:
        return await made.complete()
    except BaseException:
        await made.abort()
        raise


@pytest.mark.parametrize("step", [700_001, 6 * MIB, 20 * MIB])
def test_a_stream_is_cut_into_parts_of_one_size_whatever_its_pieces(step: int, bench: Bench):
    there = run(upload(bench.archive, step=step))
    assert bench.get("k") == DATA and there.size == len(DATA) and there.etag.endswith("-3")


def test_an_empty_stream_is_an_empty_object(bench: Bench):
    run(upload(bench.archive, b""))
    assert bench.get("k") == b""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_lost_answer_to_the_completion_is_settled_by_head(overwrite: bool, bench: Bench):
    if overwrite:
        bench.client.put_object(Bucket=bench.cold, Key="k", Body=b"older")
    with proxied(bench.url) as front:
        front.add(proxy.lose_answer("POST", "uploadId"))
        access = servers.access(front.url)
        run(upload(access.bucket(bench.cold), overwrite=overwrite))
        access.close()
    assert bench.get("k") == DATA


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_is_replaced_only_where_it_is_asked_for(overwrite: bool, bench: Bench):
    bench.client.put_object(Bucket=bench.cold, Key="k", Body=b"theirs")
    if overwrite:
        run(upload(bench.archive, overwrite=True))
    else:
        with pytest.raises(ObjectExists):
            run(upload(bench.archive))
    assert bench.get("k") == (DATA if overwrite else b"theirs")
    assert not bench.client.list_multipart_uploads(Bucket=bench.cold).get("Uploads")


def test_the_same_bytes_under_the_key_count_as_written(bench: Bench):
    bench.client.put_object(Bucket=bench.cold, Key="k", Body=DATA)
    assert run(upload(bench.archive)).size == len(DATA)


def test_a_completion_that_had_no_effect_is_an_error_and_the_old_object_is_not_taken_for_ours(bench: Bench):
    bench.client.put_object(Bucket=bench.cold, Key="k", Body=b"older")
    with proxied(bench.url) as front:
        front.add(proxy.refuse("POST", None, 400, "InvalidRequest", query="uploadId="))
        access = servers.access(front.url)
        with pytest.raises(WaybillError) as raised:
            run(upload(access.bucket(bench.cold), overwrite=True))
        access.close()
    assert not isinstance(raised.value, ObjectExists) and bench.get("k") == b"older"


def test_without_a_journal_the_right_to_list_parts_is_not_needed(bench: Bench):
    with proxied(bench.url) as front:
        front.add(proxy.refuse("GET", None, 403, "AccessDenied", query="uploadId="))
        access = servers.access(front.url)
        run(upload(access.bucket(bench.cold)))
        access.close()
    assert bench.get("k") == DATA


@pytest.mark.parametrize("times", [1, None])
def test_a_part_that_arrives_changed_is_sent_again_and_never_joined(times: int | None, bench: Bench):
    """What nobody reads back is proved by its ETag, the MD5 of what arrived, on a store that confirms no checksum."""
    with proxied(bench.url) as front:
        front.add(proxy.peculiarity("damage_body", times=times, query="partNumber=2"))
        access = servers.access(front.url)
        if times:
            run(upload(access.bucket(bench.cold)))
            assert bench.get("k") == DATA
        else:
            with pytest.raises(WaybillError, match="part 2 of k"):  # some stores refuse it themselves
                run(upload(access.bucket(bench.cold)))
            assert "k" not in bench.keys(bench.cold)
        access.close()


class RacedUpload(Upload[PartDone]):
    """Another writer replaces the object right after it was joined, and the answer of the store names nothing."""

    async def _join(self) -> dict[str, Any]:
        await super()._join()
        await self.bucket.put("k", b"another writer's")
        return {}


def test_an_object_that_was_replaced_right_after_it_was_joined_is_not_taken_for_ours(bench: Bench):
    async def raced() -> None:
        made = RacedUpload(bench.archive, "k", overwrite=True)
        await made.begin()
        async for part in made.send_stream(stream(DATA, MIB), 5 * MIB):
            await made.finished(part)
        await made.complete()

    with pytest.raises(ConcurrentWriter, match="replaced it since"):
        run(raced())


@pytest.mark.parametrize(
    ("answer", "confirmed"),
    [
        ({}, False),
        ({"ServerSideEncryption": "AES256"}, False),
        ({"ServerSideEncryption": "aws:kms"}, True),
        ({"SSECustomerAlgorithm": "AES256"}, True),
    ],
)
def test_an_etag_is_compared_with_the_bytes_unless_the_answer_to_the_part_says_that_it_is_encrypted(
    answer: dict[str, str], confirmed: bool, bench: Bench
):
    made: Upload[PartDone] = Upload(bench.archive, "k")
    assert run(made._confirmed(answer, "0" * 32, "crc", Pieces([memoryview(b"bytes")]))) is confirmed
    made.read_back = True
    assert run(made._confirmed(answer, "0" * 32, "crc", Pieces([memoryview(b"bytes")])))
    made.checksummed = True
    assert not run(made._confirmed(answer | {"ChecksumCRC64NVME": "other"}, "0" * 32, "crc", Pieces([])))
