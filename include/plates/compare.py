"""Has a plate changed since it was proved?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from include.plates.models import Verdict
from include.plates.verify_evidence import list_plate, parse_manifest, unchanged
from include.s3.bucket import Bucket

_SHOWN = 5


async def changes(verdict: Verdict, source: Bucket, archive: Bucket) -> str | None:
    """What differs, now, between a plate and its verified manifests; None if nothing does."""
    rows: dict[str, Mapping[str, Any]] = {}
    for proof in verdict.volumes:
        data = await archive.read_all(proof.manifest_key)
        if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
            return f"{proof.manifest_key} is not the manifest that was verified"
        manifest = parse_manifest(proof.manifest_key, data)
        rows |= {row["key"]: row for row in manifest.rows if row.get("key") is not None}
    listed = await list_plate(verdict.plate, verdict.layout, source)
    found = [f"{key!r} appeared" for key in sorted(listed.keys() - rows.keys())]
    for key in sorted(rows.keys() - listed.keys()):
        there = await source.head(key, rows[key].get("version_id"))  # a listing may lag behind what HEAD sees
        if there is None or (there.etag, there.size) != (rows[key].get("etag"), rows[key]["size"]):
            found.append(f"{key!r} vanished")
    found += [
        f"{key!r} changed" for key in sorted(rows.keys() & listed.keys()) if not unchanged(listed[key], rows[key])
    ]
    if not found:
        return None
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
