"""Gives a plate back: asks cold storage for its tarballs, then whole plates, parts or single files by ranged reads.

Invariant: only the frames (or bytes) that hold the wanted members are read; each file's SHA-256 must be the
manifest's before it gets its name; and nothing that exists is overwritten unless the caller says so.
"""

from __future__ import annotations

import asyncio
import bisect
import re
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import zstandard

from include.core.concurrency import map_concurrently
from include.core.errors import NotFound, RemoteError, RequestError, VerificationError, WaybillError
from include.core.progress import OnProgress, Progress, silent
from include.plates.file_names import is_named
from include.plates.layout import fill, tag_of
from include.plates.manifest import read_manifest
from include.plates.models import MIB, Frame, Frozen, Layout, Manifest, ManifestMember, Plate
from include.plates.restore_target import Sink
from include.s3.bucket import Bucket, Head
from include.s3.checksums import Digester, plain_md5, whole_checksum
from include.s3.errors import ColdObject, ObjectExists

_RANGE = 8 * MIB
_FRAMES_KEPT = 6


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


class RestoreReport(Frozen):
    """What was given back. `complete` when every wanted file is there with its right checksum."""

    files: tuple[FileOutcome, ...]
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
        raise NotFound(f"no manifest lies under s3://{archive.name}/{base}_...: the plate is not archived there")
    return [await read_manifest(archive, key) for key in sorted(keys)]


def select(
    manifests: Sequence[Manifest], *, parts: Sequence[str] = (), files: Sequence[str] = ()
) -> list[tuple[Manifest, ManifestMember]]:
    """The wanted members: all, or those of some parts, or those that `files` name.

    A file is named by its key, by the end of its key after a slash, or by a pattern over the key (`*/Images/r01*`).
    Raises NotFound naming every name that nothing matches.
    """
    held = [(manifest, member) for manifest in manifests for member in manifest.members if member.key is not None]
    known = {member.part for _, member in held}
    missing = [part for part in parts if part not in known]
    wanted = held if not parts else [pair for pair in held if pair[1].part in parts]
    if files:
        chosen: dict[str, tuple[Manifest, ManifestMember]] = {}
        for name in files:
            hits = {pair[1].key or "": pair for pair in wanted if is_named(pair[1].key or "", name)}
            missing += [] if hits else [name]
            chosen |= hits
        wanted = list(chosen.values())
    if missing:
        raise NotFound(f"not in this archive: {', '.join(repr(name) for name in missing[:10])}")
    return wanted


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
    wanted: Sequence[tuple[Manifest, ManifestMember]],
    sink: Sink,
    *,
    archive: Bucket,
    overwrite: bool = False,
    concurrency: int = 4,
    on_progress: OnProgress = silent,
) -> RestoreReport:
    """Restores the members given by `select`. One bad file fails alone. Raises ColdObject where a tarball is cold."""
    readers = await _readers([manifest for manifest, _ in wanted], archive)
    total = sum(member.size for _, member in wanted)
    done = {"bytes": 0, "files": 0}

    async def one(pair: tuple[Manifest, ManifestMember]) -> FileOutcome:
        manifest, member = pair
        outcome = await _restore_one(readers[manifest.head.key], member, sink, overwrite=overwrite)
        done["bytes"] += member.size
        done["files"] += 1
        on_progress(Progress("restore", done["bytes"], total, done["files"], len(wanted), member.key or ""))
        return outcome

    outcomes = await map_concurrently(wanted, one, concurrency)
    return RestoreReport(files=tuple(outcomes), read_bytes=sum(reader.read_bytes for reader in readers.values()))


async def _readers(manifests: Sequence[Manifest], archive: Bucket) -> dict[str, TarballReader]:
    readers: dict[str, TarballReader] = {}
    for manifest in manifests:
        key = manifest.head.key
        if key in readers:
            continue
        head = await archive.head(key)
        if head is None:
            raise NotFound(f"the tarball s3://{archive.name}/{key} is missing")
        if head.cold:
            raise ColdObject(f"s3://{archive.name}/{key} lies in cold storage: request its restoration and wait for it")
        if head.size != manifest.head.stored_bytes:
            raise VerificationError(f"s3://{archive.name}/{key} has {head.size} bytes, the manifest says otherwise")
        readers[key] = TarballReader(manifest, head, archive)
    return readers


