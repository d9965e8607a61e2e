"""The bytes of an upload part, as the pieces in which they came: hashed and sent without being joined.

Invariant: botocore takes this for a file. `read` gives the next stretch whatever size is asked for, because
urllib3 asks for 16 KiB at a time, which is two thousand calls a part. Nobody else reads it: our parts' payloads are not
signed (client.py), and their checksums are given.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_SMALL = 64 * 1024
_STRETCH = 512 * 1024


class Gathering:
    """Pieces as they come, of which small neighbours are joined at once: a part of tiny files would else be a hundred
    thousand objects, which take more memory than its bytes."""

    def __init__(self) -> None:
        self._joined: list[bytes | memoryview] = []
        self._small: list[bytes | memoryview] = []
        self._length = 0

    def add(self, piece: bytes | memoryview) -> None:
        if len(piece) >= _SMALL:
            self._join()
            self._joined.append(piece)
            return
        self._small.append(piece)
        self._length += len(piece)
        if self._length >= _STRETCH:
            self._join()

    def _join(self) -> None:
        if self._small:
            self._joined.append(b"".join(self._small))
            self._small, self._length = [], 0

    def __bool__(self) -> bool:
        return bool(self._joined or self._small)

    def pieces(self) -> Pieces:
        self._join()
        return Pieces(self._joined)


class Pieces:
    """Reads as a file of `len()` bytes. A piece of 64 KiB or more is given as it is, smaller neighbours joined."""

    def __init__(self, pieces: Sequence[bytes | memoryview]):
        self._pieces = [piece for piece in pieces if len(piece)]  # an empty one would read as the end
        self._size = sum(len(piece) for piece in self._pieces)
        self._next = 0
        self._at = 0

    @classmethod
    def of_file(cls, path: Path, start: int, length: int) -> Pieces:
        """`length` bytes of a file from byte `start`, mapped and not read into memory. Raises ValueError where the file
        is shorter, OSError where it cannot be read."""
        with path.open("rb") as file:
            whole = os.fstat(file.fileno()).st_size
            if start < 0 or length < 0 or start + length > whole:
                raise ValueError(f"{path} holds {whole} bytes, not {start + length}")
            if not length:
                return cls([])
            return cls([memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start : start + length]])

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return iter(self._pieces)

    def join(self) -> bytes:
        return b"".join(self._pieces)

    def read(self, _size: int = -1) -> bytes | memoryview:
        first, length = self._next, 0
        while self._next < len(self._pieces) and length < _STRETCH:
            piece = self._pieces[self._next]
            if len(piece) >= _SMALL and self._next > first:
                break
            self._next, length = self._next + 1, length + len(piece)
            if len(piece) >= _SMALL:
                self._at += length
                return piece
        self._at += length
        return b"".join(self._pieces[first : self._next])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """To the start or the end: what a length and a repetition need. Raises ValueError for anywhere else."""
        if offset == 0 and whence == os.SEEK_SET:
            self._next = self._at = 0
        elif offset == 0 and whence == os.SEEK_END:
            self._next, self._at = len(self._pieces), self._size
        elif (offset, whence) != (self._at, os.SEEK_SET):
            raise ValueError(f"an upload part is read from its start, not from byte {offset}")
        return self._at

    def tell(self) -> int:
        return self._at

    def free(self) -> None:
        """Lets go of the bytes at once: botocore's requests keep their bodies in cycles until the collector comes."""
        self._pieces.clear()
