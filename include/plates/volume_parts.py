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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import isal
import zstandard
from isal import isal_zlib

from include.plates.models import ArchiveSettings, Compression
from include.plates.store_copy_plan import Body, Joined, Sent, cut, plan_copies
from include.plates.tar_format import PlannedMember

_ISAL_LEVELS = range(1, 4)

Codec = Callable[[memoryview], bytes]


@dataclass(frozen=True, slots=True)
class RawPart:
    """A part of an uncompressed volume. `copy` is what the store copies it from, None for bytes we send."""

    number: int
    start: int
    end: int
    copy: Body | Joined | None = None


def cut_raw(members: Sequence[PlannedMember], total: int, settings: ArchiveSettings) -> list[RawPart]:
    """The parts of an uncompressed volume: stretches of `part_bytes`, and copies of large members where asked for."""
    if settings.copy_by == "server":
        spans = plan_copies(members, total, settings.part_bytes)
    else:
        spans = [(piece.start, piece.end, piece) for piece in cut(0, total, settings.part_bytes)]
    return [
        RawPart(number, start, end, None if isinstance(piece, Sent) else piece)
        for number, (start, end, piece) in enumerate(spans, start=1)
    ]


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
