"""What a caller may ask of plate_backup and plate_restore: the form, the check, and the documentation of both.

Invariant: the SOP's names stay (project, batch, plates.csv with plate_id,plate_id_full), nothing is deleted
unless parts are named, and who may approve is no field: a caller must not choose the judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from include.core.errors import RequestError
from include.core.request import Request
from include.core.text import printable
from include.plates.layout import BROAD2018, PRESETS, disambiguate, own_layout, plates_from_csv
from include.plates.models import GIB, MIB, ArchiveSettings, DeleteOrder, Layout, Plate, Retention

CSV_LIMIT_BYTES = 1024 * 1024
MOST_PLATES = 100  # what a run hands from task to task fits XCom up to here; a batch has 20 to 60
_OWN = ("part_prefixes", "archive_prefix", "backup_prefix")
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"


class PlateRow(pydantic.BaseModel):
    """One line of plates.csv."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    plate_id: str = pydantic.Field(description="The id used by everything but the images.")
    plate_id_full: str = pydantic.Field(description="The folder name under images/, as the microscope wrote it.")


class PlatesRequest(Request):
    """Which plates, and where they and their archives lie: the same for backup and restore."""

    project: str = pydantic.Field(min_length=1, description="Project, as 2013_Gustafsdottir_PLOSONE.")
    batch: str = pydantic.Field(min_length=1, description="Batch, as BBBC022.")
    source: str = pydantic.Field("", description="Source, for layouts that have one (cpg: source_4).")
    plates: list[PlateRow] | None = pydantic.Field(
        None, description="The plates as rows of plate_id and plate_id_full. Or give plates_uri."
    )
    plates_uri: str | None = pydantic.Field(
        None, description="URI of a plates.csv (header plate_id,plate_id_full) under a prefix of waybill_inputs."
    )
    bucket: str = pydantic.Field("imaging-platform", pattern=_BUCKET, description="The live bucket.")
    archive_bucket: str = pydantic.Field("imaging-platform-cold", pattern=_BUCKET, description="The archive bucket.")
    layout: Literal["broad2018", "cpg", "own"] = pydantic.Field(
        "broad2018", description="Where plates lie: the SOP's folders, the Cell Painting Gallery's, or own templates."
    )
    part_prefixes: dict[str, str] | None = pydantic.Field(
        None,
        description="Layout own: part name to prefix template over {project} {source} {batch} {plate_id} {plate_id_full}.",
    )
    archive_prefix: str | None = pydantic.Field(None, description="Layout own: prefix template of the tarballs.")
    backup_prefix: str | None = pydantic.Field(None, description="Layout own: prefix template of the listings.")
    strip: str = pydantic.Field("", description="Layout own: cut from the front of keys to make member names.")
    tag: str = pydantic.Field(BROAD2018.tag, description="Layout own: template of the archive's name.")

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = []
        given = [name for name in ("plates", "plates_uri") if conf.get(name)]
        if len(given) != 1:
            faults.append("plates and plates_uri: give exactly one of them")
        if isinstance(conf.get("plates"), list) and len(conf["plates"]) > MOST_PLATES:
            faults.append(f"plates: {len(conf['plates'])} plates are more than the {MOST_PLATES} of a run; split them")
        own = conf.get("layout") == "own"
        wrong = [name for name in _OWN if bool(conf.get(name)) != own]
        if own and wrong:
            faults.append(f"layout: own needs {' and '.join(wrong)} as well")
        elif wrong:
            faults.append(f"{', '.join(wrong)}: only for layout own; take them out, or set layout to own")
        if conf.get("layout") == "cpg" and not conf.get("source"):
            faults.append("source: layout cpg needs it, as source_4")
        return faults

    def layout_used(self) -> Layout:
        """The layout, checked. Raises RequestError with every fault of own templates."""
        if self.layout != "own":
            return PRESETS[self.layout]
        try:
            return own_layout(
                dict(self.part_prefixes or {}),
                archive_prefix=self.archive_prefix or "",
                backup_prefix=self.backup_prefix or "",
                strip=self.strip,
                tag=self.tag,
            )
        except pydantic.ValidationError as error:
            faults = error.errors(include_url=False, include_context=False)
            raise RequestError([f"part_prefixes: {printable(e.get('input'))}: {e['msg']}" for e in faults]) from None

    def plates_used(self, document: bytes | None) -> list[Plate]:
        """The plates, disambiguated; `document` is what plates_uri holds. Raises RequestError with every fault."""
        ids = {"project": self.project, "batch": self.batch, "source": self.source}
        if document is None:
            plates = disambiguate(Plate.model_validate({**ids, **row.model_dump()}) for row in self.plates or [])
        else:
            try:
                plates = plates_from_csv(document.decode("utf-8"), **ids)
            except UnicodeDecodeError:
                raise RequestError("plates_uri: the file is not UTF-8 text") from None
        if len(plates) > MOST_PLATES:
            raise RequestError(f"plates_uri: {len(plates)} plates are more than the {MOST_PLATES} of a run; split it")
        return plates


