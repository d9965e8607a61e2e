"""The one multipart upload: from a stream, without a journal, new or over what is there, and with answers lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, new_bench, run
from harness.proxy import proxied
from include.core.errors import WaybillError
from include.s3.bucket import Bucket, Head
from include.s3.errors import ObjectExists
from include.s3.multipart import PartDone, Upload

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
