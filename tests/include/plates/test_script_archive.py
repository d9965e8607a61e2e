"""Tarballs of aws_backup.sh, which have no manifest: listed, compared with whatever there is, and restored."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.plates.bench import Bench, run
from harness.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files
from include.plates import sop_files
from include.plates.layout import BROAD2018, tag_of
from include.plates.models import Outcome
from include.plates.script_archive import find_script_tarballs, inspect
from include.plates.tar_stream import DamagedTarball
from tests.include.plates.test_cli import call, printed

TAG = tag_of(BROAD2018, plate())
COLD = f"imaging_analysis/{PROJECT}/plates/{TAG}"
LIVE = f"projects/{PROJECT}/workspace/backup/{TAG}"
MAIN, BACKEND = f"{COLD}_images_illum_analysis.tar.gz", f"{COLD}_backend.tar.gz"
LONG = f"projects/{PROJECT}/{BATCH}/illum/20586/{'long/' * 40}Größe mit Leerzeichen.npy"
UNIX_1970 = 1_400_000_000


@pytest.fixture(autouse=True)
def _usual_aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def tar_of(files: Mapping[str, bytes], *odd: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    """As `tar -c TAG` writes it: folders first, in no order, with the operator as owner."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        folder = tarfile.TarInfo(TAG)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o775
        tar.addfile(folder)
        for key, data in files.items():
            info = tarfile.TarInfo(f"{TAG}/{key.removeprefix('projects/')}")
            info.size, info.mtime, info.uid, info.uname = len(data), UNIX_1970, 1000, "ubuntu"
            tar.addfile(info, io.BytesIO(data))
        for info in odd:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def script_ran(bench: Bench, *odd: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> dict[str, bytes]:
    """What the script leaves of a plate: two tarballs, their .md5 and .etag, and its listings."""
    files = plate_files(plate()) | {LONG: b"a long name"}
    bench.put(files)
    split = [{k: v for k, v in files.items() if ("/backend/" in k) == backend} for backend in (False, True)]
    for key, part, more in ((MAIN, split[0], odd), (BACKEND, split[1], ())):
        put_tarball(bench, key, gzip.compress(tar_of(part, *more, format=format)))
    names = [(f"{TAG}/{key.removeprefix('projects/')}", len(data)) for key, data in files.items()]
    listing = sop_files.trimmed_tar(names, TAG).encode()
    for name in ("s3", "tar"):
        bench.client.put_object(Bucket=bench.live, Key=f"{LIVE}_file_listing_{name}.txt", Body=listing)
    return files


def put_tarball(bench: Bench, key: str, data: bytes) -> None:
    md5 = hashlib.md5(data).hexdigest()
    base = key.removesuffix(".tar.gz")
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data)
    bench.client.put_object(Bucket=bench.cold, Key=base + ".md5", Body=sop_files.md5_line(md5, key.rsplit("/", 1)[-1]))
    bench.client.put_object(Bucket=bench.cold, Key=base + ".etag", Body=sop_files.etag_line(md5))


def restored(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a_whole_plate_comes_back(bench: Bench, tmp_path: Path, format: int):
    files = script_ran(bench, format=format)
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 0
    assert restored(tmp_path / "back") == files
    some = next(path for path in (tmp_path / "back").rglob("*.sqlite"))
    assert some.stat().st_mtime == UNIX_1970
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 0, "a restore can be repeated"


def test_single_files_parts_and_a_bucket(bench: Bench, tmp_path: Path):
    files = script_ran(bench)
    assert call(bench, "restore", "--file", "20586.sqlite", "--to", str(tmp_path / "one")) == 0
    assert [key.rsplit("/", 1)[-1] for key in restored(tmp_path / "one")] == ["20586.sqlite"]
    assert call(bench, "restore", "--file", "no such file", "--to", str(tmp_path / "none")) == 1
    assert call(bench, "restore", "--part", "illum", "--to", f"s3://{bench.live}/back") == 0
    back = {key for key in bench.keys(bench.live) if key.startswith("back")}
    assert back == {f"back/{key}" for key in files if "/illum/" in key}


def test_it_is_listed_by_the_scripts_listing_or_by_reading(bench: Bench, capsys: pytest.CaptureFixture[str]):
    files = script_ran(bench)
    assert call(bench, "ls", "--part", "backend", "--json") == 0
    assert {str(row["key"]) for row in printed(capsys)} == {key for key in files if "/backend/" in key}
    bench.client.delete_object(Bucket=bench.live, Key=f"{LIVE}_file_listing_tar.txt")
    assert call(bench, "ls", "--json") == 0
    rows = {str(row["key"]): row for row in printed(capsys)}
    assert rows.keys() == files.keys()
    assert rows[LONG]["sha256"] == hashlib.sha256(b"a long name").hexdigest()


def test_it_is_unverifiable_with_what_was_compared(bench: Bench, capsys: pytest.CaptureFixture[str]):
    script_ran(bench)
    assert call(bench, "verify", "--json") == 3
    verdict = printed(capsys)[0]
    reasons = json.dumps(verdict["checks"])
    assert verdict["outcome"] == "unverifiable"
    for words in (
        "has no manifest",
        "the MD5 of",
        "the ETag of",
        "the script's two listings agree",
        "names and sizes of 12 files and the script's listing agree",
        "all 12 files on the live bucket are in them, 12 with MD5 = ETag",
    ):
        assert words in reasons, words


def damage_md5(bench: Bench) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=f"{COLD}_backend.md5", Body=b"0" * 32 + b"  x\n")


