"""Plans a plate: lists its parts, finds everything that would go wrong later, and fixes the bytes that will be stored.

Invariant: a plan holds *problems* rather than raising on the first, so that a person sees all of them at once;
only what would make the listing itself wrong (an empty id is a prefix of the whole batch) is refused outright. The plan is
a pure function of the listing: no clock, no randomness.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from include.core.concurrency import prefetch
from include.core.errors import Forbidden, NotFound, RequestError, VerificationError
from include.core.packed import Finder, Packed, in_order
from include.core.progress import OnProgress, Progress, silent
from include.core.text import pluralize
from include.plates.compare import list_again, older_versions
from include.plates.file_names import name_warnings
from include.plates.layout import check_layout, fill, member_name, problems_of, tag_of, tarball_key, volume_digest
from include.plates.manifest import read_manifest
from include.plates.measurements import other_measurements
from include.plates.models import (
    ArchiveSettings,
    Layout,
    Part,
    PartSummary,
    Plate,
    PlatePlan,
    SourceObject,
    Tarball,
    VolumePlan,
)
from include.plates.tar_format import END_MARKER, folder_time, header_length, member_rows, padding, place
from include.s3.bucket import Bucket, Head, KeyVersion
from include.s3.errors import ColdObject, RequesterPays, SourceChanged, Unsupported
from include.s3.staging import kept_pieces

if TYPE_CHECKING:  # the command line plans without a request, and need not load its models
    from include.plates.request import BackupRequest

PLAN_METADATA = "waybill-plan-sha256"
_NOT_OURS = (
    "exists already, and nothing says that Waybill made it (aws_backup.sh may have written it): find out whose it is, and "
    "move it, with its .md5 and .etag, to another prefix"
)
_DELETION = re.compile(r"\.(deleted|marked|purged)\.[0-9a-f]+\.jsonl$")
FULL_ID_METADATA = "waybill-plate-id-full"
_SHOWN = 5
_SAMPLE = {True: 6, False: 2}  # objects of each part that are looked at: of a large plate, of a small one
_COLD_IN_LISTING = ("GLACIER", "DEEP_ARCHIVE", "INTELLIGENT_TIERING")


async def plan_plate(
    plate: Plate,
    layout: Layout,
    settings: ArchiveSettings,
    *,
    source: Bucket,
    archive: Bucket,
    probe: bool = True,
    probe_from_bytes: int = 0,
    all_tags: bool = False,
    concurrency: int = 32,
    on_progress: OnProgress = silent,
) -> PlatePlan:
    """The plan of one plate; it changes nothing anywhere, so it is also the dry run.

    `probe` tries to read every object, which is what finds keys that may be listed but not read. Of a plate of less than
    `probe_from_bytes` only a few are looked at. Raises RequestError for empty or unfit ids; everything else is in the plan's
    `problems`. `all_tags` looks for tags at every object, and not at a few of each part: for plates that are to be deleted,
    since what was not looked at is lost with them.
    """
    check_layout(layout)
    unfit = problems_of(plate, layout)
    if unfit:
        raise RequestError(unfit)
    versions = bool(await source.versioning())
    others = await other_measurements(plate, layout, source)
    listed = await asyncio.gather(*(list_part(plate, part, source, versions=versions) for part in layout.parts))
    every = Packed(SourceObject, itertools.chain.from_iterable(listed))
    older, contradicted = await _listed_again(plate, layout, source, every, versions=versions)
    problems = [problem for objects in listed for problem in key_problems(objects)]
    problems += [contradicted] if contradicted else []
    if not any(listed):
        problems.append(f"plate {plate.plate_id_full} has no object under any of its {len(listed)} prefixes")
    if settings.copy_by == "server" and settings.compression != "none":
        problems.append("copying inside the store (copy_by) needs compression none")
    refused, doubted = await kept_pieces(archive) if settings.copy_by == "server" else ([], [])
    problems += refused
    large = sum(one.size for one in every) >= probe_from_bytes
    inspector = _Inspector(
        source,
        probe=probe and large,
        all_tags=all_tags,
        sample=_SAMPLE[large] if probe else 0,
        concurrency=concurrency,
        on_progress=on_progress,
    )
    objects = await inspector.run(every)
    problems += inspector.problems()
    parts = _with_older(
        [
            _summary(plate, part, rows, shared=bool(others or plate.tag_by_full))
            for part, rows in zip(layout.parts, listed, strict=True)
        ],
        every,
        older,
    )
    problems += _wrong_name(plate, layout, parts, others)
    volumes = plan_volumes(plate, layout, settings, objects)
    existing, clashes = await _existing(plate, layout, volumes, archive)
    return PlatePlan(
        plate=plate,
        layout=layout,
        settings=settings,
        tag=tag_of(layout, plate),
        bucket=source.name,
        archive_bucket=archive.name,
        parts=tuple(parts),
        volumes=tuple(volumes),
        existing=existing,
        other_measurements=others,
        problems=tuple(problems + clashes),
        warnings=(
            *_warnings(plate, parts, others),
            *_older_warning(older),
            *name_warnings(one.key for one in objects),
            *doubted,
        ),
        older_versions=len(older),
        older_bytes=sum(one.size for one in older),
        digest=hashlib.sha256("\n".join(volume.digest for volume in volumes).encode()).hexdigest(),
    )


async def list_part(plate: Plate, part: Part, source: Bucket, *, versions: bool) -> Packed[SourceObject]:
    """All current objects of one of a plate's folders, folder markers included, by UTF-8 key."""
    found = Packed(SourceObject)
    async for row in source.objects_under(fill(part.prefix, plate), versions=versions):
        found.append(SourceObject.of(row, part.name))
    return in_order(found, lambda row: row.key)


