"""Archives a plate: streams its objects into tarballs on the archive bucket, resumably, without any scratch disk.

Invariant: memory is bounded by the parts in flight (a pool of buffers), and whatever happens, running again
with the same plan and journal ends in the same bytes. A tarball is never overwritten; see include/s3/multipart.py for how.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from include.core.concurrency import map_concurrently, stop
from include.core.errors import NotFound, RemoteError, RequestError, WaybillError
from include.core.journal import JournalFor, PartJournal
from include.core.progress import OnProgress, silent
from include.plates import sop_files as listings
from include.plates.layout import base_of, fill, manifest_key
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.memory import keep_memory_steady
from include.plates.models import (
    ArchiveResult,
    Manifest,
    ManifestHead,
    ManifestMember,
    PlatePlan,
    SourceObject,
    VolumePlan,
    VolumeResult,
)
from include.plates.plan import FULL_ID_METADATA, PLAN_METADATA, plan_digest_of
from include.plates.tar_format import PlacedMembers, PlannedMember
from include.plates.volume_upload import Written
from include.plates.volume_writer import InFlightLimits, VolumeWriter
from include.s3.bucket import Bucket, Head
from include.s3.errors import ObjectExists, Unsupported
from include.s3.headers import Headers, joined
from include.s3.staging import remove_staged

_HEADS_AT_ONCE = 16
MANIFEST_METADATA = "waybill-manifest-sha256"


async def archive_plate(
    plan: PlatePlan,
    *,
    source: Bucket,
    archive: Bucket,
    journal_for: JournalFor,
    parts_in_flight: int = 3,
    write_listings: bool = True,
    on_progress: OnProgress = silent,
) -> ArchiveResult:
    """Writes every volume of the plan with its sidecars. `journal_for(volume name)` gives the durable journal of each.

    Run it again after a crash with the same plan and journals: finished parts are not sent again, a finished archive is
    recognised. Raises RequestError for a plan with problems or of other buckets, SourceChanged where a source object is
    not the one that was planned, ObjectExists where a name is taken, and the core's errors.
    """
    _refuse_unfit(plan, source, archive)
    keep_memory_steady(compressing=plan.settings.compression != "none")
    limits = InFlightLimits(parts_in_flight)
    failures: list[Exception] = []
    ending: dict[str, asyncio.Task[VolumeResult]] = {}
    members: dict[str, PlacedMembers] = {}

    async def one(volume: VolumePlan) -> None:
        if failures:
            return
        try:
            job = _VolumeJob(plan, volume, source, archive, limits, on_progress)
            members[volume.key] = job.members
            sidecars = await job.run(journal_for)
        except Exception as error:
            failures.append(error)  # a volume that has begun is finished all the same: its parts count for the next run
        else:
            ending[volume.key] = asyncio.create_task(sidecars)  # while the next volume is read

    names: tuple[str, ...] = ()
    try:
        await map_concurrently(plan.volumes, one, 2)
        if write_listings and not failures:
            placed = [members[volume.key] for volume in plan.volumes]
            names = await _write_listings(plan, placed, source, archive)
    except Exception as error:
        failures.append(error)
    except BaseException:
        await stop(ending.values())
        raise
    ended = await asyncio.gather(*ending.values(), return_exceptions=True)
    failures += [error for error in ended if isinstance(error, Exception)]
    if failures:
        raise failures[0]
    return ArchiveResult(
        plate=plan.plate,
        tag=plan.tag,
        plan_digest=plan.digest,
        volumes=tuple(ending[volume.key].result() for volume in plan.volumes),
        listings=names,
    )


def _refuse_unfit(plan: PlatePlan, source: Bucket, archive: Bucket) -> None:
    if plan.problems:
        raise RequestError([f"plate {plan.plate.plate_id_full}: {problem}" for problem in plan.problems])
    if (plan.bucket, plan.archive_bucket) != (source.name, archive.name):
        raise RequestError(f"the plan is for {plan.bucket} and {plan.archive_bucket}, not for the buckets given")


def planned_members(plan: PlatePlan, volume: VolumePlan) -> PlacedMembers:
    return PlacedMembers(plan.layout, plan.tag, volume.folders, volume.objects)


class _VolumeJob:
    """One volume: `run` stores the tarball, and what it gives writes the manifest and the other sidecars."""

    def __init__(
        self,
        plan: PlatePlan,
        volume: VolumePlan,
        source: Bucket,
        archive: Bucket,
        limits: InFlightLimits,
        on_progress: OnProgress,
    ):
        self.plan = plan
        self.volume = volume
        self.source = source
        self.archive = archive
        self.limits = limits
        self.on_progress = on_progress
        self.members = planned_members(plan, volume)
        self.found = False

    async def run(self, journal_for: JournalFor) -> Coroutine[Any, Any, VolumeResult]:
        journal = journal_for(self.volume.name)
        there = await self.archive.head(self.volume.key)
        self.found = there is not None
        if there is not None:
            finished = await self._finished_before(there)
            if finished is not None:
                return finished
            await self._refuse_foreign(there, journal)
        writer = VolumeWriter(
            self.volume,
            self.members,
            self.plan.settings,
            self.source,
            self.archive,
            journal,
            limits=self.limits,
            on_progress=self.on_progress,
        )
        metadata = {PLAN_METADATA: self.volume.digest, FULL_ID_METADATA: _ascii(self.plan.plate.plate_id_full)}
        try:
            written = await writer.write(metadata)
        except WaybillError:
            await self._remove_staged(writer.copying.made)
            raise
        data = self._manifest(written, await self._headers(written))
        digest = hashlib.sha256(data).hexdigest()
        if written.single is not None:
            there = await self._put_single(written, metadata | {MANIFEST_METADATA: digest})
        else:
            there = await writer.upload.complete()
        return self._sidecars(there, replace(written, single=None, read={}), digest, data, writer.copying.made)

    async def _refuse_foreign(self, there: Head, journal: PartJournal) -> None:
        """Without a manifest beside it, a tarball under our name is ours by its metadata, or may be by our journal."""
        digest = await plan_digest_of(self.archive, there)
        rows = await asyncio.to_thread(journal.load)
        if digest == self.volume.digest or (digest is None and rows):
            return
        raise ObjectExists(
            f"s3://{self.archive.name}/{self.volume.key} exists and is not of this plan. Nothing was overwritten; "
            "move it away, or plan again if the plate changed."
        )

    async def _finished_before(self, there: Head) -> Coroutine[Any, Any, VolumeResult] | None:
        """An earlier run got as far as the manifest: everything is there, and the verifier will prove it."""
        key = manifest_key(self.volume.key)
        try:
            data = await self.archive.read_all(key)
        except NotFound:
            return None
        manifest = decode_manifest(data)
        head = manifest.head
        named = there.metadata.get(PLAN_METADATA, self.volume.digest)
        if named != self.volume.digest or head.plan_digest != self.volume.digest or head.stored_bytes != there.size:
            raise ObjectExists(
                f"s3://{self.archive.name}/{self.volume.key} and its manifest are another archive. Nothing was overwritten; "
                "move both away, or plan again if the plate changed."
            )
        done = Written(None, head.stored_bytes, head.stored_crc64nvme, (), {}, 0, head.upload_parts)
        return self._sidecars(there, done, manifest.sha256, None)

    async def _put_single(self, written: Written, metadata: dict[str, str]) -> Head:
        """A volume of one part needs no multipart upload, and can carry its manifest's digest from the start."""
        extra = {"StorageClass": self.plan.settings.storage_class} if self.plan.settings.storage_class else {}
        body = written.single or b""
        await self.archive.put_new(self.volume.key, body, metadata=metadata, crc64nvme=written.crc64nvme, **extra)
        there = await self.archive.head(self.volume.key)
        if there is None or there.size != len(body):
            raise RemoteError(f"s3://{self.archive.name}/{self.volume.key} was written and is not there as written")
        return there

    async def _headers(self, written: Written) -> dict[int, Headers]:
        """Headers by member, as far as they are to be had: from the read, or by HEAD of what was not read."""
        found = {index: read.headers for index, read in written.read.items() if read.headers is not None}
        found |= {index: () for index, member in enumerate(self.members) if member.source is None}
        unread = [index for index in range(len(self.members)) if index not in found]
        heads = await map_concurrently(unread, self._head_of, _HEADS_AT_ONCE)
        found |= {index: headers for index, headers in zip(unread, heads, strict=True) if headers is not None}
        return found

    async def _head_of(self, index: int) -> Headers | None:
        source = self.members[index].source
        try:
            there = await self.source.head(source.key, source.version_id) if source else None
        except WaybillError:
            return None
        return there.headers if there is not None and source is not None and there.etag == source.etag else None

    def _manifest(self, written: Written, headers: Mapping[int, Headers]) -> bytes:
        plan, plate, settings = self.plan, self.plan.plate, self.plan.settings
        head = ManifestHead(
            tag=plan.tag,
            project=plate.project,
            source=plate.source,
            batch=plate.batch,
            plate_id=plate.plate_id,
            plate_id_full=plate.plate_id_full,
            bucket=plan.bucket,
            archive_bucket=plan.archive_bucket,
            key=self.volume.key,
            tarball=self.volume.tarball,
            number=self.volume.number,
            of=self.volume.of,
            compression=settings.compression,
            level=settings.level,
            part_bytes=settings.part_bytes,
            group_bytes=settings.group_bytes,
            plan_digest=self.volume.digest,
            raw_bytes=self.volume.raw_bytes,
            stored_bytes=written.stored_bytes,
            stored_crc64nvme=written.crc64nvme,
            members=len(self.members),
            upload_parts=written.parts,
            headers_unknown=len(self.members) - len(headers),
            tags_unknown=sum(source.tags is None for source in self.volume.objects),
        )
        rows = (self._row(i, member, written, headers.get(i, ())) for i, member in enumerate(self.members))
        return encode_manifest(head, written.frames, rows)

    def _row(self, index: int, member: PlannedMember, written: Written, headers: Headers) -> ManifestMember:
        read = written.read.get(index)
        source = member.source
        return ManifestMember(
            name=member.name,
            size=member.size,
            header_offset=member.header_offset,
            data_offset=member.data_offset,
            modified=member.modified,
            key=source.key if source else None,
            part=source.part if source else None,
            etag=source.etag if source else None,
            version_id=source.version_id if source else None,
            checksum=source.checksum if source else None,
            sha256=read.sha256 if read else None,
            crc64nvme=read.crc64nvme if read else None,
            etag_is_md5=bool(read and read.etag_is_md5),
            parts=written.parts_of(member),
            frame=written.frame_of(member),
            headers=_kept(headers, source) if source else (),
        )

    async def _tag(self, digest: str, there: Head) -> list[str]:
        """A tarball's metadata is fixed before its content is known, so the manifest's digest becomes a tag.

        A store that does not know `?tagging` may take the request for a plain PUT and replace the tarball by the tags
        (docs/protocols/s3.md 3.7). So the small manifest is asked for its tags first; only a store that answers that is trusted.
        """
        unmarked = "the manifest's digest is not on the tarball"
        if PLAN_METADATA not in there.metadata:
            return [f"{unmarked}: the store keeps neither metadata nor tags"]
        where = {"Bucket": self.archive.name, "Key": self.volume.key}
        if there.version_id and there.version_id != "null":
            where["VersionId"] = there.version_id
        probe = {"Bucket": self.archive.name, "Key": manifest_key(self.volume.key)}
        try:
            what = f"tags of {probe['Key']}"
            answer = await self.archive.access.call_without_waiting("get_object_tagging", what, **probe)
            if answer.get("TagSet") != []:
                raise Unsupported("the store does not answer for tags", no_effect=True)
            tags = {"TagSet": [{"Key": MANIFEST_METADATA, "Value": digest}]}
            await self.archive.access.call("put_object_tagging", f"tag of {self.volume.key}", Tagging=tags, **where)
        except WaybillError as error:
            return [f"{unmarked}, only its plan's: {error}"]
        return []

    async def _remove_staged(self, made: Collection[tuple[str, str | None]] = ()) -> list[str]:
        if self.plan.settings.copy_by != "server":
            return []
        return await remove_staged(self.archive, self.volume.key, made)

    async def _sidecars(
        self,
        there: Head,
        written: Written,
        digest: str,
        manifest: bytes | None,
        staged: Collection[tuple[str, str | None]] = (),
    ) -> VolumeResult:
        """All at once, and while the next volume is read. Without a `manifest` the one that lies there is the right one."""
        steps: list[Callable[[], Awaitable[list[str]]]] = [
            lambda: self._bind(there, digest, manifest),
            lambda: self._etag_file(there),
            lambda: self._remove_staged(staged),
        ]
        every = await map_concurrently(steps, lambda step: step(), len(steps))
        notes = [note for notes in every for note in notes]
        return VolumeResult(
            key=self.volume.key,
            etag=there.etag,
            version_id=there.version_id,
            stored_bytes=there.size,
            members=len(self.members),
            manifest_key=manifest_key(self.volume.key),
            manifest_sha256=digest,
            sent_parts=written.sent,
            resumed_parts=written.parts - written.sent,
            notes=(*notes, "found finished") if manifest is None else tuple(notes),
        )

    async def _bind(self, there: Head, digest: str, manifest: bytes | None) -> list[str]:
        """The manifest, and its digest on the tarball, which carries it from the start where it was sent in one piece."""
        if manifest is not None:
            await self.archive.put_new(manifest_key(self.volume.key), manifest)
        return [] if MANIFEST_METADATA in there.metadata else await self._tag(digest, there)

    async def _etag_file(self, there: Head) -> list[str]:
        """Of a tarball that was there before and is proved ours (by plan, manifest and size), a `.etag` with another text is
        the earlier run's: some stores name one ETag when an upload is completed and another one at HEAD."""
        try:
            await self.archive.put_new(base_of(self.volume.key) + ".etag", listings.etag_line(there.etag))
        except ObjectExists:
            if not self.found:
                raise
            return [f"the .etag of {self.volume.name} is not the ETag that the store gives now, {there.etag}"]
        return []


