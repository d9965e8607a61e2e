"""Does an object hold the bytes that were archived? By the cheapest proof there is; in the end by reading it.

Invariant: an ETag proves something only where it is equal, or where both are MD5s: with parts, SSE-KMS or SSE-C it says
nothing of the content. Deletion does not ask here: to it, another ETag or version is another object (compare.py).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from include.core.errors import VerificationError
from include.plates.models import MIB, ManifestMember
from include.s3.bucket import Bucket, Head
from include.s3.checksums import Digester, Digests, plain_md5, whole_checksum
from include.s3.headers import SHA256_METADATA

_READ = 8 * MIB


async def same_bytes(bucket: Bucket, there: Head, member: ManifestMember, *, by_metadata: bool) -> str | None:
    """How it is proved that the object holds the member's bytes; None where it does not, or nothing can tell.

    `by_metadata` accepts the sha256 that a restore keeps with what it writes: a statement, not a proof of the store's.
    Raises VerificationError for an object that would have to be read and lies in cold storage, and the core's errors.
    """
    if there.size != member.size:
        return None
    if there.etag and there.etag == member.etag:
        return "by its ETag"
    if not member.size:
        return "by its size, which is none"
    told = _by_checksum(there.checksum, member)
    # Both look like MD5s, and they differ: so do the bytes, unless the archived ETag was none.
    unlike = plain_md5(there.etag) and plain_md5(member.etag) and there.encryption in (None, "AES256")
    if told is None and unlike and member.etag_is_md5:
        told = False
    if told is not None:
        return "by the store's checksum" if told else None
    if by_metadata and not unlike and member.sha256 and there.metadata.get(SHA256_METADATA) == member.sha256:
        return "by the sha256 kept with it"
    return "by reading it" if await _read_alike(bucket, there, member) else None


def member_of_row(row: Mapping[str, Any]) -> ManifestMember:
    """As much of a manifest's raw row as a comparison needs."""
    place = (row["name"], row["size"], row["header_offset"], row["data_offset"], row["modified"])
    names = ("key", "etag", "checksum", "sha256", "crc64nvme")
    known: dict[str, Any] = {name: row.get(name) for name in names}
    known["etag_is_md5"] = bool(row.get("etag_is_md5"))
    return ManifestMember(*place, **known)


def _by_checksum(stored: str | None, member: ManifestMember) -> bool | None:
    """None where the store holds no checksum that can be compared with one of the manifest's."""
    whole = whole_checksum(stored)
    if whole is None:
        return (
            True if stored is not None and stored == member.checksum else None
        )  # of parts: another cut is no other content
    algorithm, value = whole
    known = whole_checksum(member.checksum)
    if algorithm == "CRC64NVME" and member.crc64nvme is not None:
        return value == member.crc64nvme
    if algorithm == "SHA256" and member.sha256 is not None:
        return value == base64.b64encode(bytes.fromhex(member.sha256)).decode()
    return value == known[1] if known is not None and known[0] == algorithm else None


async def _read_alike(bucket: Bucket, there: Head, member: ManifestMember) -> bool:
    if member.sha256 is None and whole_checksum(member.checksum) is None and not plain_md5(member.etag):
        return False
    if there.cold:
        raise VerificationError(
            f"s3://{bucket.name}/{there.key} lies in cold storage and cannot be compared: restore it"
        )
    digester = digester_for(member)
    for start in range(0, there.size, _READ):
        length = min(_READ, there.size - start)
        data = await bucket.read(
            there.key, start, length, etag=there.etag, size=there.size, version_id=there.version_id
        )
        await digester.update(memoryview(data))
    return agrees(member, digester.result())


def digester_for(member: ManifestMember) -> Digester:
    """What computes all that the member can be compared by."""
    known = whole_checksum(member.checksum)
    return Digester(md5=member.sha256 is None and plain_md5(member.etag), stored=known[0] if known else None)


def agrees(member: ManifestMember, got: Digests) -> bool:
    """Whether these are the digests of the member: SHA-256, or for one that the store copied its source's own checksum."""
    if member.sha256 is not None:
        return got.size == member.size and got.sha256 == member.sha256
    known = whole_checksum(member.checksum)
    alike = bool(known and got.stored == known[1]) or (got.md5 is not None and got.md5 == member.etag)
    return got.size == member.size and alike