class BackupRequest(PlatesRequest):
    """Conf of plate_backup. With project, batch and plates alone it archives and verifies, and deletes nothing."""

    compression: Literal["default", "none", "gzip", "zstd"] = pydantic.Field(
        "default", description="By default the layout's: gzip for broad2018, none for the others."
    )
    level: int = pydantic.Field(1, ge=1, le=19, description="Compression level (gzip: up to 9).")
    volume_gib: int = pydantic.Field(300, ge=1, le=300, description="A tarball is split beyond this many GiB.")
    copy_from_mib: int | None = pydantic.Field(
        None, ge=10, description="Members from this size on are copied inside the store (compression none only)."
    )
    storage_class: str | None = pydantic.Field(
        None, pattern=r"^[A-Z_]+$", description="Storage class of the tarballs; by default the bucket's."
    )
    retention: Retention = pydantic.Field(
        "versioned", description="What must protect a tarball before its source is deleted: none, versioned, locked."
    )
    delete_parts: list[str] = pydantic.Field(
        default=[], description="Parts to delete once proved and approved, as images; nothing by default."
    )
    undo_days: float = pydantic.Field(
        0, ge=0, le=365, description="On a versioned bucket: set delete markers, and purge after so many days."
    )
    approval_days: float = pydantic.Field(14, gt=0, le=365, description="How long the approval is waited for.")
    dry_run: bool = pydantic.Field(False, description="Stop after the plan: list and check, write nothing.")

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = super().cross_field_errors(conf)
        asked = conf.get("compression", "default")
        plain = asked == "none" or (asked == "default" and conf.get("layout") in ("cpg", "own"))
        if conf.get("copy_from_mib") and not plain:
            faults.append("copy_from_mib: copying inside the store needs compression none")
        if conf.get("undo_days") and not conf.get("delete_parts"):
            faults.append("undo_days: nothing is deleted; name delete_parts, or take it out")
        level = conf.get("level")
        if isinstance(level, int) and level > 9 and asked != "zstd":
            faults.append("level: more than 9 is for zstd only")
        return faults

    def checked(self, document: bytes | None) -> list[Plate]:
        """The plates, after everything that can be checked without a remote. Raises RequestError with all faults."""
        problems: list[str] = []
        plates: list[Plate] = []
        try:
            plates = self.plates_used(document)
        except RequestError as error:
            problems += error.problems
        try:
            known = [part.name for part in self.layout_used().parts]
            strange = [name for name in self.delete_parts if name not in known]
            if strange:
                problems.append(f"delete_parts: {', '.join(strange)} not known; the parts are {', '.join(known)}")
        except RequestError as error:
            problems += error.problems
        if problems:
            raise RequestError(problems)
        return plates

    def settings_used(self) -> ArchiveSettings:
        return ArchiveSettings(
            compression=self.layout_used().compression if self.compression == "default" else self.compression,
            level=self.level,
            volume_bytes=self.volume_gib * GIB,
            copy_from_bytes=self.copy_from_mib * MIB if self.copy_from_mib else None,
            storage_class=self.storage_class,
        )

    def order(self, approved_sha256: str, *, purge: bool = False) -> DeleteOrder:
        """What an approval of these manifests allows to be deleted, and how."""
        return DeleteOrder(
            approved_sha256=approved_sha256,
            parts=tuple(sorted(set(self.delete_parts))),
            phase="purge" if purge else "marker" if self.undo_days else "delete",
            retention=self.retention,
            undo_days=self.undo_days,
        )


class RestoreRequest(PlatesRequest):
    """Conf of plate_restore. With project, batch and plates alone it gives every file back at its own key."""

    parts: list[str] = pydantic.Field(default=[], description="Only these parts, as images; all by default.")
    files: list[str] = pydantic.Field(
        default=[], description="Only these files: a key, the end of a key, or a pattern as */Images/r01*."
    )
    to_prefix: str = pydantic.Field(
        "", description="Restore below this prefix of the live bucket; by default files get their own keys back."
    )
    overwrite: bool = pydantic.Field(False, description="Replace what is there and differs. Otherwise it is refused.")
    days: int = pydantic.Field(7, ge=1, le=365, description="How long cold storage keeps the restored copy.")
    tier: Literal["Standard", "Bulk", "Expedited"] = pydantic.Field(
        "Standard", description="Retrieval tier: speed against cost."
    )
    wait_hours: float = pydantic.Field(72, gt=0, le=240, description="How long to wait for cold storage.")
    poll_seconds: float = pydantic.Field(600, ge=1, le=3600, description="Longest pause between two looks.")
    dry_run: bool = pydantic.Field(False, description="Stop after the plan: say what would be restored.")

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = super().cross_field_errors(conf)
        prefix = conf.get("to_prefix")
        if isinstance(prefix, str) and prefix and not (prefix.endswith("/") and not prefix.startswith("/")):
            faults.append("to_prefix: it ends with a slash and does not begin with one")
        return faults

    def checked(self, document: bytes | None) -> list[Plate]:
        """As for a backup."""
        self.layout_used()
        return self.plates_used(document)
