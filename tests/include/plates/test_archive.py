"""From listing to tarballs: plans, bytes, sidecars, overwriting, changed sources, lost answers, resuming."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import BATCH, PROJECT, plate, plate_files
from harness.proxy import Front, proxied
from harness.store_faults import without_headers
from include.core.errors import RequestError, TransientError, VerificationError, WaybillError
from include.core.journal import FileJournal
from include.plates import archive as archiving
from include.plates.manifest import read_manifest
from include.plates.models import MIB, ArchiveSettings, Outcome, Plate, PlatePlan
from include.plates.volume_upload import VolumePart, upload_of
from include.s3 import checksums
from include.s3.bucket import Head
from include.s3.errors import ConcurrentWriter, ObjectExists, SourceChanged

ROOT = f"projects/{PROJECT}"
IMAGES = f"{ROOT}/{BATCH}/images/20586/"
MAIN = f"imaging_analysis/{PROJECT}/plates/{PROJECT}_{BATCH}_20586_images_illum_analysis"
BACKEND = MAIN.replace("images_illum_analysis", "backend")
TAG = f"{PROJECT}_{BATCH}_20586"
ODD = ["a b.tiff", "é-nfc", "e\u0301-nfd", "Case", "case", "x" * 250, "a%20b+c&d.tiff"]
# What each server can hold at all: moto cannot route a newline, a file system has no name of over 255 bytes.
ODDER = {"bench": ["日本語" * 27, "d" * 200 + "/" + "f" * 200], "real": ["new\nline.tiff"]}
SETTINGS = {
    name: ArchiveSettings(compression=name, part_bytes=5 * MIB, group_bytes=MIB, volume_bytes=1 << 30)
    for name in ("none", "gzip", "zstd")
}


def full_plate(bench: Bench, **more: Any) -> Plate:
    one = plate(**more)
    bench.put(plate_files(one))
    return one


def extracted(bench: Bench, folder: Path, command: list[str], key: str) -> dict[str, bytes]:
    """What a tool takes out of a tarball, by key."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, "-C", str(folder)], input=bench.get(key), check=True)
    found = {p: p.relative_to(folder / TAG) for p in folder.rglob("*") if p.is_file()}
    return {f"projects/{name}": path.read_bytes() for path, name in found.items()}


# Contents


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("server", ["bench", "real"])
def test_gnu_tar_and_tarfile_extract_the_same_bytes(
    server: str, compression: str, request: pytest.FixtureRequest, tmp_path: Path
):
    bench: Bench = request.getfixturevalue(server)
    images, backend = odd_archive(bench, compression, server)
    if compression != "zstd" or shutil.which("zstd"):  # GNU tar calls the zstd program, which this machine may lack
        packed = {"none": [], "gzip": ["-z"], "zstd": ["--zstd"]}[compression]
        out = extracted(bench, tmp_path / "images", ["tar", "-x", *packed], images)
        assert out | extracted(bench, tmp_path / "backend", ["tar", "-x", *packed], backend) == bench.files
    assert with_tarfile(bench.get(images), compression) | with_tarfile(bench.get(backend), compression) == bench.files


@pytest.mark.skipif(not shutil.which("bsdtar"), reason="bsdtar is not installed here (Debian: libarchive-tools)")
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_bsdtar_extracts_the_same_bytes(compression: str, bench: Bench, tmp_path: Path):
    images, backend = odd_archive(bench, compression, "bench")
    out = extracted(bench, tmp_path / "images", ["bsdtar", "-x", "-f", "-"], images)
    out |= extracted(bench, tmp_path / "backend", ["bsdtar", "-x", "-f", "-"], backend)
    assert composed(out) == composed(bench.files)


def odd_archive(bench: Bench, compression: str, server: str) -> list[str]:
    """Tarballs of a plate with the names and sizes that are hard for tar; their keys."""
    bench.settings = SETTINGS[compression]
    one = full_plate(bench)
    bench.put({IMAGES + name: servers.noise(name, 700) for name in ODD + ODDER[server]})
    bench.put({IMAGES + "big.tiff": servers.noise("big", 11 * MIB), IMAGES + "empty": b""})
    plan = run(bench.plan(one))
    assert plan.problems == ()
    result = run(bench.archive_it(plan))
    assert result.volumes[0].sent_parts > 1
    return [volume.key for volume in plan.volumes]


