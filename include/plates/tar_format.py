"""Tar headers as pure functions, and where each member lies in a volume's uncompressed bytes.

Invariant: these bytes must not depend on clock, locale, user or Python version; a crashed upload is continued
on the strength of that. ustar where it can say it, PAX only where it cannot (long or non-ASCII name, over 8 GiB;
docs/protocols/s3.md 5.4).
"""

from __future__ import annotations

import heapq
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from include.core.errors import VerificationError
from include.plates.layout import member_name
from include.plates.models import Layout, SourceObject

BLOCK = 512
END_MARKER = bytes(2 * BLOCK)
_NAME, _PREFIX = 100, 155
_LARGEST = 8**11  # of what eleven octal digits say


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
    folder = name.endswith("/")
    split = _split_name(name, size, modified)
    if split is None:
        return _by_tarfile(name, size, modified)
    block = bytearray(_FOLDER if folder else _FILE)
    prefix, short = split
    block[: len(short)] = short
    block[345 : 345 + len(prefix)] = prefix
    block[124:135] = b"%011o" % (0 if folder else size)
    block[136:147] = b"%011o" % modified
    block[148:155] = b"%06o\0" % sum(block)  # the sum is made with blanks in its own place
    return bytes(block)


def header_length(name: str, size: int, modified: int) -> int:
    """How long the header is, mostly without making it."""
    return BLOCK if _split_name(name, size, modified) else len(_by_tarfile(name, size, modified))


def _split_name(name: str, size: int, modified: int) -> tuple[bytes, bytes] | None:
    """The name as ustar's prefix and name; None where ustar cannot say the name, the size or the time."""
    if not (name.isascii() and size < _LARGEST and 0 <= modified < _LARGEST):
        return None
    shown = name.rstrip("/") + "/" if name.endswith("/") else name
    if len(shown) <= _NAME:
        return b"", shown.encode()
    cut = shown.find("/", len(shown) - _NAME - 1)
    return (shown[:cut].encode(), shown[cut + 1 :].encode()) if 0 <= cut <= _PREFIX else None


def _by_tarfile(name: str, size: int, modified: int) -> bytes:
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


def _template(name: str) -> bytes:
    """A header without its name, with blanks for its sum."""
    block = bytearray(_by_tarfile(name, 0, 0))
    block[:_NAME], block[148:156] = bytes(_NAME), b" " * 8
    return bytes(block)


_FILE, _FOLDER = _template("f"), _template("f/")


def member_rows(
    layout: Layout, tag: str, folders: Sequence[str], objects: Iterable[SourceObject]
) -> Iterator[tuple[str, SourceObject | None]]:
    """Names in member order (UTF-8 bytes) with their objects; `folders` are keys ending in "/" that no object stands for.

    Both are in member order each, as PlacedMembers has them.
    """
    ours: Iterator[tuple[str, SourceObject | None]] = ((member_name(layout, tag, folder), None) for folder in folders)
    theirs = ((member_name(layout, tag, source.key), source) for source in objects)
    return heapq.merge(ours, theirs, key=lambda row: row[0].encode())


class PlacedMembers(Sequence[PlannedMember]):
    """The members of a planned volume, each made when it is asked for: what is kept of it is its place, 24 bytes.

    `folders` and `objects` are in member order each, as a plan holds them. Raises VerificationError where they are not.
    """

    def __init__(self, layout: Layout, tag: str, folders: Sequence[str], objects: Sequence[SourceObject]):
        self._layout = layout
        self._tag = tag
        self._time = folder_time(objects)
        self._folders, self._objects = folders, objects
        self._order, self._headers, self._data = array("q"), array("Q"), array("Q")
        offset, before, sources = 0, b"", 0
        for number, (name, source) in enumerate(member_rows(layout, tag, folders, objects)):
            if name.encode() < before:
                raise VerificationError(f"the plan's members are not in order at {name!r}; plan again")
            before = name.encode()
            # The number of an object, or below zero that of a folder.
            self._order.append(sources if source else sources - number - 1)
            sources += source is not None
            size, modified = (source.size, source.modified) if source else (0, self._time)
            self._headers.append(offset)
            offset += header_length(name, size, modified)
            self._data.append(offset)
            offset += size + padding(size)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> PlannedMember: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedMember]: ...
    def __getitem__(self, index: int | slice) -> PlannedMember | list[PlannedMember]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = self._order[index]
        source = self._objects[number] if number >= 0 else None
        name = member_name(self._layout, self._tag, source.key if source else self._folders[-number - 1])
        modified = source.modified if source else self._time
        return PlannedMember(name, source, modified, self._headers[index], self._data[index])


def folder_time(objects: Iterable[SourceObject]) -> int:
    """The time given to folders that no object stands for: that of the newest object."""
    return max((source.modified for source in objects), default=0)


def place(rows: Iterable[tuple[str, SourceObject | None]], default_time: int) -> Iterator[PlannedMember]:
    """Each member with its offsets. The volume ends with END_MARKER after the last member's padding."""
    offset = 0
    for name, source in rows:
        size = source.size if source else 0
        modified = source.modified if source else default_time
        data = offset + header_length(name, size, modified)
        member = PlannedMember(name, source, modified, offset, data)
        yield member
        offset = member.end
