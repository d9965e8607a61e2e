"""Gives a plate back: asks cold storage for its tarballs, then whole plates, parts or single files by ranged reads.

Invariant: only the frames (or bytes) that hold the wanted members are read; each file's SHA-256 must be the
manifest's before it gets its name; and nothing that exists is overwritten unless the caller says so.
"""

from __future__ import annotations

import asyncio
import bisect
import re
import zlib
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, overload

import zstandard
from pydantic import PlainSerializer, PlainValidator

from include.core.concurrency import map_concurrently
from include.core.errors import NotFound, RemoteError, RequestError, VerificationError, WaybillError
from include.core.packed import Packed, in_stretches
from include.core.progress import OnProgress, Progress, silent
from include.plates.layout import fill, not_archived, tag_of
from include.plates.manifest import read_manifest
from include.plates.models import GROUP_LIMIT, MIB, Frame, Frozen, Layout, Manifest, ManifestMember, Plate
from include.plates.name_match import is_named
from include.plates.restore_target import Sink, ends_all
from include.plates.same_bytes import agrees, digester_for
from include.plates.tar_stream import SequentialReader
from include.s3.bucket import Bucket, Head
from include.s3.checksums import Digester
from include.s3.errors import BucketMissing, ClockWrong, ColdObject, ExpiredCredential, ObjectExists

_RANGE = 8 * MIB
_FILES_OF_A_STRETCH = 5_000
_FRAMES_KEPT = 6
OF_EVERY_FILE = (BucketMissing, ExpiredCredential, ClockWrong)  # no other file would come back either


class RestoreStatus(StrEnum):
    """How near a tarball is."""

    READY = "ready"
    COLD = "cold"
    RESTORING = "restoring"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class TarballState:
    key: str
    status: RestoreStatus
    size_bytes: int
    storage_class: str


class Restored(StrEnum):
    RESTORED = "restored"
    IDENTICAL = "identical"  # these very bytes were there already
    REFUSED = "refused"  # something else is there, and overwriting was not asked for
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FileOutcome:
    key: str
    size: int
    result: Restored
    detail: str = ""


def _packed_outcomes(given: Sequence[FileOutcome]) -> Packed[FileOutcome]:
    return given if isinstance(given, Packed) else Packed(FileOutcome, given)


class RestoreReport(Frozen):
    """What was given back. `complete` when every wanted file is there with its right checksum."""

    files: Annotated[
        Sequence[FileOutcome],
        PlainValidator(_packed_outcomes),
        PlainSerializer(list, return_type=list[FileOutcome], when_used="json"),
    ]
    read_bytes: int

    @property
    def complete(self) -> bool:
        return all(one.result in (Restored.RESTORED, Restored.IDENTICAL) for one in self.files)


async def find_manifests(plate: Plate, layout: Layout, archive: Bucket) -> list[Manifest]:
    """Every manifest of a plate's archive. Raises NotFound where there is none, VerificationError for a broken one."""
    base = fill(layout.archive_prefix, plate) + tag_of(layout, plate)
    kinds = "|".join(re.escape(tarball.name) for tarball in layout.tarballs)
    pattern = re.compile(re.escape(base) + rf"_({kinds})(\.\d+-of-\d+)?\.manifest\.jsonl\.zst")
    keys = [o.key async for o in archive.objects_under(base + "_", versions=False) if pattern.fullmatch(o.key)]
    if not keys:
        raise NotFound(not_archived(archive.name, base))
    return [await read_manifest(archive, key) for key in sorted(keys)]


class Wanted(Sequence[tuple[Manifest, ManifestMember]]):
    """The members to restore, each with its manifest: what is kept of one is its place, twelve bytes."""

    def __init__(self, manifests: Sequence[Manifest], places: Iterable[tuple[int, int]] = ()):
        self._manifests = manifests
        self._of, self._at = array("I"), array("Q")
        for manifest, member in places:
            self._of.append(manifest)
            self._at.append(member)

    def places(self) -> Iterator[tuple[int, int]]:
        """Manifest and member of each, as numbers."""
        return zip(self._of, self._at, strict=True)

    @property
    def manifests(self) -> list[Manifest]:
        """Those that hold any of them."""
        return [self._manifests[number] for number in sorted(set(self._of))]

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> tuple[Manifest, ManifestMember]: ...
    @overload
    def __getitem__(self, index: slice) -> Wanted: ...
    def __getitem__(self, index: int | slice) -> tuple[Manifest, ManifestMember] | Wanted:
        if isinstance(index, slice):
            return Wanted(self._manifests, zip(self._of[index], self._at[index], strict=True))
        manifest = self._manifests[self._of[index]]
        return manifest, manifest.members[self._at[index]]

    def as_they_lie(self) -> Wanted:
        """In the order of the tarballs' keys and of the places in them, for a reader that cannot go back."""
        keys = [(manifest.head.key, number) for number, manifest in enumerate(self._manifests)]
        rank = {number: place for place, (_, number) in enumerate(sorted(keys))}
        return Wanted(self._manifests, sorted(self.places(), key=lambda place: (rank[place[0]], self._offset(*place))))

    def _offset(self, manifest: int, member: int) -> int:
        return self._manifests[manifest].members[member].data_offset