def flip(bench: Bench) -> None:
    data = bytearray(bench.get(BACKEND))
    data[len(data) // 2] ^= 1
    bench.client.put_object(Bucket=bench.cold, Key=BACKEND, Body=bytes(data))


def cut(bench: Bench) -> None:
    put_tarball(bench, BACKEND, bench.get(BACKEND)[:-4000])


def cut_before_packing(bench: Bench) -> None:
    """The disk was full when tar wrote, and gzip closed what it got."""
    put_tarball(bench, BACKEND, gzip.compress(gzip.decompress(bench.get(BACKEND))[:6000]))


def header_overwritten(bench: Bench) -> None:
    """Python's tarfile takes a broken header for the end of the archive."""
    plain = bytearray(gzip.decompress(bench.get(MAIN)))
    at = plain.rindex(b"ustar") - 257
    plain[at : at + 512] = b"\xff" * 512
    put_tarball(bench, MAIN, gzip.compress(bytes(plain)))


def long_name_overwritten(bench: Bench) -> None:
    plain = bytearray(gzip.decompress(bench.get(MAIN)))
    at = plain.index(b"././@LongLink") + 512
    plain[at : at + 200] = b"\xff" * 200
    put_tarball(bench, MAIN, gzip.compress(bytes(plain)))


def file_missing(bench: Bench) -> None:
    files = {k: v for k, v in bench.files.items() if "/backend/" not in k and "_IllumDNA" not in k}
    put_tarball(bench, MAIN, gzip.compress(tar_of(files)))


def source_changed(bench: Bench) -> None:
    key = next(key for key in bench.files if key.endswith(".tiff"))
    bench.client.put_object(Bucket=bench.live, Key=key, Body=bytes(len(bench.files[key])))


def listings_differ(bench: Bench) -> None:
    bench.client.put_object(Bucket=bench.live, Key=f"{LIVE}_file_listing_s3.txt", Body=b"other\t1\n")


@pytest.mark.parametrize(
    "damage",
    [
        damage_md5,
        flip,
        cut,
        cut_before_packing,
        header_overwritten,
        long_name_overwritten,
        file_missing,
        source_changed,
        listings_differ,
    ],
)
def test_what_contradicts_is_a_mismatch(bench: Bench, damage: object):
    script_ran(bench)
    damage(bench)  # type: ignore[operator]
    assert run(bench.verify(plate())).outcome is Outcome.MISMATCH


@pytest.mark.parametrize("damage", [flip, cut, cut_before_packing, header_overwritten])
def test_nothing_is_restored_from_a_damaged_tarball(bench: Bench, tmp_path: Path, damage: object):
    script_ran(bench)
    damage(bench)  # type: ignore[operator]
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 1
    assert restored(tmp_path / "back") == {}


def odd(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_names_that_lead_elsewhere_are_told_and_never_restored(bench: Bench, tmp_path: Path):
    outside = [odd("/etc/passwd"), odd(f"{TAG}/../../evil"), odd("other/file"), odd(f"{TAG}/a//b")]
    links = [odd(f"{TAG}/link", tarfile.SYMTYPE, "/etc/passwd"), odd(f"{TAG}/hard", tarfile.LNKTYPE, "/etc/passwd")]
    files = script_ran(bench, *outside, *links)
    found = run(find_script_tarballs(plate(), BROAD2018, bench.archive))
    assert len(run(inspect(found[0], bench.archive)).left_out) == 6
    assert call(bench, "restore", "--to", str(tmp_path / "deep" / "back")) == 1
    assert restored(tmp_path / "deep" / "back") == files
    assert not (tmp_path / "evil").exists() and not (tmp_path / "deep" / "evil").exists()


def test_a_bomb_is_read_in_bounded_memory(bench: Bench):
    """150 MB of zeros in 150 kB of gzip."""
    big = tarfile.TarInfo(f"{TAG}/{PROJECT}/{BATCH}/illum/20586/zeros")
    big.size = 150_000_000
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as out:
        out.write(big.tobuf(tarfile.GNU_FORMAT))
        for _ in range(150):
            out.write(bytes(1_000_000))
        out.write(bytes(-big.size % 512 + 1024))
    bench.client.put_object(Bucket=bench.cold, Key=MAIN, Body=packed.getvalue())
    found = run(find_script_tarballs(plate(), BROAD2018, bench.archive))
    tracemalloc.start()
    try:
        seen = run(inspect(found[0], bench.archive))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen.manifest.members[0].size == big.size and peak < 40_000_000


def test_bytes_after_the_end_and_no_end_are_damage(bench: Bench):
    plain = tar_of(plate_files(plate()))
    for data in (plain + b"x" * 512, plain[:512], b"", b"no tar at all" * 100):
        bench.client.put_object(Bucket=bench.cold, Key=MAIN, Body=gzip.compress(data))
        found = run(find_script_tarballs(plate(), BROAD2018, bench.archive))
        with pytest.raises(DamagedTarball):
            run(inspect(found[0], bench.archive))


def test_a_plate_with_one_manifest_and_one_script_tarball_comes_back_whole(bench: Bench, tmp_path: Path):
    files = script_ran(bench)
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    data = gzip.compress(tar_of({k: v for k, v in files.items() if "/backend/" in k}))
    run(bench.archive_it(run(bench.plan(plate()))))
    for key in bench.keys(bench.cold):
        if "_backend" in key:
            bench.client.delete_object(Bucket=bench.cold, Key=key)
    put_tarball(bench, BACKEND, data)
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 0
    assert restored(tmp_path / "back").items() >= files.items()
    assert call(bench, "verify") == 3


def test_cold_tarballs_are_asked_for(bench: Bench):
    script_ran(bench)
    for key in (MAIN, BACKEND):
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key), StorageClass="DEEP_ARCHIVE")
    assert call(bench, "restore", "--status") == 3
    assert call(bench, "restore", "--to", "back") == 3
    assert call(bench, "restore", "--request") in (0, 3)


