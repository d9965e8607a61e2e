"""Tar headers as pure functions, and where each member lies in a volume's uncompressed bytes.

Invariant: these bytes must not depend on clock, locale, user or Python version; a crashed upload is continued
on the strength of that. ustar where it can say it, PAX only where it cannot (long or non-ASCII name, over 8 GiB;
docs/protocols/s3.md 5.4).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from include.plates.layout import member_name
from include.plates.models import Layout, SourceObject

BLOCK = 512
END_MARKER = bytes(2 * BLOCK)


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """A member and its place. `source` is None for a folder that no object stands for."""

    name: str
    source: SourceObject | None
    modified: int
    header_offset: int
    data_offset: int

    @property
    def size(self) -> int:
        return self.source.size if self.source else 0

    @property
    def data_end(self) -> int:
        return self.data_offset + self.size

    @property
    def end(self) -> int:
        return self.data_end + padding(self.size)


def padding(size: int) -> int:
    return -size % BLOCK


def header(name: str, size: int, modified: int) -> bytes:
    """A member's header blocks; a name ending in "/" is a folder. Owner 0:0 and fixed modes: nothing of the operator."""
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mtime = modified
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except (ValueError, UnicodeEncodeError):
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def member_rows(
    layout: Layout, tag: str, folders: Sequence[str], objects: Sequence[SourceObject]
) -> list[tuple[str, SourceObject | None]]:
    """Names in member order (UTF-8 bytes) with their objects; `folders` are keys ending in "/" that no object stands for."""
    rows: list[tuple[str, SourceObject | None]] = [(member_name(layout, tag, folder), None) for folder in folders]
    rows += [(member_name(layout, tag, source.key), source) for source in objects]
    return sorted(rows, key=lambda row: row[0].encode())


def folder_time(objects: Sequence[SourceObject]) -> int:
    """The time given to folders that no object stands for: that of the newest object."""
    return max((source.modified for source in objects), default=0)


def place(rows: Sequence[tuple[str, SourceObject | None]], default_time: int) -> Iterator[PlannedMember]:
    """Each member with its offsets. The volume ends with END_MARKER after the last member's padding."""
    offset = 0
    for name, source in rows:
        size = source.size if source else 0
        modified = source.modified if source else default_time
        data = offset + len(header(name, size, modified))
        member = PlannedMember(name, source, modified, offset, data)
        yield member
        offset = member.end