async def _listed_again(
    plate: Plate, layout: Layout, source: Bucket, objects: Packed[SourceObject], *, versions: bool
) -> tuple[Sequence[KeyVersion], str]:
    """The versions below the plate's objects, and in words that the store's two listings do not agree, if they do not."""
    known = Finder(objects, lambda one: one.key)
    listing = await list_again(plate, layout, source, known, versions=versions)
    older = await older_versions(known, plate, layout, source) if versions else ()
    return older, listing.contradicted


def _older_warning(older: Sequence[KeyVersion]) -> list[str]:
    if not older:
        return []
    size = sum(one.size for one in older)
    return [
        f"{pluralize(len({one.key for one in older}), 'object')} with {pluralize(len(older), 'older version')} ({size} bytes) "
        "below, which would be current again if what is archived were deleted"
    ]


def key_problems(objects: Sequence[SourceObject]) -> list[str]:
    """Keys that a tar cannot give back: empty or dot segments, folder markers with content, a file that is a folder too."""
    odd = [o.key for o in objects if any(s in ("", ".", "..") for s in o.key.removesuffix("/").split("/"))]
    full = [o.key for o in objects if o.is_marker and o.size]
    folders = {folder for o in objects for folder in _parents(o.key, "")}
    both = [o.key for o in objects if not o.is_marker and o.key + "/" in folders]
    return [
        *_some(odd, "hold empty or dot segments, which no tar can give back; rename them"),
        *_some(full, "end in a slash and hold data, which no tar can give back; rename them"),
        *_some(both, "are a file and a folder at once, which no file system can hold; rename one of the two"),
    ]


def plan_volumes(
    plate: Plate, layout: Layout, settings: ArchiveSettings, objects: Sequence[SourceObject]
) -> list[VolumePlan]:
    """Every tarball of the plate, split into volumes on member boundaries. Pure."""
    tag = tag_of(layout, plate)
    plans = []
    for tarball in layout.tarballs:
        mine = Packed(SourceObject, (one for one in objects if one.part in tarball.parts))
        ordered = in_order(mine, lambda one: member_name(layout, tag, one.key))
        plans += _tarball(plate, layout, settings, tarball, ordered)
    return plans


def _tarball(
    plate: Plate, layout: Layout, settings: ArchiveSettings, tarball: Tarball, objects: Packed[SourceObject]
) -> list[VolumePlan]:
    tag = tag_of(layout, plate)
    roots = [fill(part.prefix, plate) for part in layout.parts if part.name in tarball.parts]
    folders = sorted(folders_of(roots, objects), key=lambda folder: member_name(layout, tag, folder).encode())
    cuts = _split(layout, tag, folders, objects, settings.volume_bytes)
    plans = []
    for number, (mine, held) in enumerate(cuts, start=1):
        key = tarball_key(layout, plate, tarball.name, number, len(cuts), settings.compression)
        clock = folder_time(held)
        rows = functools.partial(member_rows, layout, tag, mine, held)
        plans.append(
            VolumePlan(
                tarball=tarball.name,
                name=key.rsplit("/", 1)[-1],
                key=key,
                number=number,
                of=len(cuts),
                folders=tuple(mine),
                objects=held,
                digest=volume_digest(key, settings, rows(), clock),
                raw_bytes=max((m.end for m in place(rows(), clock)), default=0) + len(END_MARKER),
            )
        )
    return plans


