"""Cuts a volume into upload parts, and its bytes into compressed groups.

Know before changing: without compression the cut is known before anything is read. With compression a part ends with the
first group that brings it to `part_bytes`, so it depends on the content only; the journal says where each part began, and
`codec_name` is in the journal because another zlib would cut elsewhere. Every part but the last has at least 5 MiB.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import zstandard

from include.plates.checksums import plain_md5, whole_checksum
from include.plates.models import GIB, MIB, ArchiveSettings, Compression, SourceObject
from include.plates.tarformat import PlannedMember

MIN_PART = 5 * MIB
MAX_COPY = 5 * GIB

Codec = Callable[[memoryview], bytes]


@dataclass(frozen=True, slots=True)
class RawPart:
    """A part of an uncompressed volume. `copy` is the member whose bytes the store copies, None for bytes we send."""

    number: int
    start: int
    end: int
    copy: int | None = None


def provable(source: SourceObject) -> bool:
    """Whether a member that we never read could still be verified: the store holds a checksum of the whole, or an MD5."""
    return whole_checksum(source.checksum) is not None or plain_md5(source.etag)


def cut_raw(members: Sequence[PlannedMember], total: int, settings: ArchiveSettings) -> list[RawPart]:
    """The parts of an uncompressed volume: stretches of `part_bytes`, and copies of large members where asked for."""
    spans: list[tuple[int, int, int | None]] = []
    at = 0
    if settings.copy_from_bytes is not None and settings.compression == "none":
        for index, member in enumerate(members):
            source = member.source
            if source is None or member.size < settings.copy_from_bytes or not provable(source):
                continue
            # What is sent before a copy must end in a part of at least 5 MiB: it borrows from the member's start.
            rest = (member.data_offset - at) % settings.part_bytes
            begin = member.data_offset + (MIN_PART - rest if rest < MIN_PART else 0)
            if member.data_end - begin < MIN_PART:
                continue
            spans += [(at, begin, None), *_copies(begin, member.data_end, index)]
            at = member.data_end
    spans.append((at, total, None))
    return [RawPart(number, *span) for number, span in enumerate(_pieces(spans, settings.part_bytes), start=1)]


def _copies(start: int, end: int, index: int) -> Iterator[tuple[int, int, int | None]]:
    count = -(-(end - start) // MAX_COPY)
    size = -(-(end - start) // count)
    for at in range(start, end, size):
        yield at, min(at + size, end), index


def _pieces(spans: Sequence[tuple[int, int, int | None]], part_bytes: int) -> Iterator[tuple[int, int, int | None]]:
    for start, end, copy in spans:
        if copy is not None:
            yield start, end, copy
            continue
        for at in range(start, end, part_bytes):
            yield at, min(at + part_bytes, end), None


def codec(settings: ArchiveSettings) -> Codec | None:
    """Turns a group into one gzip member or one zstd frame; None where nothing is compressed."""
    if settings.compression == "none":
        return None
    level = settings.level
    return (lambda data: _gzip(data, level)) if settings.compression == "gzip" else (lambda data: _zstd(data, level))


def _gzip(data: memoryview, level: int) -> bytes:
    # wbits 31: a gzip header without name and time. "OS" is set by zlib and is the same on every Unix.
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _zstd(data: memoryview, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(data)


def codec_name(compression: Compression) -> str:
    if compression == "none":
        return "none"
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if compression == "gzip" else f"zstd {zstandard.ZSTD_VERSION}"
