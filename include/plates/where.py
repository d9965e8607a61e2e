"""Where archived files lie: the answer to `where NAME…`, for the command line and for the page in Airflow.

Invariant: every answer says of when the listing is, what of it could not be read, and what is gone since; "not found" is only
said of manifests that were read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from include.plates.file_index import Archived, FileIndex, FileRow
from include.plates.layout import BROAD2018, PRESETS, fill, tag_of
from include.plates.models import Plate

MOST = 100  # hits for each name, unless more are asked for


@dataclass(frozen=True)
class Hit:
    """One file in one tarball. `offset` is into the uncompressed tar; of a compressed tarball `frame` (offset, length, raw
    offset) is what to read. `warnings` say what is wrong with its place today."""

    key: str
    size: int
    plate: str
    tarball: str
    volume: str
    compression: str
    offset: int
    frame: tuple[int, int, int] | None
    storage_class: str
    proof: str
    proof_days: int | None
    listed_at: str
    warnings: tuple[str, ...]
    restore: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """One listed prefix, and what must be said of it beside every answer."""

    bucket: str
    prefix: str
    listed_at: float
    manifests: int
    gone: tuple[str, ...]
    broken: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def told(self, now: float) -> str:
        ago = age(now - self.listed_at)
        listed = f"{self.manifests} manifests under {self.uri}, as listed {when(self.listed_at)} ({ago} ago)"
        alone = f"{'tarball' if len(self.alone) == 1 else 'tarballs'} without a manifest, which no search looks into"
        parts = ((self.broken, "could not be read"), (self.gone, "gone since they were read"), (self.alone, alone))
        return listed + "".join(_count(keys, what) for keys, what in parts)


@dataclass(frozen=True)
class Answer:
    """What one name means. `more`: there are hits beyond those asked for."""

    name: str
    hits: tuple[Hit, ...]
    more: bool = False


def places_of(index: FileIndex, wanted: Sequence[tuple[str, str]] = ()) -> list[Place]:
    """The listed prefixes, all or the wanted ones of them (bucket, prefix)."""
    found = []
    for bucket, prefix, listed_at in index.places():
        if not wanted or (bucket, prefix) in wanted:
            rows = index.archived(bucket, prefix)
            gone = tuple(row.manifest_key for row in rows if row.gone_at is not None)
            broken = tuple(row.manifest_key for row in rows if row.gone_at is None and row.problem)
            alone = index.tarballs_alone(bucket, prefix)
            found.append(Place(bucket, prefix, listed_at, len(rows) - len(gone), gone, broken, alone))
    return found


def answer(
    index: FileIndex, name: str, places: Sequence[Place], *, now: float, most: int = MOST, offset: int = 0
) -> Answer:
    """The files of that name, place by place; a prefix within another gives nothing twice."""
    hits: dict[tuple[str, str], Hit] = {}
    for place in places:
        # Of each place all up to the last one wanted: which of them are shown is known only together.
        for archived, row in index.find(name, place.bucket, place.prefix, limit=offset + most + 1):
            hits.setdefault((f"{archived.bucket}/{archived.manifest_key}", row.key), _hit(archived, row, place, now))
    ordered = sorted(hits.values(), key=lambda hit: (hit.key, hit.tarball))
    return Answer(name, tuple(ordered[offset : offset + most]), len(ordered) > offset + most)


def _hit(archived: Archived, row: FileRow, place: Place, now: float) -> Hit:
    head, proof = archived.head, archived.proof_now
    frame = None if row.frame_at is None else (row.frame_at, row.frame_bytes or 0, row.frame_raw or 0)
    return Hit(
        key=row.key,
        size=row.size,
        plate=f"{head['project']} {head['batch']} {head['plate_id_full']}",
        tarball=f"s3://{archived.bucket}/{archived.tarball}",
        volume=f"{head['number']} of {head['of']}",
        compression=head["compression"],
        offset=row.at,
        frame=frame,
        storage_class=archived.storage_class,
        proof=proof.told(now) if proof else _no_proof(archived),
        proof_days=max(0, int((now - proof.seconds) // 86400)) if proof else None,
        listed_at=when(place.listed_at),
        warnings=_warnings(archived),
        restore=restore_command(archived.manifest_key, head, row.key),
    )


def _no_proof(archived: Archived) -> str:
    if archived.proof is not None:
        return f"none of the tarball that lies there now: the last one, of {archived.proof.at[:10]}, is about another object"
    return "none is kept: verify writes one"


def _warnings(archived: Archived) -> tuple[str, ...]:
    found = []
    if archived.gone_at is not None:
        found.append(f"its manifest is gone: missed first {when(archived.gone_at)}")
    if archived.tarball_etag is None:
        found.append("its tarball is not in the listing")
    elif archived.tarball_bytes != archived.head["stored_bytes"]:
        found.append(
            f"its tarball has {archived.tarball_bytes} bytes, the manifest says {archived.head['stored_bytes']}"
        )
    if archived.proof_now is not None and archived.proof_now.outcome != "verified":
        found.append("its tarball is damaged")
    return tuple(found)


def restore_command(manifest_key: str, head: dict[str, Any], key: str) -> str:
    """The command that gives this one file back, with the ids of its plate as they find this very archive."""
    layout, plate_id = _names_of(manifest_key, head)
    words = ["python", "-m", "include.plates", "restore", "--project", head["project"], "--batch", head["batch"]]
    words += ["--source", head["source"]] if head.get("source") else []
    words += ["--layout", layout] if layout != BROAD2018.name else []
    words += ["--plate-id", plate_id, "--plate-id-full", head["plate_id_full"]]
    words += ["--cold-bucket", head["archive_bucket"], "--file", key, "--to", "FOLDER"]
    return shlex.join(words)


def find_command(bucket: str, tarballs: Iterable[str]) -> str:
    """The command that finds a file in these tarballs; empty where there is none."""
    folders = sorted({key.rpartition("/")[0] for key in tarballs})
    prefixes = [word for folder in folders for word in ("--prefix", f"s3://{bucket}/{folder}/")]
    return shlex.join(["python", "-m", "include.plates", "where", "NAME", *prefixes]) if folders else ""


def _names_of(manifest_key: str, head: dict[str, Any]) -> tuple[str, str]:
    """Layout and plate id under which an archive is found: of measurements that share an id, plate_id_full stands for it."""
    ids = {name: head.get(name, "") for name in ("project", "source", "batch", "plate_id_full")}
    for layout in PRESETS.values():
        for plate_id in (head["plate_id"], head["plate_id_full"]):
            plate = Plate(**ids, plate_id=plate_id)
            if manifest_key.startswith(
                f"{fill(layout.archive_prefix, plate)}{tag_of(layout, plate)}_{head['tarball']}."
            ):
                return layout.name, plate_id
    return "LAYOUT.json", head["plate_id"]


def when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def age(seconds: float) -> str:
    """A time as people say it, rounded down."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(max(0.0, seconds) // length)
        if count:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "less than a minute"


def _count(keys: Sequence[str], what: str) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"; {len(keys)} {what}: {', '.join(keys[:3])}{more}" if keys else ""
