"""Headers, places, cuts: pure functions, checked against Python's tarfile and against the verifier's own scanner."""

from __future__ import annotations

import dataclasses
import gzip
import io
import random
import tarfile
import zlib
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.plates.servers import plate
from include.core.errors import VerificationError
from include.plates import volume_parts as cutting
from include.plates.layout import BROAD2018, volume_digest
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.models import GIB, MIB, ArchiveSettings, Frame, ManifestHead, ManifestMember, SourceObject
from include.plates.plan import folders_of, key_problems, plan_volumes
from include.plates.tar_format import (
    END_MARKER,
    PlacedMembers,
    folder_time,
    header,
    header_length,
    member_rows,
    padding,
    place,
)
from include.plates.verify_evidence import parse_manifest, plan_digest
from include.plates.verify_tar import Damaged, TarScanner, Unpacker
from include.s3 import checksums

WORDS = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=120).filter(
    lambda word: word not in (".", "..")
)
NAMES = st.lists(WORDS, min_size=1, max_size=4).map("/".join)
SIZES = st.one_of(st.integers(0, 3000), st.integers(0, 12 * GIB))


def source(key: str, size: int, part: str = "images", **more: Any) -> SourceObject:
    return SourceObject(key, size, "0" * 32, 1_500_000_000, part, **more)


def _first(block: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(block + END_MARKER)) as tar:
        info = tar.next()
    assert info is not None
    return info


@given(NAMES, SIZES, st.integers(0, 2**33 - 1))
def test_tarfile_reads_every_header_back(name: str, size: int, modified: int):
    info = _first(header(name, size, modified))
    assert (info.name, info.size, int(info.mtime)) == (name.rstrip("/"), size, modified)
    assert (info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, "", "", 0o644)


PATHS = (
    st.lists(st.text("ab \n", min_size=0, max_size=130), min_size=1, max_size=4)
    .map("/".join)
    .filter(lambda n: n.strip("/"))
)


@given(
    st.one_of(PATHS, NAMES),
    st.integers(0, 9 * GIB),
    st.one_of(st.integers(-5, 2**31), st.integers(8**11 - 2, 8**11 + 2)),
)
@example("d" * 155 + "/" + "f" * 100, 8 * GIB - 1, 0)
@example("d" * 156 + "/" + "f" * 99, 1, 0)
@example("d" * 120 + "/", 0, 5)
@example("d" * 100 + "/", 0, 5)
@example("/" + "f" * 100, 1, 5)
def test_a_header_is_the_one_that_tarfile_makes_to_the_byte(name: str, size: int, modified: int):
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mtime, info.size, info.mode = modified, size, 0o644
    if name.endswith("/"):
        info.type, info.size, info.mode = tarfile.DIRTYPE, 0, 0o755
    try:
        expected = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except (ValueError, UnicodeEncodeError):
        expected = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    assert header(name, size, modified) == expected
    assert header_length(name, size, modified) == len(expected)


@given(NAMES)
def test_pax_is_used_only_where_ustar_cannot_say_it(name: str):
    block = header(name, 5, 0)
    needs = not name.isascii() or len(name) > 256
    if needs:
        assert len(block) > 512
    if name.isascii() and len(name) <= 100:
        assert len(block) == 512


@pytest.mark.parametrize(("size", "length"), [(8 * GIB - 1, 512), (8 * GIB, 1536)])
def test_pax_starts_at_eight_gibibytes(size: int, length: int):
    assert len(header("a", size, 0)) == length


def test_a_key_of_more_than_255_bytes_and_a_splittable_one():
    assert len(header("d" * 150 + "/" + "f" * 100, 1, 0)) == 512
    assert len(header("d" * 200 + "/" + "f" * 100, 1, 0)) > 512


def test_a_folder_has_its_own_type():
    info = _first(header("a/b/", 0, 7))
    assert info.isdir() and info.mode == 0o755


@given(st.sets(NAMES, max_size=12), st.integers(0, 9 * GIB))
def test_members_placed_on_demand_are_those_placed_at_once(names: set[str], size: int):
    objects = [source(f"projects/x/{name}", size) for name in sorted(names, key=str.encode)]
    rows = list(member_rows(BROAD2018, "T", ["projects/x/"], objects))
    planned = list(place(rows, folder_time(objects)))
    ordered = [row for _, row in rows if row is not None]
    placed = PlacedMembers(BROAD2018, "T", ["projects/x/"], ordered)
    assert list(placed) == planned == placed[:] and placed[-1] == planned[-1]


def test_members_of_a_plan_out_of_order_are_refused():
    with pytest.raises(VerificationError, match="not in order"):
        PlacedMembers(BROAD2018, "T", [], [source("projects/b", 1), source("projects/a", 1)])


FILES = st.dictionaries(NAMES, st.binary(max_size=2000), max_size=8)


