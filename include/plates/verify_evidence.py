"""What the verifier knows of a tarball: its manifest's raw lines, read by code of its own, and what was found on the store.

Invariant: like verify_tar.py this may not import the archiver's writers and readers (manifest, tar_format,
volume_reader). The formats it reads are described where they are written.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from include.core.errors import VerificationError
from include.plates.manifest_lines import checked_lines, manifest_lines
from include.plates.models import Level, ManifestHead
from include.plates.verify_tar import Found
from include.s3.bucket import Head

_KEPT_ROWS = 20_000  # about 30 MB


class Rows:
    """The member rows of a manifest. Many are parsed each time they are gone through: a million of them do not lie in memory."""

    def __init__(self, data: bytes, count: int):
        self._data = data
        self._count = count
        self._kept: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        if self._kept is None and self._count <= _KEPT_ROWS:
            self._kept = list(self._parsed())
        return iter(self._kept) if self._kept is not None else self._parsed()

    def _parsed(self) -> Iterator[dict[str, Any]]:
        return (line for line in manifest_lines(self._data) if "name" in line)


@dataclass
class Evidence:
    """One tarball while it is verified: its manifest's raw lines and what the store says of it."""

    key: str
    manifest_key: str
    manifest_sha256: str
    head: Mapping[str, Any]
    frames: Sequence[Sequence[int]]
    rows: Rows
    there: Head | None = None
    md5: str = ""
    crc: str = ""
    found: Sequence[Found] = ()
    seen_frames: Sequence[tuple[int, int, int, int]] = ()
    level: Level = Level.READ_BACK

    @property
    def objects(self) -> Iterator[Mapping[str, Any]]:
        """The rows of members that an object stands for: all but folders."""
        return (row for row in self.rows if row.get("key") is not None)


def parse_manifest(key: str, data: bytes) -> Evidence:
    try:
        lines = checked_lines(data)
        head = ManifestHead.model_validate(next(lines)).model_dump()
        frames, count = [], 0
        for line in lines:
            if "name" in line:
                count += 1
            else:
                frames.append([int(number) for number in line["frame"]])
                if len(frames) > 1 and frames[-1][2] <= frames[-2][2]:
                    raise ValueError("frames that do not follow each other")
        if head["waybill_manifest"] not in (1, 2) or head["members"] != count:
            raise VerificationError(f"{key} is not whole, or of a format that this version does not know")
        return Evidence(head["key"], key, hashlib.sha256(data).hexdigest(), head, frames, Rows(data, count))
    except (zstandard.ZstdError, StopIteration, ValueError, LookupError, TypeError):
        raise VerificationError(f"{key} is no whole manifest") from None


def plan_digest(volume: Evidence) -> str:
    """The digest of the plan, from the manifest's rows (format: plates/layout.py, volume_digest)."""
    head = volume.head
    digest = hashlib.sha256()
    first = [head[name] for name in ("key", "compression", "level", "part_bytes", "group_bytes")]
    rows = (
        [r["name"], r.get("key"), r["size"], r.get("etag"), r.get("version_id"), r["modified"]] for r in volume.rows
    )
    for line in itertools.chain([first], rows):
        digest.update((json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n").encode())
    return digest.hexdigest()


def headers_not_kept(volume: Evidence) -> str:
    """What of the objects beside their bytes is not in the manifest: told, and no fault of the archive."""
    if volume.head["waybill_manifest"] == 1:
        return "; it is of a version that kept no headers, metadata or tags"
    counts = {"headers and metadata": "headers_unknown", "tags": "tags_unknown"}
    told = [f"the {what} of {volume.head[name]} objects" for what, name in counts.items() if volume.head[name]]
    return f"; {' and '.join(told)} could not be read or were not looked at, so they are not kept" if told else ""


def checksum_agrees(row: Mapping[str, Any], found: Found) -> bool | None:
    """Whether the source's own checksum is that of the archived bytes; None where it holds none that says it."""
    algorithm, kind, value = (*str(row.get("checksum") or "").split(":"), "", "", "")[:3]
    if kind != "FULL_OBJECT":
        return None
    if algorithm == "CRC64NVME":
        return value == found.crc64nvme
    if algorithm == "SHA256":
        return value == base64_of(int(found.sha256, 16), 32)
    return None


def base64_of(number: int, length: int = 8) -> str:
    return base64.b64encode(number.to_bytes(length, "big")).decode()