async def _restore_one(reader: TarballReader, member: ManifestMember, sink: Sink, *, overwrite: bool) -> FileOutcome:
    key = member.key or ""
    try:
        there = await sink.existing(member)
        if there:
            return FileOutcome(key, member.size, Restored.IDENTICAL)
        if there is False and not overwrite:
            return FileOutcome(
                key, member.size, Restored.REFUSED, "something else is there; say overwrite to replace it"
            )
        stored = whole_checksum(member.checksum)
        digester = Digester(md5=member.sha256 is None and plain_md5(member.etag), stored=stored[0] if stored else None)
        async with aclosing(reader.content(member, digester)) as chunks:
            await sink.write(member, chunks, lambda: _check(member, digester), overwrite=overwrite)
    except ObjectExists as error:
        return FileOutcome(key, member.size, Restored.REFUSED, str(error))
    except (ColdObject, RequestError):
        raise
    except WaybillError as error:
        return FileOutcome(key, member.size, Restored.FAILED, str(error))
    return FileOutcome(key, member.size, Restored.RESTORED)


def _check(member: ManifestMember, digester: Digester) -> None:
    got = digester.result()
    if got.size != member.size:
        raise VerificationError(f"{member.key}: {got.size} bytes came out, the manifest says {member.size}")
    if member.sha256 is not None:
        if got.sha256 != member.sha256:
            raise VerificationError(f"{member.key}: the SHA-256 of what came out is not the manifest's")
        return
    # A member that the store copied by itself was never hashed on the way in; its source's own checksum must do.
    stored = whole_checksum(member.checksum)
    if not (stored and got.stored == stored[1]) and not (got.md5 is not None and got.md5 == member.etag):
        raise VerificationError(f"{member.key}: what came out is not what the source's checksum says")


class TarballReader:
    """Ranged reads of members out of one stored tarball, with the last frames kept for their neighbours."""

    def __init__(self, manifest: Manifest, head: Head, archive: Bucket):
        self._manifest = manifest
        self._head = head
        self._archive = archive
        self._kept: OrderedDict[int, asyncio.Task[bytes]] = OrderedDict()
        self.read_bytes = 0

    async def content(self, member: ManifestMember, digester: Digester) -> AsyncGenerator[memoryview, None]:
        """A member's bytes in order, fed to the digester on the way."""
        start, end = member.data_offset, member.data_offset + member.size
        while start < end:
            piece = await self._raw(start, end)
            await digester.update(piece)
            yield piece
            start += len(piece)

    async def _raw(self, start: int, end: int) -> memoryview:
        """Some uncompressed bytes from `start` on, at least one."""
        if not self._manifest.frames:
            return memoryview(await self._stored(start, min(end - start, _RANGE)))
        number = bisect.bisect_right(self._manifest.frames, start, key=lambda f: f.raw_offset) - 1
        frame = self._manifest.frames[number]
        data = await self._unpacked(number, frame)
        if len(data) != frame.raw_length:
            raise VerificationError(
                f"frame {number} of {self._manifest.head.key} holds {len(data)} bytes, not as planned"
            )
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
        data = await self._stored(frame.offset, frame.length)
        unpack = _gunzip if self._manifest.head.compression == "gzip" else _unzstd
        try:
            return await asyncio.to_thread(unpack, memoryview(data), frame.raw_length)
        except (zlib.error, zstandard.ZstdError):
            raise VerificationError(f"{self._manifest.head.key} is damaged at byte {frame.offset}") from None

    async def _stored(self, start: int, length: int) -> Any:
        head = self._head
        data = await self._archive.read(
            head.key, start, length, etag=head.etag, size=head.size, version_id=head.version_id
        )
        self.read_bytes += length
        return data


def _gunzip(data: memoryview, raw_length: int) -> bytes:
    return zlib.decompress(data, 31, raw_length)


def _unzstd(data: memoryview, raw_length: int) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_length)
