"""Names: presets, prefixes, output keys, plates.csv, and the digest that names a volume's content.

Invariant: output names are what today's restore instructions type by hand (docs/protocols/s3.md 1.4, 1.5), and a
prefix always ends in "/", or plate 2058 would catch plate 20585's files (docs/protocols/s3.md 1.7, 2.5).

A tarball over the volume size is split on member boundaries, by *uncompressed* size, since only that is known before
anything is read: `NAME.tar.gz` alone, else `NAME.001-of-003.tar.gz`, `NAME.002-of-003.tar.gz` ... Each volume is a
complete tar of its own; extracting all of them in any order gives the plate.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from include.core.errors import RequestError
from include.core.text import printable
from include.plates.models import ArchiveSettings, Compression, Layout, Part, Plate, SourceObject, Tarball
from include.plates.plates_csv import read_plates_csv

BROAD2018 = Layout(
    name="broad2018",
    parts=(
        Part(name="images", prefix="projects/{project}/{batch}/images/{plate_id_full}/"),
        Part(name="illum", prefix="projects/{project}/{batch}/illum/{plate_id}/"),
        Part(name="analysis", prefix="projects/{project}/workspace/analysis/{batch}/{plate_id}/"),
        Part(name="backend", prefix="projects/{project}/workspace/backend/{batch}/{plate_id}/"),
    ),
    tarballs=(
        Tarball(name="images_illum_analysis", parts=("images", "illum", "analysis")),
        Tarball(name="backend", parts=("backend",)),
    ),
    tag="{project}_{batch}_{plate_id}",
    tag_full="{project}_{batch}_{plate_id_full}",
    strip="projects/",
    archive_prefix="imaging_analysis/{project}/plates/",
    backup_prefix="projects/{project}/workspace/backup/",
    compression="gzip",
)
CPG = Layout(
    name="cpg",
    parts=(
        Part(name="images", prefix="{project}/{source}/images/{batch}/images/{plate_id_full}/"),
        Part(name="illum", prefix="{project}/{source}/images/{batch}/illum/{plate_id}/"),
        Part(name="analysis", prefix="{project}/{source}/workspace/analysis/{batch}/{plate_id}/"),
        Part(name="backend", prefix="{project}/{source}/workspace/backend/{batch}/{plate_id}/"),
    ),
    tarballs=BROAD2018.tarballs,
    tag="{project}_{source}_{batch}_{plate_id}",
    tag_full="{project}_{source}_{batch}_{plate_id_full}",
    archive_prefix="imaging_analysis/{project}/{source}/plates/",
    backup_prefix="{project}/{source}/workspace/backup/",
    compression="none",
)
PRESETS = {layout.name: layout for layout in (BROAD2018, CPG)}
_FIELDS = ("project", "source", "batch", "plate_id", "plate_id_full")
_EXTENSIONS: dict[Compression, str] = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}


def own_layout(
    prefixes: dict[str, str], *, archive_prefix: str, backup_prefix: str, strip: str = "", tag: str = BROAD2018.tag
) -> Layout:
    """A layout from a user's own prefix templates (part name to prefix): one tarball for all parts, `backend` apart.

    Raises RequestError for an unknown field, a prefix without its final "/", or two parts one inside the other.
    """
    parts = tuple(Part(name=name, prefix=prefix.rstrip("/") + "/") for name, prefix in prefixes.items())
    main = tuple(part.name for part in parts if part.name != "backend")
    tarballs = [Tarball(name="_".join(main), parts=main)] if main else []
    if "backend" in prefixes:
        tarballs.append(Tarball(name="backend", parts=("backend",)))
    layout = Layout(
        name="own",
        parts=parts,
        tarballs=tuple(tarballs),
        tag=tag,
        tag_full=tag.replace("{plate_id}", "{plate_id_full}"),
        strip=strip,
        archive_prefix=archive_prefix,
        backup_prefix=backup_prefix,
    )
    check_layout(layout)
    return layout


def check_layout(layout: Layout) -> None:
    """Raises RequestError with every fault of the templates."""
    problems = []
    templates = [part.prefix for part in layout.parts]
    for template in [*templates, layout.tag, layout.tag_full, layout.archive_prefix, layout.backup_prefix]:
        unknown = _fields_of(template) - set(_FIELDS)
        if unknown:
            problems.append(f"the template {template!r} uses {sorted(unknown)}; known are {', '.join(_FIELDS)}")
    for template in templates:
        if not _fields_of(template) & {"plate_id", "plate_id_full"}:
            problems.append(f"the prefix {template!r} names no plate: it would take in every plate of the batch")
        if any(other != template and other.startswith(template) for other in templates):
            problems.append(f"the prefix {template!r} contains another part's prefix: give disjoint folders")
    if len(set(templates)) != len(templates):
        problems.append("two parts have the same prefix")
    if any(not prefix.endswith("/") for prefix in (layout.archive_prefix, layout.backup_prefix)):
        problems.append("archive_prefix and backup_prefix end with a slash")
    if sorted(name for tarball in layout.tarballs for name in tarball.parts) != sorted(p.name for p in layout.parts):
        problems.append("each part belongs to exactly one tarball")
    if problems:
        raise RequestError(problems)


def _fields_of(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}


def layout_faults(layout: Layout, source: object, parts: Mapping[str, object]) -> list[str]:
    """What does not fit the layout: a source that it needs or does not use, and names of parts (by field) that it lacks."""
    templates = [layout.tag, layout.archive_prefix, layout.backup_prefix, *(part.prefix for part in layout.parts)]
    uses_source = any("source" in _fields_of(template) for template in templates)
    faults = []
    if uses_source and not source:
        faults.append(f"source: layout {layout.name} needs it, as source_4")
    elif source and not uses_source:
        faults.append(f"source: layout {layout.name} does not use it; take it out, or correct layout")
    known = [part.name for part in layout.parts]
    for field, named in parts.items():
        strange = [str(name) for name in named if name not in known] if isinstance(named, list) else []
        if strange:
            faults.append(f"{field}: {', '.join(strange)} not known; the parts are {', '.join(known)}")
    return faults


def fill(template: str, plate: Plate) -> str:
    return template.format(**{name: getattr(plate, name) for name in _FIELDS})


def tag_of(layout: Layout, plate: Plate) -> str:
    """What every output of a plate is named after: plate_id, or plate_id_full where measurements share the id."""
    return fill(layout.tag_full if plate.tag_by_full else layout.tag, plate)


def plates_from_csv(
    document: bytes, *, project: str, batch: str, source: str = "", name: str = "plates.csv"
) -> list[Plate]:
    """The rows of a plates.csv (header `plate_id,plate_id_full`), disambiguated. Raises RequestError with every fault."""
    found = read_plates_csv(document, name)
    plates = (
        Plate(project=project, source=source, batch=batch, plate_id=short, plate_id_full=full)
        for short, full in found.rows
    )
    return disambiguate(plates, [f"{name} line {line}" for line in found.lines])


def disambiguate(plates: Iterable[Plate], places: Sequence[str] = ()) -> list[Plate]:
    """Refuses bad and repeated plates; marks those that share a plate_id, so that they get outputs of their own. `places`:
    where each stands, for messages."""
    listed = list(plates)
    problems = [problem for plate in listed for problem in problems_of(plate)]
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for plate, place in zip(listed, places or [f"row {n}" for n in range(1, len(listed) + 1)], strict=True):
        first = names[plate.plate_id].setdefault(plate.plate_id_full, place)
        if first != place:
            problems.append(f"plate {plate.plate_id} ({plate.plate_id_full}) is given twice: {first}, {place}")
    if not listed:
        problems.append("no plate is given")
    if problems:
        raise RequestError(list(dict.fromkeys(problems)))
    return [p.model_copy(update={"tag_by_full": p.tag_by_full or len(names[p.plate_id]) > 1}) for p in listed]


def problems_of(plate: Plate, layout: Layout | None = None) -> list[str]:
    """What is wrong with a plate's ids, one sentence each. An empty id would make a prefix of the whole batch."""
    found = []
    needed = _fields_of("".join(part.prefix for part in layout.parts)) if layout else set(_FIELDS) - {"source"}
    for name in _FIELDS:
        value = getattr(plate, name)
        if name in needed and not value.strip():
            of_plate = f" of plate {plate.plate_id_full or plate.plate_id or '?'}" if name.startswith("plate") else ""
            found.append(f"{name}{of_plate}: it is empty; give it a value")
        elif value:
            found += name_faults(name, value)
    return found