def composed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """libarchive writes names of Unicode with composed accents (NFC), whichever way the archive has them."""
    return {unicodedata.normalize("NFC", name): data for name, data in files.items()}


def with_tarfile(data: bytes, compression: str) -> dict[str, bytes]:
    if compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    elif compression == "gzip":
        data = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [member for member in tar if member.isfile()]
        return {"projects/" + m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in members}  # type: ignore[union-attr]


def test_names_that_no_file_system_takes_are_kept_and_read_back(bench: Bench):
    one = plate()
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "日本語" * 60: b"long", IMAGES + "k" * 600: b"longer"})
    run(bench.archive_it(run(bench.plan(one))))
    assert with_tarfile(bench.get(MAIN + ".tar"), "none") == bench.files
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_archiving_twice_gives_the_same_bytes(compression: str, bench: Bench, tmp_path: Path):
    bench.settings = SETTINGS[compression]
    one = full_plate(bench)
    bench.put({IMAGES + "big.tiff": servers.noise("big", 12 * MIB)})
    plan = run(bench.plan(one))
    run(bench.archive_it(plan))
    first = {key: bench.get(key) for key in bench.keys(bench.cold)}
    for key in first:
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    bench.journals = tmp_path / "other"
    run(bench.archive_it(run(bench.plan(one))))
    assert {key: bench.get(key) for key in bench.keys(bench.cold)} == first


def test_everything_the_sop_writes_lies_where_it_writes_it(bench: Bench):
    one = full_plate(bench)
    run(bench.archive_it(run(bench.plan(one))))
    names = [f"{base}{end}" for base in (MAIN, BACKEND) for end in (".tar.gz", ".etag", ".manifest.jsonl.zst")]
    untrimmed = f"imaging_analysis/{PROJECT}/plates/{TAG}_file_listing_untrimmed_s3.txt"
    assert bench.keys(bench.cold) == {*names, untrimmed}
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED
    for base in (MAIN, BACKEND):
        assert bench.get(base + ".md5").decode().startswith(hashlib.md5(bench.get(base + ".tar.gz")).hexdigest())
    backup = f"{ROOT}/workspace/backup/{TAG}"
    ours, theirs = (bench.get(f"{backup}_file_listing_{kind}.txt", bench.live) for kind in ("s3", "tar"))
    assert ours == theirs and len(ours.splitlines()) == len(bench.files)
    data = bench.get(MAIN + ".tar.gz")
    assert bench.get(MAIN + ".md5").decode() == f"{hashlib.md5(data).hexdigest()}  {MAIN.rsplit('/', 1)[1]}.tar.gz\n"
    head = bench.client.head_object(Bucket=bench.cold, Key=MAIN + ".tar.gz")
    assert bench.get(MAIN + ".etag").decode() == head["ETag"].strip('"') + "\n"


def test_members_are_sorted_and_folders_of_empty_parts_are_there(bench: Bench):
    one = plate()
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "b": b"2", IMAGES + "a/x": b"1"})
    plan = run(bench.plan(one))
    assert any("backend is empty" in warning for warning in plan.warnings)
    run(bench.archive_it(plan))
    with tarfile.open(fileobj=io.BytesIO(bench.get(MAIN + ".tar"))) as tar:
        names = tar.getnames()
    assert names == sorted(names, key=lambda n: n.encode()) and f"{TAG}/{PROJECT}/BBBC022/illum/20586" in names
    with tarfile.open(fileobj=io.BytesIO(bench.get(BACKEND + ".tar"))) as tar:
        assert tar.getnames() == [f"{TAG}/{PROJECT}/workspace/backend/BBBC022/20586"]
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


def test_a_volume_limit_splits_on_members_and_each_volume_is_a_whole_tar(bench: Bench):
    bench.settings = ArchiveSettings(compression="gzip", part_bytes=5 * MIB, volume_bytes=MIB)
    one = plate()
    bench.put({f"{IMAGES}f{n}.tiff": servers.noise(n, 400_000) for n in range(5)})
    plan = run(bench.plan(one))
    assert [v.name for v in plan.volumes][:2] == [
        f"{TAG}_images_illum_analysis.001-of-003.tar.gz",
        f"{TAG}_images_illum_analysis.002-of-003.tar.gz",
    ]
    run(bench.archive_it(plan))
    found: dict[str, bytes] = {}
    for volume in plan.volumes:
        found |= with_tarfile(bench.get(volume.key), "gzip")
    assert found == bench.files
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


