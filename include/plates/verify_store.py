"""Proves a tarball without reading it: its CRC64NVME, which the store keeps, follows from those of its sources.

CRC64NVME of a whole follows from the CRCs and lengths of its pieces. The pieces are the headers, which follow from the
manifest's rows; the sources, whose CRC the store of the plates names (an object without one is read); and zeros.

Invariant: like verify_tar.py this may not import the archiver's code: it makes the headers by itself, and asks both
stores itself. It believes what a store says of an object that it holds, so it is a weaker proof than reading: a bit that
flipped at rest, after the store had computed its checksum, is found by reading alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from awscrt import checksums

from include.core.concurrency import prefetch
from include.core.progress import OnProgress, Progress
from include.plates.verify_evidence import Evidence
from include.plates.verify_tar import TarScanner
from include.s3.bucket import Bucket, Head
from include.s3.errors import SourceChanged

_BLOCK = 512
_CHUNK = 8 * 1024 * 1024
_AT_ONCE = 16
_USTAR_LIMIT = 8**11
_LONGEST_HEADER = 64 * 1024  # a key of S3 has at most 1,024 bytes


@dataclass
class StoreProof:
    """What was compared: sources by the store's checksum, sources that were read, and what is wrong."""

    by_checksum: int = 0
    read: int = 0
    wrong: list[str] = field(default_factory=list)
    crc: str = ""


def provable(volume: Evidence, there: Head) -> bool:
    """Whether a tarball can be proved so: not compressed, and the store keeps one CRC64NVME over the whole of it."""
    return volume.head["compression"] == "none" and _whole_crc(there) is not None


