"""What a caller may ask of plate_backup and plate_restore: the form, the check, and the documentation of both.

Invariant: the SOP's names stay (project, batch, plates.csv with plate_id,plate_id_full), nothing is deleted
unless parts are named, and who may approve is no field: a caller must not choose the judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from include.core.errors import RequestError
from include.core.request import LOST_IN_FORM, PASTED, Request, in_section
from include.core.text import printable
from include.plates.layout import (
    BROAD2018,
    PRESETS,
    disambiguate,
    layout_faults,
    name_faults,
    own_layout,
    plates_from_csv,
)
from include.plates.models import (
    GIB,
    PROOF_DAYS,
    ArchiveSettings,
    DeleteOrder,
    Layout,
    Level,
    OlderVersions,
    Plate,
    PlatePlan,
    Retention,
    compression_faults,
)

CSV_LIMIT_BYTES = 1024 * 1024
MOST_PLATES = 100  # what a run hands from task to task fits XCom up to here; a batch has 20 to 60
_LAYOUT = ("layout", "part_prefixes", "archive_prefix", "backup_prefix", "strip", "tag")
_OWN = ("part_prefixes", "archive_prefix", "backup_prefix")
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"


WHERE = in_section("Buckets and folders")
OWN_LAYOUT = in_section("Own folder layout")
ARCHIVE = in_section("How the archive is written")
ANSWER = in_section("Approval and undo")
COLD = in_section("Cold storage")


class PlateRow(pydantic.BaseModel):
    """One line of plates.csv."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    plate_id: str = pydantic.Field(description="The id used by everything but the images.")
    plate_id_full: str = pydantic.Field(description="The folder name under images/, as the microscope wrote it.")