# What the script left beside its tarballs


def other_md5(bench: Bench) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=f"{COLD}_images_illum_analysis.md5", Body=b"0" * 32 + b"  x\n")


def zeros(bench: Bench) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=MAIN, Body=gzip.compress(bytes(10_240)))
    for end in ("md5", "etag"):
        bench.client.delete_object(Bucket=bench.cold, Key=f"{COLD}_images_illum_analysis.{end}")


@pytest.mark.parametrize("damage", [other_md5, zeros])
def test_what_its_md5_contradicts_or_holds_nothing_is_not_restored(bench: Bench, tmp_path: Path, damage: object):
    script_ran(bench)
    damage(bench)  # type: ignore[operator]
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 1
    assert restored(tmp_path / "back") == {}


def test_files_of_the_scripts_listing_that_are_not_there_are_told(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = script_ran(bench)
    file_missing(bench)
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 1
    lost = {key for key in files if "_IllumDNA" in key}
    assert (
        f"by the script's listing, 1 file missing in the tarballs, the first {min(lost)!r}" in capsys.readouterr().err
    )
    assert restored(tmp_path / "back").keys() == files.keys() - lost


def test_another_etag_without_an_md5_is_told(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = script_ran(bench)
    bench.client.put_object(Bucket=bench.cold, Key=f"{COLD}_backend.etag", Body=b"other\n")
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 0, "its MD5 says that it is whole"
    bench.client.delete_object(Bucket=bench.cold, Key=f"{COLD}_backend.md5")
    assert call(bench, "restore", "--to", str(tmp_path / "back")) == 1
    assert "another ETag than the .etag" in capsys.readouterr().err and restored(tmp_path / "back") == files


def test_its_listing_is_shown_whole_though_plate_id_full_is_another(bench: Bench, capsys: pytest.CaptureFixture[str]):
    files = script_ran(bench)
    assert call(bench, "ls", "--json", "--plate-id-full", "20586__2016-Measurement1") == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == len(files) and "is plate_id_full '20586__2016-Measurement1' right?" in told.err
