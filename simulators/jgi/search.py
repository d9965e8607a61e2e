"""JDP's search: which groups match, and records as JDP shows them, with all that is odd in real ones.

Invariant: `_id` is the id that every other call wants; the integer `file_id` is a decoy. `file_total` counts rows, so a file that
two groups show counts twice; `unique_file_total` counts files.

Odd records (the `traps` of a file): `float_size` a size that is a float, `no_md5`, `text_seq_unit` a list that is a string,
`list_analysis` a number that is a list, `backup_complete` a status that is neither PURGED nor RESTORED, `no_purge_date`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from simulators.jgi.catalog import ArchiveFile, Catalog, Group

_STATUS_IDS = {"PURGED": 10, "RESTORED": 13, "BACKUP_COMPLETE": 12}
_FIELDS = ("ssr", "biosample", "project_id", "library", "img_taxon_oid")


@dataclass(frozen=True)
class Query:
    """A search, read: what for, in which field, which statuses, private files too, the page and its size in groups."""

    text: str
    field: str
    statuses: tuple[str, ...] = ()
    private: bool = False
    page: int = 1
    size: int = 10
    descending: bool = False


Hit = tuple[Group, list[ArchiveFile]]


def naive_utc(seconds: float) -> str:
    """A date as JDP writes those of files: ISO, UTC, without an offset."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def status_of(file: ArchiveFile) -> str:
    """The status of a file, as JDP shows it."""
    if file.on_disk:
        return "RESTORED"
    return "BACKUP_COMPLETE" if "backup_complete" in file.traps else "PURGED"


def file_json(file: ArchiveFile) -> dict[str, Any]:
    """The record of a file: the published one that it resembles, with its own names, numbers and state."""
    text = file.shape
    for old, new in file.texts.items():
        text = text.replace(old, new)
    record: dict[str, Any] = json.loads(text)
    status = status_of(file)
    record |= {
        "_id": file.id,
        "file_id": file.number,
        "file_name": file.name,
        "file_size": float(file.size) if "float_size" in file.traps else file.size,
        "file_status": status,
        "file_status_id": _STATUS_IDS[status],
        "md5sum": file.md5,
    }
    if file.dt_to_purge is not None:
        record["dt_to_purge"] = naive_utc(file.dt_to_purge)
    elif "no_purge_date" in file.traps:
        del record["dt_to_purge"]
    if file.modified is not None:
        record["modified_date"] = naive_utc(file.modified)
    if "no_md5" in file.traps:
        del record["md5sum"]
    _odd_metadata(record["metadata"], file)
    return record


def _odd_metadata(metadata: dict[str, Any], file: ArchiveFile) -> None:
    as_list = "list_analysis" in file.traps or len(file.analyses) > 1
    metadata["analysis_project_id"] = list(file.analyses) if as_list else file.analyses[0]
    units = metadata.get("seq_unit_name")
    if "text_seq_unit" in file.traps and isinstance(units, list) and units:
        metadata["seq_unit_name"] = units[0]


def find(catalog: Catalog, query: Query) -> list[Hit]:
    """The groups that match, each with those of its files that do, in the order of their ids."""
    if query.field in ("", "ssr", "library"):
        files: Iterable[ArchiveFile] = [file for file in catalog.files.values() if _has_text(catalog, file, query.text)]
    else:
        files = catalog.files_of(_analyses(catalog, query.field, query.text))
    return _grouped(catalog, files, query)


def by_ids(catalog: Catalog, ids: Sequence[str], private: bool) -> list[Hit]:
    """The groups of these files, each with those of them that it shows; ids that are not known are left out."""
    files = [catalog.files[each] for each in dict.fromkeys(ids) if each in catalog.files]
    return _grouped(catalog, files, Query("", "", private=private))


def _grouped(catalog: Catalog, files: Iterable[ArchiveFile], query: Query) -> list[Hit]:
    groups: dict[str, Hit] = {}
    for file in files:
        for group in catalog.groups_of(file) if _shown(file, query) else ():
            groups.setdefault(group.id, (group, []))[1].append(file)
    return sorted(groups.values(), key=lambda hit: hit[0].id, reverse=query.descending)


def _shown(file: ArchiveFile, query: Query) -> bool:
    if file.withdrawn or (file.private and not query.private):
        return False
    return not query.statuses or status_of(file) in query.statuses


def _analyses(catalog: Catalog, field: str, text: str) -> set[int]:
    """The numbers of the analyses that a search in this field means."""
    number = int(text) if text.isascii() and text.isdigit() else -1
    found = set()
    for each in catalog.analyses.values():
        sample = catalog.biosamples[each.biosample]
        values: dict[str, tuple[object, ...]] = {
            "project_id": (each.its_ap_id, sample.its_sp_id),
            "img_taxon_oid": (each.taxon,),
            "biosample": (each.biosample,),
        }
        if values[field][0] == text or number in values[field]:
            found.add(each.its_ap_id)
    return found


def _has_text(catalog: Catalog, file: ArchiveFile, text: str) -> bool:
    groups = " ".join(f"{group.name} {group.title}" for group in catalog.groups_of(file))
    return text.lower() in f"{file.name} {groups}".lower()


def known_field(field: str) -> bool:
    """Whether `q` may be searched in this field; an empty one means all text."""
    return field in ("", *_FIELDS)


def answer_json(hits: Sequence[Hit], page: int, size: int) -> dict[str, Any]:
    """A page of hits, in groups."""
    start = (page - 1) * size
    shown = hits[start : start + size]
    every = [file for _, files in hits for file in files]
    unique = len({file.id for file in every})
    return {
        "timings": {"total": "0.177", "file_fetch": "0.049", "organisms": "0.105"},
        "hits_total": len(every),
        "file_total": len(every),
        "unique_file_total": unique,
        "total": len(hits),
        "start": start + 1 if shown else 0,
        "end": start + len(shown),
        "next_page": start + size < len(hits),
        "cursor_id": f"142b4b47c08cc115080d354ec22415fb:{page}",
        "facets": {"file_status": dict(Counter(status_of(file) for file in every))},
        "organisms": [_group_json(group, files) for group, files in shown],
        "fields": [],
        "timeout": 180,
    }


def _group_json(group: Group, files: Iterable[ArchiveFile]) -> dict[str, Any]:
    rows = [file_json(file) for file in files]
    return {
        "agg": group.agg,
        "agg_id": group.agg_id,
        "kingdom": "img",
        "label": "Metagenome",
        "top_hit": {"_id": rows[0]["_id"], "file_name": rows[0]["file_name"], "metadata": rows[0]["metadata"]},
        "id": group.id,
        "grouped_by": "metadata.analysis_project_id",
        "grouped_count": len(rows),
        "name": group.name,
        "title": group.title,
        "file_total": len(rows),
        "fileSize": sum(int(row["file_size"]) for row in rows),
        "files": rows,
    }
