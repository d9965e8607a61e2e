"""What travels between the steps: plate, layout, plan, manifest rows, verdict, reports. All frozen.

Invariant: everything that reaches `volume_digest` (layout.py) or a manifest row is a stored format that
archives written years ago are checked against; add fields with defaults, never rename.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import zstandard
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from include.core.packed import Packed, in_stretches
from include.s3.headers import Headers

if TYPE_CHECKING:
    from include.s3.bucket import ListedObject

MIB = 1024 * 1024
GIB = 1024 * MIB
MOST_VOLUMES = 100_000  # of one tarball: a claim of more is no manifest's
GROUP_LIMIT = 16 * MIB  # no compressed group ever holds more: what is unpacked at once is bounded by it
PROOF_DAYS: float = 30  # how long what was read back lets something be deleted; the time to undo comes on top
Compression = Literal["none", "gzip", "zstd"]
Retention = Literal["none", "versioned", "locked"]
OlderVersions = Literal["refuse", "keep_hidden", "delete"]
CopyBy = Literal["worker", "server"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Part(Frozen):
    """One of a plate's folders. `prefix` is a template over {project} {source} {batch} {plate_id} {plate_id_full}."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    prefix: str = Field(pattern=r"^[^/].*/$")


class Tarball(Frozen):
    """Which parts go together into one tarball; `name` ends its file name."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    parts: tuple[str, ...]


class Layout(Frozen):
    """Where a plate lies and what its archive is called. `strip` is cut from the front of keys to make member names."""

    name: str
    parts: tuple[Part, ...]
    tarballs: tuple[Tarball, ...]
    tag: str
    tag_full: str
    strip: str = ""
    archive_prefix: str
    backup_prefix: str
    compression: Compression = "none"


class Plate(Frozen):
    """One plate. `tag_by_full` is set where another measurement shares its plate_id, so that their outputs differ."""

    project: str
    batch: str
    plate_id: str
    plate_id_full: str
    source: str = ""
    tag_by_full: bool = False


class ArchiveSettings(Frozen):
    """What decides the stored bytes. Sizes are in bytes; a volume is cut by its uncompressed size (see layout.py)."""

    compression: Compression = "gzip"
    level: int = 1
    part_bytes: int = Field(default=32 * MIB, ge=5 * MIB)
    group_bytes: int = Field(default=4 * MIB, ge=64 * 1024, le=GROUP_LIMIT)
    volume_bytes: int = Field(default=300 * GIB, ge=MIB)
    copy_by: CopyBy = "worker"
    storage_class: str | None = None

    @model_validator(mode="after")
    def _fits_ten_thousand_parts(self) -> ArchiveSettings:
        if self.volume_bytes > 9_900 * self.part_bytes:
            raise ValueError("a volume of more than 9,900 parts does not fit an upload: enlarge part_bytes")
        return self


def compression_faults(compression: str, level: object, by_server: bool, names: Sequence[str]) -> list[str]:
    """What does not fit the compression. `names`: what the caller calls level and copy_by."""
    faults = []
    if by_server and compression != "none":
        faults.append(f"{names[1]}: copying inside the store needs compression none")
    if isinstance(level, int) and level > 9 and compression != "zstd":
        faults.append(f"{names[0]}: more than 9 is for zstd only")
    return faults


class PartSummary(Frozen):
    """A part as planned. `shared`: another measurement of the same plate uses this folder too. `older_versions` lie below its
    objects."""

    name: str
    prefix: str
    objects: int
    size_bytes: int
    shared: bool = False
    older_versions: int = 0
    older_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of a plate as the listing showed it, with the part that it belongs to. `modified` in epoch seconds (UTC)."""

    key: str
    size: int
    etag: str
    modified: int
    part: str
    version_id: str | None = None
    storage_class: str | None = None
    checksum: str | None = None  # "CRC64NVME:FULL_OBJECT:<base64>" as S3 holds it
    tags: str | None = None  # as in header x-amz-tagging; None: not looked at, or no right to read them

    @classmethod
    def of(cls, listed: ListedObject, part: str) -> SourceObject:
        key, size, etag, modified, version_id, *alike = listed
        # Thousands of objects share these, and an answer holds them once for each.
        storage_class, checksum = (None if one is None else sys.intern(one) for one in alike)
        version_id = "null" if version_id == "null" else version_id
        return cls(key, size, etag, modified, part, version_id, storage_class, checksum)

    @property
    def is_marker(self) -> bool:
        return self.key.endswith("/")


