"""Proves a stored archive, or says exactly what is not proved: checks V1 to V5 of docs/faults.md.

Invariant: nothing here trusts the archiver's process; everything is read from the two buckets, and the tarball
is read whole, from the store, by a parser of its own (verify_tar.py). Three outcomes, never two: what could not be looked
at is unverifiable, not wrong and never right.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence

from include.core.concurrency import map_concurrently
from include.core.errors import NotFound, RequestError, VerificationError, WaybillError
from include.core.packed import Packed, in_stretches
from include.core.progress import OnProgress, silent
from include.plates import sop_files as listings
from include.plates.compare import ArchivedObject, compare
from include.plates.layout import fill, not_archived, problems_of, tag_of
from include.plates.models import Layout, Level, ManifestMember, Outcome, Plate, Verdict
from include.plates.proof import OF_THE_TARBALL, TarballVerdict, write_proofs
from include.plates.same_bytes import member_of_row, same_bytes
from include.plates.script_archive import NO_MANIFEST, Compared, compare_script_archive, find_script_tarballs
from include.plates.verify_checks import Checks, some, worst
from include.plates.verify_evidence import Evidence, parse_manifest
from include.plates.verify_volume import MANIFEST_SUFFIX, TarballCheck, proof_of_volume, tarball_of
from include.s3.bucket import Bucket
from include.s3.errors import SourceChanged

_READ_AT_ONCE = 3
_READ_OF_A_STRETCH = 5_000


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
    checks = Checks()
    expected = tarball_of(manifest_key, volume.head)
    if volume.key == expected:
        await TarballCheck(archive, archive, Level.READ_BACK, checks, on_progress).stored(volume)
    else:
        checks.say("V5", Outcome.MISMATCH, f"{manifest_key} is about {volume.key}, not about {expected}")
    of_it = tuple(check for check in checks.all() if check.name in OF_THE_TARBALL)
    return TarballVerdict(outcome=worst(of_it), checks=of_it, volume=proof_of_volume(volume))


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
        self._on_progress = on_progress
        self._tag = tag_of(layout, plate)
        self._done: list[Evidence] = []
        self._checks = Checks()
        self.say = self._checks.say
        self._tarballs = TarballCheck(source, archive, level, self._checks, on_progress)
        self._whole: bool | None = True  # None: nothing is archived
        self.stopped_by: WaybillError | None = None
        self._compared: Compared | None = None

    # Which tarballs there are, by the archive bucket itself

    async def volumes(self) -> None:
        """Finds and checks every volume of every tarball of the layout."""
        base = fill(self._layout.archive_prefix, self._plate) + self._tag
        keys = [one.key async for one in self._archive.objects_under(base + "_", versions=False)]
        if not any(_is_of_an_archive(key, base, self._layout) for key in keys):
            self._whole = None
            self.say("V5", Outcome.UNVERIFIABLE, not_archived(self._archive.name, base))
            return
        for tarball in self._layout.tarballs:
            pattern = re.compile(re.escape(f"{base}_{tarball.name}") + r"(?:\.(\d+)-of-(\d+))?\.manifest\.jsonl\.zst")
            named = [(key, match) for key in keys if (match := pattern.fullmatch(key))]
            counts = {int(match[2] or 1) for _, match in named}
            numbers = sorted(int(match[1] or 1) for _, match in named)
            if not named and await self._by_script(tarball.name, keys):
                continue
            if counts != {len(named)} or numbers != list(range(1, len(named) + 1)):
                self._whole = False
                self.say("V5", Outcome.UNVERIFIABLE, _which(self._tag, tarball.name, [key for key, _ in named]))
                continue
            for key, _ in sorted(named):
                await self._volume(key, tarball.name)

    async def _by_script(self, tarball: str, keys: Sequence[str]) -> bool:
        """A tarball without a manifest is compared with whatever else is there; that never makes it verified."""
        every = await find_script_tarballs(self._plate, self._layout, self._archive)
        found = [one for one in every if one.tarball == tarball]
        if not found:
            return False
        self._whole = False
        if self._compared is None:  # all of them at once, since the script's listings are of the plate
            whole = not any(key.endswith(MANIFEST_SUFFIX) for key in keys)
            self._compared = await compare_script_archive(
                every, source=self._source, archive=self._archive, whole=whole, on_progress=self._on_progress
            )
            self.say("V4", self._compared.outcome, self._compared.sentence())
        names = ", ".join(one.key.rsplit("/", 1)[-1] for one in found)
        self.say("V5", Outcome.UNVERIFIABLE, f"{names} {NO_MANIFEST}")
        return True

    async def _volume(self, manifest_key: str, tarball: str) -> None:
        data = await self._archive.read_all(manifest_key)
        volume = parse_manifest(manifest_key, data)
        head = volume.head
        expected = tarball_of(manifest_key, head)
        ids = (self._tag, tarball, self._source.name, self._archive.name, self._plate.plate_id_full, expected)
        said = tuple(head[name] for name in ("tag", "tarball", "bucket", "archive_bucket", "plate_id_full", "key"))
        if said != ids:
            self._whole = False
            self.say("V5", Outcome.MISMATCH, f"{manifest_key} is about {said}, not about {ids}")
            return
        self._done.append(volume)
        if await self._tarballs.stored(volume):
            await self._tarballs.compare_with_etags(volume)

    # The source

    async def compare_source(self) -> None:
        """V1: the plate is listed again and is what the manifests say: nothing appeared, vanished or changed."""
        if self._whole is None:
            return
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
            some(found.appeared, "appeared"),
            some(changed, "changed"),
            some(found.vanished, "vanished"),
        ]
        if found.contradicted:
            self.say("V1", Outcome.UNVERIFIABLE, found.contradicted)
        elif any(wrong):
            self.say("V1", Outcome.MISMATCH, "since the plan, " + "; ".join(filter(None, wrong)))
        elif found.not_listed:
            self.say(
                "V1", Outcome.UNVERIFIABLE, some(found.not_listed, "are there but are not listed; try again later")
            )
        else:
            again = f"; {same} were written again with the same bytes, so they cannot be deleted by this proof"
            listed = f"{found.listed} objects listed again, none new, gone or changed"
            self.say("V1", Outcome.VERIFIED, listed + (again if same else ""))

    async def _written_again(self, keys: Sequence[str]) -> tuple[int, list[str]]:
        """Of objects with another ETag or version: how many hold the archived bytes (as after a restore), and which do not."""
        asked = set(keys)
        rows = (row for volume in self._done for row in volume.objects if row["key"] in asked)
        members = Packed(ManifestMember, map(member_of_row, rows))

        async def alike(member: ManifestMember) -> bool:
            there = await self._source.head(member.key or "")
            return there is not None and await same_bytes(self._source, there, member, by_metadata=False) is not None

        changed: list[str] = []
        for stretch in in_stretches(members, _READ_OF_A_STRETCH):
            answers = await map_concurrently(stretch, alike, _READ_AT_ONCE)
            changed += [member.key or "" for member, same in zip(stretch, answers, strict=True) if not same]
        return len(members) - len(changed), sorted(changed)

    # The outcome

    def verdict(self) -> Verdict:
        checks = self._checks.all()
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
            outcome=worst(checks),
            checks=checks,
            volumes=tuple(proof_of_volume(volume) for volume in self._done),
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
                base = volume.manifest_key.removesuffix(MANIFEST_SUFFIX)
                await self._archive.put_new(base + ".md5", listings.md5_line(volume.md5, volume.key.rsplit("/", 1)[-1]))
            rows = (row for volume in self._done for row in volume.objects)
            objects = ((row["key"], row.get("version_id"), row.get("etag") or "") for row in rows)
            await self._source.put(key, listings.delete_script(self._source.name, objects))
        except WaybillError:
            return verdict  # the proof stands without these documents; `delete_script` stays empty
        return verdict.model_copy(update={"delete_script": f"s3://{self._source.name}/{key}"})


def _is_of_an_archive(key: str, base: str, layout: Layout) -> bool:
    """Whether it is a tarball or a manifest of the plate, of whatever volume."""
    kinds = "|".join(re.escape(tarball.name) for tarball in layout.tarballs)
    ends = r"\.manifest\.jsonl\.zst|\.tar|\.tar\.gz|\.tar\.zst"
    return re.fullmatch(rf"{re.escape(base)}_({kinds})(\.\d+-of-\d+)?({ends})", key) is not None


def _which(tag: str, tarball: str, found: Sequence[str]) -> str:
    if not found:
        return f"there is no manifest of {tag}_{tarball}: nothing says what the tarball should hold"
    return f"the manifests of {tag}_{tarball} are not one whole set: {', '.join(found)}"
