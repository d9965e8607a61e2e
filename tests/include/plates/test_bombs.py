"""Few stored bytes that unpack to very many: damage, found with bounded memory, by verify and by restore."""

from __future__ import annotations

import gzip
import json
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from harness.plates.bench import Bench, run
from harness.plates.servers import noise
from include.core.errors import VerificationError
from include.plates.manifest import decode_manifest
from include.plates.models import GROUP_LIMIT, MIB, Outcome
from include.plates.restore import Restored, _gunzip, _unzstd
from include.plates.restore_target import FolderSink
from include.plates.verify_evidence import parse_manifest
from include.plates.verify_tar import Damaged, TarScanner, Unpacker
from tests.docs import examples
from tests.include.plates.test_archive import MAIN
from tests.include.plates.test_restore import archived, back

RAW = 200 * MIB
MOST = 100 * MIB


def zeros(size: int) -> Iterator[bytes]:
    for _ in range(size // MIB):
        yield bytes(MIB)


def gzip_bomb(size: int = RAW) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(piece) for piece in zeros(size)]) + packer.flush()


def zstd_bomb(size: int = RAW) -> bytes:
    packer = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    return b"".join([packer.compress(piece) for piece in zeros(size)]) + packer.flush()


def zstd_run_bomb(size: int = RAW) -> bytes:
    """By hand: blocks of 4 bytes, each of them 128 KiB of one byte. No bomb is denser."""
    block = 128 * 1024
    last, run_of = 1, 1
    header = b"\x28\xb5\x2f\xfd\x00\x38"  # no content size, a window of 128 KiB
    blocks = [(block << 3 | run_of << 1).to_bytes(3, "little") + b"\0"] * (size // block - 1)
    return header + b"".join(blocks) + (block << 3 | run_of << 1 | last).to_bytes(3, "little") + b"\0"


def lying_bomb() -> bytes:
    """Its header says that it holds 200 MB, which a reader might make room for."""
    return zstandard.ZstdCompressor(level=1).compress(bytes(RAW))


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip": ("gzip", gzip_bomb),
    "zstd": ("zstd", zstd_bomb),
    "zstd runs": ("zstd", zstd_run_bomb),
    "zstd that says so": ("zstd", lying_bomb),
}
bombs = pytest.mark.parametrize("bomb", BOMBS)


@contextmanager
def bounded(most: int = MOST) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@bombs
def test_a_frame_of_more_than_a_group_is_damage_and_not_unpacked_further(bomb: str):
    compression, make = BOMBS[bomb]
    data = make()
    assert len(data) < 1_500_000
    unpacker, seen = Unpacker(compression, GROUP_LIMIT), 0
    with bounded(), pytest.raises(Damaged, match="holds more than the 16777216 bytes"):
        for piece in unpacker.feed(memoryview(data)):
            seen += len(piece)
    assert seen <= GROUP_LIMIT


@bombs
def test_without_a_limit_it_comes_in_pieces(bomb: str):
    compression, make = BOMBS[bomb]
    data = make()
    unpacker, seen = Unpacker(compression), 0
    with bounded():
        for piece in unpacker.feed(memoryview(data)):
            seen += len(piece)
    unpacker.close()
    assert seen == RAW and unpacker.frames == [(0, len(data), 0, RAW)]


@bombs
def test_restore_unpacks_no_more_than_the_manifest_says(bomb: str):
    compression, make = BOMBS[bomb]
    data = memoryview(make())
    with bounded(), pytest.raises((ValueError, zstandard.ZstdError)):
        (_gunzip if compression == "gzip" else _unzstd)(data, 4 * MIB)


@pytest.mark.parametrize("raw_length", [999, 1001])
def test_a_frame_is_exactly_as_long_as_the_manifest_says(raw_length: int):
    data = noise("frame", 1000)
    for pack, unpack in ((gzip.compress, _gunzip), (zstandard.ZstdCompressor().compress, _unzstd)):
        assert unpack(memoryview(pack(data)), 1000) == data
        for wrong in (pack(data), pack(data) + pack(b"")):
            with pytest.raises((ValueError, zstandard.ZstdError)):
                unpack(memoryview(wrong), raw_length)


def test_a_bomb_in_place_of_a_tarball_is_a_mismatch(bench: Bench):
    one = archived(bench)
    data = gzip_bomb()
    bench.client.put_object(Bucket=bench.cold, Key=f"{MAIN}.tar.gz", Body=data)
    with bounded():
        verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "holds more than" in "".join(verdict.reasons)


def test_a_bomb_of_the_right_size_fails_the_files_in_it(bench: Bench, tmp_path: Path):
    one = archived(bench)
    key = f"{MAIN}.tar.gz"
    size = len(bench.get(key))
    body = (gzip_bomb() + bytes(size))[:size]
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=body)
    with bounded(150 * MIB):
        report = back(bench, one, FolderSink(tmp_path), parts=["images"])
    assert {f.result for f in report.files if f.size} == {Restored.FAILED}


def test_more_members_than_the_manifest_names_are_not_read_on():
    scanner = TarScanner(2)
    block = tarfile.TarInfo("f").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    with pytest.raises(Damaged, match="more than the 2 members"):
        scanner.feed(memoryview(block * 1000))
    assert len(scanner.found) == 2


def test_an_extended_header_of_gigabytes_is_damage():
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    block = info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    with pytest.raises(Damaged, match="extended header of 3221225472 bytes"):
        TarScanner().feed(memoryview(block))


# Manifests


def manifest_of(rows: Iterator[bytes]) -> bytes:
    packer = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    head = decode_manifest(examples.manifest()).head.model_dump(mode="json") | {"members": 10**9}
    lines = [packer.compress(json.dumps(head).encode() + b"\n")]
    lines += [packer.compress(row) for row in rows]
    return b"".join(lines) + packer.flush()


def one_endless_line() -> Iterator[bytes]:
    yield b'{"name": "'
    yield from (b"x" * MIB for _ in range(200))


def alike_frames() -> Iterator[bytes]:
    row = b'{"frame":[0,0,0,0]}\n'
    yield from (row * (MIB // len(row)) for _ in range(200))


def alike_rows() -> Iterator[bytes]:
    row = b'{"name":"n","size":0,"header_offset":0,"data_offset":0,"modified":0,"parts":[0,0]}\n'
    yield from (row * (MIB // len(row)) for _ in range(40))


MANIFEST_BOMBS = {"one line": one_endless_line, "frames": alike_frames, "rows": alike_rows}


@pytest.mark.parametrize("bomb", MANIFEST_BOMBS)
@pytest.mark.parametrize(
    "read", [decode_manifest, lambda data: parse_manifest("key", data)], ids=["archiver", "verifier"]
)
def test_a_manifest_that_unpacks_to_very_much_is_none_and_takes_little_memory(
    bomb: str, read: Callable[[bytes], object]
):
    data = manifest_of(MANIFEST_BOMBS[bomb]())
    assert len(data) < 100_000
    with bounded(60 * MIB), pytest.raises(VerificationError, match="whole"):
        read(data)