_OBJECTS_OF_A_TEXT = 5_000


def _packed_objects(given: Sequence[SourceObject | Mapping[str, Any] | str]) -> Packed[SourceObject]:
    """A plan's objects, as rows, or as a document holds them: in packed texts, or (of before) one by one."""
    return given if isinstance(given, Packed) else Packed(SourceObject, _objects_of(given))


def _objects_of(given: Sequence[SourceObject | Mapping[str, Any] | str]) -> Iterator[SourceObject]:
    for one in given:
        if isinstance(one, str):
            rows = json.loads(zstandard.ZstdDecompressor().decompress(base64.b64decode(one)))
            yield from (SourceObject(*row) for row in rows)
        else:
            yield one if isinstance(one, SourceObject) else SourceObject(**one)


def _texts_of(objects: Sequence[SourceObject]) -> list[str]:
    """Base64 of zstd of a JSON list with a list for each object, 5,000 at a time."""
    packer = zstandard.ZstdCompressor(level=3)
    rows = ([astuple(one) for one in some] for some in in_stretches(objects, _OBJECTS_OF_A_TEXT))
    return [base64.b64encode(packer.compress(json.dumps(some, ensure_ascii=False).encode())).decode() for some in rows]


SourceObjects = Annotated[
    Sequence[SourceObject], PlainValidator(_packed_objects), PlainSerializer(_texts_of, when_used="json")
]


class VolumePlan(Frozen):
    """One tarball object to be: its key, its objects in member order, the digest that names its content."""

    tarball: str
    name: str
    key: str
    number: int
    of: int
    folders: tuple[str, ...]
    objects: SourceObjects
    digest: str
    raw_bytes: int


class PlatePlan(Frozen):
    """All that archiving a plate will do. `problems` must be empty before it may be archived."""

    plate: Plate
    layout: Layout
    settings: ArchiveSettings
    tag: str
    bucket: str
    archive_bucket: str
    parts: tuple[PartSummary, ...]
    volumes: tuple[VolumePlan, ...]
    existing: tuple[str, ...] = ()
    other_measurements: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    older_versions: int = 0
    older_bytes: int = 0
    digest: str

    @property
    def objects(self) -> int:
        return sum(part.objects for part in self.parts)

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class ManifestMember:
    """One tar member. Offsets are into the uncompressed tar.

    `parts` (first and last upload part) and `frame` (offset, length, raw_offset of the stored bytes) are of the written
    format: a reader without Waybill finds a single file by them, and a manifest that is healed must have the same bytes.

    `key` is None for a folder that no object stands for. `sha256` is None only for a member copied inside the store.
    Its `checksum` then holds a CRC64NVME of the whole.
    `headers` are what restore sets again (include/s3/headers.py); empty where an object has only what every object has.
    """

    name: str
    size: int
    header_offset: int
    data_offset: int
    modified: int
    key: str | None = None
    part: str | None = None
    etag: str | None = None
    version_id: str | None = None
    checksum: str | None = None
    sha256: str | None = None
    crc64nvme: str | None = None
    etag_is_md5: bool = False
    parts: tuple[int, int] = (0, 0)
    frame: tuple[int, int, int] | None = None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """One gzip member or zstd frame: where it lies in the stored object, and which uncompressed bytes it holds."""

    offset: int
    length: int
    raw_offset: int
    raw_length: int


class ManifestHead(Frozen):
    """The first line of a manifest: what the tarball is, and what it weighs.

    Version 2 keeps the objects' headers; `headers_unknown` and `tags_unknown` count the objects of which they could not
    be read or were not looked at. Both are None in version 1.
    """

    waybill_manifest: Literal[1, 2] = 2
    tag: str
    project: str
    source: str = ""
    batch: str
    plate_id: str
    plate_id_full: str
    bucket: str
    archive_bucket: str
    key: str
    tarball: str
    number: int = Field(ge=1, le=MOST_VOLUMES)
    of: int = Field(ge=1, le=MOST_VOLUMES)
    compression: Compression
    level: int
    part_bytes: int
    group_bytes: int
    plan_digest: str
    raw_bytes: int
    stored_bytes: int
    stored_crc64nvme: str | None
    members: int
    upload_parts: int
    headers_unknown: int | None = None
    tags_unknown: int | None = None


