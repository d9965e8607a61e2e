"""Carries out what store_copy_plan.py plans: has the store copy bodies and join pieces, and proves each copy by its checksum.

Invariant: nothing that was copied counts before its CRC64NVME, as the store names it for the part, is the one that follows
from the listed checksums of the sources and from the bytes that we sent. Pieces are objects of the archive bucket under
`waybill-staging/`, carry the plan's digest, and are removed when the tarball is whole, by this run or the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass

from include.core.errors import VerificationError
from include.plates.store_copy_plan import MIN_PART, Body, Joined, Piece, Sent
from include.plates.volume_parts import RawPart
from include.plates.volume_reader import VolumeReader
from include.plates.volume_upload import Learned, VolumePart
from include.s3.bucket import Bucket
from include.s3.checksums import combine, decode, encode, whole_checksum
from include.s3.errors import Unsupported
from include.s3.multipart import CopySource, PartDone, Upload
from include.s3.pieces import Pieces
from include.s3.staging import MARK, staging_prefix

COPIES_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Neighbouring bytes with one CRC. `body` is the stretch of a member's object that they are, if they are one."""

    crc: str
    size: int
    body: Body | None = None


class StoreCopy:
    """The copied parts of one volume. `made` are the pieces so far, as (key, version id).

    `slots` bounds how many long stretches are in memory at once, as for parts that are sent.
    """

    def __init__(
        self,
        upload: Upload[VolumePart],
        digest: str,
        reader: VolumeReader,
        source: Bucket,
        slots: asyncio.Semaphore,
    ):
        self.made: set[tuple[str, str | None]] = set()
        self._upload = upload
        self._digest = digest
        self._reader = reader
        self._source = source
        self._slots = slots

    async def part(self, part: RawPart) -> VolumePart:
        """One part of the tarball, copied and proved. Raises SourceChanged, VerificationError and the core's errors."""
        if part.copy is None:
            raise VerificationError(f"part {part.number} of {self._upload.key} is none that the store copies")
        done, chunks = await self._copied(self._upload, part.number, part.copy)
        ends = self._reader.ending_in(part.start, part.end)
        read = {index: self._reader.read[index] for index in ends if index in self._reader.read}
        return VolumePart(
            number=done.number,
            size=done.size,
            etag=done.etag,
            crc64nvme=done.crc64nvme,
            start=part.start,
            end=part.end,
            members=[Learned(i, m.sha256, m.crc64nvme, m.etag_is_md5, m.headers) for i, m in read.items()],
            bodies=tuple(
                (c.body.member, c.body.start, c.body.end, c.crc) for c in chunks if c.body and not c.body.whole
            ),
        )

    async def _copied(
        self, upload: Upload[VolumePart], number: int, piece: Body | Joined
    ) -> tuple[PartDone, list[_Chunk]]:
        """A part copied from a body or a piece, and the CRCs that it is made of."""
        if isinstance(piece, Joined):
            source, chunks = await self._joined(piece)
            done = await upload.copy(number, source, expected=_whole(chunks))
            return done, chunks
        stored = self._stored(piece) if piece.whole else None
        done = await upload.copy(number, self._body(piece), expected=stored)
        return done, [_Chunk(str(done.crc64nvme), piece.size, piece)]

    async def _joined(self, joined: Joined) -> tuple[CopySource, list[_Chunk]]:
        """Makes the object; gives what of it belongs to the volume."""
        bucket = self._upload.bucket
        key = f"{staging_prefix(self._upload.key)}{self._digest[:16]}/{joined.name}"
        own: Upload[VolumePart] = Upload(bucket, key, overwrite=True)
        await own.begin({MARK: self._digest})
        if not own.checksummed:
            raise Unsupported("the store keeps no CRC64NVME of what it copies: archive with copy_by worker")
        chunks: list[_Chunk] = []
        for number, piece in enumerate(joined.pieces, start=1):
            done, more = await self._piece(own, number, piece)
            own.done[number] = VolumePart(
                number=number, size=done.size, etag=done.etag, crc64nvme=done.crc64nvme, start=0, end=done.size
            )
            chunks += more
        there = await own.complete()
        self.made.add((key, there.version_id))
        if joined.lead:
            chunks = _without(chunks, joined.lead)
        span = range(joined.lead, there.size) if joined.lead else None
        return CopySource(bucket.name, key, there.etag, there.version_id, joined.size, span), chunks

    async def _piece(self, upload: Upload[VolumePart], number: int, piece: Piece) -> tuple[PartDone, list[_Chunk]]:
        if not isinstance(piece, Sent):
            return await self._copied(upload, number, piece)
        async with self._slots if piece.size >= MIN_PART else nullcontext():
            held: list[memoryview] = []
            async with aclosing(self._reader.pieces(piece.start, piece.end)) as read:
                held += [one async for one in read]
            body = Pieces(held)
            etag, crc = await upload.send(number, body)
            body.free()
        return PartDone(number=number, size=piece.size, etag=etag, crc64nvme=crc), [_Chunk(crc, piece.size)]

    def _body(self, body: Body) -> CopySource:
        source = self._reader.members[body.member].source
        if source is None:
            raise VerificationError(f"{self._reader.members[body.member].name} is no object that could be copied")
        span = None if body.whole or body.size == source.size else range(body.start, body.end)
        return CopySource(self._source.name, source.key, source.etag, source.version_id, body.size, span)

    def _stored(self, body: Body) -> str:
        return stored_crc(self._reader, body.member)


def stored_crc(reader: VolumeReader, member: int) -> str:
    """The CRC64NVME that the store holds of a member's object, as it was listed."""
    source = reader.members[member].source
    algorithm, value = whole_checksum(source.checksum if source else None) or ("", "")
    if algorithm != "CRC64NVME":
        raise VerificationError(f"{reader.members[member].name} has no CRC64NVME that could prove a copy")
    return value


def check_split(reader: VolumeReader, parts: Iterable[VolumePart]) -> None:
    """Bodies that were copied in several stretches: together they have the CRC64NVME of their object."""
    found: dict[int, dict[int, tuple[int, str]]] = {}
    for part in parts:
        for member, start, end, crc in part.bodies:
            found.setdefault(member, {})[start] = (end, crc)
    for member, stretches in found.items():
        pieces = [(decode(crc), end - start) for start, (end, crc) in sorted(stretches.items())]
        if encode(combine(pieces)) != stored_crc(reader, member):
            name = reader.members[member].name
            raise VerificationError(f"{name}: the store copied other bytes than those whose CRC64NVME it keeps")


def _whole(chunks: Sequence[_Chunk]) -> str:
    return encode(combine((decode(chunk.crc), chunk.size) for chunk in chunks))


def _without(chunks: Sequence[_Chunk], lead: int) -> list[_Chunk]:
    """The chunks after the first `lead` bytes, which are whole chunks."""
    at = 0
    for number, chunk in enumerate(chunks):
        if at == lead:
            return list(chunks[number:])
        at += chunk.size
    raise VerificationError(f"{lead} bytes cannot be cut off in front of {at}")