def all_of(manifests: Sequence[Manifest]) -> Wanted:
    """Every member that an object stands for."""
    return Wanted(manifests, ((m, n) for m, n, _ in _held(manifests)))


def _held(manifests: Sequence[Manifest]) -> Iterator[tuple[int, int, ManifestMember]]:
    for number, manifest in enumerate(manifests):
        for place, member in enumerate(manifest.members):
            if member.key is not None:
                yield number, place, member


def select(manifests: Sequence[Manifest], *, parts: Sequence[str] = (), files: Sequence[str] = ()) -> Wanted:
    """As `search`. Raises NotFound naming every name that nothing matches."""
    wanted, missing = search(manifests, parts=parts, files=files)
    if missing:
        raise NotFound(not_in_archive(missing))
    return wanted


def not_in_archive(names: Sequence[str]) -> str:
    return f"not in this archive: {', '.join(repr(name) for name in names[:10])}"


def search(
    manifests: Sequence[Manifest], *, parts: Sequence[str] = (), files: Sequence[str] = ()
) -> tuple[Wanted, list[str]]:
    """The wanted members (all, or those of some parts, or those that `files` name), and the names that nothing matches.

    A file is named by its key, by the end of its key after a slash, or by a pattern over the key (`*/Images/r01*`).
    """
    known = {member.part for _, _, member in _held(manifests)}
    missing = [part for part in parts if part not in known]
    wanted = Wanted(manifests, ((m, n) for m, n, member in _held(manifests) if not parts or member.part in parts))
    if files:
        wanted, without = _named(manifests, wanted, files)
        missing += without
    return wanted, missing


def _named(manifests: Sequence[Manifest], wanted: Wanted, files: Sequence[str]) -> tuple[Wanted, list[str]]:
    """Those that the names mean, each key once, in the order of the names; and the names that mean none."""
    hits: list[dict[str, tuple[int, int]]] = [{} for _ in files]
    for place, (_, member) in zip(wanted.places(), wanted, strict=True):
        for found, name in zip(hits, files, strict=True):
            if is_named(member.key or "", name):
                found[member.key or ""] = place
    chosen: dict[str, tuple[int, int]] = {}
    for found in hits:
        chosen |= found
    return Wanted(manifests, chosen.values()), [name for name, found in zip(files, hits, strict=True) if not found]


async def tarball_states(manifests: Sequence[Manifest], archive: Bucket) -> list[TarballState]:
    """How near each tarball is, by HEAD."""
    return [_state(m.head.key, await archive.head(m.head.key)) for m in manifests]


def _state(key: str, head: Head | None) -> TarballState:
    if head is None:
        return TarballState(key, RestoreStatus.MISSING, 0, "")
    ongoing = 'ongoing-request="true"' in (head.restore or "")
    status = RestoreStatus.RESTORING if ongoing else RestoreStatus.COLD if head.cold else RestoreStatus.READY
    return TarballState(key, status, head.size, head.storage_class or "STANDARD")


async def request_restore(
    manifests: Sequence[Manifest], archive: Bucket, *, days: int = 7, tier: str = "Standard"
) -> list[TarballState]:
    """Asks cold storage for every tarball that is cold and not asked for yet; gives the states afterwards.

    Safe to repeat. `days` is how long the restored copy stays (not for Intelligent-Tiering, which keeps it).
    """
    if tier not in ("Standard", "Bulk", "Expedited") or days < 1:
        raise RequestError("tier is Standard, Bulk or Expedited, and days at least 1")
    for manifest in manifests:
        key = manifest.head.key
        head = await archive.head(key)
        if _state(key, head).status is not RestoreStatus.COLD or head is None:
            continue
        asked: dict[str, Any] = {"GlacierJobParameters": {"Tier": tier}}
        if head.archive is None:
            asked["Days"] = days
        try:
            where = {"Bucket": archive.name, "Key": key}
            await archive.access.call("restore_object", f"restore of {key}", **where, RestoreRequest=asked)
        except RemoteError:
            if _state(key, await archive.head(key)).status is RestoreStatus.COLD:
                raise  # otherwise somebody asked between our HEAD and our request
    return await tarball_states(manifests, archive)


