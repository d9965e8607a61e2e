"""The CSV file that JDP lays beside restored files: which file lies where, with its MD5 and size.

Invariant: it names every file of the restored folder once; what a fault takes from it or writes into it is a fault's alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulators.jgi.catalog import ArchiveFile, Group

HEADER = (
    "filename",
    "file_id",
    "JGI Grouping ID",
    "directory/path",
    "Short Organism Name",
    "Genome/Metagenome Name",
    "md5 checksum",
    "file size",
)


@dataclass
class ManifestFaults:
    """What is wrong with a manifest: it is not there, rows are missing, a path leaves the folder (`..`)."""

    absent: bool = False
    rows_missing: int = 0
    rows_leaving: int = 0


def manifest_name(request_id: int) -> str:
    return f"Globus_Download_{request_id}_File_Manifest.csv"


def manifest_csv(rows: Iterable[tuple[ArchiveFile, Group]], *, quoted: bool, faults: ManifestFaults) -> bytes:
    """The file's bytes. Unquoted, a cell is quoted only where it must be."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(HEADER)
    for at, (file, group) in enumerate(list(rows)[faults.rows_missing :]):
        directory = f"../../../{file.directory}" if at < faults.rows_leaving else file.directory
        writer.writerow(_row(file, group, directory))
    return text.getvalue().encode()


def _row(file: ArchiveFile, group: Group, directory: str) -> Sequence[str]:
    return (
        file.name,
        file.id,
        group.id,
        directory,
        directory.removeprefix("../../../").partition("/")[0],
        group.name,
        file.md5,
        str(file.size),
    )
