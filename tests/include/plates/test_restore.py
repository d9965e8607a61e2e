"""Giving plates back: whole, by part, by file; from cold storage; and never over what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import plate, plate_files
from harness.proxy import proxied
from include.core.errors import NotFound, RequestError, VerificationError
from include.plates.models import MIB, ArchiveSettings, ManifestMember, Plate
from include.plates.restore import (
    Restored,
    RestoreReport,
    RestoreStatus,
    find_manifests,
    request_restore,
    restore,
    select,
    tarball_states,
)
from include.plates.restore_target import BucketSink, FolderSink, Sink
from include.s3.errors import ColdObject
from tests.include.plates.test_archive import BACKEND, IMAGES, MAIN, ODD, through


def archived(bench: Bench, compression: str = "gzip") -> Plate:
    one = plate()
    bench.settings = ArchiveSettings(
        compression=compression, part_bytes=5 * MIB, group_bytes=256 * 1024, volume_bytes=1 << 30
    )  # type: ignore[arg-type]
    bench.put(plate_files(one, image_bytes=200_000))
    bench.put({IMAGES + "big.tiff": servers.noise("big", 6 * MIB), IMAGES + "empty": b""})
    run(bench.archive_it(run(bench.plan(one))))
    return one


def wipe(bench: Bench) -> None:
    for key in bench.files:
        bench.client.delete_object(Bucket=bench.live, Key=key)


def back(bench: Bench, one: Plate, sink: Sink, *, overwrite: bool = False, **wish: Any) -> RestoreReport:
    async def work() -> RestoreReport:
        manifests = await find_manifests(one, bench.layout, bench.archive)
        return await restore(select(manifests, **wish), sink, archive=bench.archive, overwrite=overwrite)

    return run(work())


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("server", ["bench", "real"])
def test_a_whole_plate_comes_back_byte_for_byte(server: str, compression: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    one = archived(bench, compression)
    wipe(bench)
    report = back(bench, one, BucketSink(bench.source))
    assert report.complete and {f.result for f in report.files} == {Restored.RESTORED}
    assert {key: bench.get(key, bench.live) for key in bench.files} == bench.files


def test_f25_odd_names_come_back_to_a_folder(bench: Bench, tmp_path: Path):
    one = plate()
    bench.put({IMAGES + name: servers.noise(name, 100) for name in ODD})
    run(bench.archive_it(run(bench.plan(one))))
    assert back(bench, one, FolderSink(tmp_path)).complete
    found = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == bench.files


def test_one_part_comes_back_alone(bench: Bench, tmp_path: Path):
    one = archived(bench)
    assert back(bench, one, FolderSink(tmp_path), parts=["illum"]).complete
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["20586_IllumDNA.npy"]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_one_file_is_read_by_its_own_range_only(compression: str, bench: Bench, tmp_path: Path):
    one = archived(bench, compression)
    report = back(bench, one, FolderSink(tmp_path), files=["Images/Index.idx.xml"])
    assert [f.key for f in report.files] == [IMAGES + "Images/Index.idx.xml"]
    assert (tmp_path / report.files[0].key).read_bytes() == b"<xml/>"
    whole = run(bench.archive.head(MAIN + {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}[compression]))
    assert whole is not None and report.read_bytes <= (6 if compression == "none" else 256 * 1024 + 200)
    assert report.read_bytes < whole.size // 10


def test_files_are_named_by_key_by_its_end_or_by_a_pattern(bench: Bench):
    one = archived(bench)
    manifests = run(find_manifests(one, bench.layout, bench.archive))
    names = [IMAGES + "big.tiff", "Index.idx.xml", "*/Images/r01*"]
    keys = {member.key for _, member in select(manifests, files=names)}
    assert len(keys) == 5 and IMAGES + "big.tiff" in keys
    with pytest.raises(NotFound, match="nothing-like-it"):
        select(manifests, files=["big.tiff", "nothing-like-it"])
    with pytest.raises(NotFound, match="profiles"):
        select(manifests, parts=["profiles"])


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_nothing_is_overwritten_unless_told(place: str, bench: Bench, tmp_path: Path):
    one = archived(bench)
    key = IMAGES + "big.tiff"
    bench.client.put_object(Bucket=bench.live, Key=key, Body=b"newer")
    (tmp_path / key).parent.mkdir(parents=True)
    (tmp_path / key).write_bytes(b"newer")
    sink = BucketSink(bench.source) if place == "bucket" else FolderSink(tmp_path)

    def there() -> bytes:
        return bench.get(key, bench.live) if place == "bucket" else (tmp_path / key).read_bytes()

    report = back(bench, one, sink, files=[key])
    assert report.files[0].result is Restored.REFUSED and not report.complete and there() == b"newer"
    assert back(bench, one, sink, files=[key], overwrite=True).complete and there() == bench.files[key]
    assert back(bench, one, sink, files=[key]).files[0].result is Restored.IDENTICAL


@pytest.mark.parametrize("name", ["Images/Index.idx.xml", "huge.tiff"], ids=["small", "multipart"])
def test_an_object_that_appears_meanwhile_is_not_overwritten(name: str, bench: Bench):
    one = plate()
    bench.put(plate_files(one) | {IMAGES + "huge.tiff": servers.noise("huge", 17 * MIB)})
    run(bench.archive_it(run(bench.plan(one))))
    wipe(bench)

    def appear(request: proxy.Call, _: proxy.Forward) -> None:
        joining = request.method == "POST" and "uploadId" in request.query
        if proxy.key_of(request) == IMAGES + name and (
            joining or (request.method == "PUT" and "partNumber" not in request.query)
        ):
            bench.client.put_object(Bucket=bench.live, Key=IMAGES + name, Body=b"theirs")

    with proxied(bench.url) as front:
        front.add(appear)
        secret = through(bench, front)
        report = back(bench, one, BucketSink(secret.source), files=[IMAGES + name])
    assert not report.complete and bench.get(IMAGES + name, bench.live) == b"theirs"
    assert not bench.client.list_multipart_uploads(Bucket=bench.live).get("Uploads")


def huge(bench: Bench) -> tuple[Plate, str]:
    """An archived plate with one file that is restored in parts; gone from the live bucket."""
    one = plate()
    bench.put(plate_files(one) | {IMAGES + "huge.tiff": servers.noise("huge", 33 * MIB)})
    run(bench.archive_it(run(bench.plan(one))))
    wipe(bench)
    return one, IMAGES + "huge.tiff"


@pytest.mark.parametrize("server", ["bench", "real"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_lost_answer_to_the_completion_is_settled_by_head(
    server: str, overwrite: bool, request: pytest.FixtureRequest
):
    bench: Bench = request.getfixturevalue(server)
    one, key = huge(bench)
    if overwrite:
        bench.client.put_object(Bucket=bench.live, Key=key, Body=b"newer")
    with proxied(bench.url) as front:
        front.add(proxy.lose_answer("POST", "uploadId"))
        sink = BucketSink(through(bench, front).source)
        report = back(bench, one, sink, files=["huge.tiff"], overwrite=overwrite)
    assert [(f.result, f.detail) for f in report.files] == [(Restored.RESTORED, "")]
    assert bench.get(key, bench.live) == bench.files[key]


def test_a_part_that_arrives_changed_is_sent_again_although_the_store_names_its_encryption(bench: Bench):
    """AWS names AES256 always, and an ETag is an MD5 all the same (docs/protocols/s3.md 2.1)."""
    one, key = huge(bench)

    def encrypted(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        if request.method not in ("PUT", "POST"):
            return None
        answer = forward(request)
        kept = {name: value for name, value in answer.headers.items() if "checksum" not in name.lower()}
        return replace(answer, headers={**kept, "x-amz-server-side-encryption": "AES256"})

    with proxied(bench.url) as front:
        front.add(encrypted, proxy.peculiarity("damage_body", times=1, method="PUT", query="partNumber=2"))
        sink = BucketSink(through(bench, front).source)
        assert back(bench, one, sink, files=["huge.tiff"]).complete
        assert sum(r.query.get("partNumber") == ["2"] for r in front.requests) == 2
    assert bench.get(key, bench.live) == bench.files[key]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_damaged_file_fails_alone_and_never_gets_its_name(compression: str, bench: Bench, tmp_path: Path):
    one = archived(bench, compression)
    key = BACKEND + {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}[compression]
    data = bytearray(bench.get(key))
    data[2000] ^= 4
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bytes(data))
    report = back(bench, one, FolderSink(tmp_path))
    failed = [f.key for f in report.files if f.result is Restored.FAILED]
    assert len(failed) == 1 and "backend" in failed[0] and not (tmp_path / failed[0]).exists()
    assert not list(tmp_path.rglob(".waybill-*"))


def test_a_tarball_of_another_size_is_refused(bench: Bench, tmp_path: Path):
    one = archived(bench)
    bench.client.put_object(Bucket=bench.cold, Key=BACKEND + ".tar.gz", Body=b"short")
    with pytest.raises(VerificationError):
        back(bench, one, FolderSink(tmp_path))


def test_a_plate_without_manifests_is_not_found(bench: Bench):
    with pytest.raises(NotFound, match="not archived there"):
        run(find_manifests(plate(), bench.layout, bench.archive))


def test_a_key_that_climbs_out_of_the_folder_is_refused(tmp_path: Path):
    member = ManifestMember("T/x", 1, 0, 512, 0, key="projects/../../etc/passwd")
    with pytest.raises(RequestError):
        run(FolderSink(tmp_path).existing(member))


def test_cold_tarballs_are_asked_for_once_and_their_state_is_told(bench: Bench, tmp_path: Path):
    one = archived(bench)
    for key in (MAIN + ".tar.gz", BACKEND + ".tar.gz"):
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key), StorageClass="GLACIER")
    manifests = run(find_manifests(one, bench.layout, bench.archive))
    assert {s.status for s in run(tarball_states(manifests, bench.archive))} == {RestoreStatus.COLD}
    with pytest.raises(ColdObject):
        back(bench, one, FolderSink(tmp_path))
    with proxied(bench.url) as front:
        cold = through(bench, front).archive
        first = run(request_restore(manifests, cold, days=3))
        again = run(request_restore(manifests, cold, days=3))
        assert front.count("POST", "restore") == 2
    assert {s.status for s in (*first, *again)} <= {RestoreStatus.RESTORING, RestoreStatus.READY}
    with pytest.raises(RequestError):
        run(request_restore(manifests, bench.archive, tier="Fastest"))
