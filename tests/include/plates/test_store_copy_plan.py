"""How a volume is put together inside the store: the parts tile it, and each obeys the store's rules."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from include.plates import volume_parts as cutting
from include.plates.models import GIB, MIB, ArchiveSettings, SourceObject
from include.plates.store_copy_plan import Body, Joined, Piece, Sent, plan_copies
from include.plates.tar_format import END_MARKER, PlannedMember, place

PROVED = "CRC64NVME:FULL_OBJECT:AAAAAAAAAAA="
SIZES = st.one_of(st.integers(0, 5000), st.integers(4 * MIB, 6 * MIB), st.integers(0, 200 * MIB), st.just(24 * 10**9))
MEMBERS = st.lists(st.tuples(SIZES, st.sampled_from([PROVED, PROVED, None])), min_size=1, max_size=30)


def source(name: str, size: int, checksum: str | None = PROVED) -> SourceObject:
    return SourceObject(name, size, "0" * 32, 1, "images", checksum=checksum)


def members_of(sizes: list[tuple[int, str | None]]) -> tuple[list[PlannedMember], int]:
    rows = [(f"m{n:03}", source(f"m{n:03}", size, checksum)) for n, (size, checksum) in enumerate(sizes)]
    members = list(place(rows, 0))
    return members, members[-1].end + len(END_MARKER)


def spans(piece: Piece, members: list[PlannedMember]) -> list[tuple[int, int]]:
    """Which bytes of the volume an object of these pieces holds, in order, its lead included."""
    if isinstance(piece, Sent):
        return [(piece.start, piece.end)]
    if isinstance(piece, Body):
        at = members[piece.member].data_offset
        return [(at + piece.start, at + piece.end)]
    return [span for inner in piece.pieces for span in cut_off(spans(inner, members), getattr(inner, "lead", 0))]


def cut_off(found: list[tuple[int, int]], lead: int) -> list[tuple[int, int]]:
    while lead:
        (start, end), *found = found
        lead -= end - start
        assert lead >= 0, "a lead ends where a piece ends"
    return found


def check(parts: list[Piece], members: list[PlannedMember]) -> None:
    """The store's rules, for an upload of these parts and for those of the pieces in it (docs/protocols/s3.md 3.1, 3.6)."""
    assert len(parts) <= 10_000
    for number, part in enumerate(parts, start=1):
        length = part.size
        assert length <= 5 * GIB
        assert length >= 5 * MIB or number == len(parts)
        if isinstance(part, Body):
            size = members[part.member].size
            assert part.whole == (length == size) and (part.whole or size > 5_000_000)
        if isinstance(part, Joined):
            check(list(part.pieces), members)


def tiles(found: list[tuple[int, int, Piece]], members: list[PlannedMember], total: int) -> None:
    assert [start for start, _, _ in found] + [total] == [0] + [end for _, end, _ in found]
    for start, end, piece in found:
        assert piece.size == end - start
        at = start
        for low, high in cut_off(spans(piece, members), getattr(piece, "lead", 0)):
            assert low == at
            at = high
        assert at == end


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.sampled_from([5 * MIB, 12 * MIB, 32 * MIB]))
def test_parts_tile_the_volume_and_none_but_the_last_is_too_small(sizes: list[tuple[int, str | None]], part_bytes: int):
    members, total = members_of(sizes)
    assume(total <= 9_900 * part_bytes)  # as ArchiveSettings has it
    found = plan_copies(members, total, part_bytes)
    tiles(found, members, total)
    check([piece for _, _, piece in found], members)


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.integers(1, 8))
def test_more_parts_than_an_upload_takes_are_joined_first(sizes: list[tuple[int, str | None]], most: int):
    members, total = members_of(sizes)
    assume(total <= 9_900 * 32 * MIB)
    found = plan_copies(members, total, 32 * MIB, most=most)
    tiles(found, members, total)
    check([piece for _, _, piece in found], members)
    names = [piece.name for _, _, piece in found if isinstance(piece, Joined)]
    assert len(set(names)) == len(names)


def test_more_images_than_parts_fit_one_upload():
    size = 6 * MIB
    members, total = members_of([(size, PROVED)] * 10_500)
    found = plan_copies(members, total, 32 * MIB)
    assert len(found) < 100
    sent = sum(end - start for start, end in literals([piece for _, _, piece in found]))
    assert sent == total - size * len(members)


def literals(pieces: list[Piece]) -> list[tuple[int, int]]:
    inner = [literals(list(piece.pieces)) if isinstance(piece, Joined) else [] for piece in pieces]
    own = [(piece.start, piece.end) for piece in pieces if isinstance(piece, Sent)]
    return own + [one for found in inner for one in found]


@pytest.mark.parametrize(
    "checksum", [None, "CRC64NVME:COMPOSITE:AAAAAAAAAAA=-3", "SHA256:FULL_OBJECT:AAAA", "CRC64NVME:"]
)
def test_a_member_whose_copy_nothing_proves_is_read(checksum: str | None):
    members = list(place([("a", dataclasses.replace(source("a", 100 * MIB), checksum=checksum))], 0))
    chosen = ArchiveSettings(compression="none", copy_by="server")
    assert all(part.copy is None for part in cutting.cut_raw(members, members[-1].end + 1024, chosen))


def test_without_copies_the_cut_is_the_one_of_before():
    members, total = members_of([(40 * MIB, PROVED), (3, None)])
    parts = cutting.cut_raw(members, total, ArchiveSettings(compression="none"))
    assert [(part.start, part.end, part.copy) for part in parts] == [
        (0, 32 * MIB, None),
        (32 * MIB, total, None),
    ]


def test_a_24_gb_database_is_copied_in_pieces_of_almost_five_gibibytes():
    members, total = members_of([(24 * 10**9, PROVED)])
    parts = [piece for _, _, piece in plan_copies(members, total, 32 * MIB)]
    assert [type(part) for part in parts] == [Joined, Body, Body, Body, Body, Sent]