def _packed_members(given: Sequence[ManifestMember]) -> Packed[ManifestMember]:
    return given if isinstance(given, Packed) else Packed(ManifestMember, given)


class Manifest(Frozen):
    """A whole manifest. `sha256` is that of its stored (compressed) bytes, empty for one not stored yet."""

    head: ManifestHead
    frames: tuple[Frame, ...]
    members: Annotated[Sequence[ManifestMember], PlainValidator(_packed_members)]
    sha256: str = ""


class VolumeResult(Frozen):
    """One stored tarball. `resumed_parts` were taken over from an earlier process and not sent again.

    `md5` is in records of before the verifier alone wrote the `.md5`.
    """

    key: str
    etag: str
    version_id: str | None
    stored_bytes: int
    members: int
    manifest_key: str
    manifest_sha256: str
    sent_parts: int
    resumed_parts: int
    md5: str | None = None
    notes: tuple[str, ...] = ()


class ArchiveResult(Frozen):
    plate: Plate
    tag: str
    plan_digest: str
    volumes: tuple[VolumeResult, ...]
    listings: tuple[str, ...]


class Outcome(StrEnum):
    VERIFIED = "verified"
    MISMATCH = "mismatch"
    UNVERIFIABLE = "unverifiable"


class Level(StrEnum):
    """How far a proof goes: every byte was read back, or it follows from the checksums that the store keeps."""

    READ_BACK = "read_back"
    STORE_PROVED = "store_proved"

    @property
    def words(self) -> str:
        return "read back" if self is Level.READ_BACK else "store-proved"


class Check(Frozen):
    """One of V1 to V5 (docs/faults.md): `detail` says how it was proved, or what is wrong."""

    name: str
    outcome: Outcome
    detail: str


NOT_LOOKED_AT = "was not looked at, because of what is said elsewhere"


def reasons_of(checks: Sequence[Check]) -> tuple[str, ...]:
    """Everything that is not proved, one sentence each; what was not looked at because of another of them is no reason."""
    wrong = [check for check in checks if check.outcome is not Outcome.VERIFIED]
    causes = [check for check in wrong if check.detail != NOT_LOOKED_AT] or wrong
    return tuple(f"{check.name}: {check.detail}" for check in causes)


class VolumeProof(Frozen):
    """What the verifier read of one tarball: deletion demands that it is still this very object.

    `md5` is empty where nothing was read (`level`).
    """

    key: str
    etag: str
    version_id: str | None
    stored_bytes: int
    md5: str
    manifest_key: str
    manifest_sha256: str
    members: int
    level: Level = Level.READ_BACK


class Verdict(Frozen):
    """verified, mismatch or unverifiable, with the reasons. `manifests_sha256` is the digest that a person approves,
    `verified_at` (epoch seconds) when the reading began; None in verdicts of before.

    `stopped_by` names the class of the store's error that ended the verification before its end, if one did.
    """

    plate: Plate
    layout: Layout
    tag: str
    bucket: str
    archive_bucket: str
    outcome: Outcome
    checks: tuple[Check, ...]
    volumes: tuple[VolumeProof, ...] = ()
    objects: int = 0
    size_bytes: int = 0
    manifests_sha256: str = ""
    delete_script: str | None = None
    stopped_by: str = ""
    verified_at: float | None = None

    @property
    def level(self) -> Level:
        """The weakest of the volumes' levels."""
        weak = any(volume.level is Level.STORE_PROVED for volume in self.volumes)
        return Level.STORE_PROVED if weak else Level.READ_BACK

    @property
    def reasons(self) -> tuple[str, ...]:
        """Empty when verified."""
        return reasons_of(self.checks)


Phase = Literal["delete", "marker", "purge"]


@dataclass(frozen=True)
class DeleteOrder:
    """What a person approved: which manifests (their digest), which parts, which phase; `needs` is the weakest proof allowed.

    `phase`: "delete" ends the objects (by version id on a versioned bucket); "marker" and, after `undo_days`, "purge" are
    the two steps of a deletion that can be undone, on versioned buckets only. `older_versions` says what happens to versions
    below the archived ones, which would be current again: "keep_hidden" under a delete marker, or "delete".
    """

    approved_sha256: str
    parts: tuple[str, ...]
    phase: Phase = "delete"
    retention: Retention = "versioned"
    undo_days: float = 0.0
    batch_size: int = 1000
    older_versions: OlderVersions = "refuse"
    needs: Level = Level.READ_BACK
