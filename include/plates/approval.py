"""What a person is asked before plates are deleted, and the digest that names it.

Invariant: the digest covers all that the question says will happen: the manifests, what is deleted of each plate in objects
and bytes per part, where, and how. Whoever changes what it covers raises DIGEST_VERSION.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from include.core.text import format_bytes, pluralize
from include.plates.delete import PartPreview
from include.plates.layout import manifest_key
from include.plates.models import Level, PlatePlan, Verdict
from include.plates.request import BackupRequest
from include.s3.bucket import Bucket

DIGEST_VERSION = 3


@dataclass(frozen=True)
class Proved:
    """A verified plate: its label, the verdict as the verifier wrote it, the Document that holds it, and what of it would be
    deleted."""

    label: str
    verdict: Verdict
    document: Mapping[str, Any]
    parts: tuple[PartPreview, ...] = ()


def digest_of(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """What a person approves: these manifests, and what is deleted of their plates, where, and how."""
    order = request.order("")
    asked = [request.bucket, request.archive_bucket, order.parts, order.phase, order.retention, order.undo_days]
    asked.append(order.needs)
    rows = sorted(
        [
            plate.label,
            plate.verdict.tag,
            plate.verdict.manifests_sha256,
            plate.verdict.level,
            [_part(part) for part in plate.parts],
        ]
        for plate in plates
    )
    return hashlib.sha256(json.dumps([DIGEST_VERSION, asked, rows], ensure_ascii=False).encode()).hexdigest()


def _part(part: PartPreview) -> list[Any]:
    return [part.part, part.objects, part.size_bytes, part.shared]


def subject(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """The question in one line: how many objects and bytes of which plates."""
    objects = sum(part.objects for plate in plates for part in plate.parts)
    size = sum(part.size_bytes for plate in plates for part in plate.parts)
    verb = "Set delete markers on" if request.undo_days else "Delete"
    what = f"{pluralize(objects, 'object')} ({format_bytes(size)}, {size} bytes)"
    parts = ", ".join(sorted(set(request.delete_parts)))
    return f"{verb} {what}: {parts} of {pluralize(len(plates), 'plate')}, from {request.bucket}?"


def body(request: BackupRequest, plates: Sequence[Proved], changed: Mapping[str, str]) -> str:
    """What a person reads before deciding: exactly what will be deleted, and what stays."""
    names = sorted(set(request.delete_parts))
    how = (
        f"Delete markers are set; after {request.undo_days:g} days the versions under them are deleted permanently. "
        "Until then the deletion can be undone."
        if request.undo_days
        else "They are deleted permanently."
    )
    lines = [
        f"Project {request.project}, batch {request.batch}. These objects are deleted from `{request.bucket}`. {how}",
        f"The tarballs stay in `{request.archive_bucket}`, retention **{request.retention}**; {_proved(plates)}",
        "",
        f"| plate | {' | '.join(names)} | deleted in all | stays archived | proof | manifests (sha256) |",
        f"| --- | {' | '.join('---:' for _ in names)} | ---: | ---: | --- | --- |",
    ]
    lines += [_row(plate) for plate in plates]
    if len(plates) > 1:
        parts = [part for plate in plates for part in plate.parts]
        per_part = [_counted([part for part in parts if part.part == name]) for name in names]
        archived = (
            f"{sum(p.verdict.objects for p in plates)}, {format_bytes(sum(p.verdict.size_bytes for p in plates))}"
        )
        lines.append(f"| **all** | {' | '.join(per_part)} | {_counted(parts)} | {archived} | | |")
    lines += _remarks(plates, changed)
    return "\n".join(lines)


def _proved(plates: Sequence[Proved]) -> str:
    weak = sum(plate.verdict.level is Level.STORE_PROVED for plate in plates)
    whole = "each was read back whole and agrees with its source byte for byte."
    if not weak:
        return whole
    stored = (
        "**store-proved**: nothing was read; the CRC64NVME that the store holds of each tarball is the one that follows from "
        "those that it holds of the files. A bit that changed later, unseen by the store, is not found so."
    )
    if weak == len(plates):
        return f"they are {stored}"
    return f"{pluralize(weak, 'plate')} of {len(plates)}, see the column *proof*, are {stored} Of the others, {whole}"


def _row(plate: Proved) -> str:
    proof = plate.verdict
    per_part = ["kept: shared" if part.shared else _counted([part]) for part in plate.parts]
    archived = f"{proof.objects}, {format_bytes(proof.size_bytes)}"
    cells = [proof.plate.plate_id_full, *per_part, _counted(plate.parts), archived, f"V1 to V5, {proof.level.words}"]
    return f"| {' | '.join(cells)} | `{proof.manifests_sha256[:16]}…` |"


def _counted(parts: Sequence[PartPreview]) -> str:
    return f"{sum(part.objects for part in parts)}, {format_bytes(sum(part.size_bytes for part in parts))}"


def _remarks(plates: Sequence[Proved], changed: Mapping[str, str]) -> list[str]:
    lines = []
    if any(part.shared for plate in plates for part in plate.parts):
        lines.append("*Shared*: another measurement of the same plate id uses this part, so it is kept.")
    done = {plate.verdict.plate.plate_id_full: sum(part.done for part in plate.parts) for plate in plates}
    begun = [f"{name} ({count} objects)" for name, count in done.items() if count]
    if begun:
        lines.append(f"Deleted or marked already, by an order that was broken off: {', '.join(begun)}.")
    lines += [f"Not asked about, and kept: {label}, {why}." for label, why in sorted(changed.items())]
    return ["", *lines] if lines else []


async def manifests_sha256(plan: PlatePlan, archive: Bucket) -> str:
    """The digest of a plate's manifests as they lie there now, as a verdict names it. Raises NotFound."""
    lines = ""
    for volume in plan.volumes:
        key = manifest_key(volume.key)
        lines += f"{key} {hashlib.sha256(await archive.read_all(key)).hexdigest()}\n"
    return hashlib.sha256(lines.encode()).hexdigest()
