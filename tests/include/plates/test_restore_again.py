"""A restore can be repeated and completed: what is there already is recognised, whatever its ETag is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import noise, plate, plate_files
from harness.proxy import proxied
from include.core.errors import VerificationError
from include.plates.models import MIB, ArchiveSettings, Outcome, Plate
from include.plates.restore import Restored, RestoreReport
from include.plates.restore_target import BucketSink
from include.plates.same_bytes import same_bytes
from include.s3.checksums import Digester
from include.s3.headers import SHA256_METADATA
from simulators.s3 import error_answer
from tests.include.plates.test_archive import IMAGES, through
from tests.include.plates.test_headers import KEPT, dressed, members
from tests.include.plates.test_restore import back, wipe

EMPTY, PARTS, HUGE = f"{IMAGES}empty", f"{IMAGES}uploaded in parts.tiff", f"{IMAGES}huge.tiff"


def archived(bench: Bench) -> Plate:
    """With an empty object, one that was uploaded in parts, and one that restore writes in parts."""
    one = plate()
    bench.settings = ArchiveSettings(
        compression="none", part_bytes=5 * MIB, group_bytes=256 * 1024, volume_bytes=1 << 30
    )
    bench.put(plate_files(one) | {EMPTY: b"", HUGE: noise("huge", 17 * MIB)})
    in_parts(bench, PARTS, noise("parts", 6 * MIB))
    run(bench.archive_it(run(bench.plan(one))))
    return one


def in_parts(bench: Bench, key: str, data: bytes) -> None:
    where = {"Bucket": bench.live, "Key": key}
    where["UploadId"] = bench.client.create_multipart_upload(**where)["UploadId"]
    cuts = [cut for cut in (data[: 5 * MIB], data[5 * MIB :]) if cut]
    rows = [
        {"PartNumber": n, "ETag": bench.client.upload_part(**where, PartNumber=n, Body=cut)["ETag"]}
        for n, cut in enumerate(cuts, start=1)
    ]
    bench.client.complete_multipart_upload(**where, MultipartUpload={"Parts": rows})
    bench.files[key] = data


def results(report: RestoreReport) -> set[Restored]:
    return {one.result for one in report.files}


def whole(bench: Bench) -> bool:
    return {key: bench.get(key, bench.live) for key in bench.files} == bench.files


@pytest.mark.parametrize("server", ["bench", "real"])
def test_repeated_it_finds_everything_and_writes_nothing(server: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    one = archived(bench)
    assert results(back(bench, one, BucketSink(bench.source))) == {Restored.IDENTICAL}  # the plate is still there
    wipe(bench)
    assert results(back(bench, one, BucketSink(bench.source))) == {Restored.RESTORED}
    with proxied(bench.url) as front:
        sink = BucketSink(through(bench, front).source)
        assert results(back(bench, one, sink)) == {Restored.IDENTICAL}
        assert not front.count("PUT") and not front.count("POST")
    assert whole(bench)


def test_an_interrupted_restore_goes_on(bench: Bench):
    one = archived(bench)
    wipe(bench)
    with proxied(bench.url) as front:
        front.add(proxy.refuse("PUT", "huge", 403, "AccessDenied"), proxy.refuse("POST", "huge", 403, "AccessDenied"))
        report = back(bench, one, BucketSink(through(bench, front).source))
    assert [f.key for f in report.files if f.result is Restored.FAILED] == [HUGE] and not report.complete
    again = back(bench, one, BucketSink(bench.source))
    assert [f.key for f in again.files if f.result is Restored.RESTORED] == [HUGE] and again.complete and whole(bench)


def test_kms_etags_say_nothing_and_are_not_believed(bench: Bench):
    """Under SSE-KMS every ETag looks like an MD5 and is none; no checksum is stored, and no metadata kept."""
    one = archived(bench)
    wipe(bench)
    back(bench, one, BucketSink(bench.source))

    def encrypted(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        if request.method != "HEAD":
            return None
        answer = forward(request)
        kept = {
            n: v for n, v in answer.headers.items() if "checksum" not in n.lower() and "x-amz-meta" not in n.lower()
        }
        return replace(answer, headers={**kept, "x-amz-server-side-encryption": "aws:kms"})

    key = next(key for key in bench.files if key.endswith("Index.idx.xml"))
    in_parts(bench, key, bench.files[key])  # another ETag, the same bytes
    with proxied(bench.url) as front:
        front.add(proxy.call(encrypted))
        sink = BucketSink(through(bench, front).source)
        assert results(back(bench, one, sink)) == {Restored.IDENTICAL}
        in_parts(bench, key, b"<XML/>")
        assert results(back(bench, one, sink, files=[key])) == {Restored.REFUSED}


def test_after_a_restore_over_what_was_there_the_plate_verifies(versioned: Bench):
    one = archived(versioned)
    for key in (HUGE, PARTS):
        versioned.client.put_object(Bucket=versioned.live, Key=key, Body=b"newer")
    assert run(versioned.verify(one)).outcome is Outcome.MISMATCH
    report = back(versioned, one, BucketSink(versioned.source), overwrite=True)
    assert report.complete and whole(versioned)
    verdict = run(versioned.verify(one))
    assert verdict.outcome is Outcome.VERIFIED
    assert "2 were written again with the same bytes" in next(c.detail for c in verdict.checks if c.name == "V1")


def test_the_kept_sha256_is_no_proof_to_verify(bench: Bench):
    one = archived(bench)
    member = members(bench)[HUGE]
    other = bytearray(bench.files[HUGE])
    other[-1] ^= 1
    claim = {SHA256_METADATA: member.sha256 or ""}
    bench.client.put_object(Bucket=bench.live, Key=HUGE, Body=bytes(other), Metadata=claim)
    assert run(bench.verify(one)).outcome is Outcome.MISMATCH


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_headers_come_back(compression: str, bench: Bench):
    files = dressed(bench, {"small.tiff": 5000, "empty.tiff": 0, "huge.tiff": 17 * MIB}, compression=compression)
    run(bench.archive_it(run(bench.plan(plate()))))
    wipe(bench)
    assert back(bench, plate(), BucketSink(bench.source)).complete
    for key in files:
        head = run(bench.source.head(key))
        assert head is not None and dict(head.headers) | {"x-amz-tagging": run(bench.source.tags(key))} == KEPT
        assert head.metadata[SHA256_METADATA] == members(bench)[key].sha256
    plain = run(bench.source.head(next(key for key in bench.files.keys() - files.keys())))
    assert plain is not None and plain.headers == ()


@pytest.mark.parametrize(
    "header", ["x-amz-tagging", "x-amz-storage-class"], ids=["no right to set tags", "an unknown storage class"]
)
def test_what_the_store_refuses_beside_the_bytes_is_told_and_not_fatal(header: str, bench: Bench):
    files = dressed(bench, {"small.tiff": 5000, "huge.tiff": 17 * MIB}, compression="none")
    run(bench.archive_it(run(bench.plan(plate()))))
    wipe(bench)

    def refuse(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        if header not in {name.lower() for name in request.headers}:
            return None
        return (
            error_answer(403, "AccessDenied", "") if "tag" in header else error_answer(400, "InvalidStorageClass", "")
        )

    with proxied(bench.url) as front:
        front.add(proxy.call(refuse))
        report = back(bench, plate(), BucketSink(through(bench, front).source))
    told = {one.key: one.detail for one in report.files if one.detail}
    word = "tags" if "tagging" in header else "storage class"
    assert report.complete and told == dict.fromkeys(files, f"restored without its {word}") and whole(bench)


def test_a_cold_class_is_not_given_back(bench: Bench):
    key = f"{IMAGES}frozen.tiff"
    bench.put(plate_files(plate()) | {key: b"ice"})
    plan = run(bench.plan(plate()))
    volumes = tuple(
        v.model_copy(
            update={"objects": tuple(replace(o, storage_class="GLACIER" if o.key == key else None) for o in v.objects)}
        )
        for v in plan.volumes
    )
    run(bench.archive_it(plan.model_copy(update={"volumes": volumes})))
    assert dict(members(bench)[key].headers) == {"x-amz-storage-class": "GLACIER"}
    wipe(bench)
    assert back(bench, plate(), BucketSink(bench.source)).complete and bench.get(key, bench.live) == b"ice"
    head = run(bench.source.head(key))
    assert head is not None and not head.cold


def test_cold_objects_are_not_compared_by_reading(bench: Bench):
    one = archived(bench)
    bench.client.put_object(Bucket=bench.live, Key=PARTS, Body=bench.files[PARTS], StorageClass="GLACIER")
    head = run(bench.source.head(PARTS))
    assert head is not None
    with pytest.raises(VerificationError, match="cold storage"):
        run(same_bytes(bench.source, replace(head, checksum=None), members(bench)[PARTS], by_metadata=True))
    report = back(bench, one, BucketSink(bench.source), files=[PARTS])
    assert report.files[0].result is Restored.FAILED and "cold storage" in report.files[0].detail


def test_each_proof_in_its_turn(bench: Bench):
    """What is there is another upload of the same bytes; the cheapest proof that there is decides."""
    archived(bench)
    member, data = members(bench)[HUGE], bench.files[HUGE]
    digester = Digester(md5=False)
    digester.feed(data)
    crc = digester.result().crc64nvme
    bench.client.put_object(Bucket=bench.live, Key="copy", Body=data)
    head = run(bench.source.head("copy"))
    assert head is not None
    parts = replace(head, etag="0" * 32 + "-2", checksum=None, metadata={})

    def said(there: Any, known: Any = member) -> str | None:
        return run(same_bytes(bench.source, there, known, by_metadata=True))

    assert said(replace(parts, etag=member.etag)) == "by its ETag"
    assert said(replace(parts, checksum=f"CRC64NVME:FULL_OBJECT:{crc}")) == "by the store's checksum"
    assert said(replace(parts, checksum="CRC64NVME:FULL_OBJECT:AAAAAAAAAAA=")) is None
    assert said(replace(parts, metadata={SHA256_METADATA: member.sha256})) == "by the sha256 kept with it"
    real = replace(head, checksum=None, metadata={})
    assert said(real, replace(member, etag="1" * 32 + "-4", etag_is_md5=False)) == "by reading it"
    assert said(real, replace(member, etag="1" * 32, etag_is_md5=True)) is None
    assert said(replace(parts, size=1)) is None
    assert said(replace(parts, size=0), replace(member, size=0)) == "by its size, which is none"