def folders_of(roots: Sequence[str], objects: Sequence[SourceObject]) -> list[str]:
    """Folders that need a tar member of their own: each part's root and all below it that no marker object stands for."""
    markers = {o.key for o in objects if o.is_marker}
    found = set(roots)
    root = ""
    for source in objects:
        if not root or not source.key.startswith(root):
            root = next(root for root in roots if source.key.startswith(root))
        found.update(_parents(source.key, root))
    return sorted(found - markers)


def _parents(key: str, root: str) -> Iterable[str]:
    cut = key.rstrip("/").rfind("/")
    while cut >= len(root):
        yield key[: cut + 1]
        cut = key.rfind("/", 0, cut)


def _split(
    layout: Layout, tag: str, folders: Sequence[str], objects: Packed[SourceObject], limit: int
) -> list[tuple[Sequence[str], Packed[SourceObject]]]:
    """The folders and objects of each volume."""
    ends: list[tuple[int, int]] = []
    used, empty, at = len(END_MARKER), True, (0, 0)
    oldest, newest = min((o.modified for o in objects), default=0), folder_time(objects)
    for name, source in member_rows(layout, tag, folders, objects):
        size = source.size if source else 0
        # A folder's time is not known before the cut; before 1970 and after 2242 a header is longer.
        possible = {source.modified} if source else {oldest, newest}
        needed = max(header_length(name, size, time) for time in possible) + size + padding(size)
        if not empty and used + needed > limit:
            ends.append(at)
            used = len(END_MARKER)
        empty, used = False, used + needed
        at = (at[0], at[1] + 1) if source else (at[0] + 1, at[1])
    starts = [(0, 0), *ends]
    return [
        (folders[first:last], objects[start:end])
        for (first, start), (last, end) in zip(starts, [*ends, at], strict=True)
    ]


def _summary(plate: Plate, part: Part, rows: Sequence[SourceObject], *, shared: bool) -> PartSummary:
    return PartSummary(
        name=part.name,
        prefix=fill(part.prefix, plate),
        objects=len(rows),
        size_bytes=sum(row.size for row in rows),
        shared=shared and "{plate_id_full}" not in part.prefix,
    )


def _with_older(
    parts: Sequence[PartSummary], objects: Packed[SourceObject], older: Sequence[KeyVersion]
) -> list[PartSummary]:
    """The parts with the number and size of the versions below their objects."""
    if not older:
        return list(parts)
    known = Finder(objects, lambda one: one.key)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in older:
        number = known.find(one.key)
        if number is not None:
            counts[objects[number].part] += 1
            sizes[objects[number].part] += one.size
    return [
        part.model_copy(update={"older_versions": counts[part.name], "older_bytes": sizes[part.name]}) for part in parts
    ]


def _wrong_name(plate: Plate, layout: Layout, parts: Sequence[PartSummary], others: Sequence[str]) -> list[str]:
    """A part named by plate_id_full that is empty, beside folders of this plate id that are not: the name is a wrong one."""
    named = {part.name for part in layout.parts if "{plate_id_full}" in part.prefix}
    return [
        f"part {part.name} is empty ({part.prefix}), and beside it lie {', '.join(others[:_SHOWN])}: plate_id_full must be the "
        "name of such a folder; give the right one"
        for part in parts
        if part.name in named and not part.objects and others
    ]


def _warnings(plate: Plate, parts: Sequence[PartSummary], others: Sequence[str]) -> tuple[str, ...]:
    found = [f"part {part.name} is empty ({part.prefix})" for part in parts if not part.objects]
    if others:
        shared = ", ".join(part.name for part in parts if part.shared)
        found.append(
            f"plate {plate.plate_id} was measured more than once (also {', '.join(others)}): {shared} belong to all "
            "measurements, are archived with each and deleted with none"
        )
    return tuple(found)