def build(files: dict[str, bytes]) -> bytes:
    rows = sorted(files, key=str.encode)
    out = b"".join(header(n, len(files[n]), 3) + files[n] + bytes(padding(len(files[n]))) for n in rows)
    return out + END_MARKER


@given(FILES, st.integers(1, 4000))
def test_the_scanner_finds_exactly_what_was_written_however_it_is_fed(files: dict[str, bytes], step: int):
    scanner, data = TarScanner(), build(files)
    for at in range(0, len(data), step):
        scanner.feed(memoryview(data)[at : at + step])
    scanner.close()
    assert [(f.name, f.size) for f in scanner.found] == [(n, len(files[n])) for n in sorted(files, key=str.encode)]
    planned = list(place([(n, source(n, len(files[n]))) for n in sorted(files, key=str.encode)], 0))
    if all(len(header(n, len(files[n]), 3)) == len(header(n, len(files[n]), 1_500_000_000)) for n in files):
        assert [(f.header_offset, f.data_offset) for f in scanner.found] == [
            (m.header_offset, m.data_offset) for m in planned
        ]


@given(FILES.filter(bool), st.randoms(use_true_random=False))
def test_the_scanner_never_takes_a_changed_tar_for_the_same(files: dict[str, bytes], rng: random.Random):
    data = bytearray(build(files))
    good = _scan(bytes(data))
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    try:
        assert _scan(bytes(data)) != good
    except (Damaged, ValueError):
        pass


@pytest.mark.parametrize("at", range(148, 156))
@pytest.mark.parametrize("bit", range(8))
def test_no_bit_of_a_header_s_own_checksum_may_differ(at: int, bit: int):
    data = bytearray(build({"a": b"b"}))
    data[at] ^= 1 << bit
    with pytest.raises((Damaged, ValueError)):
        _scan(bytes(data))


def _scan(data: bytes) -> list[Any]:
    scanner = TarScanner()
    scanner.feed(memoryview(data))
    scanner.close()
    return scanner.found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d[:-512],
        lambda d: d[:-1],
        lambda d: d + bytes(512),
        lambda d: d + b"x",
        lambda d: d[:1024] + bytes(512) + d[1024:],
        lambda d: d[:700],
    ],
    ids=["one end block", "short", "third end block", "trailing byte", "zero block inside", "cut in a member"],
)
def test_the_scanner_accounts_for_every_byte(spoil: Any):
    with pytest.raises(Damaged):
        _scan(spoil(build({"a": b"1" * 512, "b": b"2"})))


def test_the_scanner_refuses_links_and_devices():
    info = tarfile.TarInfo("a")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(Damaged, match="only files and folders"):
        _scan(info.tobuf(tarfile.USTAR_FORMAT) + END_MARKER)


@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=6), st.integers(1, 500))
def test_the_unpacker_sees_every_frame_where_it_lies(groups: list[bytes], step: int):
    for compression in ("gzip", "zstd"):
        pack = cutting.codec(ArchiveSettings(compression=compression))
        assert pack is not None
        frames = [pack(memoryview(group)) for group in groups]
        data, unpacker = b"".join(frames), Unpacker(compression)
        out = b"".join(
            bytes(p) for at in range(0, len(data), step) for p in unpacker.feed(memoryview(data)[at : at + step])
        )
        unpacker.close()
        assert out == b"".join(groups)
        assert [(f[1], f[3]) for f in unpacker.frames] == [
            (len(f), len(g)) for f, g in zip(frames, groups, strict=True)
        ]


def test_compressed_bytes_hold_no_clock_and_no_name():
    pack = cutting.codec(ArchiveSettings(compression="gzip"))
    assert pack is not None
    assert pack(memoryview(b"abc"))[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    assert zlib.decompress(pack(memoryview(b"abc")), 31) == b"abc"


@pytest.mark.parametrize("level", range(10))
def test_every_gzip_level_is_one_plain_gzip_member_and_named_after_what_wrote_it(level: int):
    pack = cutting.codec(ArchiveSettings(compression="gzip", level=level))
    assert pack is not None
    data = b"".join(n.to_bytes(2, "big") for n in range(0, 60_000, 7)) * 9
    assert gzip.decompress(pack(memoryview(data))) == data
    assert pack(memoryview(data)) == pack(memoryview(bytearray(data)))
    assert cutting.codec_name("gzip", level).split()[0] == ("isal" if 1 <= level <= 3 else "zlib")


@given(st.lists(st.integers(0, 700_000), min_size=1, max_size=25))
@settings(max_examples=40)
def test_volumes_split_on_members_and_hold_every_object_once(sizes: list[int]):
    one = plate()
    root = BROAD2018.parts[0].prefix.format(project=one.project, batch=one.batch, plate_id_full=one.plate_id_full)
    objects = [source(f"{root}d{n % 3}/f{n:03}", size) for n, size in enumerate(sizes)]
    chosen = ArchiveSettings(compression="none", volume_bytes=MIB)
    volumes = [v for v in plan_volumes(one, BROAD2018, chosen, objects) if v.tarball != "backend"]
    assert [o.key for v in volumes for o in v.objects] == sorted((o.key for o in objects), key=str.encode)
    for volume in volumes:
        assert volume.raw_bytes <= MIB or len(volume.objects) == 1
        assert volume.of == len(volumes)
    assert len({volume.digest for volume in volumes}) == len(volumes)


def test_every_folder_gets_a_member_also_of_an_empty_part():
    assert folders_of(["r/x/", "r/y/"], [source("r/x/a/b/f", 1)]) == ["r/x/", "r/x/a/", "r/x/a/b/", "r/y/"]


def test_a_folder_marker_is_its_own_member():
    assert folders_of(["r/x/"], [source("r/x/", 0), source("r/x/a/", 0), source("r/x/a/f", 1)]) == []


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["r/a//b"], "empty or dot segments"),
        (["r/../b"], "empty or dot segments"),
        (["r/a", "r/a/b"], "file and a folder"),
    ],
)
def test_names_that_no_tar_can_give_back_are_found_up_front(keys: list[str], why: str):
    assert why in key_problems([source(key, 1) for key in keys])[0]


