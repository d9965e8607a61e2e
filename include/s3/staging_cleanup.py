"""Finds the pieces of runs that were killed and never continued, and removes them.

Invariant: nothing is removed that a run may still use. A run makes its pieces anew, uses each at once, and has its upload of
the target open meanwhile. So they are abandoned where neither they nor a part of such an upload is younger than the limit, by
the store's own dates; and they are removed, version by version, only if they are still just as they were listed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from include.core.errors import WaybillError
from include.core.text import few, pluralize
from include.s3.bucket import Bucket
from include.s3.errors import Unsupported
from include.s3.staging import STAGING, abort, remove, staging_prefix, told_apart, uploads_under, versions_under

ABANDONED_DAYS = 7.0
_PIECE = re.compile(re.escape(STAGING) + r"(?P<target>.+)/[0-9a-f]{16}/\d+-\d+(\.lead|\.group)?")
_ALL = "all are in the list"


@dataclass(frozen=True)
class Staged:
    """The pieces of one target. `kept` says why they are not removed; it is empty where they are abandoned."""

    target: str
    versions: tuple[tuple[str, str], ...]
    uploads: tuple[tuple[str, str], ...]
    size_bytes: int
    newest: float
    kept: str = ""

    def told(self, now: float) -> str:
        what = f"{pluralize(len(self.versions), 'object')} of {self.size_bytes} bytes"
        what += f" and {pluralize(len(self.uploads), 'open upload')}" if self.uploads else ""
        return f"{self.target}: {what}, the last of {(now - self.newest) / 86_400:.1f} days ago"


async def find_staged(bucket: Bucket, *, now: float, days: float = ABANDONED_DAYS) -> list[Staged]:
    """All pieces in a bucket, target by target. Raises the store's errors, Forbidden where they may not be listed."""
    try:
        rows, uploads = await versions_under(bucket, STAGING), await uploads_under(bucket, STAGING)
    except Unsupported:
        return []  # without versions of objects there is no copying either
    return [
        await _staged(bucket, target, *of_target, now - days * 86_400)
        for target, of_target in sorted(_by_target(rows, uploads).items())
    ]


async def remove_abandoned(bucket: Bucket, listed: Staged, *, now: float, days: float = ABANDONED_DAYS) -> str:
    """Removes what was listed, if it is still so; gives a sentence where something is left."""
    prefix, left = staging_prefix(listed.target), list[str]()
    try:
        rows, uploads = await versions_under(bucket, prefix), await uploads_under(bucket, prefix)
        of_target = _by_target(rows, uploads).get(listed.target, ([], []))
        if await _staged(bucket, listed.target, *of_target, now - days * 86_400) != listed or listed.kept:
            return (
                f"{listed.target}: what is under s3://{bucket.name}/{prefix} changed since it was listed; it was kept"
            )
        await abort(bucket, of_target[1])
        left = await remove(bucket, of_target[0])
    except WaybillError as error:
        return f"{listed.target}: pieces may be left under s3://{bucket.name}/{prefix}: {error}"
    return f"{listed.target}: the store did not remove {few(left, 3, _ALL)}" if left else ""


Rows = Sequence[dict[str, Any]]


def _by_target(rows: Rows, uploads: Rows) -> Mapping[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = defaultdict(lambda: ([], []))
    for number, group in enumerate((rows, uploads)):
        for row in group:
            piece = _PIECE.fullmatch(str(row["Key"]))
            found[piece["target"] if piece else str(row["Key"])][number].append(row)
    return found


async def _staged(bucket: Bucket, target: str, rows: Rows, uploads: Rows, limit: float) -> Staged:
    dates = [row["LastModified"].timestamp() for row in rows] + [row["Initiated"].timestamp() for row in uploads]
    newest = max(dates, default=0.0)
    return Staged(
        target=target,
        versions=tuple(sorted((str(row["Key"]), str(row.get("VersionId") or "null")) for row in rows)),
        uploads=tuple(sorted((str(row["Key"]), str(row["UploadId"])) for row in uploads)),
        size_bytes=sum(int(row.get("Size", 0)) for row in rows),
        newest=newest,
        kept=await _why_kept(bucket, target, rows, newest, limit),
    )


async def _why_kept(bucket: Bucket, target: str, rows: Rows, newest: float, limit: float) -> str:
    if target.startswith(STAGING):
        return "its name is none that Waybill gives to pieces"
    if newest > limit:
        return "it is young: a run may be at work"
    for upload in await uploads_under(bucket, target):
        if upload["Key"] == target and await _last_part(bucket, upload) > limit:
            return "an upload of its target is at work"
    _, foreign = await told_apart(bucket, rows)
    return f"these do not carry Waybill's mark: {few(sorted(set(foreign)), 3, _ALL)}" if foreign else ""


async def _last_part(bucket: Bucket, upload: Mapping[str, Any]) -> float:
    """When an upload was begun, or its last part was sent."""
    last = float(upload["Initiated"].timestamp())
    parameters = {"Bucket": bucket.name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    while True:
        answer = await bucket.access.call("list_parts", f"parts of {upload['Key']}", **parameters)
        last = max([last, *(float(row["LastModified"].timestamp()) for row in answer.get("Parts", []))])
        if not answer.get("IsTruncated"):
            return last
        parameters["PartNumberMarker"] = answer["NextPartNumberMarker"]
