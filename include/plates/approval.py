"""What a person is asked before plates are deleted, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from include.core.text import format_bytes
from include.plates.models import Verdict
from include.plates.request import BackupRequest


@dataclass(frozen=True)
class Proved:
    """A verified plate: its label, the verdict as the verifier wrote it, and the Document that holds it."""

    label: str
    verdict: Verdict
    document: Mapping[str, Any]


def digest_of(request: BackupRequest, plates: Sequence[Proved]) -> str:
    """What a person approves: these manifests, and what is deleted of their plates, where, and how."""
    order = request.order("")
    asked = [request.bucket, request.archive_bucket, order.parts, order.phase, order.retention, order.undo_days]
    rows = sorted([plate.label, plate.verdict.tag, plate.verdict.manifests_sha256] for plate in plates)
    return hashlib.sha256(json.dumps([asked, rows], ensure_ascii=False).encode()).hexdigest()


def body(request: BackupRequest, plates: Sequence[Proved], changed: Mapping[str, str]) -> str:
    """What a person reads before deciding."""
    how = (
        "delete markers are set, and purged after " + f"{request.undo_days:g} days"
        if request.undo_days
        else "permanently"
    )
    lines = [
        f"Project {request.project}, batch {request.batch}. Parts **{', '.join(request.delete_parts)}** of these plates are",
        f"deleted from `{request.bucket}` ({how}). Their tarballs lie in `{request.archive_bucket}`,",
        f"retention **{request.retention}**; each was read back whole and agrees with its source byte for byte.",
        "",
        "| plate | objects archived | bytes | proof | manifests (sha256) |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for plate in plates:
        proof = plate.verdict
        row = (
            proof.plate.plate_id_full,
            proof.objects,
            format_bytes(proof.size_bytes),
            "V1 to V5",
            f"`{proof.manifests_sha256[:16]}…`",
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    if changed:
        lines += ["", f"Kept, since they changed after they were verified: {', '.join(sorted(changed))}."]
    return "\n".join(lines)
