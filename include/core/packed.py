"""Many rows in little memory: a million files of a plate are about 100 MB here, and more than 1 GB as Python objects.

Rows are kept in compressed blocks and made anew when they are asked for; the last few blocks stay open, so rows are cheap
where they are asked for in about the order in which they lie. `Finder` finds a row by its key.

Invariant: a row comes out as it was put in, under its number; rows are only ever added at the end.
"""

from __future__ import annotations

import dataclasses
import pickle
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import zstandard

ROWS_OF_A_BLOCK = 256
_BLOCKS_OPEN = 4
T = TypeVar("T")


class Packed(Sequence[T]):
    """A sequence of rows of one kind: a dataclass or named tuple without nested ones. Equal to any sequence of equal rows."""

    def __init__(self, kind: Callable[..., T], rows: Iterable[T] = ()):
        self._kind = kind
        self._fields = _fields_of(kind)
        self._blocks: list[bytes] = []
        self._fresh: list[T] = []
        self._open: OrderedDict[int, list[T]] = OrderedDict()
        self.extend(rows)

    def append(self, row: T) -> None:
        self._fresh.append(row)
        if len(self._fresh) == ROWS_OF_A_BLOCK:
            # By columns: what is alike lies together, and packs better. Never read from anywhere but this process's memory.
            columns = [[getattr(one, name) for one in self._fresh] for name in self._fields]
            block = zstandard.ZstdCompressor(level=1).compress(pickle.dumps(columns, 5))
            self._blocks.append(memoryview(block).tobytes())  # the compressor's own bytes keep the room they began with
            self._fresh = []

    def extend(self, rows: Iterable[T]) -> None:
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return len(self._blocks) * ROWS_OF_A_BLOCK + len(self._fresh)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._blocks)):
            yield from self._unpacked(number)
        yield from self._fresh

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Packed[T]: ...
    def __getitem__(self, index: int | slice) -> T | Packed[T]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            whole = step == 1 and (start, stop) == (0, len(self))
            return self if whole else Packed(self._kind, (self[one] for one in range(start, stop, step)))
        at = range(len(self))[index]
        block, place = divmod(at, ROWS_OF_A_BLOCK)
        return self._fresh[place] if block == len(self._blocks) else self._block(block)[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"Packed({getattr(self._kind, '__name__', '?')}, {len(self)} rows)"

    def _block(self, number: int) -> list[T]:
        rows = self._open.pop(number, None) or self._unpacked(number)
        self._open[number] = rows
        while len(self._open) > _BLOCKS_OPEN:
            self._open.popitem(last=False)
        return rows

    def _unpacked(self, number: int) -> list[T]:
        columns = pickle.loads(zstandard.ZstdDecompressor().decompress(self._blocks[number]))
        return [self._kind(*row) for row in zip(*columns, strict=True)]


def _fields_of(kind: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(one.name for one in dataclasses.fields(kind))
    return tuple(kind._fields)


def in_order(rows: Packed[T], key: Callable[[T], str]) -> Packed[T]:
    """The rows by the UTF-8 bytes of their key: themselves where they lie so, as rows of a listing mostly do."""
    before = b""
    for row in rows:
        now = key(row).encode()
        if now < before:
            break
        before = now
    else:
        return rows
    keys = [key(row).encode() for row in rows]
    return Packed(rows._kind, (rows[at] for at in sorted(range(len(rows)), key=keys.__getitem__)))


def in_stretches(rows: Iterable[T], length: int) -> Iterator[list[T]]:
    """The rows in lists of `length`, the last one shorter: for what works on many at once and keeps something of each."""
    turn = iter(rows)
    while stretch := list(islice(turn, length)):
        yield stretch


class Finder(Generic[T]):
    """Finds rows by their key, in sixteen bytes a row. Of rows with one key it finds the last, as a dict would."""

    def __init__(self, rows: Packed[T], key: Callable[[T], str]):
        self.rows = rows
        self._key = key
        marks = array("q", (hash(key(row)) for row in rows))
        self._order = array("Q", sorted(range(len(marks)), key=marks.__getitem__))
        self._marks = array("q", (marks[at] for at in self._order))

    def find(self, key: str) -> int | None:
        """The number of the row with this key; None where there is none."""
        mark, found = hash(key), None
        at = bisect_left(self._marks, mark)
        while at < len(self._marks) and self._marks[at] == mark:
            number = self._order[at]
            found = number if self._key(self.rows[number]) == key else found
            at += 1
        return found

    def key_of(self, number: int) -> str:
        return self._key(self.rows[number])

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None