async def prove_by_checksums(
    volume: Evidence, there: Head, source: Bucket, archive: Bucket, on_progress: OnProgress
) -> StoreProof:
    """Compares the CRC64NVME that the store keeps of a tarball with the one that must be its own."""
    proof = StoreProof()
    at = 0
    for row in volume.rows:  # the rows must tile the tarball; else no sum says anything
        if row["header_offset"] != at or not at < row["data_offset"] <= at + _LONGEST_HEADER or row["size"] < 0:
            proof.wrong.append(f"{row['name']} does not begin where the member before it ends")
            return proof
        at = row["data_offset"] + row["size"] + -row["size"] % _BLOCK
    if at + 2 * _BLOCK != there.size:
        proof.wrong.append(f"{there.size} bytes are stored, the members need {at + 2 * _BLOCK}")
        return proof

    async def one(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
        lead = row["data_offset"] - row["header_offset"]
        return await _header(row, volume, there, archive), lead, await _content(row, source, proof), row["size"]

    crc = done = 0
    jobs = ((1, functools.partial(one, row)) for row in volume.rows)
    async with aclosing(prefetch(jobs, budget=_AT_ONCE, count=_AT_ONCE)) as pieces:
        async for head, lead, body, size in pieces:
            crc = _join(_join(crc, head, lead), body, size)
            crc = _join(crc, _crc(bytes(-size % _BLOCK)), -size % _BLOCK)
            done += 1
            on_progress(Progress("verify", 0, 0, done, len(volume.rows), volume.key))
    proof.crc = _text(_join(crc, _crc(bytes(2 * _BLOCK)), 2 * _BLOCK))
    if not proof.wrong and proof.crc != _whole_crc(there):
        proof.wrong.append(
            "the CRC64NVME that the store keeps of it is not the one that follows from its sources: a member is another's, "
            "stale, short or damaged (read it back to learn which)"
        )
    return proof


async def _content(row: Mapping[str, Any], source: Bucket, proof: StoreProof) -> int:
    """The CRC of a source as it lies there now; it must be the object of the manifest's row."""
    key = row.get("key")
    if key is None or not row["size"]:
        return 0
    there = await source.head(key, row.get("version_id"))
    if there is None or (there.etag, there.size) != (row.get("etag"), row["size"]):
        proof.wrong.append(f"{key} is not the object that was archived")
        return 0
    stored = _whole_crc(there)
    if stored is not None:
        proof.by_checksum += 1
        return int.from_bytes(base64.b64decode(stored), "big")
    crc, md5 = 0, hashlib.md5(usedforsecurity=False)
    for start in range(0, row["size"], _CHUNK):
        length = min(_CHUNK, row["size"] - start)
        try:
            data = await source.read(
                key, start, length, etag=there.etag, size=there.size, version_id=row.get("version_id")
            )
        except SourceChanged:
            proof.wrong.append(f"{key} changed while it was read")
            return 0
        crc = int(checksums.crc64nvme(memoryview(data), crc))
        md5.update(memoryview(data))
    proof.read += 1
    plain = re.fullmatch("[0-9a-f]{32}", there.etag) and there.encryption in (None, "AES256")
    if plain and md5.hexdigest() != there.etag:
        proof.wrong.append(f"{key}: the MD5 of the bytes read is not its ETag")
    return crc


async def _header(row: Mapping[str, Any], volume: Evidence, there: Head, archive: Bucket) -> int:
    """The CRC of a member's header: made from the row; one that ustar cannot hold is read from the tarball."""
    made = ustar_header(row["name"], row["size"], row["modified"])
    length = row["data_offset"] - row["header_offset"]
    if made is not None:
        return _crc(made) if len(made) == length else -1
    start = row["header_offset"]
    data = bytes(
        await archive.read(volume.key, start, length, etag=there.etag, size=there.size, version_id=there.version_id)
    )
    scanner = TarScanner()
    scanner.feed(memoryview(data))
    said = scanner.opened
    same = (said.get("name"), said.get("size"), said.get("modified")) == (row["name"], row["size"], row["modified"])
    return _crc(data) if same and said["data_offset"] == length else -1


def ustar_header(name: str, size: int, modified: int) -> bytes | None:
    """A member's header block (POSIX.1-2008, "ustar"), with owner 0 and fixed modes; None where it cannot hold it."""
    folder = name.endswith("/")
    path = name.rstrip("/") + "/" if folder else name
    fields = _split(path)
    if fields is None or not 0 <= modified < _USTAR_LIMIT or size >= _USTAR_LIMIT:
        return None
    prefix, last = fields
    numbers = (b"%07o\0" % (0o755 if folder else 0o644), b"%07o\0" % 0, b"%07o\0" % 0)
    sizes = (b"%011o\0" % size, b"%011o\0" % modified)
    block = last.ljust(100, b"\0") + b"".join(numbers + sizes) + b" " * 8 + (b"5" if folder else b"0") + bytes(100)
    block += b"ustar\x0000" + bytes(80) + prefix.ljust(155, b"\0") + bytes(12)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(path: str) -> tuple[bytes, bytes] | None:
    """Prefix and name: the name as long as it fits into 100 bytes, cut at a slash."""
    if not path.isascii():
        return None
    text = path.encode()
    if len(text) <= 100:
        return b"", text
    cut = text.find(b"/", len(text) - 101)
    return None if not 0 < cut <= 155 else (text[:cut], text[cut + 1 :])


def _whole_crc(there: Head) -> str | None:
    algorithm, kind, value = (*(there.checksum or "").split(":", 2), "", "", "")[:3]
    return value if (algorithm, kind) == ("CRC64NVME", "FULL_OBJECT") and value else None


def _crc(data: bytes) -> int:
    return int(checksums.crc64nvme(data))


def _join(first: int, second: int, length: int) -> int:
    if second < 0 or first < 0:
        return -1  # something before is not as it must be: the whole cannot be either
    return int(checksums.combine_crc64nvme(first, second, length)) if length else first


def _text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode() if crc >= 0 else ""


__all__: Sequence[str] = ("StoreProof", "provable", "prove_by_checksums", "ustar_header")
