"""Cuts a volume into upload parts, and its bytes into compressed groups.

Invariant: without compression the cut is known before anything is read. With compression a part ends with the
first group that brings it to `part_bytes`, so it depends on the content only; the journal says where each part began, and
`codec_name` is in the journal because another codec would cut elsewhere. Every part but the last has at least 5 MiB
(docs/protocols/s3.md 3.1).

gzip of levels 1 to 3 is ISA-L's, which is ten times faster than zlib on camera noise and packs it as well; what it writes
may depend on the processor's instruction sets, so these are part of its name.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import isal
import zstandard
from isal import isal_zlib

from include.plates.models import GIB, MIB, ArchiveSettings, Compression, SourceObject
from include.plates.tar_format import PlannedMember
from include.s3.checksums import plain_md5, whole_checksum

MIN_PART = 5 * MIB
MAX_COPY = 5 * GIB
_ISAL_LEVELS = range(1, 4)

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
    if settings.compression == "zstd":
        return lambda data: _zstd(data, level)
    return (lambda data: _isal(data, level)) if level in _ISAL_LEVELS else (lambda data: _gzip(data, level))


def _isal(data: memoryview, level: int) -> bytes:
    # wbits 31 here too: a gzip header without name and time.
    return isal_zlib.compress(data, level, 31)


def _gzip(data: memoryview, level: int) -> bytes:
    # wbits 31: a gzip header without name and time. "OS" is set by zlib and is the same on every Unix.
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _zstd(data: memoryview, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(data)


def codec_name(compression: Compression, level: int) -> str:
    """What compresses, as exactly as the bytes that it writes depend on it."""
    if compression == "none":
        return "none"
    if compression == "zstd":
        return f"zstd {zstandard.ZSTD_VERSION}"
    return f"isal {isal.ISAL_VERSION} {_processor()}" if level in _ISAL_LEVELS else f"zlib {zlib.ZLIB_RUNTIME_VERSION}"


@functools.cache
def _processor() -> str:
    """The processor's instruction sets, as a digest; its name where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    named = " ".join(sorted(flags)) if flags else f"{platform.machine()} {platform.processor()}"
    return hashlib.sha256(named.encode()).hexdigest()[:12]
