"""Has a plate changed since it was proved? One comparison for verify, approval, gate and delete.

Invariant: it compares plain values (key, ETag, size, version) that each caller takes from the manifests with its own
reader. So the verifier and the archiver, which share no parsing code, give the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from include.core.concurrency import map_concurrently
from include.plates.layout import fill
from include.plates.models import Layout, Plate, Verdict
from include.plates.verify_evidence import parse_manifest
from include.s3.bucket import Bucket, Head, ListedObject

_SHOWN = 5
_HEADS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """One object as a manifest names it. `version_id` is None where the bucket had no versions."""

    key: str
    etag: str | None
    size: int
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Differences:
    """What is not as archived, by key. `not_listed` are there unchanged by HEAD, but not in the listing: no difference."""

    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    changed: tuple[str, ...]
    not_listed: tuple[str, ...]
    listed: int

    @property
    def sentence(self) -> str | None:
        """The first few differences in words; None where there is none."""
        named = (("appeared", self.appeared), ("vanished", self.vanished), ("changed", self.changed))
        found = [f"{key!r} {what}" for what, keys in named for key in keys]
        if not found:
            return None
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more


async def list_plate(plate: Plate, layout: Layout, source: Bucket) -> dict[str, ListedObject]:
    """Every current object of the plate by key. Not the planner's code: a proof looks for itself."""
    versions = bool(await source.versioning())
    found: dict[str, ListedObject] = {}
    for part in layout.parts:
        async for one in source.objects_under(fill(part.prefix, plate), versions=versions):
            found[one.key] = one
    return found


async def compare(archived: Iterable[ArchivedObject], plate: Plate, layout: Layout, source: Bucket) -> Differences:
    """Lists the plate now and compares it with what was archived. Raises the core's errors.

    What is not listed is asked for by HEAD, since a listing may lag (docs/protocols/s3.md 2.5): by its key alone, so an
    archived version under a delete marker counts as vanished (4.5).
    """
    rows = {one.key: one for one in archived}
    listed = await list_plate(plate, layout, source)
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
    )


def _same(current: Head | ListedObject, archived: ArchivedObject) -> bool:
    """ETag and size, and the version where the store names one."""
    if (current.etag, current.size) != (archived.etag, archived.size):
        return False
    return current.version_id is None or current.version_id == archived.version_id


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
