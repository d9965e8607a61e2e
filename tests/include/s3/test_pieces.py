"""The pieces of a part: read as a file they are the same bytes, however they came."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.s3.pieces import Gathering, Pieces

SIZES = st.lists(st.sampled_from([0, 1, 511, 512, 65_535, 65_536, 70_000, 300_000]), max_size=12)


def parts_of(sizes: list[int]) -> list[bytes]:
    return [bytes([index % 251]) * size for index, size in enumerate(sizes)]


def stretches(body: Pieces) -> list[bytes]:
    found = []
    while chunk := body.read(16_384):
        found.append(bytes(chunk))
    return found


@given(SIZES)
def test_what_is_read_is_what_was_given_each_time(sizes: list[int]):
    whole = b"".join(parts_of(sizes))
    body = Pieces([memoryview(part) for part in parts_of(sizes)])
    assert len(body) == len(whole) and body.join() == b"".join(body) == whole
    for _ in range(2):
        assert b"".join(stretches(body)) == whole and body.tell() == len(whole)
        assert body.seek(0) == 0
    assert (body.seek(0, os.SEEK_END), body.read()) == (len(whole), b"")


def test_large_pieces_are_not_copied_and_small_neighbours_go_together():
    small, large = b"s" * 512, memoryview(b"l" * 1_000_000)
    body = Pieces([small, small, large, small])
    assert body.read(1) == small + small
    assert body.read(1) is large
    assert body.read(1) == small


def test_it_is_read_from_its_start_only():
    with pytest.raises(ValueError, match="not from byte 7"):
        Pieces([b"0123456789"]).seek(7)


def test_a_part_is_a_stretch_of_a_file_as_well(tmp_path: Path):
    path = tmp_path / "image.tiff"
    path.write_bytes(bytes(range(256)) * 1000)
    part = Pieces.of_file(path, 1000, 200_000)
    assert len(part) == 200_000
    assert part.join() == path.read_bytes()[1000:201_000]
    assert b"".join(stretches(part)) == part.join()
    assert not Pieces.of_file(path, 5, 0)
    with pytest.raises(ValueError, match="holds 256000 bytes"):
        Pieces.of_file(path, 1000, 256_000)


@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(0, 2))
def test_what_is_gathered_is_the_same_bytes_in_few_pieces(sizes: list[int], large: int):
    pieces = [bytes([n % 256]) * size for n, size in enumerate(sizes)]
    for number in range(large):
        pieces.insert(len(pieces) // 2, bytes([number]) * (64 * 1024))
    gathering = Gathering()
    for piece in pieces:
        gathering.add(piece)
    body = gathering.pieces()
    assert body.join() == b"".join(pieces)
    assert len(list(body)) <= 2 * large + 1