async def _existing(
    plate: Plate, layout: Layout, volumes: Sequence[VolumePlan], archive: Bucket
) -> tuple[tuple[str, ...], list[str]]:
    """Tarballs already under this plate's names, and why they stand in the way. Ours of the same plan do not."""
    base = fill(layout.archive_prefix, plate) + tag_of(layout, plate)
    kinds = "|".join(re.escape(tarball.name) for tarball in layout.tarballs)
    pattern = re.compile(re.escape(base) + rf"_({kinds})(\.\d+-of-\d+)?\.tar(\.gz|\.zst)?")
    found = [o.key async for o in archive.objects_under(base + "_", versions=False) if pattern.fullmatch(o.key)]
    digests = {volume.key: volume.digest for volume in volumes}
    clashes = []
    for key in found:
        head = await archive.head(key)
        plan = await plan_digest_of(archive, head) if head else None
        if head is None or plan == digests.get(key, ""):
            continue
        whose = head.metadata.get(FULL_ID_METADATA, plate.plate_id_full)
        if whose != plate.plate_id_full:
            clashes.append(
                f"s3://{archive.name}/{key} holds another measurement, {whose}. If there are two, give both in one list of "
                "plates: each then has outputs that are named by its plate_id_full. If that name was a mistake, move the tarball "
                "to another prefix together with the files beside it"
            )
        else:
            clashes.append(f"s3://{archive.name}/{key} {await _earlier(base, archive) if plan else _NOT_OURS}")
    return tuple(sorted(found)), clashes


async def _earlier(base: str, archive: Bucket) -> str:
    """What to do about a tarball of an earlier archive of this plate: it may be the only copy of what it holds."""
    async for one in archive.objects_under(base + ".", versions=False):
        if _DELETION.search(one.key):
            return (
                f"is the archive of this plate, and objects of it were deleted since ({one.key} lists them): it may be the only "
                "copy. Leave it where it is; plate_restore gives files back. To archive what is there now as well, move it to "
                "another prefix together with the files beside it, and never delete it"
            )
    return (
        "is an archive of this plate as it was before: it may hold what is no longer there. Keep it; to archive what is there "
        "now as well, move it to another prefix together with the files beside it"
    )


async def plan_digest_of(archive: Bucket, head: Head) -> str | None:
    """Which plan made a stored tarball: its metadata says so, or on a store that drops metadata its manifest."""
    named = head.metadata.get(PLAN_METADATA)
    if named is not None or head.metadata:
        return named
    try:
        manifest = await read_manifest(archive, head.key)
    except (NotFound, VerificationError):
        return None
    return manifest.head.plan_digest if manifest.head.stored_bytes == head.size else None


