"""What the SOP's own check does, as a policy: compare two listings, then delete by prefix (docs/protocols/s3.md 1.7, 1.9).

It exists to be compared with: the same faults are shown to it and to the engine. It is faithful also where it is wrong:
listings are made before the upload, two missing listings are equal, and deletion takes everything under the prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from include.plates import sop_files as listings
from include.plates.layout import BROAD2018, fill
from include.plates.models import Plate, SourceObject


@dataclass(frozen=True)
class SopRun:
    """State after `aws_backup.sh`: the two listings on the live bucket, None where one is missing."""

    listing_s3: str | None
    listing_tar: str | None


def backup(plate: Plate, live: Mapping[str, bytes], in_tar: Mapping[str, bytes], tag: str) -> SopRun:
    """The listings as the script writes them. Both see names and sizes only, and the tar's from the local copy."""
    prefixes = [fill(part.prefix, plate).rstrip("/") for part in BROAD2018.parts]  # no slash: siblings are listed too
    rows = [SourceObject(k, len(v), "", 0, "") for p in prefixes for k, v in sorted(live.items()) if k.startswith(p)]
    members = [(f"{tag}/{key.removeprefix('projects/')}", len(data)) for key, data in in_tar.items()]
    return SopRun(listings.trimmed_s3(listings.untrimmed_s3(rows)), listings.trimmed_tar(members, tag))


def check_plate(run: SopRun) -> bool:
    """`check_plate`: equal ETags pass; head-object of a missing listing gives an empty string, equal to another."""
    return _etag(run.listing_s3) == _etag(run.listing_tar)


def deleted(plate: Plate, live: Mapping[str, bytes]) -> set[str]:
    """What the delete script removes: recursively by prefix, whatever has arrived there since."""
    prefixes = [fill(part.prefix, plate) for part in BROAD2018.parts]
    return {key for key in live if any(key.startswith(prefix) for prefix in prefixes)}


def _etag(listing: str | None) -> str:
    return "" if listing is None else hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()
