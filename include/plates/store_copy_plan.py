"""Plans a volume that the store puts together itself: large members are copied by it, only what lies between them is sent.

A part of an upload has at least 5 MiB, unless it is the last; a header has 512 bytes. So what is short is made the *last* part
of a small upload of its own, behind the body that it follows (padding and next header, and small members between them). The
object made that way is large enough to be copied into the tarball as one part. What lies before the first body has none to
follow: it follows 5 MiB that the store copies from that body, which are cut off again when the piece is copied.

Invariant: the parts tile the volume; every part but the last, of the tarball and of each piece, has 5 MiB to 5 GiB; and a
plan depends on the members and `part_bytes` alone, so that it is the same after a crash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from include.plates.models import GIB, MIB, SourceObject
from include.plates.tar_format import PlannedMember
from include.s3.checksums import whole_checksum

MIN_PART = 5 * MIB
MAX_COPY = 5 * GIB
MOST_PARTS = 9_900  # S3 takes 10,000


@dataclass(frozen=True, slots=True)
class Sent:
    """The bytes [start, end) of the volume, which we send."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes [start, end) of a member's object, copied by the store. `whole`: that is all of it."""

    member: int
    start: int
    end: int
    whole: bool

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Joined:
    """An object made for this volume alone, of pieces in order; its first `lead` bytes are cut off when it is copied."""

    name: str
    pieces: tuple[Piece, ...]
    lead: int = 0

    @property
    def size(self) -> int:
        """Bytes of the volume in it."""
        return sum(piece.size for piece in self.pieces) - self.lead


Piece = Sent | Body | Joined


def copyable(source: SourceObject | None) -> bool:
    """Whether the store's own checksum can prove a copy that we never read: one CRC64NVME over the whole object."""
    if source is None or source.size < MIN_PART:
        return False
    return (whole_checksum(source.checksum) or ("", ""))[0] == "CRC64NVME"


def copied_members(pieces: Iterable[Piece | None]) -> frozenset[int]:
    """The members of which the store copies something."""
    found: set[int] = set()
    for piece in pieces:
        if isinstance(piece, Body):
            found.add(piece.member)
        elif isinstance(piece, Joined):
            found |= copied_members(piece.pieces)
    return frozenset(found)


def plan_copies(
    members: Sequence[PlannedMember], total: int, part_bytes: int, *, most: int = MOST_PARTS, max_copy: int = MAX_COPY
) -> list[tuple[int, int, Piece]]:
    """The parts of the tarball: (start, end, what it is made of). Without a member to copy, all is sent."""
    bodies = [index for index, member in enumerate(members) if copyable(member.source)]
    if not bodies:
        return [(piece.start, piece.end, piece) for piece in cut(0, total, part_bytes)]
    parts: list[Piece] = []
    first = members[bodies[0]].data_offset
    before: Sent | None = Sent(0, first)
    if first >= MIN_PART:
        parts += _long(0, first, part_bytes)
        before = None
    for index, following in zip(bodies, [*bodies[1:], None], strict=True):
        at = members[index].data_end
        end = total if following is None else members[following].data_offset
        short = 0 if following is None else _short(end - at, part_bytes)
        parts += _copies(members, index, before, Sent(at, at + short) if short else None, max_copy)
        parts += cut(at + short, end, part_bytes)
        before = None
    placed = list(_placed(parts))
    return placed if len(placed) <= most else list(_placed(_grouped(placed, max_copy)))


def cut(start: int, end: int, size: int) -> list[Sent]:
    """Stretches of `size`, the last one as short as it comes."""
    return [Sent(at, min(at + size, end)) for at in range(start, end, size)]


def _short(length: int, part_bytes: int) -> int:
    """How many bytes behind a body are joined to it, so that the rest is cut into parts that are long enough."""
    rest = length % part_bytes
    return rest if rest < MIN_PART else 0


def _long(start: int, end: int, part_bytes: int) -> list[Sent]:
    """Parts of at least 5 MiB: what would be too short is added to the first."""
    rest = _short(end - start, part_bytes)
    if not rest:
        return cut(start, end, part_bytes)
    first = min(start + rest + part_bytes, end)
    return [Sent(start, first), *cut(first, end, part_bytes)]


def _copies(
    members: Sequence[PlannedMember], index: int, before: Sent | None, after: Sent | None, max_copy: int
) -> Iterator[Piece]:
    """A body, in stretches that can be copied, with what is joined to its first and last."""
    size = members[index].size
    count = -(-size // (max_copy - 2 * MIN_PART))  # room for what is joined to a stretch
    step = -(-size // count)
    bodies = [Body(index, at, min(at + step, size), count == 1) for at in range(0, size, step)]
    for number, body in enumerate(bodies):
        pieces: list[Piece] = [body]
        lead = 0
        if before is not None and number == 0:
            lead = MIN_PART
            ahead = Body(index, 0, MIN_PART, size == MIN_PART)
            pieces.insert(0, Joined(f"{before.start}-{before.end}.lead", (ahead, before)))
        if after is not None and number == len(bodies) - 1:
            pieces.append(after)
        if len(pieces) == 1:
            yield body
            continue
        begin = before.start if lead and before else members[index].data_offset + body.start
        yield Joined(f"{begin}-{begin + sum(piece.size for piece in pieces) - lead}", tuple(pieces), lead)


def _placed(parts: Sequence[Piece]) -> Iterator[tuple[int, int, Piece]]:
    at = 0
    for part in parts:
        yield at, at + part.size, part
        at += part.size


def _grouped(placed: Sequence[tuple[int, int, Piece]], max_copy: int) -> list[Piece]:
    """So many parts that they do not fit one upload: neighbours are joined first, as far as one copy goes."""
    groups: list[list[tuple[int, int, Piece]]] = [[]]
    for part in placed:
        if groups[-1] and (part[1] - groups[-1][0][0] > max_copy or len(groups[-1]) == MOST_PARTS):
            groups.append([])
        groups[-1].append(part)
    return [
        group[0][2]
        if len(group) == 1
        else Joined(f"{group[0][0]}-{group[-1][1]}.group", tuple(piece for _, _, piece in group))
        for group in groups
    ]
