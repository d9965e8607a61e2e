"""What the upload of a volume keeps of its parts, in the journal and afterwards.

Invariant: a journal's rows are a stored format: an upload that began under an older version of this code is continued.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from include.core.journal import PartJournal
from include.core.packed import Packed
from include.plates.models import Frame
from include.plates.plan import PLAN_METADATA
from include.plates.tar_format import PlannedMember
from include.plates.volume_reader import FETCH_BYTES, ReadMember
from include.s3.bucket import Bucket
from include.s3.headers import Headers
from include.s3.multipart import Mark, PartDone, Upload


class Learned(NamedTuple):
    """What reading a member proved; `member` is its index. As in journals; `headers` is "" in those of before."""

    member: int
    sha256: str
    crc64nvme: str
    etag_is_md5: bool
    headers: Headers | Literal[""] | None = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePart(PartDone):
    """A part of a volume: which uncompressed bytes it holds and what was learned of them. As in stored journals.

    `frames` are (raw length, stored length) in order; `members` are (index, sha256, crc64nvme, etag_is_md5, headers) of
    members that end in this part, in journals of before without the headers; `bodies` are (index, start, end, crc64nvme) of
    stretches of members that the store copied.
    """

    start: int
    end: int
    frames: tuple[tuple[int, int], ...] = ()
    members: Sequence[Learned] = ()
    bodies: tuple[tuple[int, int, int, str], ...] = ()

    def row(self) -> dict[str, Any]:
        """Without `bodies` where there are none: as earlier versions wrote it."""
        row = {one.name: getattr(self, one.name) for one in fields(self) if self.bodies or one.name != "bodies"}
        return row | {"members": [one[:4] if one.headers == "" else one for one in self.members]}


def part_of_row(row: Mapping[str, Any]) -> VolumePart:
    lists = {name: tuple(tuple(one) for one in row.get(name, ())) for name in ("frames", "bodies")}
    return VolumePart(**{**row, **lists, "members": Packed(Learned, map(_member_of_row, row["members"]))})


def _member_of_row(row: Sequence[Any]) -> Learned:
    headers = [None if one is None else tuple(map(tuple, one)) for one in row[4:]]
    return Learned(*row[:4], *headers)


class LearnedMembers(Mapping[int, ReadMember]):
    """What was learned of all members of a volume, by their index: that of each part, one after another."""

    def __init__(self, parts: Sequence[VolumePart]):
        self._members = Packed(Learned, (one for part in parts for one in part.members))
        self._indexes = array("Q", (one.member for one in self._members))

    def __len__(self) -> int:
        return len(self._indexes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indexes)

    def __getitem__(self, index: int) -> ReadMember:
        at = bisect.bisect_left(self._indexes, index)
        if at == len(self._indexes) or self._indexes[at] != index:
            raise KeyError(index)
        _, sha256, crc64nvme, etag_is_md5, headers = self._members[at]
        return ReadMember(sha256, crc64nvme, etag_is_md5, None if headers == "" else headers)


def upload_of(
    archive: Bucket, key: str, digest: str, settings: Mapping[str, Any], journal: PartJournal
) -> Upload[VolumePart]:
    """The upload of a tarball, which carries the digest of its plan."""
    mark = Mark(PLAN_METADATA, digest)
    return Upload(archive, key, mark, settings, journal, part_of_row, read_back=True, read_bytes=FETCH_BYTES)


@dataclass(frozen=True)
class Written:
    """What writing a volume learned. `single` holds the whole volume where it is one part, not sent yet."""

    single: bytes | None
    stored_bytes: int
    crc64nvme: str | None
    frames: tuple[Frame, ...]
    read: Mapping[int, ReadMember]
    sent: int
    parts: int
    part_starts: tuple[int, ...] = ()

    def parts_of(self, member: PlannedMember) -> tuple[int, int]:
        """First and last upload part that hold the member, header included."""
        last = max(member.data_end - 1, member.header_offset)
        return bisect.bisect_right(self.part_starts, member.header_offset), bisect.bisect_right(self.part_starts, last)

    def frame_of(self, member: PlannedMember) -> tuple[int, int, int] | None:
        """(offset, length, raw offset) of the stored bytes that hold the member, header included."""
        if not self.frames:
            return None
        first = bisect.bisect_right(self.frames, member.header_offset, key=lambda f: f.raw_offset) - 1
        last = bisect.bisect_left(
            self.frames, max(member.data_end, member.header_offset + 1), key=lambda f: f.raw_offset
        )
        start, end = self.frames[first], self.frames[last - 1]
        return start.offset, end.offset + end.length - start.offset, start.raw_offset


def frame_table(parts: Sequence[VolumePart]) -> Iterator[Frame]:
    offset = raw = 0
    for part in parts:
        for raw_length, length in part.frames:
            yield Frame(offset, length, raw, raw_length)
            offset, raw = offset + length, raw + raw_length
