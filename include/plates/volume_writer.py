"""Writes one volume: reads, compresses, cuts and sends it, within a fixed amount of memory.

Invariant: parts may finish in any order, but they are *cut* in order. A part holds a slot from its first byte
on until it is on the store and in the journal: with the bytes read ahead (volume_reader.py) and the groups being compressed that
is the whole memory bound. Without compression only pieces of under 64 KiB are ever copied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from include.core.concurrency import map_concurrently, stop
from include.core.errors import VerificationError
from include.core.journal import PartJournal
from include.core.packed import Packed
from include.core.progress import OnProgress, Progress
from include.plates import volume_parts as cutting
from include.plates.models import ArchiveSettings, VolumePlan
from include.plates.store_copy import COPIES_AT_ONCE, StoreCopy, check_split
from include.plates.store_copy_plan import MIN_PART, copied_members
from include.plates.tar_format import PlannedMember
from include.plates.volume_reader import AHEAD_BYTES, AHEAD_BYTES_PACKING, VolumeReader
from include.plates.volume_upload import Learned, LearnedMembers, VolumePart, Written, frame_table, upload_of
from include.s3.bucket import Bucket
from include.s3.checksums import combine, crc64nvme, decode, encode
from include.s3.pieces import Gathering, Pieces

_CODEC_THREADS = 2


@dataclass(slots=True)
class _Cut:
    """A part being sent: which uncompressed bytes it holds, and its own."""

    number: int
    start: int
    end: int
    body: Pieces
    frames: tuple[tuple[int, int], ...] = ()


class InFlightLimits:
    """What the volumes of a plate share: so many parts in flight, and one reader, in turn.

    While a volume's last parts are on their way, the next one is read.
    """

    def __init__(self, parts_in_flight: int):
        self.slots = asyncio.Semaphore(parts_in_flight)
        self.reading = asyncio.Lock()


class VolumeWriter:
    """One volume's way to the store. `write` sends all parts; completing the upload is the caller's next step."""

    def __init__(
        self,
        volume: VolumePlan,
        members: Sequence[PlannedMember],
        settings: ArchiveSettings,
        source: Bucket,
        archive: Bucket,
        journal: PartJournal,
        *,
        limits: InFlightLimits,
        on_progress: OnProgress,
    ):
        self._volume = volume
        self._settings = settings
        self._source = source
        self._codec = cutting.codec(settings)
        self._raw_parts = cutting.cut_raw(members, volume.raw_bytes, settings) if self._codec is None else []
        copied = copied_members(part.copy for part in self._raw_parts)
        ahead_bytes = AHEAD_BYTES if self._codec is None else AHEAD_BYTES_PACKING
        self._reader = VolumeReader(members, source, copied=copied, ahead_bytes=ahead_bytes)
        if self._reader.total != volume.raw_bytes:
            raise VerificationError(f"{volume.name}: the plan's size is not that of its members; plan again")
        chosen = {
            "codec": cutting.codec_name(settings.compression, settings.level),
            "copy_from": MIN_PART if settings.copy_by == "server" else None,
        }
        self.upload = upload_of(archive, volume.key, volume.digest, chosen, journal)
        self._copied_files = len(copied) if settings.copy_by == "server" else None
        self.copying = StoreCopy(self.upload, volume.digest, self._reader, source, limits.slots)
        self._on_progress = on_progress
        self._limits = limits
        self._held = 0
        self._buffers: asyncio.LifoQueue[bytearray | None] = asyncio.LifoQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0
        self._raw_done = 0
        self._metadata: Mapping[str, str] = {}

    async def write(self, metadata: Mapping[str, str]) -> Written:
        """Sends every part that is not on the store yet."""
        self._metadata = metadata
        await self.upload.load()
        self._raw_done = sum(part.end - part.start for part in self.upload.done.values())
        for _ in range(_CODEC_THREADS + 1):
            self._buffers.put_nowait(None)  # made on first use: a small volume needs one
        try:
            async with self._limits.reading:
                single = await self._send_missing()
            await self._drain()
        except Exception:
            # Parts on their way are worth finishing: what is journaled is not sent again.
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise
        finally:
            await stop(self._tasks)
            self._tasks.clear()
            while not self._buffers.empty():
                self._buffers.get_nowait()
            while self._held:
                self._give_slot()  # of a part that was begun and never sent: other volumes wait for it
        return self._written(single)

    async def _take_slot(self) -> None:
        await self._limits.slots.acquire()
        self._held += 1

    def _give_slot(self) -> None:
        self._held -= 1
        self._limits.slots.release()

    async def _send_missing(self) -> bytes | None:
        if self._codec is None:
            return await self._send_raw()
        number = 1
        at = 0
        for gap_number, start, end in self._gaps():
            number, at = gap_number, start
            async with aclosing(self._compressed_parts(number, start, end)) as cuts:
                async for cut in cuts:
                    if cut.number == 1 and cut.end == self._volume.raw_bytes:
                        return await self._keep(cut)
                    await self._dispatch(cut)
                    number, at = cut.number + 1, cut.end
            following = self.upload.done.get(number)
            if at != end or (following is not None and following.start != end):
                raise VerificationError(f"{self._volume.name}: the parts are cut otherwise than before; archive afresh")
        return None

    def _gaps(self) -> Iterator[tuple[int, int, int]]:
        """(part number, start, end) of each stretch between finished parts."""
        number, at = 1, 0
        for part in sorted(self.upload.done.values(), key=lambda p: p.number):
            if part.start > at:
                yield number, at, part.start
            number, at = part.number + 1, part.end
        if at < self._volume.raw_bytes:
            yield number, at, self._volume.raw_bytes

    # Without compression: a part is the pieces of the members that were read

    async def _send_raw(self) -> bytes | None:
        missing = [part for part in self._raw_parts if part.number not in self.upload.done]
        run: list[cutting.RawPart] = []
        for part in [*(part for part in missing if part.copy is None), None]:
            if run and (part is None or part.start != run[-1].end):
                single = await self._send_run(run)
                if single is not None:
                    return single
                run = []
            if part is not None:
                run.append(part)
        copies = [part for part in missing if part.copy is not None]
        if copies:
            await self.upload.begin(self._metadata, self._settings.storage_class)
            await map_concurrently(copies, self._copy, COPIES_AT_ONCE)
        return None

    async def _send_run(self, run: Sequence[cutting.RawPart]) -> bytes | None:
        """Consecutive parts, read as one stretch."""
        at, held = run[0].start, Gathering()
        numbers = iter(run)
        part = next(numbers)
        await self._take_slot()
        async with aclosing(self._reader.pieces(at, run[-1].end)) as pieces:
            async for piece in pieces:
                while len(piece):
                    if not held and at == part.end:
                        part = next(numbers)
                        await self._take_slot()
                    take = min(len(piece), part.end - at)
                    held.add(piece[:take])
                    piece, at = piece[take:], at + take
                    if at == part.end:
                        cut, held = _Cut(part.number, part.start, part.end, held.pieces()), Gathering()
                        if len(self._raw_parts) == 1:
                            return await self._keep(cut)
                        await self._dispatch(cut)
        return None

    async def _copy(self, part: cutting.RawPart) -> None:
        await self.upload.finished(await self.copying.part(part))
        self._sent += 1
        self._note(part.end - part.start)

    # With compression: groups become frames, frames fill parts

    async def _compressed_parts(self, number: int, start: int, end: int) -> AsyncGenerator[_Cut, None]:
        size = self._settings.group_bytes
        ends = [*range(start - start % size + size, end, size), end]
        frames: list[tuple[int, int]] = []
        body: list[bytes] = []
        stored = 0
        begun = at = start
        async with aclosing(self._frames(start, ends, size)) as packed:
            async for raw, frame in packed:
                if not frames:
                    await self._take_slot()  # a part counts as in flight from its first byte on
                frames.append((raw, len(frame)))
                body.append(frame)
                stored += len(frame)
                at += raw
                if stored >= self._settings.part_bytes or at == end:
                    yield _Cut(number, begun, at, Pieces(body), tuple(frames))
                    number, begun, frames, body, stored = number + 1, at, [], [], 0

    async def _frames(self, start: int, ends: Sequence[int], size: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """(raw length, frame) of each group in order, a few being compressed at once."""
        waiting: deque[asyncio.Task[tuple[int, bytes]]] = deque()
        try:
            async with aclosing(self._groups(start, ends, size)) as groups:
                async for begun, end, buffer in groups:
                    waiting.append(asyncio.create_task(self._pack(end - begun, buffer)))
                    if len(waiting) >= _CODEC_THREADS:
                        yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            await stop(waiting)

    async def _groups(
        self, start: int, ends: Sequence[int], size: int
    ) -> AsyncGenerator[tuple[int, int, bytearray], None]:
        """The stretch from `start`, cut at `ends`, each group in a buffer of the pool (to be given back by the taker)."""
        turn = iter(ends)
        end = next(turn)
        buffer = await self._buffer(size)
        at = start
        async with aclosing(self._reader.pieces(start, ends[-1])) as pieces:
            async for piece in pieces:
                while len(piece):
                    take = min(len(piece), end - at)
                    where = at - start
                    buffer[where : where + take] = piece[:take]
                    piece, at = piece[take:], at + take
                    if at == end:
                        yield start, end, buffer
                        start, end = end, next(turn, end)
                        if start < end:
                            buffer = await self._buffer(size)

    async def _buffer(self, size: int) -> bytearray:
        return await self._buffers.get() or bytearray(size)

    async def _pack(self, length: int, buffer: bytearray) -> tuple[int, bytes]:
        if self._codec is None:
            raise VerificationError("nothing is compressed in this volume")
        frame = await asyncio.to_thread(self._codec, memoryview(buffer)[:length])
        self._buffers.put_nowait(buffer)
        return length, frame

    # Sending

    async def _keep(self, cut: _Cut) -> bytes:
        """The whole volume is one part: it is not sent yet, since its metadata will name the manifest."""
        self._give_slot()
        body = cut.body.join()
        self.upload.done = {1: self._done(cut, "", encode(crc64nvme(body)))}
        self._sent = 1
        self._note(cut.end - cut.start)
        return body

    async def _dispatch(self, cut: _Cut) -> None:
        """Starts sending a part; raises what an earlier one failed with."""
        await self.upload.begin(self._metadata, self._settings.storage_class)
        await self._drain(only_done=True)
        self._tasks.add(asyncio.create_task(self._send(cut)))

    async def _send(self, cut: _Cut) -> None:
        try:
            etag, crc = await self.upload.send(cut.number, cut.body)
            await self.upload.finished(self._done(cut, etag, crc))
            cut.body.free()
            self._sent += 1
            self._note(cut.end - cut.start)
        finally:
            self._give_slot()

    def _done(self, cut: _Cut, etag: str, crc: str) -> VolumePart:
        read = self._reader.read  # what a part's own line holds need not be kept beside it
        ended = [(index, read.pop(index)) for index in self._reader.ending_in(cut.start, cut.end) if index in read]
        members = Packed(
            Learned, (Learned(i, one.sha256, one.crc64nvme, one.etag_is_md5, one.headers) for i, one in ended)
        )
        return VolumePart(
            number=cut.number,
            start=cut.start,
            end=cut.end,
            size=len(cut.body),
            etag=etag,
            crc64nvme=crc,
            frames=cut.frames,
            members=members,
        )

    async def _drain(self, *, only_done: bool = False) -> None:
        """Reaps finished parts (or waits for all); a failed one fails the volume here."""
        if self._tasks and not only_done:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()
        if self._tasks and not only_done:
            await self._drain()

    def _note(self, raw: int) -> None:
        self._raw_done += raw
        done = len(self.upload.done)
        self._on_progress(Progress("archive", self._raw_done, self._volume.raw_bytes, done, 0, self._volume.name))

    def _written(self, single: bytes | None) -> Written:
        parts = [self.upload.done[number] for number in sorted(self.upload.done)]
        pieces = [(part.start, part.end) for part in parts]
        whole = [0, *(end for _, end in pieces)]
        if [start for start, _ in pieces] != whole[:-1] or whole[-1] != self._volume.raw_bytes:
            raise VerificationError(f"{self._volume.name}: the parts do not join into the whole volume")
        check_split(self._reader, parts)
        crc = None
        if all(part.crc64nvme is not None for part in parts):
            crc = encode(combine((decode(part.crc64nvme), part.size) for part in parts if part.crc64nvme))
        return Written(
            single=single,
            stored_bytes=sum(part.size for part in parts),
            crc64nvme=crc,
            frames=tuple(frame_table(parts)),
            read=LearnedMembers(parts),
            sent=self._sent,
            parts=len(parts),
            part_starts=tuple(start for start, _ in pieces),
            copied=self._copied_files,
        )
