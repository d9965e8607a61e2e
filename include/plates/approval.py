"""What a person is asked before plates are deleted, and the digest that names it.

Invariant: the digest covers all that the question says will happen: the manifests, what is deleted of each plate in objects
and bytes per part, where, and how. Whoever changes what it covers raises DIGEST_VERSION.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from include.core.errors import VerificationError
from include.core.text import format_bytes, pluralize
from include.plates.delete_preview import PartPreview
from include.plates.layout import manifest_key
from include.plates.models import PROOF_DAYS, Level, PlatePlan, Verdict
from include.plates.request import BackupRequest
from include.s3.bucket import Bucket, KeyVersion

DIGEST_VERSION = 3
_OLDER_SHOWN = 100


@dataclass(frozen=True)
class Proved:
    """A verified plate: its label, the verdict as the verifier wrote it, the Document that holds it, and what of it would be
    deleted."""

    label: str
    verdict: Verdict
    document: Mapping[str, Any]
    parts: tuple[PartPreview, ...] = ()
    older: Sequence[KeyVersion] = ()


def digest_of(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """What a person approves: these manifests, and what is deleted of their plates, where, and how."""
    order = request.order("")
    asked = [request.bucket, request.archive_bucket, order.parts, order.phase, order.retention, order.undo_days]
    asked += [order.older_versions, order.needs]
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
    return [part.part, part.objects, part.size_bytes, part.shared, part.older, part.older_bytes, part.older_sha256]


def subject(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """The question in one line: how many objects and bytes of which plates."""
    objects = sum(part.objects for plate in plates for part in plate.parts)
    size = sum(part.size_bytes for plate in plates for part in plate.parts)
    verb = "Set delete markers on" if request.undo_days else "Delete"
    what = f"{pluralize(objects, 'object')} ({format_bytes(size)}, {size} bytes)"
    parts = ", ".join(sorted(set(request.delete_parts)))
    older = sum(part.older for plate in plates for part in plate.parts)
    if older and request.older_versions == "delete":
        bytes_below = sum(part.older_bytes for plate in plates for part in plate.parts)
        what += f" and {pluralize(older, 'older version')} ({format_bytes(bytes_below)}, {bytes_below} bytes)"
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
    lines += [*_older(request, plates), *_proofs(plates), *_remarks(plates, changed)]
    return "\n".join(lines)


def _older(request: BackupRequest, plates: Sequence[Proved]) -> list[str]:
    """What happens to the versions below; each by its id where it is deleted."""
    older = [one for plate in plates for one in plate.older]
    if not older:
        return []
    size = sum(one.size for one in older)
    what = f"{pluralize(len(older), 'older version')} ({format_bytes(size)}, {size} bytes)"
    if request.older_versions == "keep_hidden":
        return [
            "",
            f"Below these objects lie {what}. They **stay**, each under a delete marker, and still cost storage.",
        ]
    lines = ["", f"Below these objects lie {what}. They are **deleted** too, by version id, and are in no tarball:", ""]
    lines += [f"- `{one.key}` version `{one.version_id}`, {one.size} bytes" for one in older[:_OLDER_SHOWN]]
    rest = older[_OLDER_SHOWN:]
    if rest:
        lines.append(f"- and {len(rest)} more ({sum(one.size for one in rest)} bytes), which the digest covers as well")
    return lines


def days_to_answer(request: BackupRequest, plates: Sequence[Proved], now: float) -> float:
    """For how many days the question stands: as the request says, but no longer than the oldest proof counts, since a later
    answer would allow nothing. Raises VerificationError where that time is over."""
    oldest = _oldest_proof(plates)
    left = PROOF_DAYS if oldest is None else PROOF_DAYS - (now - oldest) / 86_400
    if left <= 0:
        raise VerificationError(
            f"the oldest proof is {PROOF_DAYS - left:.0f} days old, and a proof counts {PROOF_DAYS:g} days: nothing is asked. "
            "Clear verify of the plates, which reads them again, and this task"
        )
    return min(request.approval_days, left)


def _oldest_proof(plates: Sequence[Proved]) -> float | None:
    return min((plate.verdict.verified_at for plate in plates if plate.verdict.verified_at is not None), default=None)


def _proofs(plates: Sequence[Proved]) -> list[str]:
    """How old the oldest proof is: after a time it does not count any more."""
    oldest = _oldest_proof(plates)
    if oldest is None:
        return []
    read, until = (datetime.fromtimestamp(at, UTC).date().isoformat() for at in (oldest, oldest + PROOF_DAYS * 86_400))
    return [
        "",
        f"The tarballs were proved on {read} or later; a proof counts {PROOF_DAYS:g} days, here until {until}.",
    ]


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
