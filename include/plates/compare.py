"""Has a plate changed since it was proved? One comparison for verify, approval, gate and delete.

Invariant: it compares plain values (key, ETag, size, version) that each caller takes from the manifests with its own
reader. So the verifier and the archiver, which share no parsing code, give the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from include.core.concurrency import map_concurrently
from include.plates.layout import fill
from include.plates.models import Layout, Plate, Verdict
from include.plates.verify_evidence import parse_manifest
from include.s3.bucket import Bucket, Head, KeyVersion, ListedObject

_SHOWN = 5
_HEADS_AT_ONCE = 8


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

    `contradicted`: keys that only one of the store's two listings shows, so neither can be taken for the whole.
    """

    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    changed: tuple[str, ...]
    not_listed: tuple[str, ...]
    listed: int
    contradicted: tuple[str, ...] = ()

    @property
    def sentence(self) -> str | None:
        """The first few differences in words; None where there is none."""
        if self.contradicted:
            return contradiction(self.contradicted)
        named = (("appeared", self.appeared), ("vanished", self.vanished), ("changed", self.changed))
        found = [f"{key!r} {what}" for what, keys in named for key in keys]
        if not found:
            return None
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more


@dataclass(frozen=True, slots=True)
class PlateListing:
    """Every current object of a plate by key, and the keys that only one of the store's two listings shows."""

    current: dict[str, ListedObject]
    contradicted: tuple[str, ...] = ()


async def list_plate(plate: Plate, layout: Layout, source: Bucket) -> PlateListing:
    """Not the planner's code: a proof looks for itself. On a versioned bucket it lists twice, since a store may cut one
    listing short without saying so (docs/protocols/s3.md 2.5)."""
    versions = bool(await source.versioning())
    prefixes = [fill(part.prefix, plate) for part in layout.parts]
    found = {one.key: one for prefix in prefixes async for one in source.objects_under(prefix, versions=versions)}
    if not versions:
        return PlateListing(found)
    named = {one.key for prefix in prefixes async for one in source.objects_under(prefix, versions=False)}
    return PlateListing(found, tuple(sorted(found.keys() ^ named)))


def contradiction(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return (
        f"the store's two listings (ListObjectVersions, ListObjectsV2) do not agree: {len(keys)} objects are in one of them "
        f"only: {', '.join(map(repr, keys[:_SHOWN]))}{more}"
    )


async def older_versions(
    objects: Iterable[ArchivedObject], plate: Plate, layout: Layout, source: Bucket
) -> list[KeyVersion]:
    """The versions that lie below archived objects: each is current again once what is over it is deleted by version.

    Empty where the bucket never had versions. Delete markers are no versions, and bring nothing back.
    """
    if not await source.versioning():
        return []
    archived = {one.key: one for one in objects}
    below: set[str] = set()
    found: list[KeyVersion] = []
    for part in layout.parts:
        async for one in source.versions_under(fill(part.prefix, plate)):
            mine = archived.get(one.key)
            if mine is None:
                continue
            if one.version_id == (mine.version_id or "null"):
                below.add(one.key)
            elif one.key in below or one.modified < mine.modified:  # rows of a key come from new to old
                found.append(one)
    return found


async def compare(archived: Iterable[ArchivedObject], plate: Plate, layout: Layout, source: Bucket) -> Differences:
    """Lists the plate now and compares it with what was archived. Raises the core's errors.

    What is not listed is asked for by HEAD, since a listing may lag (docs/protocols/s3.md 2.5): by its key alone, so an
    archived version under a delete marker counts as vanished (4.5).
    """
    rows = {one.key: one for one in archived}
    listing = await list_plate(plate, layout, source)
    listed = listing.current
    missing = sorted(rows.keys() - listed.keys())
    heads = await map_concurrently(missing, source.head, _HEADS_AT_ONCE)
    there = dict(zip(missing, heads, strict=True))
    current: dict[str, Head | ListedObject] = {**listed, **{key: head for key, head in there.items() if head}}
    return Differences(
        appeared=tuple(sorted(listed.keys() - rows.keys())),
        vanished=tuple(key for key in missing if there[key] is None),
        changed=tuple(sorted(key for key in rows.keys() & current.keys() if not _same(current[key], rows[key]))),
        not_listed=tuple(key for key, head in there.items() if head is not None and _same(head, rows[key])),
        listed=len(listed),
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
    rows: list[ArchivedObject] = []
    for proof in verdict.volumes:
        data = await archive.read_all(proof.manifest_key)
        if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
            return f"{proof.manifest_key} is not the manifest that was verified"
        rows += [
            ArchivedObject(row["key"], row.get("etag"), row["size"], row.get("version_id"))
            for row in parse_manifest(proof.manifest_key, data).objects
        ]
    return (await compare(rows, verdict.plate, verdict.layout, source)).sentence
