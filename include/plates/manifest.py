"""Writes and reads manifests: JSON Lines in zstd, the head, then the frames, then one line per member.

Invariant: the bytes are a pure function of the archive (no clock), because a crash between tarball and manifest
is healed by writing the same manifest again. The verifier has a reader of its own and must not use this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import zstandard

from include.core.errors import VerificationError
from include.core.packed import Packed
from include.plates.layout import manifest_key
from include.plates.manifest_lines import checked_lines
from include.plates.models import Frame, Manifest, ManifestHead, ManifestMember
from include.s3.bucket import Bucket

_FIELDS = tuple(field.name for field in dataclasses.fields(ManifestMember))


def encode_manifest(head: ManifestHead, frames: Sequence[Frame], members: Iterable[ManifestMember]) -> bytes:
    packer = zstandard.ZstdCompressor(level=9, write_content_size=False).compressobj()
    out = bytearray(packer.compress(_line(_head_row(head))))
    for frame in frames:
        out += packer.compress(_line({"frame": dataclasses.astuple(frame)}))
    for member in members:
        out += packer.compress(_line(_member_row(member)))
    return bytes(out + packer.flush())


def _head_row(head: ManifestHead) -> dict[str, Any]:
    later = {"headers_unknown", "tags_unknown"} if head.waybill_manifest == 1 else None
    return head.model_dump(mode="json", exclude=later)


def _member_row(member: ManifestMember) -> dict[str, Any]:
    row = {name: value for name in _FIELDS if (value := getattr(member, name)) is not None}
    headers = dict(row.pop("headers"))
    return row | {"headers": headers} if headers else row


def _line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises VerificationError for anything that is not a whole manifest of this format."""
    try:
        lines = checked_lines(data)
        head = ManifestHead.model_validate(next(lines))
        frames: list[Frame] = []
        members = Packed(ManifestMember)
        for row in lines:
            if "name" in row:
                members.append(_member(row, head))
                if len(members) > head.members:
                    break
            else:
                frames.append(_frame(row, frames[-1] if frames else Frame(0, 0, 0, 0)))
        _check_whole(head, frames)
    except (zstandard.ZstdError, ValueError, TypeError, LookupError, StopIteration) as error:
        raise VerificationError(f"this is no whole manifest ({type(error).__name__})") from None
    if len(members) != head.members:
        raise VerificationError(f"the manifest promises {head.members} members and holds {len(members)}")
    return Manifest(head=head, frames=tuple(frames), members=members, sha256=hashlib.sha256(data).hexdigest())


def _frame(row: dict[str, Any], before: Frame) -> Frame:
    """Raises ValueError for one that does not begin where the one before it ends."""
    frame = Frame(*row["frame"])
    ends = (before.offset + before.length, before.raw_offset + before.raw_length)
    if (frame.offset, frame.raw_offset) != ends or not frame.length or not frame.raw_length:
        raise ValueError("frames that do not follow each other")
    return frame


def _check_whole(head: ManifestHead, frames: Sequence[Frame]) -> None:
    """Each byte of the tar can be read by the frames. Raises ValueError, or IndexError, where it cannot."""
    if head.compression == "none":
        whole = not frames and head.stored_bytes == head.raw_bytes
    else:
        last = frames[-1]
        ends = (last.offset + last.length, last.raw_offset + last.raw_length)
        whole = ends == (head.stored_bytes, head.raw_bytes)
    if not whole:
        raise ValueError("frames that are not those of the tarball")


def _member(row: dict[str, Any], head: ManifestHead) -> ManifestMember:
    if row["data_offset"] + row["size"] > head.raw_bytes:
        raise ValueError("a member that does not lie in the tarball")
    frame, headers = row.get("frame"), tuple(row.get("headers", {}).items())
    lists = {"parts": tuple(row["parts"]), "frame": tuple(frame) if frame else None, "headers": headers}
    return ManifestMember(**row | lists)


async def read_manifest(archive: Bucket, key: str) -> Manifest:
    """The manifest of a tarball (or by its own key). Raises NotFound, VerificationError and the core's errors."""
    own = key if key.endswith(".manifest.jsonl.zst") else manifest_key(key)
    return decode_manifest(await archive.read_all(own))