def test_a_manifest_says_where_every_byte_lies(bench: Bench):
    bench.settings = SETTINGS["gzip"]
    one = full_plate(bench)
    bench.put({IMAGES + "big.tiff": servers.noise("big", 3 * MIB)})
    run(bench.archive_it(run(bench.plan(one))))
    manifest = run(read_manifest(bench.archive, MAIN + ".tar.gz"))
    stored = bench.get(MAIN + ".tar.gz")
    for member in manifest.members:
        if member.key is None:
            continue
        assert member.frame is not None
        offset, length, raw = member.frame
        piece = gzip.decompress(stored[offset : offset + length])
        data = piece[member.data_offset - raw : member.data_offset - raw + member.size]
        assert data == bench.files[member.key] and hashlib.sha256(data).hexdigest() == member.sha256
        assert tarfile.TarInfo.frombuf(piece[member.header_offset - raw :][:512], "utf-8", "strict")


def test_the_gallery_layout_end_to_end(bench: Bench):
    from include.plates.layout import CPG

    bench.layout, bench.settings = CPG, SETTINGS["zstd"]
    one = Plate(project="cpg0016-jump", source="source_4", batch="B1", plate_id="BR1", plate_id_full="BR1__m")
    root = "cpg0016-jump/source_4"
    bench.put({f"{root}/images/B1/images/BR1__m/a.tiff": b"1", f"{root}/workspace/backend/B1/BR1/BR1.sqlite": b"2"})
    run(bench.archive_it(run(bench.plan(one))))
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


# Plans


def test_a_plate_id_that_begins_another_catches_nothing_of_it(bench: Bench):
    bench.put(plate_files(plate("20585")))
    bench.files.clear()
    bench.put(plate_files(plate("2058")))
    plan = run(bench.plan(plate("2058")))
    assert {o.key for v in plan.volumes for o in v.objects} == set(bench.files) and not plan.other_measurements


def test_a_measurement_is_told_from_its_sibling(bench: Bench):
    for name in ("P1__m1", "P1__m10"):
        bench.put(plate_files(plate("P1", name)))
    plan = run(bench.plan(plate("P1", "P1__m1")))
    assert plan.other_measurements == ("P1__m10",)
    assert {part.name for part in plan.parts if part.shared} == {"illum", "analysis", "backend"}
    assert all("P1__m10/" not in o.key for v in plan.volumes for o in v.objects)


def test_the_archive_of_another_measurement_is_named_as_what_stands_in_the_way(bench: Bench):
    for name in ("P1__m1", "P1__m2"):
        bench.put(plate_files(plate("P1", name)))
    run(bench.archive_it(run(bench.plan(plate("P1", "P1__m1")))))
    plan = run(bench.plan(plate("P1", "P1__m2")))
    assert any("another measurement, P1__m1" in problem for problem in plan.problems)


def test_an_empty_plate_is_a_problem_and_an_empty_id_is_refused(bench: Bench):
    assert any("has no object" in problem for problem in run(bench.plan(plate())).problems)
    with pytest.raises(RequestError, match="empty"):
        run(bench.plan(Plate(project=PROJECT, batch=BATCH, plate_id="", plate_id_full="x")))


@pytest.mark.parametrize("probe", [True, False])
def test_archived_sources_are_found_before_anything_is_sent(probe: bool, bench: Bench):
    one = full_plate(bench)
    bench.client.put_object(Bucket=bench.live, Key=IMAGES + "cold.tiff", Body=b"1", StorageClass="DEEP_ARCHIVE")
    plan = run(bench.plan(one, probe=probe))
    assert any("archived storage class" in p and "cold.tiff" in p for p in plan.problems)
    with pytest.raises(RequestError, match="archived"):
        run(bench.archive_it(plan))
    assert not bench.keys(bench.cold)


def through(bench: Bench, front: Front) -> Bench:
    return dataclasses.replace(bench, access=servers.access(front.url), url=front.url)


