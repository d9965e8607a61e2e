"""Proves a stored archive, or says exactly what is not proved: checks V1 to V5 of docs/faults.md.

Invariant: nothing here trusts the archiver's process; everything is read from the two buckets, and the tarball
is read whole, from the store, by a parser of its own (verify_tar.py). Three outcomes, never two: what could not be looked
at is unverifiable, not wrong and never right.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from awscrt import checksums

from include.core.concurrency import map_concurrently, prefetch
from include.core.errors import NotFound, RequestError, VerificationError, WaybillError
from include.core.progress import OnProgress, Progress, silent
from include.plates import sop_files as listings
from include.plates.compare import ArchivedObject, compare, contradiction
from include.plates.layout import BROAD2018, fill, problems_of, tag_of
from include.plates.models import GROUP_LIMIT, Check, Layout, Level, Outcome, Plate, Verdict, VolumeProof
from include.plates.proof import OF_THE_TARBALL, TarballVerdict, write_proofs
from include.plates.same_bytes import member_of_row, same_bytes
from include.plates.script_archive import NO_MANIFEST, Compared, compare_script_archive, find_script_tarballs
from include.plates.verify_evidence import (
    Evidence,
    base64_of,
    checksum_agrees,
    headers_not_kept,
    parse_manifest,
    plan_digest,
)
from include.plates.verify_store import provable, prove_by_checksums
from include.plates.verify_tar import Damaged, Found, TarScanner, Unpacker
from include.s3.bucket import Bucket, Head
from include.s3.errors import SourceChanged

_CHUNK = 8 * 1024 * 1024
_SHOWN = 5
_READ_AT_ONCE = 3
_EXTENSION = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}


async def verify_archive(
    plate: Plate,
    layout: Layout,
    *,
    source: Bucket,
    archive: Bucket,
    level: Level = Level.READ_BACK,
    write_documents: bool = True,
    clock: Callable[[], float] = time.time,
    on_progress: OnProgress = silent,
) -> Verdict:
    """Reads the plate's manifests and tarballs from the archive bucket and the plate's listing from the live one.

    With `level` store-proved, a tarball whose checksum follows from those of its sources is not read (verify_store.py);
    others are. The verdict says how far it goes.

    When all is verified, and `write_documents`, it writes what only a verified archive may have: the `.md5` of the
    bytes that were read back, and the reference `_delete_s3.sh`. Raises only RequestError, for bad ids.
    """
    unfit = problems_of(plate, layout)
    if unfit:
        raise RequestError(unfit)
    began = clock()
    work = _Verification(plate, layout, source, archive, level, on_progress)
    try:
        await work.volumes()
        await work.compare_source()
    except (VerificationError, NotFound) as error:
        work.stopped_by = error
        work.say("V5", Outcome.MISMATCH if isinstance(error, SourceChanged) else Outcome.UNVERIFIABLE, str(error))
    except WaybillError as error:
        work.stopped_by = error
        work.say("V4", Outcome.UNVERIFIABLE, str(error))
    verdict = work.verdict().model_copy(update={"verified_at": began})
    if write_documents:
        verdict = await work.documents(verdict)
        await write_proofs(archive, verdict)
    return verdict


async def verify_tarball(manifest_key: str, *, archive: Bucket, on_progress: OnProgress = silent) -> TarballVerdict:
    """Reads one tarball back and proves it by its manifest alone (V3, V4 and V5): its source may be gone.

    Raises NotFound where there is no manifest, VerificationError for one that is not whole, and the store's errors.
    """
    volume = parse_manifest(manifest_key, await archive.read_all(manifest_key))
    head = volume.head
    ids = {name: str(head.get(name, "")) for name in ("project", "source", "batch", "plate_id", "plate_id_full")}
    plate = Plate.model_validate(ids)
    work = _Verification(
        plate, BROAD2018, archive, archive, Level.READ_BACK, on_progress
    )  # neither layout nor source is asked
    expected = manifest_key.removesuffix(".manifest.jsonl.zst") + _EXTENSION.get(str(head["compression"]), "?")
    if head["key"] == expected:
        await work.stored(volume)
    else:
        work.say("V5", Outcome.MISMATCH, f"{manifest_key} is about {head['key']}, not about {expected}")
    checks = tuple(check for check in work.verdict().checks if check.name in OF_THE_TARBALL)
    outcomes = {check.outcome for check in checks}
    outcome = next((o for o in (Outcome.MISMATCH, Outcome.UNVERIFIABLE) if o in outcomes), Outcome.VERIFIED)
    return TarballVerdict(outcome=outcome, checks=checks, volume=_proof(volume))


class _Verification:
    def __init__(
        self,
        plate: Plate,
        layout: Layout,
        source: Bucket,
        archive: Bucket,
        level: Level,
        on_progress: OnProgress,
    ):
        self._plate = plate
        self._layout = layout
        self._source = source
        self._archive = archive
        self._level = level
        self._on_progress = on_progress
        self._tag = tag_of(layout, plate)
        self._done: list[Evidence] = []
        self._checks: dict[str, list[tuple[Outcome, str]]] = {f"V{n}": [] for n in range(1, 6)}
        self._whole = True
        self.stopped_by: WaybillError | None = None
        self._compared: Compared | None = None

    def say(self, name: str, outcome: Outcome, detail: str) -> None:
        self._checks[name].append((outcome, detail))

    # Which tarballs there are, by the archive bucket itself

    async def volumes(self) -> None:
        """Finds and checks every volume of every tarball of the layout."""
        base = fill(self._layout.archive_prefix, self._plate) + self._tag
        keys = [one.key async for one in self._archive.objects_under(base + "_", versions=False)]
        for tarball in self._layout.tarballs:
            pattern = re.compile(re.escape(f"{base}_{tarball.name}") + r"(?:\.(\d+)-of-(\d+))?\.manifest\.jsonl\.zst")
            named = [(key, match) for key in keys if (match := pattern.fullmatch(key))]
            counts = {int(match[2] or 1) for _, match in named}
            if not named and await self._by_script(tarball.name, keys):
                continue
            if not named or len(counts) != 1 or {int(m[1] or 1) for _, m in named} != set(range(1, max(counts) + 1)):
                self._whole = False
                self.say("V5", Outcome.UNVERIFIABLE, _which(self._tag, tarball.name, [key for key, _ in named]))
                continue
            for key, _ in sorted(named):
                await self._volume(key, tarball.name, keys)

    async def _by_script(self, tarball: str, keys: Sequence[str]) -> bool:
        """A tarball without a manifest is compared with whatever else is there; that never makes it verified."""
        every = await find_script_tarballs(self._plate, self._layout, self._archive)
        found = [one for one in every if one.tarball == tarball]
        if not found:
            return False
        self._whole = False
        if self._compared is None:  # all of them at once, since the script's listings are of the plate
            whole = not any(key.endswith(".manifest.jsonl.zst") for key in keys)
            self._compared = await compare_script_archive(
                every, source=self._source, archive=self._archive, whole=whole, on_progress=self._on_progress
            )
            self.say("V4", self._compared.outcome, self._compared.sentence())
        names = ", ".join(one.key.rsplit("/", 1)[-1] for one in found)
        self.say("V5", Outcome.UNVERIFIABLE, f"{names} {NO_MANIFEST}")
        return True

    async def _volume(self, manifest_key: str, tarball: str, keys: Sequence[str]) -> None:
        data = await self._archive.read_all(manifest_key)
        volume = parse_manifest(manifest_key, data)
        head = volume.head
        expected = manifest_key.removesuffix(".manifest.jsonl.zst") + _EXTENSION.get(str(head["compression"]), "?")
        ids = (self._tag, tarball, self._source.name, self._archive.name, self._plate.plate_id_full, expected)
        said = tuple(head[name] for name in ("tag", "tarball", "bucket", "archive_bucket", "plate_id_full", "key"))
        if said != ids:
            self._whole = False
            self.say("V5", Outcome.MISMATCH, f"{manifest_key} is about {said}, not about {ids}")
            return
        self._done.append(volume)
        if await self.stored(volume):
            await self._compare_with_etags(volume)

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
            self.say("V3", Outcome.MISMATCH, f"{volume.key}: {_few(proof.wrong)}")
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
            line = await self._archive.read_all(volume.manifest_key.removesuffix(".manifest.jsonl.zst") + ".md5")
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
            self.say("V4", Outcome.MISMATCH, f"{volume.key}: {_few(wrong)}")
            return
        self.say(
            "V4", Outcome.VERIFIED, f"{volume.key}: {len(volume.found)} members read back from the store, byte for byte"
        )

    async def _compare_with_etags(self, volume: Evidence) -> None:
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
            self.say("V2", Outcome.MISMATCH, f"{volume.key}: {_few(wrong)}")
            return
        detail = (
            f"{by_md5} by MD5 = ETag, {by_checksum} by the source's checksum, {by_read} by a conditional read alone"
        )
        self.say("V2", Outcome.VERIFIED, f"{volume.key}: {detail}")

    async def _is_encrypted(self, key: str, version_id: str | None) -> bool:
        """With SSE-KMS or SSE-C an ETag looks like an MD5 and is none (docs/protocols/s3.md 2.1)."""
        there = await self._source.head(key, version_id)
        return there is not None and there.encryption not in (None, "AES256")

    # The source

    async def compare_source(self) -> None:
        """V1: the plate is listed again and is what the manifests say: nothing appeared, vanished or changed."""
        if not self._whole:
            self.say(
                "V1",
                Outcome.UNVERIFIABLE,
                "the manifests do not cover the plate, so there is nothing to compare it with",
            )
            return
        archived = (
            ArchivedObject(row["key"], row.get("etag"), row["size"], row.get("version_id"))
            for volume in self._done
            for row in volume.objects
        )
        found = await compare(archived, self._plate, self._layout, self._source)
        same, changed = await self._written_again(found.changed)
        wrong = [
            _some(found.appeared, "appeared"),
            _some(changed, "changed"),
            _some(found.vanished, "vanished"),
        ]
        if found.contradicted:
            self.say("V1", Outcome.UNVERIFIABLE, contradiction(found.contradicted))
        elif any(wrong):
            self.say("V1", Outcome.MISMATCH, "since the plan, " + "; ".join(filter(None, wrong)))
        elif found.not_listed:
            self.say(
                "V1", Outcome.UNVERIFIABLE, _some(found.not_listed, "are there but are not listed; try again later")
            )
        else:
            again = f"; {same} were written again with the same bytes, so they cannot be deleted by this proof"
            listed = f"{found.listed} objects listed again, none new, gone or changed"
            self.say("V1", Outcome.VERIFIED, listed + (again if same else ""))

    async def _written_again(self, keys: Sequence[str]) -> tuple[int, list[str]]:
        """Of objects with another ETag or version: how many hold the archived bytes (as after a restore), and which do not."""
        asked = set(keys)
        rows = {row["key"]: row for volume in self._done for row in volume.objects if row["key"] in asked}

        async def alike(key: str) -> bool:
            there = await self._source.head(key)
            member = member_of_row(rows[key])
            return there is not None and await same_bytes(self._source, there, member, by_metadata=False) is not None

        answers = await map_concurrently(keys, alike, _READ_AT_ONCE)
        changed = [key for key, same in zip(keys, answers, strict=True) if not same]
        return len(keys) - len(changed), changed

    # The outcome

    def verdict(self) -> Verdict:
        checks = tuple(_check(name, self._checks[name]) for name in self._checks)
        outcomes = {check.outcome for check in checks}
        outcome = next((o for o in (Outcome.MISMATCH, Outcome.UNVERIFIABLE) if o in outcomes), Outcome.VERIFIED)
        objects = size_bytes = 0
        for row in (row for volume in self._done for row in volume.objects):
            objects, size_bytes = objects + 1, size_bytes + int(row["size"])
        lines = "".join(f"{volume.manifest_key} {volume.manifest_sha256}\n" for volume in self._done)
        return Verdict(
            plate=self._plate,
            layout=self._layout,
            tag=self._tag,
            bucket=self._source.name,
            archive_bucket=self._archive.name,
            outcome=outcome,
            checks=checks,
            volumes=tuple(_proof(volume) for volume in self._done),
            objects=objects,
            size_bytes=size_bytes,
            manifests_sha256=hashlib.sha256(lines.encode()).hexdigest(),
            stopped_by=type(self.stopped_by).__name__ if self.stopped_by else "",
        )

    async def documents(self, verdict: Verdict) -> Verdict:
        key = fill(self._layout.backup_prefix, self._plate) + f"{self._tag}_delete_s3.sh"
        if verdict.outcome is not Outcome.VERIFIED:
            # People run every script they find: one from an earlier, verified state must not lie about.
            try:
                if await self._source.head(key) is not None:
                    await self._source.put(key, listings.WITHDRAWN)
            except WaybillError:
                pass
            return verdict
        try:
            for volume in self._done:
                if not volume.md5:
                    continue  # store-proved: nothing was read that an MD5 could be of
                base = volume.manifest_key.removesuffix(".manifest.jsonl.zst")
                await self._archive.put_new(base + ".md5", listings.md5_line(volume.md5, volume.key.rsplit("/", 1)[-1]))
            rows = (row for volume in self._done for row in volume.objects)
            objects = ((row["key"], row.get("version_id"), row.get("etag") or "") for row in rows)
            await self._source.put(key, listings.delete_script(self._source.name, objects).encode())
        except WaybillError:
            return verdict  # the proof stands without these documents; `delete_script` stays empty
        return verdict.model_copy(update={"delete_script": f"s3://{self._source.name}/{key}"})


def _same_place(row: Mapping[str, Any], found: Found) -> bool:
    planned = (row["name"], row["size"], row["modified"], row["header_offset"], row["data_offset"])
    return planned == (found.name, found.size, found.modified, found.header_offset, found.data_offset)


def _check(name: str, said: Sequence[tuple[Outcome, str]]) -> Check:
    for outcome in (Outcome.MISMATCH, Outcome.UNVERIFIABLE, Outcome.VERIFIED):
        details = [detail for one, detail in said if one is outcome]
        if details:
            return Check(name=name, outcome=outcome, detail="; ".join(details))
    return Check(name=name, outcome=Outcome.UNVERIFIABLE, detail="was not looked at, because of what is said elsewhere")


def _proof(volume: Evidence) -> VolumeProof:
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


def _which(tag: str, tarball: str, found: Sequence[str]) -> str:
    if not found:
        return f"there is no manifest of {tag}_{tarball}: nothing says what the tarball should hold"
    return f"the manifests of {tag}_{tarball} are not one whole set: {', '.join(found)}"


def _some(keys: Sequence[str], what: str) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} objects {what}: {', '.join(map(repr, keys[:_SHOWN]))}{more}"


def _few(sentences: Sequence[str]) -> str:
    more = f"; and {len(sentences) - _SHOWN} more" if len(sentences) > _SHOWN else ""
    return "; ".join(sentences[:_SHOWN]) + more
