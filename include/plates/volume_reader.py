"""Produces a volume's uncompressed bytes, in order, from the source objects; hashes every member on the way.

Invariant: any stretch of the volume can be asked for, because a resumed upload has gaps. A member is hashed
where its last byte is produced, so a member that began in a finished part is read from its start again (and not sent).
Every read names the ETag that was listed; a digest that contradicts the checksum that the source's store holds stops the
volume. No MD5 is made here: the verifier makes that of each member, from the stored tarball, and compares it with the ETag.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from include.core.concurrency import prefetch
from include.core.errors import VerificationError
from include.plates.models import MIB, SourceObject
from include.plates.tar_format import END_MARKER, PlannedMember, header, padding
from include.s3.bucket import Bucket, Buffer
from include.s3.checksums import Digester, Digests, whole_checksum
from include.s3.headers import Headers

FETCH_BYTES = 12 * MIB
AHEAD_BYTES = 32 * MIB
AHEAD_BYTES_PACKING = 20 * MIB  # groups being compressed and their frames need room too
AHEAD_COUNT = 32


@dataclass(frozen=True, slots=True)
class ReadMember:
    """The digests of a member that was read.

    `etag_is_md5` is in journals of before, when the MD5 was made here. `headers` came with the bytes; None where there was
    nothing to read, or in a journal of before that.
    """

    sha256: str
    crc64nvme: str
    etag_is_md5: bool = False
    headers: Headers | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    index: int
    member: PlannedMember
    start: int
    length: int
    whole: bool
    first: bool
    last: bool
    hashed: bool


class VolumeReader:
    """Reads one volume, at most `ahead_bytes` ahead (one fetch always may).

    `copied` are the members whose bulk the store copies by itself: they are never hashed here.
    """

    def __init__(
        self,
        members: Sequence[PlannedMember],
        source: Bucket,
        *,
        copied: frozenset[int] = frozenset(),
        ahead_bytes: int = AHEAD_BYTES,
    ):
        self.members = members
        self.total = (members[-1].end if members else 0) + len(END_MARKER)
        self.read: dict[int, ReadMember] = {}
        self._source = source
        self._copied = copied
        self._ahead_bytes = ahead_bytes
        self._headers: dict[int, Headers] = {}
        self._alike: dict[Headers, Headers] = {}  # thousands of objects have the same ones

    def ending_in(self, start: int, end: int) -> range:
        """Members whose last byte lies in [start, end): those that a part's journal line answers for."""
        first = bisect.bisect_left(self.members, start, key=lambda m: m.data_end - 1)
        return range(first, bisect.bisect_left(self.members, end, key=lambda m: m.data_end - 1))

    async def pieces(self, start: int, end: int) -> AsyncGenerator[memoryview, None]:
        """The bytes [start, end) of the volume in order. Raises SourceChanged, VerificationError and the core's errors."""
        digester: Digester | None = None
        jobs = ((step.length, functools.partial(self._fetch, step)) for step in self._steps(start, end))
        async with aclosing(prefetch(jobs, budget=self._ahead_bytes, count=AHEAD_COUNT)) as fetched:
            async for step, data in fetched:
                member = step.member
                if step.first:
                    lead = header(member.name, member.size, member.modified)
                    for piece in _clip(lead, member.header_offset, start, end):
                        yield piece
                if step.hashed and not step.whole:
                    digester = _digester(member.source) if step.start == 0 or digester is None else digester
                    await digester.update(memoryview(data))
                    if step.last:
                        self.read[step.index] = self._judge(step, digester.result())
                        digester = None
                for piece in _clip(data, member.data_offset + step.start, start, end):
                    yield piece
                if step.last:
                    for piece in _clip(bytes(padding(member.size)), member.data_end, start, end):
                        yield piece
        for piece in _clip(END_MARKER, self.total - len(END_MARKER), start, end):
            yield piece

    def _steps(self, start: int, end: int) -> Iterator[_Step]:
        index = bisect.bisect_right(self.members, start, key=lambda m: m.end)
        while index < len(self.members) and (member := self.members[index]).header_offset < end:
            yield from self._steps_of(index, member, start, end)
            index += 1

    def _steps_of(self, index: int, member: PlannedMember, start: int, end: int) -> Iterator[_Step]:
        hashed = index not in self._copied and start <= member.data_end - 1 < end
        low, high = 0, member.size
        if not hashed:
            low = min(max(start - member.data_offset, 0), member.size)
            high = max(min(end - member.data_offset, member.size), low)
        whole = high - low <= FETCH_BYTES and low == 0 and high == member.size
        at = low
        while True:
            length = min(FETCH_BYTES, high - at)
            yield _Step(index, member, at, length, whole, at == low, at + length >= high, hashed)
            at += length
            if at >= high:
                return

    async def _fetch(self, step: _Step) -> tuple[_Step, Buffer]:
        source = step.member.source
        if source is None or step.length == 0:
            if step.hashed:
                self.read[step.index] = self._judge(step, Digester(md5=False).result())
            return step, b""
        data = await self._get(source, step)
        if step.hashed and step.whole:
            try:
                self.read[step.index] = self._judge(step, await _digest(source, data))
            except VerificationError:
                # A bit lost on the way is cheap to settle while the bytes are still ours alone: read once more.
                data = await self._get(source, step)
                self.read[step.index] = self._judge(step, await _digest(source, data))
        return step, data

    async def _get(self, source: SourceObject, step: _Step) -> Buffer:
        def learn(headers: Headers) -> None:
            self._headers[step.index] = self._alike.setdefault(headers, headers)

        return await self._source.read(
            source.key,
            step.start,
            step.length,
            etag=source.etag,
            size=source.size,
            version_id=source.version_id,
            learn=learn if step.hashed and step.start == 0 else None,
        )

    def _judge(self, step: _Step, digests: Digests) -> ReadMember:
        """Compares what was read with what the source's store says of it, as far as that costs next to nothing."""
        source = step.member.source
        if source is not None:
            stored = whole_checksum(source.checksum)
            if digests.size != source.size:
                raise VerificationError(f"{source.key}: {digests.size} bytes were read, {source.size} were listed")
            if stored is not None and digests.size and digests.stored != stored[1]:
                raise VerificationError(f"{source.key}: the bytes read have another {stored[0]} than the store holds")
        return ReadMember(digests.sha256, digests.crc64nvme, headers=self._headers.pop(step.index, None))


def _digester(source: SourceObject | None) -> Digester:
    stored = whole_checksum(source.checksum) if source else None
    return Digester(md5=False, stored=stored[0] if stored else None)


async def _digest(source: SourceObject, data: Buffer) -> Digests:
    digester = _digester(source)
    await digester.update(memoryview(data))
    return digester.result()


def _clip(data: Any, offset: int, start: int, end: int) -> Iterator[memoryview]:
    low, high = max(start - offset, 0), min(end - offset, len(data))
    if low < high:
        yield memoryview(data)[low:high]