def test_keys_that_may_be_listed_but_not_read_are_found_up_front(bench: Bench):
    one = full_plate(bench)
    with proxied(bench.url) as front:
        front.add(proxy.refuse(None, r"Index\.idx\.xml", 403, "AccessDenied"))
        plan = run(through(bench, front).plan(one))
    assert any("may not be read" in problem and "Index.idx.xml" in problem for problem in plan.problems)


def test_planning_writes_nothing(bench: Bench):
    one = full_plate(bench)
    with proxied(bench.url) as front:
        run(through(bench, front).plan(one))
        assert {request.method for request in front.requests} <= {"GET", "HEAD"}


# Overwriting


def test_a_foreign_tarball_is_a_problem_of_the_plan_and_is_never_overwritten(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar.gz", Body=b"theirs")
    with pytest.raises(ObjectExists):
        run(bench.archive_it(plan))
    assert bench.get(MAIN + ".tar.gz") == b"theirs"
    assert any("nothing says that Waybill made it" in problem for problem in run(bench.plan(one)).problems)


@pytest.mark.parametrize("size", [1000, 11 * MIB], ids=["one part", "multipart"])
@pytest.mark.parametrize("honoured", [True, False])
def test_a_tarball_that_appears_meanwhile_is_not_overwritten(size: int, honoured: bool, bench: Bench):
    """If-None-Match where the store has it; where it ignores it, the HEAD just before. The race is between the two."""
    one = plate()
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "a": servers.noise("a", size)})
    plan = run(bench.plan(one))
    appeared: list[str] = []
    heads: list[str] = []

    def appear(request: proxy.Call, _: proxy.Forward) -> None:
        ours = request.path.endswith("analysis.tar")
        last = request.method == "PUT" and ours and "partNumber" not in request.query
        joining = request.method == "POST" and "uploadId" in request.query
        before = joining or last if honoured else request.method == "HEAD" and ours
        heads.extend("x" if request.method == "HEAD" and ours else "")
        if before and not appeared and (honoured or len(heads) == 2):
            appeared.append("x")
            bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar", Body=b"theirs")

    with proxied(bench.url) as front:
        front.add(appear)
        if not honoured:
            front.add(proxy.ignore_headers("if-none-match"))
        with pytest.raises((ObjectExists, ConcurrentWriter)):
            run(through(bench, front).archive_it(plan))
    assert appeared and bench.get(MAIN + ".tar") == b"theirs"


def test_archiving_again_finds_everything_done_and_sends_nothing(bench: Bench):
    one = full_plate(bench)
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "a": servers.noise("a", 12 * MIB)})
    plan = run(bench.plan(one))
    first = run(bench.archive_it(plan))
    again = run(bench.archive_it(run(bench.plan(one)), journal_for=lambda name: FileJournal(bench.journals / "none")))
    assert [v.manifest_sha256 for v in again.volumes] == [v.manifest_sha256 for v in first.volumes]
    assert all(v.sent_parts == 0 for v in again.volumes)


# Sources that change (docs/faults.md, F23)