class PlatesRequest(Request):
    """Which plates, and where they and their archives lie: the same for backup and restore."""

    dry_run: bool = pydantic.Field(
        False,
        title="Dry run",
        description="Stop after the plan: it lists what would be done and what would go wrong, and changes nothing.",
    )
    project: str = pydantic.Field(
        min_length=1,
        title="Project",
        description="The project's folder in the bucket.",
        examples=["2013_Gustafsdottir_PLOSONE"],
    )
    batch: str = pydantic.Field(
        min_length=1, title="Batch", description="The batch's folder in the project.", examples=["BBBC022"]
    )
    plates: list[PlateRow] | None = pydantic.Field(
        None,
        title="Plates",
        description="The plates, one row each. `plate_id_full` is the folder's name under `images/`, `plate_id` the short "
        f"name that everything else uses; they may be equal. {PASTED}",
        examples=[[{"plate_id": "20585", "plate_id_full": "20585"}, {"plate_id": "20586", "plate_id_full": "20586"}]],
    )
    plates_uri: str | None = pydantic.Field(
        None,
        title="Plates as a file",
        description="Instead of the plates above: where they lie as a `plates.csv` (its first line is "
        "`plate_id,plate_id_full`), below a prefix of connection `waybill_inputs`.",
        examples=["s3://our-inputs/BBBC022/plates.csv"],
    )
    bucket: str = pydantic.Field(
        "imaging-platform",
        pattern=_BUCKET,
        title="Bucket of the plates",
        description="The bucket where the plates lie, or are restored to.",
        json_schema_extra=WHERE,
    )
    archive_bucket: str = pydantic.Field(
        "imaging-platform-cold",
        pattern=_BUCKET,
        title="Bucket of the archive",
        description="The bucket where the tarballs lie.",
        json_schema_extra=WHERE,
    )
    layout: Literal["broad2018", "cpg", "own"] = pydantic.Field(
        "broad2018",
        title="Folder layout",
        description="`broad2018`: the folders of the written procedure. `cpg`: those of the Cell Painting Gallery, which "
        "needs a source. `own`: the folders that you name in the part below.",
        json_schema_extra=WHERE,
    )
    source: str = pydantic.Field(
        "",
        title="Source",
        description="Only for layouts that have one, as `cpg`. With another layout it is refused.",
        examples=["source_4"],
        json_schema_extra=WHERE,
    )
    part_prefixes: dict[str, str] | None = pydantic.Field(
        None,
        title="Prefix of each part",
        description="For each part of a plate, the prefix of its keys. It may hold `{project}`, `{source}`, `{batch}`, "
        "`{plate_id}` and `{plate_id_full}`. " + PASTED,
        examples=[{"images": "{project}/{batch}/images/{plate_id_full}/"}],
        json_schema_extra=OWN_LAYOUT,
    )
    archive_prefix: str | None = pydantic.Field(
        None,
        title="Prefix of the tarballs",
        description="Where the tarballs are stored in the bucket of the archive.",
        examples=["archive/{project}/plates/"],
        json_schema_extra=OWN_LAYOUT,
    )
    backup_prefix: str | None = pydantic.Field(
        None,
        title="Prefix of the listings",
        description="Where the listings are stored in the bucket of the plates.",
        examples=["{project}/backup/"],
        json_schema_extra=OWN_LAYOUT,
    )
    strip: str = pydantic.Field(
        "",
        title="Cut from the front of keys",
        description="What is left out at the front of a key when the file is named in the tarball.",
        examples=["projects/"],
        json_schema_extra=OWN_LAYOUT,
    )
    tag: str = pydantic.Field(
        BROAD2018.tag,
        title="Name of an archive",
        description="What the names of a plate's tarballs begin with.",
        json_schema_extra=OWN_LAYOUT,
    )

    store_patience: float = pydantic.Field(
        10,
        ge=0,
        le=1440,
        title="Wait for the store (minutes)",
        description="How long a task waits, at most, for a store that is out of reach, before it fails and is retried.",
        json_schema_extra=WHERE,
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        # Here, and not only with each plate: there may be no plates to judge, or none that can be read.
        names = {name: conf.get(name) for name in ("project", "batch", "source")}
        faults = [fault for field, name in names.items() if isinstance(name, str) for fault in name_faults(field, name)]
        given = [name for name in ("plates", "plates_uri") if conf.get(name)]
        if len(given) != 1:
            lost = "" if given else f"; {LOST_IN_FORM}"
            faults.append(
                f"plates and plates_uri: give exactly one of them (given: {' and '.join(given) or 'none'}){lost}"
            )
        if isinstance(conf.get("plates"), list) and len(conf["plates"]) > MOST_PLATES:
            faults.append(f"plates: {len(conf['plates'])} plates are more than the {MOST_PLATES} of a run; split them")
        own = conf.get("layout") == "own"
        wrong = [name for name in _OWN if bool(conf.get(name)) != own]
        if own and wrong:
            faults.append(f"layout: own needs {' and '.join(wrong)} as well")
        elif wrong:
            faults.append(f"{', '.join(wrong)}: only for layout own; leave out, or set layout to own")
        unused = [
            name for name in ("strip", "tag") if not own and conf.get(name, default := _DEFAULTS[name]) != default
        ]
        if unused:
            faults.append(f"{', '.join(unused)}: only for layout own; leave out, or set layout to own")
        return faults + cls._layout_faults(conf)

    @classmethod
    def _layout_faults(cls, conf: Mapping[str, Any]) -> list[str]:
        """What is wrong with the layout, and with what depends on it. Nothing while there is no layout to judge by."""
        try:
            layout = layout_of(conf)
        except RequestError as error:
            return error.problems
        if layout is None:
            return []
        parts = {name: conf.get(name) for name in ("delete_parts", "parts")}
        return layout_faults(layout, conf.get("source"), parts)

    def layout_used(self) -> Layout:
        """The layout of a checked request."""
        layout = layout_of(self.model_dump(include=set(_LAYOUT)))
        if layout is None:  # cross_field_errors refuses such a request
            raise RequestError(f"layout: {self.layout} is not whole")
        return layout

    def plates_used(self, document: bytes | None) -> list[Plate]:
        """The plates, disambiguated; `document` is what plates_uri holds. Raises RequestError with every fault."""
        ids = {"project": self.project, "batch": self.batch, "source": self.source}
        if document is None and not self.plates:
            return []  # refused by cross_field_errors; whatever else is wrong is told beside it
        if document is None:
            plates = disambiguate(Plate.model_validate({**ids, **row.model_dump()}) for row in self.plates or [])
        else:
            plates = plates_from_csv(document, **ids)
        if len(plates) > MOST_PLATES:
            raise RequestError(f"plates_uri: {len(plates)} plates are more than the {MOST_PLATES} of a run; split it")
        return plates


def patience_of(conf: Mapping[str, Any] | None) -> float:
    """The minutes that a run waits for its store."""
    given = (conf or {}).get("store_patience")
    return float(PlatesRequest.model_fields["store_patience"].default if given is None else given)


_DEFAULTS = {name: PlatesRequest.model_fields[name].default for name in _LAYOUT}


def layout_of(conf: Mapping[str, Any]) -> Layout | None:
    """The layout that a conf names; None where the conf is too faulty to tell. Raises RequestError with every fault of own
    templates."""
    given = {name: conf.get(name, _DEFAULTS[name]) for name in _LAYOUT}
    if given["layout"] != "own":
        return PRESETS.get(str(given["layout"]))
    prefixes = given["part_prefixes"]
    if not (prefixes and isinstance(prefixes, dict) and all(isinstance(given[name], str) for name in _LAYOUT[2:])):
        return None
    if not all(isinstance(text, str) for text in (*prefixes, *prefixes.values())):
        return None
    try:
        return own_layout(prefixes, **{name: given[name] for name in _LAYOUT[2:]})
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise RequestError([f"part_prefixes: {printable(e.get('input'))}: {e['msg']}" for e in faults]) from None


class BackupRequest(PlatesRequest):
    """Conf of plate_backup. With project, batch and plates alone it archives and verifies, and deletes nothing."""

    delete_parts: list[str] = pydantic.Field(
        default=[],
        title="Parts to delete",
        description="The parts that are deleted from the bucket of the plates, once they are proved and a person has "
        "approved it. Nothing is deleted if this is empty.",
        examples=[["images", "illum", "analysis", "backend"]],
    )
    retention: Retention = pydantic.Field(
        "versioned",
        title="Protection of the tarballs",
        description="What must protect a tarball before its source is deleted. `versioned`: its bucket keeps old versions. "
        "`locked`: an object lock or a legal hold lies on it. `none`: nothing.",
    )
    older_versions: OlderVersions = pydantic.Field(
        "refuse",
        title="Older versions",
        description="Only where the bucket of the plates is versioned: what happens to versions below the deleted files, "
        "which would be current again. `refuse`: such a plate is not deleted. `keep_hidden`: they stay, under delete "
        "markers. `delete`: they are deleted as well, though no tarball holds them.",
        json_schema_extra=ANSWER,
    )
    undo_days: float = pydantic.Field(
        0,
        ge=0,
        le=365,
        title="Undo time (days)",
        description="Only where the bucket of the plates is versioned. Files are marked as deleted first, and are deleted "
        "permanently after so many days; until then they can be brought back.",
        json_schema_extra=ANSWER,
    )
    deletion_needs: Literal["read_back", "store_proved"] = pydantic.Field(
        "read_back",
        title="Proof that a deletion needs",
        description="Nothing is deleted of a plate whose tarballs have a weaker proof than this.",
        json_schema_extra=ANSWER,
    )
    approval_days: float = pydantic.Field(
        14,
        gt=0,
        le=PROOF_DAYS,
        title="Wait for the approval (days)",
        description="Without an answer in this time nothing is deleted. A proof counts 30 days, so a later answer would allow "
        "nothing.",
        json_schema_extra=ANSWER,
    )
    compression: Literal["default", "none", "gzip", "zstd"] = pydantic.Field(
        "default",
        title="Compression",
        description="`default`: gzip for layout `broad2018`, none for the others.",
        json_schema_extra=ARCHIVE,
    )
    level: int = pydantic.Field(
        1,
        ge=1,
        le=19,
        title="Compression level",
        description="Higher takes more time and less space. More than 9 is for zstd only.",
        json_schema_extra=ARCHIVE,
    )
    volume_gib: int = pydantic.Field(
        300,
        ge=1,
        le=300,
        title="Volume size (GiB)",
        description="A tarball that would be larger is split into volumes of this size.",
        json_schema_extra=ARCHIVE,
    )
    copy_by: Literal["worker", "server"] = pydantic.Field(
        "worker",
        title="Who copies",
        description="`server`: the store copies files of 5 MiB and more by itself, where it holds a CRC64NVME of them; only "
        "headers and small files pass through the worker. Only with compression `none`.",
        json_schema_extra=ARCHIVE,
    )
    proof: Literal["read_back", "store_proved"] = pydantic.Field(
        "read_back",
        title="Proof of the tarballs",
        description="`read_back`: every tarball is read again. `store_proved`: a tarball is not read where the checksum that "
        "the store holds of it follows from those of its files. This is quicker and weaker.",
        json_schema_extra=ARCHIVE,
    )
    storage_class: str | None = pydantic.Field(
        None,
        pattern=r"^[A-Z_]*$",
        title="Storage class",
        description="The storage class of the tarballs. Empty: the default of the bucket.",
        examples=["DEEP_ARCHIVE"],
        json_schema_extra=ARCHIVE,
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = super().cross_field_errors(conf)
        used = conf.get("compression", "default")
        if used == "default":
            used = "none" if conf.get("layout") in ("cpg", "own") else "gzip"
        faults += compression_faults(used, conf.get("level"), conf.get("copy_by") == "server", ("level", "copy_by"))
        weak = (conf.get("proof"), conf.get("deletion_needs", "read_back")) == ("store_proved", "read_back")
        if weak and conf.get("delete_parts"):
            faults.append("deletion_needs: with proof store_proved nothing is read back; set one of the two otherwise")
        if conf.get("undo_days") and not conf.get("delete_parts"):
            faults.append("undo_days: nothing is deleted; name delete_parts, or take it out")
        return faults

    def settings_used(self) -> ArchiveSettings:
        return ArchiveSettings(
            compression=self.layout_used().compression if self.compression == "default" else self.compression,
            level=self.level,
            volume_bytes=self.volume_gib * GIB,
            copy_by=self.copy_by,
            storage_class=self.storage_class,
        )

    def order_problems(self, plan: PlatePlan) -> list[str]:
        """What the deletion of a planned plate would be refused for, told before hours of archiving."""
        if not self.delete_parts or self.older_versions != "refuse" or not plan.older_versions:
            return []
        return [
            f"older_versions: {plan.older_versions} older versions ({plan.older_bytes} bytes) of these objects would be current "
            "again after the deletion; set it to keep_hidden or to delete, or take delete_parts out"
        ]

    def order(self, approved_sha256: str, *, purge: bool = False) -> DeleteOrder:
        """What an approval of these manifests allows to be deleted, and how."""
        return DeleteOrder(
            approved_sha256=approved_sha256,
            parts=tuple(sorted(set(self.delete_parts))),
            phase="purge" if purge else "marker" if self.undo_days else "delete",
            retention=self.retention,
            undo_days=self.undo_days,
            older_versions=self.older_versions,
            needs=Level(self.deletion_needs),
        )


class RestoreRequest(PlatesRequest):
    """Conf of plate_restore. With project, batch and plates alone it gives every file back at its own key."""

    parts: list[str] = pydantic.Field(
        default=[], title="Parts", description="Only these parts. Empty: all.", examples=[["images"]]
    )
    files: list[str] = pydantic.Field(
        default=[],
        title="Files",
        description="Only these files: a key, the end of a key, or a pattern. Empty: all.",
        examples=[["20586.sqlite", "*/Images/r01*"]],
    )
    to_prefix: str = pydantic.Field(
        "",
        title="Restore to another place",
        description="A prefix in the bucket of the plates, which ends with a slash. Empty: files get their own keys back.",
        examples=["restored/2026-11-26/"],
    )
    overwrite: bool = pydantic.Field(
        False,
        title="Replace files that differ",
        description="Replace a file that is there and differs. Otherwise such a file is kept, and the run fails.",
    )
    tier: Literal["Standard", "Bulk", "Expedited"] = pydantic.Field(
        "Standard",
        title="Retrieval tier",
        description="How fast cold storage gives a tarball back: `Expedited` is the fastest and costs most, `Bulk` the "
        "slowest and costs least.",
        json_schema_extra=COLD,
    )
    days: int = pydantic.Field(
        7,
        ge=1,
        le=365,
        title="Keep the restored tarball (days)",
        description="How long cold storage keeps a tarball readable.",
        json_schema_extra=COLD,
    )
    wait_hours: float = pydantic.Field(
        72,
        gt=0,
        le=240,
        title="Wait for cold storage (hours)",
        description="If a tarball is not readable after this time, the run fails.",
        json_schema_extra=COLD,
    )
    poll_seconds: float = pydantic.Field(
        600,
        ge=1,
        le=3600,
        title="Longest pause between two looks (seconds)",
        description="How long to wait, at most, before cold storage is asked again.",
        json_schema_extra=COLD,
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = super().cross_field_errors(conf)
        prefix = conf.get("to_prefix")
        if isinstance(prefix, str) and prefix and not (prefix.endswith("/") and not prefix.startswith("/")):
            faults.append("to_prefix: it ends with a slash and does not begin with one")
        return faults
