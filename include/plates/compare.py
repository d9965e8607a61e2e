"""Has a plate changed since it was proved? One comparison for verify, approval, gate and delete.

Invariant: it compares plain values (key, ETag, size, version) that each caller takes from the manifests with its own
reader. So the verifier and the archiver, which share no parsing code, give the same answer. Listings are looked at as they
come and never kept: of a million objects, only those that differ are named.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from include.core.concurrency import map_concurrently
from include.core.packed import Finder, Packed, in_stretches
from include.plates.layout import fill
from include.plates.models import Layout, Part, Plate, Verdict
from include.plates.verify_evidence import parse_manifest
from include.s3.bucket import Bucket, Head, KeyVersion, ListedObject

_SHOWN = 5
_HEADS_AT_ONCE = 8
_HEADS_OF_A_STRETCH = 5_000
_LISTED, _AGAIN = 1, 2
VERSIONS, AGAIN = "ListObjectVersions, ListObjectsV2", "ListObjectsV2, ListObjects"


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One object as a manifest names it. `version_id` is None where the bucket had no versions, `modified` in epoch seconds."""

    key: str
    etag: str | None
    size: int
    version_id: str | None = None
    modified: int = 0


@dataclass(frozen=True, slots=True)
class Differences:
    """What is not as archived, by key. `not_listed` are there unchanged by HEAD, but not in the listing: no difference.

    `contradicted` says that the store's two listings do not agree, so neither can be taken for the whole.
    """

    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    changed: tuple[str, ...]
    not_listed: tuple[str, ...]
    listed: int
    contradicted: str = ""

    @property
    def sentence(self) -> str | None:
        """The first few differences in words; None where there is none."""
        if self.contradicted:
            return self.contradicted
        named = (("appeared", self.appeared), ("vanished", self.vanished), ("changed", self.changed))
        found = [f"{key!r} {what}" for what, keys in named for key in keys]
        if not found:
            return None
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more


@dataclass(frozen=True, slots=True)
class PlateListing:
    """What was seen while a plate was listed twice, beside the rows that were known by key.

    `only_in_one` are the keys that only one of the store's two listings shows (`listings` names these two).
    """

    marks: bytearray
    listed: int
    only_in_one: tuple[str, ...]
    listings: str

    def missing(self) -> Iterator[int]:
        """The numbers of the known rows that the listing does not show."""
        return (number for number, mark in enumerate(self.marks) if not mark & _LISTED)

    def shows(self, number: int) -> bool:
        """Whether the first listing shows this known row."""
        return bool(self.marks[number] & _LISTED)

    @property
    def contradicted(self) -> str:
        """In words, that the two listings do not agree; empty where they do."""
        if not self.only_in_one:
            return ""
        keys = self.only_in_one
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        return (
            f"the store's two listings ({self.listings}) do not agree: {len(keys)} objects are in one of them only: "
            f"{', '.join(map(repr, keys[:_SHOWN]))}{more}"
        )


def nothing_noted(_: ListedObject, __: int | None) -> None:
    """For a caller that wants no more than which rows are there."""


async def list_plate(
    plate: Plate,
    layout: Layout,
    source: Bucket,
    known: Finder[Any],
    note: Callable[[ListedObject, int | None], None] = nothing_noted,
) -> PlateListing:
    """Tells `note` every current object of a plate, with the number of the row that is known by its key.

    Not the planner's code: a proof looks for itself. It lists twice, by two different requests, since a store may cut one
    listing short without saying so (docs/protocols/s3.md 2.5). Raises the core's errors, Forbidden and Unsupported for a
    versioned bucket whose versions may not or cannot be listed: nothing else says which version is current.
    """
    versions = bool(await source.versioning())
    marks = bytearray(len(known.rows))
    strangers: set[str] = set()
    listed = 0
    for part in layout.parts:
        async for one in source.objects_under(fill(part.prefix, plate), versions=versions):
            number = known.find(one.key)
            note(one, number)
            listed += 1
            if number is None:
                strangers.add(one.key)
            else:
                marks[number] |= _LISTED
    again = await list_again(plate, layout, source, known, versions=versions, before=(marks, strangers))
    return dataclasses.replace(again, listed=listed)