def name_faults(field: str, name: str) -> list[str]:
    """Why a name cannot be that of one folder, if it cannot."""
    if name in (".", "..") or "/" in name or name != name.strip() or any(ord(char) < 32 for char in name):
        why = "holds a slash, a control character or outer blanks" if name.strip(".") else "is the name of no folder"
        return [f"{field}: {printable(name)} {why}; give the name of one folder"]
    return []


def tarball_key(layout: Layout, plate: Plate, tarball: str, number: int, of: int, compression: Compression) -> str:
    volume = "" if of == 1 else f".{number:03d}-of-{of:03d}"
    return f"{fill(layout.archive_prefix, plate)}{tag_of(layout, plate)}_{tarball}{volume}{_EXTENSIONS[compression]}"


def base_of(key: str) -> str:
    """A tarball's key without its extension: where its sidecars hang (`.md5`, `.etag`, `.manifest.jsonl.zst`)."""
    for extension in (".tar.gz", ".tar.zst", ".tar"):
        if key.endswith(extension):
            return key[: -len(extension)]
    raise RequestError(f"{key} is no tarball: its name ends in .tar, .tar.gz or .tar.zst")


def not_archived(bucket: str, base: str) -> str:
    """What is said of a plate where neither tarball nor manifest lies."""
    return f"no manifest lies under s3://{bucket}/{base}_...: the plate is not archived there"


def manifest_key(key: str) -> str:
    return base_of(key) + ".manifest.jsonl.zst"


def member_name(layout: Layout, tag: str, key: str) -> str:
    return f"{tag}/{key.removeprefix(layout.strip)}"


def volume_digest(
    key: str, settings: ArchiveSettings, rows: Iterable[tuple[str, SourceObject | None]], folder_time: int
) -> str:
    """sha256 of a volume's plan, as stored in the tarball's metadata.

    One JSON line for the tarball (key, compression, level, part_bytes, group_bytes), then one per member in order:
    [name, key, size, etag, version_id, mtime]. The verifier computes it again from the manifest, by its own code.
    """
    head = [key, settings.compression, settings.level, settings.part_bytes, settings.group_bytes]
    digest = hashlib.sha256(_line(head))
    for name, source in rows:
        if source is None:
            digest.update(_line([name, None, 0, None, None, folder_time]))
        else:
            digest.update(_line([name, source.key, source.size, source.etag, source.version_id, source.modified]))
    return digest.hexdigest()


def _line(values: list[object]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