def test_a_source_that_changes_after_the_plan_stops_the_archive(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.put({IMAGES + "Images/Index.idx.xml": b"<new/>"})
    with pytest.raises(SourceChanged, match=r"Index\.idx\.xml"):
        run(bench.archive_it(plan))
    assert MAIN + ".tar.gz" not in bench.keys(bench.cold)


def test_a_changed_source_is_seen_where_the_store_ignores_if_match(real: Bench):
    one = full_plate(real)
    plan = run(real.plan(one))
    real.put({IMAGES + "Images/Index.idx.xml": b"<NEW/>"})  # same size: only the ETag tells
    with pytest.raises(SourceChanged):
        run(real.archive_it(plan))


def test_a_source_that_vanishes_stops_the_archive(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.client.delete_object(Bucket=bench.live, Key=IMAGES + "Images/Index.idx.xml")
    with pytest.raises(WaybillError, match=r"Index\.idx\.xml"):
        run(bench.archive_it(plan))


def test_an_archived_version_is_read_although_a_newer_one_came(versioned: Bench):
    one = full_plate(versioned)
    plan = run(versioned.plan(one))
    assert all(o.version_id for v in plan.volumes for o in v.objects)
    versioned.client.put_object(Bucket=versioned.live, Key=IMAGES + "Images/Index.idx.xml", Body=b"<new/>")
    run(versioned.archive_it(plan))
    assert with_tarfile(versioned.get(MAIN + ".tar.gz"), "gzip")[IMAGES + "Images/Index.idx.xml"] == b"<xml/>"
    verdict = run(versioned.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "1 objects changed" in verdict.reasons[0]


def flip_body(key: str, times: int | None = None) -> proxy.RuleDict:
    return proxy.peculiarity("flip_answer", times=times, method="GET", path=f"/{re.escape(key)}$")


def put_with_checksum(bench: Bench, size: int) -> None:
    bench.put({IMAGES + "x": servers.noise("x", size)})
    bench.client.put_object(
        Bucket=bench.live, Key=IMAGES + "x", Body=servers.noise("x", size), ChecksumAlgorithm="SHA256"
    )


@pytest.mark.parametrize("size", [6, 17 * MIB], ids=["small", "in ranges"])
def test_bytes_that_contradict_the_checksum_of_the_store_are_not_archived(size: int, bench: Bench):
    one = plate()
    put_with_checksum(bench, size)
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x"))
        with pytest.raises(VerificationError, match="SHA256"):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".tar.gz" not in bench.keys(bench.cold)


@pytest.mark.parametrize("size", [6, 17 * MIB], ids=["small", "in ranges"])
def test_bytes_that_contradict_the_etag_alone_are_found_by_the_verifier(size: int, bench: Bench):
    """The archiver makes no MD5: the verifier makes it, of what is stored."""
    one = plate()
    bench.put({IMAGES + "x": servers.noise("x", size)})
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x"))
        run(through(bench, front).archive_it(plan))
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "MD5 of the archived bytes" in verdict.reasons[0]


def test_a_bit_lost_once_on_the_way_is_read_again(bench: Bench):
    one = plate()
    put_with_checksum(bench, 6)
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x", times=1))
        run(through(bench, front).archive_it(plan))
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


def test_with_kms_an_etag_is_no_md5_and_is_not_taken_for_one(bench: Bench):
    one = plate()
    bench.put({IMAGES + "x": b"abcdef"})

    def kms(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        """As S3 shows an SSE-KMS object: an ETag of 32 digits that is not the MD5, everywhere the same."""
        ours = proxy.key_of(request) == IMAGES + "x" or "list-type" in request.query
        if request.method not in ("GET", "HEAD") or not ours:
            return None
        answer = forward(without_headers(request, "if-match"))
        true, shown = hashlib.md5(b"abcdef").hexdigest(), "f" * 32
        answer.body = answer.content().replace(true.encode(), shown.encode())
        answer.headers = {n: v.replace(true, shown) for n, v in answer.headers.items()}
        answer.headers["x-amz-server-side-encryption"] = "aws:kms"
        return answer

    with proxied(bench.url) as front:
        front.add(kms)
        secret = through(bench, front)
        run(secret.archive_it(run(secret.plan(one))))
        manifest = run(read_manifest(bench.archive, MAIN + ".tar.gz"))
        assert [m.etag_is_md5 for m in manifest.members if m.key] == [False]
        assert run(secret.verify(one)).outcome is Outcome.VERIFIED


# Crashes and lost answers


def big_plate(bench: Bench, compression: str = "gzip") -> PlatePlan:
    one = plate()
    bench.settings = SETTINGS[compression]
    bench.put({f"{IMAGES}f{n}.tiff": servers.noise(n, 3 * MIB) for n in range(9)})
    return run(bench.plan(one))


def of_part(number: int) -> str:
    """The query of the requests that send a part."""
    return f"(^|&)partNumber={number}(&|$)"


def fail_part(number: int) -> proxy.RuleDict:
    return proxy.refuse(None, None, 403, "AccessDenied", query=of_part(number))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_broken_off_archive_sends_only_the_missing_parts_and_ends_in_the_same_bytes(compression: str, bench: Bench):
    plan = big_plate(bench, compression)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    with proxied(bench.url) as front:
        done = run(through(bench, front).archive_it(plan))
        sent = {r.query["partNumber"][0] for r in front.requests if r.method == "PUT" and "partNumber" in r.query}
    volume = done.volumes[0]
    assert volume.resumed_parts >= 2 and volume.sent_parts == len(sent) and "3" in sent and "1" not in sent
    resumed = bench.get(volume.key)
    manifest = bench.get(volume.manifest_key)
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    run(bench.archive_it(plan, journal_for=lambda name: FileJournal(bench.journals / "fresh" / name)))
    assert bench.get(volume.key) == resumed and bench.get(volume.manifest_key) == manifest
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_part_that_the_store_lost_is_sent_again(bench: Bench):
    """docs/faults.md, F19: ListParts no longer shows a part that the journal holds."""
    plan = big_plate(bench, "none")
    text = "<PartNumber>2</PartNumber>"
    hide_part_two = proxy.peculiarity(
        "hide_from_listing", times=1, method="GET", query="uploadId=", text=text, element="Part"
    )

    with proxied(bench.url) as front:
        front.add(hide_part_two)
        with pytest.raises(TransientError, match=r"lost or changed parts \[2\]"):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".tar" not in bench.keys(bench.cold)
    with proxied(bench.url) as front:
        front.add(hide_part_two)
        again = run(through(bench, front).archive_it(plan))
    assert again.volumes[0].sent_parts == 1
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def damage_part_two(times: int | None = None) -> proxy.RuleDict:
    return proxy.peculiarity("damage_body", times=times, query=of_part(2))


def test_a_part_that_arrives_changed_is_found_by_the_verifier(bench: Bench):
    """docs/faults.md, F19, on a store without checksums: nothing that is read back is hashed for its ETag before."""
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        front.add(damage_part_two(times=1))
        run(through(bench, front).archive_it(plan))
    verdict = run(bench.verify(plan.plate))
    assert verdict.outcome is Outcome.MISMATCH and any("CRC64NVME" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_volume_that_fails_half_way_keeps_no_other_from_being_finished(compression: str, bench: Bench):
    plan = big_plate(bench, compression)
    bench.put({f"{IMAGES}f2.tiff": servers.noise("changed", 3 * MIB)})
    with pytest.raises(SourceChanged, match=r"f2\.tiff"):
        run(asyncio.wait_for(bench.archive_it(plan, parts_in_flight=1), timeout=60))
    assert any(key.startswith(BACKEND + ".tar") for key in bench.keys(bench.cold))
    assert not any(key.startswith(MAIN + ".tar") for key in bench.keys(bench.cold))


@pytest.mark.parametrize("server", ["bench", "real"])
def test_a_lost_answer_to_complete_is_settled_by_head(server: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        front.add(proxy.lose_answer("POST", "uploadId="))
        done = run(through(bench, front).archive_it(plan))
    assert done.volumes[0].sent_parts > 1
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def naming_another(before: Callable[[], object] = lambda: None) -> proxy.RuleDict:
    """The answer to Complete names another object than that of our parts; `before` happens to the store first."""

    def rename(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        answer = forward(request)
        before()
        body = re.sub(rb"[0-9a-f]{32}-", b"0" * 32 + b"-", answer.content())
        body = re.sub(rb"<(Checksum\w+)>[^<]*</\1>", b"", body)
        assert body != answer.body
        return dataclasses.replace(answer, body=body)

    return proxy.call(rename, method="POST", query="uploadId=")


def heads_after_complete(front: Front) -> int:
    done = next(i for i, r in enumerate(front.requests) if r.method == "POST" and "uploadId" in r.query)
    return sum(r.method == "HEAD" and r.key == MAIN + ".tar" for r in front.requests[done:])


@pytest.mark.parametrize("server", ["bench", "real"])
@pytest.mark.parametrize("named", [True, False])
def test_only_an_answer_that_names_our_parts_needs_no_head(named: bool, server: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        if not named:
            front.add(naming_another())
        run(through(bench, front).archive_it(plan))
        assert heads_after_complete(front) == (0 if named else 1)
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_store_that_joined_something_else_is_found_out(bench: Bench):
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        key = MAIN + ".tar"
        front.add(naming_another(lambda: bench.client.put_object(Bucket=bench.cold, Key=key, Body=b"half of it")))
        with pytest.raises(ObjectExists):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".manifest.jsonl.zst" not in bench.keys(bench.cold)


def test_a_crash_between_complete_and_manifest_is_healed_without_sending_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    plan = big_plate(bench)
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "encode_manifest", _crash)
        with pytest.raises(ZeroDivisionError):
            run(bench.archive_it(plan))
    run(_complete_all(bench, plan))
    assert MAIN + ".tar.gz" in bench.keys(bench.cold) and MAIN + ".manifest.jsonl.zst" not in bench.keys(bench.cold)
    with proxied(bench.url) as front:
        run(through(bench, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "partNumber" in r.query]
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def _crash(*_: object) -> bytes:
    raise ZeroDivisionError


async def _complete_all(bench: Bench, plan: PlatePlan) -> None:
    """What the crashed process would have done next: join the parts, and die."""
    volume = plan.volumes[0]
    journal = bench.journal_for(volume.name)
    settings = next(row["settings"] for row in journal.load() if "upload" in row)
    upload = upload_of(bench.archive, volume.key, volume.digest, settings, journal)
    await upload.load()
    await upload.complete()


def test_a_tarball_of_ours_without_manifest_and_journal_is_proved_ours_by_content(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    plan = big_plate(bench)
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "encode_manifest", _crash)
        with pytest.raises(ZeroDivisionError):
            run(bench.archive_it(plan))
    run(_complete_all(bench, plan))
    shutil.rmtree(bench.journals)
    run(bench.archive_it(plan))
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED
    assert not bench.client.list_multipart_uploads(Bucket=bench.cold).get("Uploads")


def test_a_journal_of_another_plan_is_not_used(bench: Bench):
    plan = big_plate(bench)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    bench.put({f"{IMAGES}f0.tiff": servers.noise("other", 3 * MIB)})
    done = run(bench.archive_it(run(bench.plan(plan.plate))))
    assert done.volumes[0].resumed_parts == 0
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_an_upload_that_was_aborted_meanwhile_starts_afresh(bench: Bench):
    plan = big_plate(bench)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    for upload in bench.client.list_multipart_uploads(Bucket=bench.cold)["Uploads"]:
        bench.client.abort_multipart_upload(Bucket=bench.cold, Key=upload["Key"], UploadId=upload["UploadId"])
    assert run(bench.archive_it(plan)).volumes[0].resumed_parts == 0
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_torn_last_line_of_the_journal_is_forgotten(tmp_path: Path):
    journal = FileJournal(tmp_path / "j")
    journal.append({"a": 1})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"b":')
    assert journal.load() == [{"a": 1}]
    journal.append({"c": 3})
    assert journal.load() == [{"a": 1}, {"c": 3}]


def test_no_store_without_tags_is_ever_asked_to_tag_the_tarball(real: Bench):
    """rclone takes a PUT of tags for a PUT of the object: it would replace the tarball by a few lines of XML."""
    plan = big_plate(real, "none")
    with proxied(real.url) as front:
        done = run(through(real, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "tagging" in r.query]
    assert "not on the tarball" in done.volumes[0].notes[0]
    assert run(real.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_store_that_answers_for_tags_without_knowing_them_is_not_asked_to_tag(bench: Bench):
    plan = big_plate(bench, "none")
    vague = {"fault": "status", "method": "GET", "query": "tagging", "code": 200, "body": "<Hello/>", "times": None}
    with proxied(bench.url) as front:
        front.add(vague)
        done = run(through(bench, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "tagging" in r.query]
    assert "not on the tarball" in done.volumes[0].notes[0]


@pytest.mark.parametrize("fault", ["another plan", "another size", "another checksum"])
def test_what_lies_under_our_name_is_ours_only_with_our_plan_size_and_checksum(fault: str, bench: Bench):
    upload = upload_of(bench.archive, "k.tar", "our-plan", {}, FileJournal(bench.journals / "j"))
    upload.done = {
        1: VolumePart(
            number=1, start=0, end=3, size=3, etag="e", crc64nvme=checksums.encode(checksums.crc64nvme(b"abc"))
        )
    }
    right = Head(
        "k.tar",
        3,
        "e",
        None,
        0,
        {"waybill-plan-sha256": "our-plan"},
        checksum=f"CRC64NVME:FULL_OBJECT:{upload.whole_crc()}",
    )
    assert run(upload.ours_or_refuse(right)) is right
    wrong = {
        "another plan": {"metadata": {"waybill-plan-sha256": "their-plan"}},
        "another size": {"size": 4},
        "another checksum": {"checksum": "CRC64NVME:FULL_OBJECT:AAAAAAAAAAA="},
    }[fault]
    with pytest.raises((ObjectExists, VerificationError)):
        run(upload.ours_or_refuse(dataclasses.replace(right, **wrong)))
