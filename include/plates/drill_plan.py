"""Plans a restore drill: which plates are drawn, what reading them will cost, and what the listing alone shows to be wrong.

Invariant: the draw depends on the seed and the archive's names alone, so that a drill can be repeated; nothing is read but
listings, manifests and HEADs.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from urllib.parse import quote

from include.core.text import format_bytes
from include.plates.file_index import Archived, Listing, tarball_base
from include.plates.models import GIB, MIB, Frozen
from include.plates.plan import PLAN_METADATA
from include.plates.proof import MANIFEST_SUFFIX, SUFFIX, time_text
from include.s3.bucket import Bucket

_READ_BYTES = 8 * MIB  # of one GET of the verifier
_COLD_IN_LISTING = ("GLACIER", "DEEP_ARCHIVE", "INTELLIGENT_TIERING")
BILLED_BY_RETRIEVED_BYTES = ("STANDARD_IA", "ONEZONE_IA", "GLACIER_IR")


class DrillTarball(Frozen):
    """One tarball of a sampled plate. `fault` is what the listing alone shows to be wrong."""

    manifest_key: str
    manifest_bytes: int
    key: str
    stored_bytes: int
    storage_class: str
    cold: bool = False
    fault: str = ""

    @property
    def read_bytes(self) -> int:
        if self.fault:
            return 0
        return self.manifest_bytes if self.cold else self.stored_bytes + self.manifest_bytes

    @property
    def requests(self) -> int:
        """At most: the manifest, a HEAD, two looks at tags, the `.md5`, the proof document, and the tarball in pieces."""
        if self.fault:
            return 0
        return 3 if self.cold else 6 + math.ceil(self.stored_bytes / _READ_BYTES)


class DrillPlate(Frozen):
    """A plate as the listing shows it. `left_out` says why it is not looked at, though it was drawn."""

    name: str
    bucket: str
    base: str
    tarballs: tuple[DrillTarball, ...]
    left_out: str = ""

    @property
    def read_bytes(self) -> int:
        return sum(tarball.read_bytes for tarball in self.tarballs)


class DrillPlan(Frozen):
    """What a drill will do: the plates that were drawn, in that order, and what the listing shows of all others."""

    seed: str
    plates_there: int
    drawn: tuple[DrillPlate, ...]
    faults: tuple[str, ...]

    def cost(self) -> dict[str, dict[str, int]]:
        """By storage class what will be read and asked, as numbers: what a store asks for them stands in its price list."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for tarball in (t for plate in self.drawn if not plate.left_out for t in plate.tarballs):
            figures = {"tarballs": 1, "read_bytes": tarball.read_bytes, "requests": tarball.requests}
            if tarball.storage_class in BILLED_BY_RETRIEVED_BYTES:
                figures["retrieved_bytes"] = tarball.read_bytes
            found[tarball.storage_class or "not there"].update(figures)
        return {name: dict(figures) for name, figures in sorted(found.items())}

    def chance(self, damaged: int = 1) -> float:
        """How likely it is that a drill of this size meets at least one of so many damaged plates."""
        return chance(self.plates_there, sum(not plate.left_out for plate in self.drawn), damaged)


def chance(plates: int, looked_at: int, damaged: int = 1) -> float:
    """The probability that a sample meets at least one of `damaged` plates: 1 - C(n - d, k) / C(n, k)."""
    if plates <= 0 or damaged <= 0:
        return 0.0
    return 1.0 - math.comb(plates - min(damaged, plates), looked_at) / math.comb(plates, looked_at)


# From a listing to a plan


async def plan_drill(
    listed: Sequence[tuple[Bucket, Listing, Sequence[Archived]]], *, seed: str, plates: int, max_gib: float
) -> DrillPlan:
    """Draws `plates` of all that lie there; those that would read more than what is left of `max_gib` are named, not read.

    The same seed draws the same plates while the archive is the same, and a new plate changes no other's place in the draw.
    """
    there: dict[tuple[str, str], dict[str, Archived]] = defaultdict(dict)
    buckets: dict[str, Bucket] = {}
    faults: list[str] = []
    for bucket, listing, rows in listed:
        buckets[bucket.name] = bucket
        faults += await _faults(bucket, listing)
        for row in rows:
            if row.head:  # one that could not be read is among the faults
                there[bucket.name, _base(row)][row.manifest_key] = row
    order = sorted(there, key=lambda plate: hashlib.sha256("\n".join((seed, *plate)).encode()).digest())
    drawn, left = [], max_gib * GIB
    for bucket_name, base in order[:plates]:
        plate = await _plate(buckets[bucket_name], base, list(there[bucket_name, base].values()))
        if plate.read_bytes > left:
            why = f"it would read {format_bytes(plate.read_bytes)}, and {format_bytes(left)} of max_gib are left"
            plate = plate.model_copy(update={"left_out": why})
        else:
            left -= plate.read_bytes
        drawn.append(plate)
    chosen = {(plate.bucket, plate.base) for plate in drawn}
    for place in sorted(there.keys() - chosen):
        faults += [
            f"{tarball.key}: {tarball.fault}" for tarball in _tarballs(list(there[place].values())) if tarball.fault
        ]
    return DrillPlan(seed=seed, plates_there=len(there), drawn=tuple(drawn), faults=tuple(dict.fromkeys(faults)))


