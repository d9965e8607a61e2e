"""Reads a stored tarball from its first byte to its last, unpacked on the way: what a gzip without a manifest allows.

It reads what tar programs write (ustar, GNU, PAX); the verifier of our own tarballs is stricter, and has code of its own.

Invariant: memory is bounded whatever the tarball holds (a megabyte of gzip may stand for a gigabyte), and a tarball that is
cut short, or whose end is no end, is damaged and never taken for a whole one.
"""

from __future__ import annotations

import asyncio
import hashlib
import tarfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from include.core.concurrency import prefetch
from include.core.errors import VerificationError
from include.plates.models import MIB
from include.s3.bucket import Bucket, Head
from include.s3.checksums import Digester

_FETCH = 4 * MIB
_UNPACKED = 4 * MIB
_BLOCK = 512
_LONGEST_HEADER = 1 * MIB  # of a long name or a PAX header
_ZEROS = bytes(_BLOCK)


class DamagedTarball(VerificationError):
    """The stored bytes are no whole tarball. The message says where."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a tarball, as its header names it. `kind` is "file", "folder" or "other" (links, devices)."""

    name: str
    kind: str
    size: int
    modified: int
    header_offset: int
    data_offset: int


class TarStream:
    """The unpacked bytes of a stored tarball in order. `md5` of the stored bytes is known at the end."""

    def __init__(self, head: Head, archive: Bucket):
        self._head = head
        self._archive = archive
        self._source: AsyncGenerator[memoryview, None] | None = None
        self._held = memoryview(b"")
        self._whole = hashlib.md5(usedforsecurity=False)
        self.at = 0
        self.read_bytes = 0

    @property
    def md5(self) -> str:
        return self._whole.hexdigest()

    async def close(self) -> None:
        if self._source is not None:
            await self._source.aclose()
            self._source = None

    async def some(self, most: int) -> memoryview:
        """The next bytes, at most `most`; empty at the end."""
        if self._source is None:
            self._source = self._unpacked()
        while not len(self._held):
            self._held = await anext(self._source, memoryview(b""))
            if not len(self._held):
                return self._held
        taken, self._held = self._held[:most], self._held[most:]
        self.at += len(taken)
        return taken

    async def exactly(self, length: int) -> bytes:
        """The next `length` bytes, fewer only at the end."""
        pieces: list[bytes] = []
        while length:
            piece = await self.some(length)
            if not len(piece):
                break
            pieces.append(bytes(piece))
            length -= len(piece)
        return b"".join(pieces)

    async def skip_to(self, offset: int) -> None:
        while self.at < offset:
            if not len(await self.some(min(offset - self.at, _UNPACKED))):
                raise self.damaged("it is cut short")

    def damaged(self, why: str) -> DamagedTarball:
        return DamagedTarball(f"{self._head.key} is damaged at byte {self.at} of its tar: {why}")

    async def _unpacked(self) -> AsyncGenerator[memoryview, None]:
        unpacker = zlib.decompressobj(31) if self._head.key.endswith(".gz") else None
        begun = False
        async with aclosing(self._stored()) as chunks:
            async for chunk in chunks:
                if unpacker is None:
                    yield chunk
                    continue
                data: Any = chunk
                while len(data):
                    if unpacker.eof:  # another gzip member follows
                        unpacker = zlib.decompressobj(31)
                    begun = True
                    try:
                        out = await asyncio.to_thread(unpacker.decompress, data, _UNPACKED)
                    except zlib.error:
                        raise self.damaged("its gzip cannot be unpacked, or fails its own checksum") from None
                    data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                    if out:  # an empty piece would be taken for the end
                        yield memoryview(out)
                    while len(out) == _UNPACKED and not len(data) and not unpacker.eof:
                        out = await asyncio.to_thread(unpacker.decompress, b"", _UNPACKED)
                        if out:
                            yield memoryview(out)
        if unpacker is not None and begun and not unpacker.eof:
            raise self.damaged("its gzip is cut short")

    async def _stored(self) -> AsyncGenerator[memoryview, None]:
        head = self._head

        async def get(start: int) -> Any:
            length = min(_FETCH, head.size - start)
            return await self._archive.read(
                head.key, start, length, etag=head.etag, size=head.size, version_id=head.version_id
            )

        jobs = ((_FETCH, lambda start=start: get(start)) for start in range(0, head.size, _FETCH))
        async with aclosing(prefetch(jobs, budget=3 * _FETCH, count=3)) as chunks:
            async for data in chunks:
                view = memoryview(data)
                await asyncio.to_thread(self._whole.update, view)
                self.read_bytes += len(view)
                yield view


