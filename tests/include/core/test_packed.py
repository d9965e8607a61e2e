"""Rows come out of their blocks as they were put in; a row is found by its key, whatever others there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.core.packed import ROWS_OF_A_BLOCK, Finder, Packed, in_order, in_stretches


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    size: int
    more: tuple[tuple[str, str], ...] | None = None


def rows(count: int) -> list[Row]:
    return [Row(f"k{n:06}", n, (("a", str(n)),) if n % 3 else None) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, ROWS_OF_A_BLOCK - 1, ROWS_OF_A_BLOCK, 3 * ROWS_OF_A_BLOCK + 7])
def test_rows_come_out_as_they_were_put_in(count: int):
    plain = rows(count)
    packed = Packed(Row, plain)
    assert packed == plain and plain == packed and packed == tuple(plain) and list(packed) == plain
    assert len(packed) == count and [packed[at] for at in range(-count, count)] == plain + plain
    assert packed != [*plain, Row("x", 0)] and packed[:] is packed
    for wrong in (count, -count - 1):
        with pytest.raises(IndexError):
            packed[wrong]


@given(st.lists(st.integers(-900, 900), min_size=2, max_size=2))
def test_stretches_are_those_of_a_list(cut: Sequence[int]):
    plain = rows(2 * ROWS_OF_A_BLOCK + 5)
    assert Packed(Row, plain)[slice(*cut)] == plain[slice(*cut)]


def test_rows_that_are_asked_for_in_any_order_are_the_right_ones():
    packed = Packed(Row, rows(20 * ROWS_OF_A_BLOCK))
    assert all(packed[at].size == at for at in range(0, len(packed), 97) for at in (at, len(packed) - 1 - at))


@given(st.lists(st.text(max_size=3), max_size=40))
def test_order_is_that_of_utf8_bytes_and_what_lies_so_is_not_touched(keys: list[str]):
    packed = Packed(Row, (Row(key, at) for at, key in enumerate(keys)))
    ordered = in_order(packed, lambda row: row.key)
    assert ordered == sorted(packed, key=lambda row: row.key.encode())
    assert (ordered is packed) == (keys == sorted(keys, key=str.encode))


@given(st.lists(st.text(max_size=2), max_size=60), st.text(max_size=2))
def test_the_last_row_of_a_key_is_found_and_no_other(keys: list[str], strange: str):
    finder = Finder(Packed(Row, (Row(key, at) for at, key in enumerate(keys))), lambda row: row.key)
    last = {key: at for at, key in enumerate(keys)}
    assert {key: finder.find(key) for key in keys} == last and finder.find(strange) == last.get(strange)
    assert (strange in finder) == (strange in last) and len(finder) == len(keys)


def test_keys_of_one_hash_are_told_from_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("include.core.packed.hash", lambda _: 7, raising=False)
    finder = Finder(Packed(Row, rows(600)), lambda row: row.key)
    assert finder.find("k000400") == 400 and finder.find("k9") is None


def test_stretches_hold_everything_once():
    assert [len(some) for some in in_stretches(rows(25), 10)] == [10, 10, 5] and not list(in_stretches([], 10))


def test_a_row_takes_little_memory():
    tracemalloc.start()
    packed = Packed(Row, (Row(f"projects/a/b/images/plate/f{n:06}.tiff", n) for n in range(20_000)))
    Finder(packed, lambda row: row.key)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / len(packed) < 40
