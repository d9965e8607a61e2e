"""Objects that exist only while another one is put together: where they lie, how they are known, how they are removed.

Invariant: only what lies under the target's own staging prefix *and* carries our mark is removed, each version by its id. What
is left by a run that is never continued is for staging_cleanup.py, or a lifecycle rule on `waybill-staging/`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from include.core.concurrency import map_concurrently
from include.core.errors import Forbidden, WaybillError
from include.s3.bucket import Bucket
from include.s3.errors import Unsupported, UploadLost

STAGING = "waybill-staging/"
MARK = "waybill-staging"  # the metadata key of such an object


def staging_prefix(key: str) -> str:
    """Under which the pieces of the object `key` lie."""
    return f"{STAGING}{key}/"


async def kept_pieces(bucket: Bucket) -> tuple[list[str], list[str]]:
    """Why pieces could not be removed from this bucket, and what of it may not be asked: a sentence or none of each."""
    try:
        retention = await bucket.default_retention()
    except Forbidden:
        why = "may not be asked for its Object Lock (s3:GetBucketObjectLockConfiguration)"
        return [], [f"{bucket.name} {why}: if it retains new objects by default, pieces of copy_by server stay there"]
    if not retention:
        return [], []
    why = f"copy_by server: {bucket.name} retains every new object by default (Object Lock: {retention}), so its pieces under"
    return [f"{why} {STAGING} could not be removed; say copy_by worker, or archive to a bucket without a default"], []


async def remove_staged(bucket: Bucket, key: str, made: Collection[tuple[str, str | None]] = ()) -> list[str]:
    """Removes all pieces of `key`, also those of runs that were killed; gives a sentence where something is left.

    `made` are those that the caller made, as (key, version id): they need not be asked for their mark.
    """
    prefix = staging_prefix(key)
    try:
        await abort(bucket, await uploads_under(bucket, prefix))
        mine, foreign = await told_apart(bucket, await versions_under(bucket, prefix), made)
        left = foreign + await remove(bucket, mine)
    except Unsupported:
        return []  # without versions of objects there is no copying either
    except WaybillError as error:
        return [f"pieces may be left under s3://{bucket.name}/{prefix}: {error}"]
    return [f"{len(left)} objects are left under s3://{bucket.name}/{prefix}, the first {left[0]!r}"] if left else []


async def uploads_under(bucket: Bucket, prefix: str) -> list[dict[str, Any]]:
    """Every upload under a prefix that nobody has completed."""
    found: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"Bucket": bucket.name, "Prefix": prefix}
    while True:
        answer = await bucket.access.call("list_multipart_uploads", f"uploads under {prefix}", **parameters)
        found += [row for row in answer.get("Uploads", []) if str(row["Key"]).startswith(prefix)]
        if not answer.get("IsTruncated"):
            return found
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        parameters |= {name: answer[given] for name, given in markers.items() if answer.get(given)}


async def abort(bucket: Bucket, uploads: Iterable[Mapping[str, Any]]) -> None:
    for row in uploads:
        where = {"Bucket": bucket.name, "Key": row["Key"], "UploadId": row["UploadId"]}
        try:
            await bucket.access.call("abort_multipart_upload", f"aborting {row['Key']}", **where)
        except UploadLost:
            pass  # completed or aborted meanwhile


async def versions_under(bucket: Bucket, prefix: str) -> list[dict[str, Any]]:
    """Every version and delete marker under a prefix."""
    found: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {"Bucket": bucket.name, "Prefix": prefix}
    while True:
        answer = await bucket.access.call("list_object_versions", f"versions under {prefix}", **parameters)
        found += answer.get("Versions", [])
        found += [row | {"Marker": True} for row in answer.get("DeleteMarkers", [])]
        if not answer.get("IsTruncated"):
            return found
        markers = {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
        parameters |= {name: answer[given] for name, given in markers.items() if answer.get(given)}


async def told_apart(
    bucket: Bucket, rows: Sequence[dict[str, Any]], made: Collection[tuple[str, str | None]] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Those that are ours, by their mark or because the caller made them; and the keys of the others."""
    known = {(name, version or "null") for name, version in made}
    ours = await map_concurrently(rows, lambda row: _is_ours(bucket, row, known), 8)
    mine = [row for row, yes in zip(rows, ours, strict=True) if yes]
    return mine, [str(row["Key"]) for row, yes in zip(rows, ours, strict=True) if not yes]


async def remove(bucket: Bucket, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Removes exactly these versions; gives the keys of those that are left."""
    left: list[str] = []
    for at in range(0, len(rows), 1000):
        answer = await bucket.delete_many([_target(row) for row in rows[at : at + 1000]])
        left += [str(error.get("Key")) for error in answer.get("Errors", [])]
    return left


async def _is_ours(bucket: Bucket, row: Mapping[str, Any], known: Collection[tuple[str, str]]) -> bool:
    version = str(row.get("VersionId") or "null")
    if row.get("Marker") or (row["Key"], version) in known:
        return True
    there = await bucket.head(str(row["Key"]), None if version == "null" else version)
    return there is None or MARK in there.metadata


def _target(row: Mapping[str, Any]) -> dict[str, str]:
    version = str(row.get("VersionId") or "null")
    return {"Key": str(row["Key"])} | ({} if version == "null" else {"VersionId": version})
