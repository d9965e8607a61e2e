"""Digests: SHA-256, MD5 and CRC64NVME of what passes through, and CRC64NVME of a whole from that of its pieces.

Invariant: S3 writes a CRC as base64 of its big-endian bytes (docs/protocols/s3.md 3.2); awscrt gives an int. Large buffers
are hashed in threads (hashlib and awscrt release the GIL); below `INLINE_BYTES` the thread's hop costs more than the hash.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from awscrt import checksums as crt

INLINE_BYTES = 128 * 1024


def crc64nvme(data: bytes | bytearray | memoryview, previous: int = 0) -> int:
    return int(crt.crc64nvme(data, previous))


def crc64nvme_of(pieces: Iterable[bytes | memoryview]) -> int:
    crc = 0
    for piece in pieces:
        crc = crc64nvme(piece, crc)
    return crc


def feed(update: Callable[[bytes | memoryview], object], pieces: Iterable[bytes | memoryview]) -> None:
    """All pieces in order, for a thread to do in one go."""
    for piece in pieces:
        update(piece)


def combine(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC64NVME of a whole from (crc, length) of its pieces in order."""
    total = 0
    for crc, length in pieces:
        total = int(crt.combine_crc64nvme(total, crc, length))
    return total


def encode(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def decode(text: str) -> int:
    return int.from_bytes(base64.b64decode(text), "big")


@dataclass(frozen=True, slots=True)
class Digests:
    """`stored` is the digest in the algorithm of the store's own checksum, base64, where it holds one."""

    sha256: str
    md5: str | None
    crc64nvme: str
    size: int
    stored: str | None = None


class Digester:
    """One member's digests, fed in order. MD5 only where there is an ETag that it can be compared with.

    `stored` names the algorithm of a checksum that the store holds of the whole object (CRC32, CRC32C, SHA1, SHA256,
    CRC64NVME), so that what was read can be compared with it.
    """

    def __init__(self, *, md5: bool, stored: str | None = None):
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._sha1 = hashlib.sha1(usedforsecurity=False) if stored == "SHA1" else None
        self._crc32 = {"CRC32": crt.crc32, "CRC32C": crt.crc32c}.get(stored or "")
        self._stored = stored
        self._small = 0
        self._crc = 0
        self._size = 0

    def feed(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        if self._md5 is not None:
            self._md5.update(data)
        if self._sha1 is not None:
            self._sha1.update(data)
        if self._crc32 is not None:
            self._small = int(self._crc32(data, self._small))
        self._crc = crc64nvme(data, self._crc)
        self._size += len(data)

    async def update(self, data: bytes | memoryview) -> None:
        if len(data) <= INLINE_BYTES:
            self.feed(data)
        else:
            await asyncio.to_thread(self.feed, data)

    def result(self) -> Digests:
        md5 = self._md5.hexdigest() if self._md5 is not None else None
        return Digests(self._sha256.hexdigest(), md5, encode(self._crc), self._size, self._in_stored_terms())

    def _in_stored_terms(self) -> str | None:
        if self._sha1 is not None:
            return base64.b64encode(self._sha1.digest()).decode()
        if self._crc32 is not None:
            return base64.b64encode(self._small.to_bytes(4, "big")).decode()
        if self._stored == "SHA256":
            return base64.b64encode(self._sha256.digest()).decode()
        return encode(self._crc) if self._stored == "CRC64NVME" else None


def whole_checksum(checksum: str | None) -> tuple[str, str] | None:
    """(algorithm, base64) of a checksum over the whole object; None for a composite one, which covers parts only."""
    if checksum is None:
        return None
    algorithm, _, rest = checksum.partition(":")
    kind, _, value = rest.partition(":")
    return (algorithm, value) if kind == "FULL_OBJECT" and value else None


def plain_md5(etag: str | None) -> bool:
    """Whether an ETag can be an MD5 at all: 32 hex digits, no part count. With KMS it looks so and is not."""
    return etag is not None and len(etag) == 32 and all(c in "0123456789abcdef" for c in etag)