async def tar_members(stream: TarStream) -> AsyncIterator[TarMember]:
    """Each member with the stream at its first byte; what is not read of it is skipped. Raises DamagedTarball."""
    start, extended = stream.at, dict[str, str]()
    while True:
        block = await stream.exactly(_BLOCK)
        if block == _ZEROS:
            await _only_zeros(stream)
            return
        if len(block) < _BLOCK:
            raise stream.damaged("it ends without an end marker")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise stream.damaged("this is no header of a member") from None
        if info.type in (b"L", b"K", b"x", b"g"):
            extended |= await _extension(stream, info)
            continue
        size = _number(stream, extended.get("size"), info.size)
        if size < 0:
            raise stream.damaged("a member has a negative size")
        kind = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder"}.get(info.type, "other")
        name = extended.get("path", info.name)
        folder = kind == "folder" or (kind == "file" and name.endswith("/"))
        has_data = kind != "other" or info.type not in (b"1", b"2", b"3", b"4", b"6")
        member = TarMember(
            name=name.rstrip("/") + "/" if folder else name,
            kind="folder" if folder else kind,
            size=0 if folder else size,
            modified=_number(stream, extended.get("mtime"), int(info.mtime)),
            header_offset=start,
            data_offset=stream.at,
        )
        yield member
        await stream.skip_to(member.data_offset + (size + -size % _BLOCK if has_data else 0))
        start, extended = stream.at, {}


def _number(stream: TarStream, given: str | None, plain: int) -> int:
    try:
        return plain if given is None else int(given.partition(".")[0])
    except ValueError:
        raise stream.damaged("an extended header holds no number where one belongs") from None


async def _extension(stream: TarStream, info: tarfile.TarInfo) -> dict[str, str]:
    """What a long-name or PAX header says of the member that follows."""
    if not 0 <= info.size <= _LONGEST_HEADER:
        raise stream.damaged("an extended header is too long")
    data = await stream.exactly(info.size + -info.size % _BLOCK)
    if len(data) < info.size:
        raise stream.damaged("it is cut short")
    data = data[: info.size]
    if info.type == b"L":
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if info.type != b"x":
        return {}  # names of links, and settings for all: neither changes what a file is called here
    found: dict[str, str] = {}
    while data:
        length, blank, _ = data.partition(b" ")
        if not blank or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise stream.damaged("an extended header is broken")
        name, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


async def _only_zeros(stream: TarStream) -> None:
    """The rest of a tarball, which tar fills up to a whole record."""
    while len(piece := await stream.some(_UNPACKED)):
        if bytes(piece).strip(b"\0"):
            raise stream.damaged("bytes follow its end marker")


class SequentialReader:
    """Members out of a tarball that can only be read from its start on. Ask for them in the order of their offsets."""

    def __init__(self, head: Head, archive: Bucket):
        self._head = head
        self._archive = archive
        self._stream = TarStream(head, archive)
        self._read_before = 0

    @property
    def read_bytes(self) -> int:
        return self._read_before + self._stream.read_bytes

    async def content(self, member: Any, digester: Digester) -> AsyncGenerator[memoryview, None]:
        """A member's bytes in order, fed to the digester on the way."""
        if self._stream.at > member.data_offset:  # an earlier one after all: from the start again
            await self.close()
            self._read_before += self._stream.read_bytes
            self._stream = TarStream(self._head, self._archive)
        await self._stream.skip_to(member.data_offset)
        left = member.size
        while left:
            piece = await self._stream.some(left)
            if not len(piece):
                raise self._stream.damaged("it is cut short")
            await digester.update(piece)
            yield piece
            left -= len(piece)

    async def close(self) -> None:
        await self._stream.close()
