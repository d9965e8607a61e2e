"""Reads a completion report of S3 Batch Operations, operation "Compute checksum": what S3 found when it read objects itself.

Such a job reads objects at rest in any storage class, also in cold storage, without restoring them. A person sets it up
(docs/operations.md); its report names a checksum for each object.

Invariant: a checksum counts for the object of that bucket, key, version and ETag only, and only where S3 says that it computed
it over the whole.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from include.core.errors import RequestError
from include.s3.bucket import Head, S3Access


@dataclass(frozen=True)
class Computed:
    """What S3 says of one object: its CRC64NVME over the whole (base64), or why there is none."""

    crc64nvme: str
    etag: str
    version_id: str
    why: str


@dataclass(frozen=True)
class ChecksumReport:
    """All rows of a report, by bucket and key. `made_at` is when, in epoch seconds."""

    made_at: float
    rows: Mapping[tuple[str, str], Computed]

    def of(self, bucket: str, there: Head) -> Computed | None:
        """What it says of this object; None where it speaks of another version or ETag, or of none."""
        row = self.rows.get((bucket, there.key))
        if row is None or (row.etag and row.etag != there.etag):
            return None
        return row if not row.version_id or row.version_id == (there.version_id or "null") else None


async def read_report(bucket: str, key: str, access: S3Access) -> ChecksumReport:
    """The report whose `manifest.json` lies there. Raises RequestError where it is none, and the store's errors."""
    try:
        manifest = json.loads(await access.bucket(bucket).read_all(key))
        files = [(str(one["Bucket"]), str(one["Key"])) for one in manifest["Results"]]
        rows: dict[tuple[str, str], Computed] = {}
        for where, name in files:
            rows |= parse_rows(await access.bucket(where).read_all(name))
        made_at = datetime.fromisoformat(str(manifest["ReportCreationDate"])).timestamp()
        return ChecksumReport(made_at, rows)
    except (ValueError, KeyError, TypeError):
        raise RequestError(
            f"report_uri: s3://{bucket}/{key} is no manifest.json of a completion report of S3 Batch Operations"
        ) from None


def parse_rows(data: bytes) -> dict[tuple[str, str], Computed]:
    """The rows of one file: bucket, key (as in a URL), version, status, error code, HTTP status, message."""
    found = {}
    for row in csv.reader(io.StringIO(data.decode())):
        bucket, key, version, status, *_, message = row
        found[bucket, unquote_plus(key)] = _computed(version, status, message)
    return found


def _computed(version: str, status: str, message: str) -> Computed:
    try:
        said: dict[str, Any] = json.loads(message)
    except ValueError:
        said = {}
    kind = f"{said.get('checksumAlgorithm')} {said.get('checksumType', 'FULL_OBJECT')}"
    if status != "succeeded":
        return Computed("", "", version, f"S3 could not compute it ({message or status})")
    if kind != "CRC64NVME FULL_OBJECT":
        return Computed(
            "", "", version, f"it names a checksum of another kind ({kind}); ask for CRC64NVME, FULL_OBJECT"
        )
    value = said.get("checksum_base64") or base64.b64encode(bytes.fromhex(str(said.get("checksum_hex", "")))).decode()
    return Computed(str(value), str(said.get("etag", "")), version, "")