async def restore(
    wanted: Wanted,
    sink: Sink,
    *,
    archive: Bucket,
    overwrite: bool = False,
    concurrency: int = 4,
    on_progress: OnProgress = silent,
) -> RestoreReport:
    """Restores the members given by `select`. One bad file fails alone; a full disk ends the rest.

    Raises ColdObject where a tarball is cold, and what concerns the target or the credential, and so every file alike.
    """
    readers = await _readers(wanted.manifests, archive)
    if any(isinstance(reader, SequentialReader) for reader in readers.values()):
        wanted, concurrency = wanted.as_they_lie(), 1
    total = sum(member.size for _, member in wanted)
    done = {"bytes": 0, "files": 0}
    ended: list[str] = []

    async def one(pair: tuple[Manifest, ManifestMember]) -> FileOutcome:
        manifest, member = pair
        if ended:
            return FileOutcome(member.key or "", member.size, Restored.FAILED, f"not tried, since {ended[0]}")
        try:
            outcome = await _restore_one(readers[manifest.head.key], member, sink, overwrite=overwrite)
        except OSError as error:
            why = f"{error.strerror or type(error).__name__}: {error.filename or member.key}"
            outcome = FileOutcome(member.key or "", member.size, Restored.FAILED, why)
            ended.extend([why] if ends_all(error) else [])
        done["bytes"] += member.size
        done["files"] += 1
        on_progress(Progress("restore", done["bytes"], total, done["files"], len(wanted), member.key or ""))
        return outcome

    outcomes = Packed(FileOutcome)
    try:
        for stretch in in_stretches(wanted, _FILES_OF_A_STRETCH):
            outcomes.extend(await map_concurrently(stretch, one, concurrency))
    finally:
        for reader in readers.values():
            await reader.close()
    return RestoreReport(files=outcomes, read_bytes=sum(reader.read_bytes for reader in readers.values()))


async def _readers(manifests: Sequence[Manifest], archive: Bucket) -> dict[str, TarballReader | SequentialReader]:
    readers: dict[str, TarballReader | SequentialReader] = {}
    for manifest in manifests:
        key = manifest.head.key
        head = await archive.head(key)
        if head is None:
            raise NotFound(f"the tarball s3://{archive.name}/{key} is missing")
        if head.cold:
            raise ColdObject(f"s3://{archive.name}/{key} lies in cold storage: request its restoration and wait for it")
        if head.size != manifest.head.stored_bytes:
            raise VerificationError(f"s3://{archive.name}/{key} has {head.size} bytes, the manifest says otherwise")
        whole = manifest.head.compression != "none" and not manifest.frames
        readers[key] = SequentialReader(head, archive) if whole else TarballReader(manifest, head, archive)
    return readers


async def _restore_one(
    reader: TarballReader | SequentialReader, member: ManifestMember, sink: Sink, *, overwrite: bool
) -> FileOutcome:
    key = member.key or ""
    try:
        there = await sink.existing(member)
        if there:
            return FileOutcome(key, member.size, Restored.IDENTICAL)
        if there is False and not overwrite:
            return FileOutcome(
                key, member.size, Restored.REFUSED, "something else is there; say overwrite to replace it"
            )
        digester = digester_for(member)
        async with aclosing(reader.content(member, digester)) as chunks:
            note = await sink.write(member, chunks, lambda: _check(member, digester), overwrite=overwrite)
    except ObjectExists as error:
        return FileOutcome(key, member.size, Restored.REFUSED, str(error))
    except (ColdObject, *OF_EVERY_FILE):
        raise
    except WaybillError as error:
        return FileOutcome(key, member.size, Restored.FAILED, str(error))
    return FileOutcome(key, member.size, Restored.RESTORED, note)