async def list_again(
    plate: Plate,
    layout: Layout,
    source: Bucket,
    known: Finder[Any],
    *,
    versions: bool,
    before: tuple[bytearray, set[str]] | None = None,
) -> PlateListing:
    """Lists a plate's keys by the other request, and looks which are in one of the two listings only.

    `before` is what the first listing showed: which known rows, and which keys that are not known; without it, it showed
    just what is known.
    """
    marks, strangers = before or (bytearray([_LISTED]) * len(known.rows), set())
    again: set[str] = set()

    async def look(part: Part) -> None:
        async for key in _keys_again(source, fill(part.prefix, plate), versions=versions):
            number = known.find(key)
            if number is None:
                again.add(key)
            else:
                marks[number] |= _AGAIN

    await map_concurrently(layout.parts, look)
    once = {known.key_of(number) for number, mark in enumerate(marks) if mark in (_LISTED, _AGAIN)}
    return PlateListing(marks, len(marks), tuple(sorted(once | (strangers ^ again))), VERSIONS if versions else AGAIN)


async def _keys_again(source: Bucket, prefix: str, *, versions: bool) -> AsyncIterator[str]:
    if not versions:
        async for key in source.objects_again(prefix):
            yield key
        return
    async for one in source.objects_under(prefix, versions=False):
        yield one.key


async def older_versions(archived: Finder[Any], plate: Plate, layout: Layout, source: Bucket) -> Packed[KeyVersion]:
    """The versions that lie below archived objects: each is current again once what is over it is deleted by version.

    `archived` finds rows with version_id and modified. Empty where the bucket never had versions. Delete markers are no
    versions, and bring nothing back.
    """
    found = Packed(KeyVersion)
    if not await source.versioning():
        return found
    for part in layout.parts:
        below = ""  # the key whose archived version was met: rows of a key come one after another, from new to old
        async for one in source.versions_under(fill(part.prefix, plate)):
            number = archived.find(one.key)
            if number is None:
                continue
            mine = archived.rows[number]
            if one.version_id == (mine.version_id or "null"):
                below = one.key
            elif one.key == below or one.modified < mine.modified:
                found.append(one)
    return found


async def compare(archived: Iterable[ArchivedObject], plate: Plate, layout: Layout, source: Bucket) -> Differences:
    """Lists the plate now and compares it with what was archived. Raises the core's errors.

    What is not listed is asked for by HEAD, since a listing may lag (docs/protocols/s3.md 2.5): by its key alone, so an
    archived version under a delete marker counts as vanished (4.5).
    """
    known = Finder(Packed(ArchivedObject, archived), lambda one: one.key)
    appeared: list[str] = []
    changed: list[str] = []

    def note(one: ListedObject, number: int | None) -> None:
        if number is None:
            appeared.append(one.key)
        elif not _same(one, known.rows[number]):
            changed.append(one.key)

    listing = await list_plate(plate, layout, source, known, note)
    vanished: list[str] = []
    not_listed: list[str] = []
    for some in in_stretches(list(listing.missing()), _HEADS_OF_A_STRETCH):
        rows = [known.rows[number] for number in some]
        heads = await map_concurrently([row.key for row in rows], source.head, _HEADS_AT_ONCE)
        for row, head in zip(rows, heads, strict=True):
            (vanished if head is None else not_listed if _same(head, row) else changed).append(row.key)
    return Differences(
        appeared=tuple(sorted(set(appeared))),
        vanished=tuple(sorted(vanished)),
        changed=tuple(sorted(set(changed))),
        not_listed=tuple(sorted(not_listed)),
        listed=listing.listed,
        contradicted=listing.contradicted,
    )


def _same(current: Head | ListedObject, archived: ArchivedObject) -> bool:
    """ETag and size, and the version where the store names one."""
    if (current.etag, current.size) != (archived.etag, archived.size):
        return False
    # What was written before the bucket had versions is its version `null`.
    return current.version_id is None or current.version_id == (archived.version_id or "null")


async def changes(verdict: Verdict, source: Bucket, archive: Bucket) -> str | None:
    """What differs, now, between a plate and its verified manifests; None if nothing does."""
    rows = Packed(ArchivedObject)
    for proof in verdict.volumes:
        data = await archive.read_all(proof.manifest_key)
        if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
            return f"{proof.manifest_key} is not the manifest that was verified"
        rows.extend(
            ArchivedObject(row["key"], row.get("etag"), row["size"], row.get("version_id"))
            for row in parse_manifest(proof.manifest_key, data).objects
        )
    return (await compare(rows, verdict.plate, verdict.layout, source)).sentence
