"""From listing to tarballs: contents, names, volumes, manifests, plans."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import BATCH, PROJECT, plate, plate_files
from harness.proxy import Front, proxied
from include.core.errors import RequestError
from include.plates.manifest import read_manifest
from include.plates.models import MIB, ArchiveSettings, Outcome, Plate

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
