"""Proves one stored tarball by its manifest and its sources: checks V2 to V5 of docs/faults.md.

Invariant: the tarball is read whole, from the store, by a parser of its own (verify_tar.py), or proved by the checksums that
the stores keep (verify_store.py); what the archiver's process said of it counts for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from awscrt import checksums

from include.core.concurrency import prefetch
from include.core.errors import NotFound, WaybillError
from include.core.progress import OnProgress, Progress
from include.plates.models import GROUP_LIMIT, Level, Outcome, VolumeProof
from include.plates.verify_checks import Checks, few
from include.plates.verify_evidence import (
    Evidence,
    base64_of,
    checksum_agrees,
    headers_not_kept,
    plan_digest,
)
from include.plates.verify_store import provable, prove_by_checksums
from include.plates.verify_tar import Damaged, Found, TarScanner, Unpacker
from include.s3.bucket import Bucket, Head
from include.s3.errors import SourceChanged

_CHUNK = 8 * 1024 * 1024
_EXTENSION = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}
MANIFEST_SUFFIX = ".manifest.jsonl.zst"


def tarball_of(manifest_key: str, head: Mapping[str, Any]) -> str:
    """The key of the tarball that a manifest lies beside."""
    return manifest_key.removesuffix(MANIFEST_SUFFIX) + _EXTENSION.get(str(head["compression"]), "?")


class TarballCheck:
    """Looks at one tarball after another; what it finds goes to `checks`."""

    def __init__(self, source: Bucket, archive: Bucket, level: Level, checks: Checks, on_progress: OnProgress):
        self._source = source
        self._archive = archive
        self._level = level
        self._on_progress = on_progress
        self.say = checks.say

    async def stored(self, volume: Evidence) -> bool:
        """V3 to V5: the tarball as it lies there against its manifest. False where it was not read to its end."""
        volume.there = await self._archive.head(volume.key)
        if volume.there is None:
            self.say("V4", Outcome.MISMATCH, f"the tarball {volume.key} is missing")
            return False
        if self._level is Level.STORE_PROVED and provable(volume, volume.there):
            await self._bound(volume, volume.there)
            await self._prove_by_checksums(volume, volume.there)
            return False
        if volume.there.cold:
            self.say("V4", Outcome.UNVERIFIABLE, f"{volume.key} lies in an archived storage class: restore it first")
            return False
        await self._bound(volume, volume.there)
        try:
            await self._read(volume, volume.there)
        except (Damaged, SourceChanged) as error:
            self.say("V4", Outcome.MISMATCH, f"{volume.key}: {error}")
            return False
        await self._compare_md5_file(volume)
        self._compare_stored(volume, volume.there)
        self._compare_members(volume)
        return True

    async def _bound(self, volume: Evidence, there: Head) -> None:
        """V5: the manifest is the tarball's own: by its digest where the store keeps one, and by the plan's digest."""
        digest = await self._tag_of(volume, there)
        if digest is not None and digest != volume.manifest_sha256:
            self.say("V5", Outcome.MISMATCH, f"{volume.manifest_key} is not the manifest that {volume.key} names")
            return
        plan = there.metadata.get("waybill-plan-sha256")
        computed = plan_digest(volume)
        if computed != volume.head["plan_digest"] or plan not in (None, computed):
            self.say(
                "V5",
                Outcome.MISMATCH,
                f"{volume.manifest_key}: its rows are not the plan that {volume.key} was made of",
            )
            return
        how = "by its sha256" if digest else "by the plan's sha256" if plan else "by size and content only"
        self.say("V5", Outcome.VERIFIED, f"{volume.key} is bound to its manifest {how}{headers_not_kept(volume)}")

    async def _tag_of(self, volume: Evidence, there: Head) -> str | None:
        named = there.metadata.get("waybill-manifest-sha256")
        if named is not None or "waybill-plan-sha256" not in there.metadata:
            return named
        where = {"Bucket": self._archive.name, "Key": volume.manifest_key}
        try:
            # Asked of the small manifest first: a store without tags may answer with the whole object instead.
            await self._archive.access.call_without_waiting("get_object_tagging", "tags", **where)
            where["Key"] = volume.key
            if there.version_id:
                where["VersionId"] = there.version_id
            answer = await self._archive.access.call_without_waiting("get_object_tagging", "tags", **where)
        except WaybillError:
            return None
        return {tag["Key"]: str(tag["Value"]) for tag in answer.get("TagSet", [])}.get("waybill-manifest-sha256")

    # Not reading it

    async def _prove_by_checksums(self, volume: Evidence, there: Head) -> None:
        """V2 to V4 by the checksums that the two stores keep."""
        volume.level = Level.STORE_PROVED
        if volume.head["stored_bytes"] != there.size:
            sizes = f"{there.size} bytes are stored, {volume.head['stored_bytes']} were sent"
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: {sizes}")
            return
        try:
            proof = await prove_by_checksums(volume, there, self._source, self._archive, self._on_progress)
        except (Damaged, SourceChanged) as error:
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: {error}")
            return
        if proof.wrong:
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: {few(proof.wrong)}")
            return
        sources = f"{proof.by_checksum} sources by the CRC64NVME that the store keeps, {proof.read} read"
        self.say("V2", Outcome.VERIFIED, f"{volume.key}: {sources}")
        crc = "the CRC64NVME that the store keeps is the one that follows from its sources and headers"
        self.say("V3", Outcome.VERIFIED, f"{volume.key}: {there.size} bytes, {crc}")
        members = f"{len(volume.rows)} members at their places by that checksum, store-proved and not read back"
        self.say("V4", Outcome.VERIFIED, f"{volume.key}: {members}")

    # Reading the stored object

    async def _read(self, volume: Evidence, there: Head) -> None:
        scanner = TarScanner(len(volume.rows))
        unpacker = Unpacker(str(volume.head["compression"]), min(int(volume.head["group_bytes"]), GROUP_LIMIT))
        whole = hashlib.md5(usedforsecurity=False)
        crc = 0

        def take(data: Any) -> None:
            nonlocal crc
            view = memoryview(data)
            whole.update(view)
            crc = int(checksums.crc64nvme(view, crc))
            for piece in unpacker.feed(view):
                scanner.feed(piece)

        async def get(start: int) -> Any:
            length = min(_CHUNK, there.size - start)
            return await self._archive.read(
                volume.key, start, length, etag=there.etag, size=there.size, version_id=there.version_id
            )

        jobs = ((_CHUNK, lambda start=start: get(start)) for start in range(0, there.size, _CHUNK))
        done = 0
        async with aclosing(prefetch(jobs, budget=3 * _CHUNK, count=3)) as chunks:
            async for data in chunks:
                await asyncio.to_thread(take, data)
                done += len(data)
                self._on_progress(
                    Progress("verify", done, there.size, len(scanner.found), len(volume.rows), volume.key)
                )
        unpacker.close()
        scanner.close()
        volume.found, volume.seen_frames = scanner.found, unpacker.frames
        volume.md5, volume.crc = whole.hexdigest(), base64_of(crc)

    async def _compare_md5_file(self, volume: Evidence) -> None:
        """The `.md5` beside the tarball, which people check restored copies with, must be that of the stored bytes."""
        try:
            line = await self._archive.read_all(volume.manifest_key.removesuffix(MANIFEST_SUFFIX) + ".md5")
        except NotFound:
            return
        if line.split(b" ")[0] != volume.md5.encode():
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: the .md5 beside it is not that of the stored bytes")

    def _compare_stored(self, volume: Evidence, there: Head) -> None:
        """V3: what lies there weighs and sums up to what was sent."""
        wrong = []
        if there.size != volume.head["stored_bytes"]:
            wrong.append(f"{there.size} bytes are stored, {volume.head['stored_bytes']} were sent")
        if volume.head["stored_crc64nvme"] not in (None, volume.crc):
            wrong.append("the CRC64NVME of the stored bytes is not that of the bytes sent")
        held = (there.checksum or "").split(":")
        if held[0] == "CRC64NVME" and held[1] == "FULL_OBJECT" and held[2] != volume.crc:
            wrong.append("the CRC64NVME that the store holds is not that of the bytes it gives")
        if wrong:
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: {'; '.join(wrong)}")
            return
        how = "and equals the store's own" if held[0] == "CRC64NVME" else "(the store keeps none of its own)"
        sent = "" if volume.head["stored_crc64nvme"] else ", parts of it copied inside the store"
        self.say("V3", Outcome.VERIFIED, f"{volume.key}: {there.size} bytes, CRC64NVME as sent {how}{sent}")

    def _compare_members(self, volume: Evidence) -> None:
        """V4: every member once, with name, size, place and SHA-256 of the manifest, and nothing else."""
        wrong: list[str] = []
        other = next((r for r, f in zip(volume.rows, volume.found, strict=False) if not _same_place(r, f)), None)
        if other is not None or len(volume.rows) != len(volume.found):
            where = f"from {other['name']!r} on" if other else f"{len(volume.found)} of {len(volume.rows)} members"
            wrong.append(f"the members are not those of the manifest ({where})")
        else:
            for row, found in zip(volume.rows, volume.found, strict=True):
                if row.get("sha256") not in (None, found.sha256):
                    wrong.append(f"{found.name} has another SHA-256 than the bytes that were read from the source")
        if [tuple(frame) for frame in volume.frames] != list(volume.seen_frames):
            wrong.append("the frames are not where the manifest says, so single files could not be read back")
        if wrong:
            self.say("V4", Outcome.MISMATCH, f"{volume.key}: {few(wrong)}")
            return
        self.say(
            "V4", Outcome.VERIFIED, f"{volume.key}: {len(volume.found)} members read back from the store, byte for byte"
        )

    async def compare_with_etags(self, volume: Evidence) -> None:
        """V2: the stored bytes are the source's, by what the source store itself says of them."""
        wrong, by_md5, by_checksum, by_read = [], 0, 0, 0
        for row, found in zip(volume.rows, volume.found, strict=False):
            key, etag = row.get("key"), str(row.get("etag", ""))
            if key is None or row["name"] != found.name:
                continue
            checked = checksum_agrees(row, found)
            if checked is False:
                wrong.append(f"{key} has another checksum than its source")
            elif re.fullmatch("[0-9a-f]{32}", etag) and etag == found.md5:
                by_md5 += 1
            elif re.fullmatch("[0-9a-f]{32}", etag) and not await self._is_encrypted(key, row.get("version_id")):
                wrong.append(f"{key}: the MD5 of the archived bytes is not the source's ETag")
            elif checked:
                by_checksum += 1
            elif row.get("sha256") is None:
                wrong.append(f"{key} was never read, and its source holds no checksum to compare with")
            else:
                by_read += 1
        if wrong:
            self.say("V2", Outcome.MISMATCH, f"{volume.key}: {few(wrong)}")
            return
        detail = (
            f"{by_md5} by MD5 = ETag, {by_checksum} by the source's checksum, {by_read} by a conditional read alone"
        )
        self.say("V2", Outcome.VERIFIED, f"{volume.key}: {detail}")

    async def _is_encrypted(self, key: str, version_id: str | None) -> bool:
        """With SSE-KMS or SSE-C an ETag looks like an MD5 and is none (docs/protocols/s3.md 2.1)."""
        there = await self._source.head(key, version_id)
        return there is not None and there.encryption not in (None, "AES256")


def _same_place(row: Mapping[str, Any], found: Found) -> bool:
    planned = (row["name"], row["size"], row["modified"], row["header_offset"], row["data_offset"])
    return planned == (found.name, found.size, found.modified, found.header_offset, found.data_offset)


def proof_of_volume(volume: Evidence) -> VolumeProof:
    there = volume.there
    return VolumeProof(
        key=volume.key,
        etag=there.etag if there else "",
        version_id=there.version_id if there else None,
        stored_bytes=there.size if there else 0,
        md5=volume.md5,
        manifest_key=volume.manifest_key,
        manifest_sha256=volume.manifest_sha256,
        members=len(volume.rows),
        level=volume.level,
    )