async def _write_listings(
    plan: PlatePlan, placed: Sequence[PlacedMembers], source: Bucket, archive: Bucket
) -> tuple[str, ...]:
    """The SOP's three listings: the untrimmed one beside the tarballs, the two that it compares on the live bucket."""
    raw = listings.plan_listing(plan)
    members = ((member.name, member.size) for volume in placed for member in volume)
    cold, live = fill(plan.layout.archive_prefix, plan.plate), fill(plan.layout.backup_prefix, plan.plate)
    places = [
        (archive, f"{cold}{plan.tag}_file_listing_untrimmed_s3.txt", raw),
        (source, f"{live}{plan.tag}_file_listing_s3.txt", listings.trimmed_s3(raw)),
        (source, f"{live}{plan.tag}_file_listing_tar.txt", listings.trimmed_tar(members, plan.tag)),
    ]
    await map_concurrently(places, lambda one: asyncio.shield(one[0].put(one[1], one[2].encode())), len(places))
    return tuple(f"s3://{bucket.name}/{key}" for bucket, key, _ in places)


def _kept(headers: Headers, source: SourceObject) -> Headers:
    if not source.tags and source.storage_class in (None, "STANDARD"):
        return headers
    return joined(headers, tags=source.tags, storage_class=source.storage_class)


def _ascii(text: str) -> str:
    """S3 metadata is ASCII; names beyond it are kept as escapes, since they are only compared."""
    return text.encode("ascii", "backslashreplace").decode()


__all__ = ["MANIFEST_METADATA", "Manifest", "archive_plate"]
