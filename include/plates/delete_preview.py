"""What a deletion would delete: the archived objects, chosen by an order from the verified manifests, part by part counted.

Invariant: preview and deletion choose by one rule, from the same manifests, as they lie on the archive bucket now.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from include.core.errors import NotFound
from include.core.journal import PartJournal
from include.core.packed import Finder, Packed
from include.core.text import format_bytes
from include.plates.compare import older_versions
from include.plates.errors import ApprovalVoid
from include.plates.manifest import decode_manifest
from include.plates.measurements import shared_parts
from include.plates.models import DeleteOrder, ManifestMember, Verdict
from include.s3.bucket import Bucket, KeyVersion
from include.s3.guarded_delete import Result


@dataclass(frozen=True)
class PartPreview:
    """What an order deletes of one part of a plate; `shared`: another measurement uses the part too, so it is kept.

    `older` versions of `older_bytes` lie below its objects; `older_sha256` names each of them. `done` objects of it were
    deleted (or marked) before, by an order that was broken off.
    """

    part: str
    objects: int
    size_bytes: int
    shared: bool = False
    older: int = 0
    older_bytes: int = 0
    older_sha256: str = ""
    done: int = 0


@dataclass(frozen=True)
class Preview:
    """What `delete_plate` would delete now, part by part, and the versions below it."""

    parts: tuple[PartPreview, ...]
    older: Sequence[KeyVersion] = ()


async def archived_members(verdict: Verdict, archive: Bucket) -> Packed[ManifestMember]:
    """All archived objects, from the manifests as they lie on the archive bucket now. Raises ApprovalVoid where these are not
    the verified ones."""
    found = Packed(ManifestMember)
    for proof in verdict.volumes:
        try:
            data = await archive.read_all(proof.manifest_key)
        except NotFound:
            raise ApprovalVoid(f"{proof.manifest_key} is gone; nothing was deleted") from None
        if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
            raise ApprovalVoid(f"{proof.manifest_key} is not the manifest that was approved; nothing was deleted")
        found.extend(member for member in decode_manifest(data).members if member.key is not None)
    return found


def chosen_by(order: DeleteOrder, members: Packed[ManifestMember], shared: frozenset[str]) -> Packed[ManifestMember]:
    """The members that an order deletes."""
    parts = set(order.parts) - shared
    return Packed(ManifestMember, (member for member in members if member.part in parts))


def by_key(members: Packed[ManifestMember]) -> Finder[ManifestMember]:
    return Finder(members, lambda member: member.key or "")


def journaled_older(rows: Sequence[Sequence[Any]]) -> Packed[KeyVersion]:
    """The older versions as they were listed when a deletion began, by a row of its journal."""
    return Packed(KeyVersion, (KeyVersion(key, version, etag, size, 0, False) for key, version, etag, size in rows))


async def preview(
    verdict: Verdict, order: DeleteOrder, *, source: Bucket, archive: Bucket, journal: PartJournal, anew: bool = False
) -> Preview:
    """What `delete_plate` would delete now; it deletes nothing, and does not look whether the order may be carried out.

    `anew`: the plate is whole, so that what its journal says of an earlier deletion does not count.
    """
    members = await archived_members(verdict, archive)
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    chosen = by_key(chosen_by(order, members, shared))
    done = bytearray(len(chosen))
    older = None if anew else await asyncio.to_thread(_read, journal, chosen, done)
    if older is None:
        older = await older_versions(chosen, verdict.plate, verdict.layout, source)
    return Preview(_parts(order, chosen, shared, done, older), older)


def _read(journal: PartJournal, chosen: Finder[ManifestMember], done: bytearray) -> Packed[KeyVersion] | None:
    """Marks what a journal says is deleted or marked; gives the older versions, None where no journal says them."""
    older = None
    for row in journal.rows():
        if "older" in row:
            older = journaled_older(row["older"])
        for one in row.get("outcomes", ()):
            number = chosen.find(one["key"])
            if number is not None and one["result"] in (Result.DELETED, Result.ABSENT) and not one.get("older"):
                done[number] = 1
    return older


@dataclass
class _Count:
    objects: int = 0
    size_bytes: int = 0
    older: int = 0
    older_bytes: int = 0
    done: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


def _parts(
    order: DeleteOrder,
    chosen: Finder[ManifestMember],
    shared: frozenset[str],
    done: Sequence[int],
    older: Sequence[KeyVersion],
) -> tuple[PartPreview, ...]:
    counts: Mapping[str | None, _Count] = defaultdict(_Count)
    for member, gone in zip(chosen.rows, done, strict=True):
        count = counts[member.part]
        count.objects += 1
        count.size_bytes += member.size
        count.done += gone
    for one in older:
        number = chosen.find(one.key)
        if number is None:
            continue
        count = counts[chosen.rows[number].part]
        row = json.dumps([one.key, one.version_id, one.etag, one.size], ensure_ascii=False)
        count.digest.update(f"{', ' if count.older else '['}{row}".encode())  # a JSON list, row by row
        count.older += 1
        count.older_bytes += one.size
    return tuple(_part(part, counts[part], part in shared) for part in order.parts)


def _part(part: str, count: _Count, shared: bool) -> PartPreview:
    count.digest.update(b"]")
    sha256 = count.digest.hexdigest() if count.older else ""
    return PartPreview(
        part, count.objects, count.size_bytes, shared, count.older, count.older_bytes, sha256, count.done
    )


def refuses_older(verdict: Verdict, order: DeleteOrder, older: Sequence[KeyVersion]) -> str | None:
    """Why an order does not go on where older versions lie below what it deletes; None where it does."""
    if not older or order.older_versions != "refuse":
        return None
    keys, size, before = 0, 0, ""
    for one in older:
        keys, size, before = keys + (one.key != before), size + one.size, one.key
    return (
        f"{keys} objects of {verdict.tag} have {len(older)} older versions ({format_bytes(size)}), "
        f"which would be current again, the first of {older[0].key!r}. Nothing was deleted; set older_versions to "
        "keep_hidden or to delete"
    )