def _base(row: Archived) -> str:
    """What all keys of a plate's archive begin with."""
    return f"{row.manifest_key.rpartition('/')[0]}/{row.head['tag']}"


async def _faults(bucket: Bucket, listing: Listing) -> list[str]:
    """What lies there without its manifest. Tarballs that are not Waybill's never had one."""
    faults = [f"{line}" for line in listing.broken]
    lost = {key.removesuffix(SUFFIX) for key in listing.proofs_alone}
    for key in listing.tarballs_alone:
        base = tarball_base(key) or key
        head = None if base in lost else await bucket.head(key)
        if head is not None and await bucket.head(base + MANIFEST_SUFFIX):
            continue  # it was written since the prefix was listed
        if base in lost or (head is not None and PLAN_METADATA in head.metadata):
            faults.append(f"{key}: its manifest is missing, so nothing says what it should hold")
        lost.discard(base)
    return faults + [
        f"{base}: tarball and manifest are missing; their proof document is still there" for base in sorted(lost)
    ]


async def _plate(bucket: Bucket, base: str, rows: Sequence[Archived]) -> DrillPlate:
    tarballs = []
    for tarball in _tarballs(rows):
        if tarball.storage_class in _COLD_IN_LISTING and not tarball.fault:
            head = await bucket.head(tarball.key)
            tarball = tarball.model_copy(update={"cold": head is not None and head.cold})
        tarballs.append(tarball)
    return DrillPlate(name=_name(rows[0]), bucket=bucket.name, base=base, tarballs=tuple(tarballs))


def _name(row: Archived) -> str:
    return f"{row.head['project']} {row.head['batch']} {row.head['plate_id_full']}"


def _tarballs(rows: Sequence[Archived]) -> list[DrillTarball]:
    """The tarballs of a plate, and those volumes of them that are not there at all."""
    found = [
        DrillTarball(
            manifest_key=row.manifest_key,
            manifest_bytes=row.manifest_bytes,
            key=row.tarball,
            stored_bytes=row.tarball_bytes or 0,
            storage_class=row.storage_class,
            fault=_fault(row),
        )
        for row in rows
    ]
    volumes: dict[str, dict[int, Archived]] = defaultdict(dict)
    for row in rows:
        volumes[row.head["tarball"]][row.head["number"]] = row
    for numbers in volumes.values():
        some = next(iter(numbers.values()))
        for number in range(1, some.head["of"] + 1):
            if number not in numbers:
                missing = f"volume {number} of {some.head['of']} of {some.head['tag']}_{some.head['tarball']}"
                fault = "neither tarball nor manifest are there"
                found.append(
                    DrillTarball(
                        manifest_key="", manifest_bytes=0, key=missing, stored_bytes=0, storage_class="", fault=fault
                    )
                )
    return found


def _fault(row: Archived) -> str:
    if row.gone_at is not None:
        return f"its manifest was there, and is missing since {time_text(row.gone_at)[:10]} at the latest"
    if row.tarball_etag is None:
        return "the tarball is missing"
    if row.tarball_bytes != row.head["stored_bytes"]:
        return f"{row.tarball_bytes} bytes are stored, {row.head['stored_bytes']} were sent"
    return ""


def batch_list(plan: DrillPlan) -> str:
    """The cold tarballs of a plan as S3 Batch Operations wants them: bucket and key, as in a URL, a line each."""
    cold = [(plate.bucket, t.key) for plate in plan.drawn for t in plate.tarballs if t.cold]
    return "".join(f"{bucket},{quote(key)}\n" for bucket, key in cold)