def _check(member: ManifestMember, digester: Digester) -> None:
    got = digester.result()
    if got.size != member.size:
        raise VerificationError(f"{member.key}: {got.size} bytes came out, the manifest says {member.size}")
    if not agrees(member, got):
        known = "the manifest's SHA-256" if member.sha256 is not None else "its source's own checksum"
        raise VerificationError(f"{member.key}: what came out does not have {known}")


class TarballReader:
    """Ranged reads of members out of one stored tarball, with the last frames kept for their neighbours."""

    def __init__(self, manifest: Manifest, head: Head, archive: Bucket):
        self._manifest = manifest
        self._head = head
        self._archive = archive
        self._kept: OrderedDict[int, asyncio.Task[bytes]] = OrderedDict()
        self._damaged: dict[int, str] = {}
        self.read_bytes = 0

    async def close(self) -> None:
        """Nothing stays open between two reads."""

    async def content(self, member: ManifestMember, digester: Digester) -> AsyncGenerator[memoryview, None]:
        """A member's bytes in order, fed to the digester on the way."""
        start, end = member.data_offset, member.data_offset + member.size
        while start < end:
            piece = await self._raw(start, end)
            if not len(piece):
                raise VerificationError(
                    f"{member.key}: it does not lie in {self._manifest.head.key} as the manifest says"
                )
            await digester.update(piece)
            yield piece
            start += len(piece)

    async def _raw(self, start: int, end: int) -> memoryview:
        """Some uncompressed bytes from `start` on; none where the frames hold none of them."""
        if not self._manifest.frames:
            return memoryview(await self._stored(start, min(end - start, _RANGE)))
        number = bisect.bisect_right(self._manifest.frames, start, key=lambda f: f.raw_offset) - 1
        frame = self._manifest.frames[number]
        data = await self._unpacked(number, frame)
        return memoryview(data)[start - frame.raw_offset : end - frame.raw_offset]

    async def _unpacked(self, number: int, frame: Frame) -> bytes:
        task = self._kept.get(number)
        if task is None:
            task = self._kept[number] = asyncio.create_task(self._unpack(frame))
            while len(self._kept) > _FRAMES_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        try:
            return await asyncio.shield(task)
        except WaybillError:
            self._kept.pop(number, None)
            raise

    async def _unpack(self, frame: Frame) -> bytes:
        """Raises VerificationError for damage; that is found once for all files of a frame, and its bytes are let go."""
        if frame.offset in self._damaged:
            raise VerificationError(self._damaged[frame.offset])
        if frame.raw_length > GROUP_LIMIT or frame.length > _most_stored(frame.raw_length):
            raise VerificationError(
                f"{self._manifest.head.key}: the manifest names a group at {frame.offset} that is none"
            )
        data = await self._stored(frame.offset, frame.length)
        unpack = _gunzip if self._manifest.head.compression == "gzip" else _unzstd
        try:
            return await asyncio.to_thread(unpack, memoryview(data), frame.raw_length)
        except (zlib.error, zstandard.ZstdError, ValueError):
            pass  # raised below: an error raised here would keep the bytes for as long as it is kept
        del data
        self._damaged[frame.offset] = f"{self._manifest.head.key} is damaged at byte {frame.offset}"
        raise VerificationError(self._damaged[frame.offset])

    async def _stored(self, start: int, length: int) -> Any:
        head = self._head
        data = await self._archive.read(
            head.key, start, length, etag=head.etag, size=head.size, version_id=head.version_id
        )
        self.read_bytes += length
        return data


def _most_stored(raw_length: int) -> int:
    """What cannot be compressed grows a little, in both formats by far less than this."""
    return raw_length + raw_length // 8 + 64 * 1024


def _gunzip(data: memoryview, raw_length: int) -> bytes:
    """Exactly one gzip member of `raw_length` bytes; one that holds more is not unpacked any further. Raises ValueError."""
    inner = zlib.decompressobj(31)
    raw = inner.decompress(data, raw_length + 1)
    if not inner.eof or inner.unused_data or len(raw) != raw_length:
        raise ValueError("not the frame of the manifest")
    return raw


def _unzstd(data: memoryview, raw_length: int) -> bytes:
    """Exactly one zstd frame, in the same way. What its header says of its size would be believed, so it is looked at."""
    if zstandard.frame_content_size(data) not in (-1, raw_length):
        raise ValueError("not the frame of the manifest")
    raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_length, allow_extra_data=False)
    if len(raw) != raw_length:
        raise ValueError("not the frame of the manifest")
    return raw