class _Inspector:
    """Looks at each object once: can it be read, is it archived, which checksum does the store hold."""

    def __init__(
        self, source: Bucket, *, probe: bool, all_tags: bool, sample: int, concurrency: int, on_progress: OnProgress
    ):
        self._source = source
        self._probe = probe
        self._most = sample
        self._concurrency = concurrency
        self._on_progress = on_progress
        self._cold: set[str] = set()
        self._unreadable: set[str] = set()
        self._changed: set[str] = set()
        self._sample: set[str] = set()
        self._all_tags = all_tags

    async def run(self, objects: Packed[SourceObject]) -> Packed[SourceObject]:
        """Tags, and what may not be read, are looked for in a few objects of each part; where one has any, in all."""
        self._sample = _sample(objects, self._most)
        looked = await self._run(objects, self._look)
        if self._unreadable and self._sample and not self._probe:
            self._probe = True
            looked = await self._run(objects, self._look)
        if not self._all_tags and any(one.tags for one in looked):
            self._all_tags = True
            looked = await self._run(looked, self._look_for_tags)
        return looked

    async def _run(
        self, objects: Packed[SourceObject], look: Callable[[SourceObject], Coroutine[Any, Any, SourceObject]]
    ) -> Packed[SourceObject]:
        asked = len(objects) if self._probe else sum(map(self._has_reason, objects))
        if not asked:
            return objects
        found = Packed(SourceObject)
        looks = (look if self._probe or self._has_reason(one) else _as_it_is for one in objects)
        jobs = ((1, functools.partial(one_look, one)) for one_look, one in zip(looks, objects, strict=True))
        async with aclosing(prefetch(jobs, budget=self._concurrency, count=self._concurrency)) as looked:
            async for one in looked:
                found.append(one)
                self._on_progress(Progress("plan", 0, 0, min(len(found), asked), asked, "looking at objects"))
        return found

    async def _look_for_tags(self, one: SourceObject) -> SourceObject:
        """The second look, at those whose tags are not known by the first one."""
        return one if one.tags is not None or one.key in self._sample else await self._look(one)

    async def _tags(self, one: SourceObject, head: Head) -> str | None:
        """None where they may not be read: verify tells it, and the archive goes on."""
        try:
            return await self._source.tags(one.key, one.version_id) if head.tag_count else ""
        except (Forbidden, Unsupported):
            return None

    def _has_reason(self, one: SourceObject) -> bool:
        return bool(one.checksum) or self._all_tags or one.key in self._sample or one.storage_class in _COLD_IN_LISTING

    async def _look(self, one: SourceObject) -> SourceObject:
        try:
            head = await self._head(one)
            if head is not None and head.cold:
                self._cold.add(one.key)
            elif self._probe and one.size and (head is None or head.encryption not in (None, "AES256")):
                # HEAD needs the same right as GET, except to the key of what is encrypted with one.
                await self._source.read(one.key, 0, 1, etag=one.etag, size=one.size, version_id=one.version_id)
            tags = await self._tags(one, head) if head else None
            checksum = head.checksum if head else None
            if (checksum, tags) == (one.checksum, one.tags):
                return one
            return dataclasses.replace(one, checksum=checksum, tags=tags)
        except ColdObject:
            self._cold.add(one.key)
        except (SourceChanged, NotFound):
            self._changed.add(one.key)
        except RequesterPays:
            raise
        except Forbidden:
            self._unreadable.add(one.key)
        return dataclasses.replace(one, checksum=None)

    async def _head(self, one: SourceObject) -> Head | None:
        """HEAD only where there is a reason: an archived class, a checksum that the store holds, tags to be looked for."""
        if not self._has_reason(one):
            return None
        head = await self._source.head(one.key, one.version_id)
        if head is None:
            raise NotFound(one.key)
        return head

    def problems(self) -> list[str]:
        return [
            *_some(sorted(self._cold), "lie in an archived storage class; request their restoration first"),
            *_some(sorted(self._unreadable), "may not be read with these credentials"),
            *_some(sorted(self._changed), "changed while they were listed; plan again"),
        ]


def _sample(objects: Iterable[SourceObject], most: int) -> set[str]:
    """Keys of a few objects of each part, from the first to the last."""
    counts = Counter(one.part for one in objects)
    places = {part: {round(n * (count - 1) / max(most - 1, 1)) for n in range(most)} for part, count in counts.items()}
    passed: Counter[str] = Counter()
    found = set()
    for one in objects:
        if passed[one.part] in places[one.part]:
            found.add(one.key)
        passed[one.part] += 1
    return found


async def _as_it_is(one: SourceObject) -> SourceObject:
    return one


def _some(keys: Sequence[str], what: str) -> list[str]:
    if not keys:
        return []
    shown = ", ".join(repr(key) for key in sorted(keys)[:_SHOWN])
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{len(keys)} objects {what}: {shown}{more}"]


async def _check_buckets(request: BackupRequest, source: Bucket, archive: Bucket) -> None:
    """Refuses before hours of archiving what would be refused at the deletion after them."""
    states, problems = {}, []
    for field, bucket in (("bucket", source), ("archive_bucket", archive)):
        try:
            states[field] = await bucket.versioning()
        except NotFound:
            problems.append(f"{field}: {bucket.name} does not exist")
    if problems:
        raise RequestError(problems)
    if request.delete_parts and request.retention != "none" and states["archive_bucket"] != "Enabled":
        problems.append(
            f"retention: {archive.name} is not versioned, so {request.retention} cannot hold; switch versioning on, or "
            "set retention to none knowing that nothing then protects the only copy"
        )
    if request.undo_days and states["bucket"] != "Enabled":
        problems.append(f"undo_days: {source.name} is not versioned, so a deletion cannot be undone; take it out")
    if problems:
        raise RequestError(problems)
