"""What the fault table judges by: which objects are gone, and what the stored tarballs hold, read with Python's tarfile."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Collection, Mapping, Sequence

from harness.plates.bench import Bench
from include.plates.delete_report import DeleteReport
from include.plates.layout import BROAD2018, tag_of
from include.plates.models import Plate

Files = dict[str, bytes]


def lost(
    truth: Mapping[str, bytes],
    left: Collection[str],
    tarballs: Sequence[bytes],
    one: Plate,
    *,
    kept: Collection[str] = (),
) -> int:
    """Objects that are gone, and whose last bytes no tarball holds under their name; of those to be kept, all."""
    held: list[Files] = [contents(data) for data in tarballs]
    tags = {tag_of(BROAD2018, one), tag_of(BROAD2018, one.model_copy(update={"tag_by_full": True}))}

    def safe(key: str) -> bool:
        names = [f"{tag}/{key.removeprefix('projects/').rstrip('/')}" for tag in tags]
        return key not in kept and any(files.get(name) == truth[key] for files in held for name in names)

    return sum(key not in left and not safe(key) for key in truth)


def contents(data: bytes) -> Files:
    """Files by name, as far as a damaged tarball can be read."""
    found: Files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for member in tar:
                body = tar.extractfile(member) if member.isfile() else None
                found[member.name] = body.read() if body is not None else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error):
        pass
    return found


def pack(files: Mapping[str, bytes], tag: str) -> bytes:
    """A tarball as `tar czf` makes one."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as tar:
        for key, data in sorted(files.items()):
            info = tarfile.TarInfo(f"{tag}/{key.removeprefix('projects/')}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def still_there(bench: Bench, truth: Mapping[str, bytes]) -> set[str]:
    """Objects that hold what users last put there. (On a versioned bucket an older version may have come to light.)"""
    pages = bench.client.get_paginator("list_objects_v2").paginate(Bucket=bench.live)
    etags = {row["Key"]: row["ETag"].strip('"') for page in pages for row in page.get("Contents", [])}
    return {key for key in truth.keys() & etags.keys() if hashlib.md5(truth[key]).hexdigest() == etags[key]}


def stored(bench: Bench) -> list[bytes]:
    tarballs = sorted(key for key in bench.keys(bench.cold) if key.endswith((".tar", ".tar.gz")))
    return [bench.get(key) for key in tarballs]


def unlined(bench: Bench, gone: Collection[str], report: DeleteReport | None) -> int:
    """Deletions that the report's document does not list as such."""
    if report is None:
        return len(gone)
    rows = [json.loads(line) for line in bench.get(report.outcomes_key).splitlines()]
    return len(set(gone) - {row["key"] for row in rows if row["result"] == "deleted"})