def test_a_folder_marker_with_content_is_found_up_front():
    assert "hold data" in key_problems([source("r/a/", 3)])[0]


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_crcs_of_pieces_combine_to_that_of_the_whole(data: bytes, step: int):
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    whole = checksums.combine((checksums.crc64nvme(piece), len(piece)) for piece in pieces)
    assert whole == checksums.crc64nvme(data)
    assert checksums.decode(checksums.encode(whole)) == whole


def manifest_head(**more: Any) -> ManifestHead:
    values: dict[str, Any] = {
        "tag": "T", "project": "p", "batch": "b", "plate_id": "1", "plate_id_full": "1", "bucket": "live",
        "archive_bucket": "cold", "key": "k.tar", "tarball": "backend", "number": 1, "of": 1, "compression": "none",
        "level": 1, "part_bytes": 32 * MIB, "group_bytes": 4 * MIB, "plan_digest": "d", "raw_bytes": 1024,
        "stored_bytes": 1024, "stored_crc64nvme": None, "members": 1, "upload_parts": 1,
    }  # fmt: skip
    return ManifestHead(**(values | more))


def test_a_manifest_reads_back_as_written_and_its_bytes_are_the_same_each_time():
    member = ManifestMember("T/a\nb", 3, 0, 512, 9, key="a\nb", etag="e", sha256="s", parts=(1, 1), frame=(0, 9, 0))
    head = manifest_head(compression="gzip", stored_bytes=9)
    data = encode_manifest(head, [Frame(0, 9, 0, 1024)], [member])
    assert data == encode_manifest(head, [Frame(0, 9, 0, 1024)], [member])
    manifest = decode_manifest(data)
    assert manifest.members == (member,) and manifest.frames == (Frame(0, 9, 0, 1024),)
    assert next(iter(parse_manifest("k", data).rows))["name"] == "T/a\nb"


@pytest.mark.parametrize("cut", [0, 5, 60])
def test_a_torn_manifest_is_refused_by_both_readers(cut: int):
    data = encode_manifest(manifest_head(), [], [ManifestMember("T/a", 3, 0, 512, 9, key="a")])[:cut]
    for read in (decode_manifest, lambda d: parse_manifest("k", d)):
        with pytest.raises(VerificationError):
            read(data)


def test_a_manifest_with_a_row_missing_is_refused_by_both_readers():
    data = encode_manifest(manifest_head(members=2), [], [ManifestMember("T/a", 3, 0, 512, 9, key="a")])
    for read in (decode_manifest, lambda d: parse_manifest("k", d)):
        with pytest.raises(VerificationError):
            read(data)


def test_the_verifier_computes_the_plan_digest_by_itself_and_alike():
    one = dataclasses.replace(source("projects/x é", 3), version_id="v1")
    chosen = ArchiveSettings(compression="zstd", level=3)
    digest = volume_digest("k.tar", chosen, [("T/f/", None), ("T/x é", one)], 77)
    members = [
        ManifestMember("T/f/", 0, 0, 512, 77),
        ManifestMember("T/x é", 3, 512, 1024, one.modified, key=one.key, etag=one.etag, version_id="v1"),
    ]
    head = manifest_head(compression="zstd", level=3, members=2, plan_digest=digest)
    assert plan_digest(parse_manifest("k", encode_manifest(head, [], members))) == digest


def test_zstd_frames_carry_their_own_checksum():
    pack = cutting.codec(ArchiveSettings(compression="zstd"))
    assert pack is not None
    assert zstandard.get_frame_parameters(pack(memoryview(b"abc"))).has_checksum
