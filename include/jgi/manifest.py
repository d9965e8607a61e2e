"""The manifest that JGI lays beside the restored files: which files a restore request brought, where they lie, their md5.

Invariant: a row that cannot be trusted (no md5, a path that leaves the request's folder, a size that is none) fails the whole
manifest; what the manifest does not list was not brought.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from include.core.errors import VerificationError
from include.core.text import few, printable
from include.jgi.models import is_file_id

NEEDED = ("filename", "file_id", "directory/path", "md5 checksum", "file size")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One file of a restore request. `path` is relative to the request's folder on JGI's collection."""

    jdp_file_id: str
    path: str
    md5: str
    size_bytes: int


def name_of(request_id: int) -> str:
    """What the manifest of a request is called."""
    return f"Globus_Download_{request_id}_File_Manifest.csv"


def read_manifest(data: bytes, request_id: int) -> list[ManifestRow]:
    """The rows of a manifest, quoted or not. Raises VerificationError that lists what is wrong with it, by line."""
    what = f"manifest of restore request {request_id}"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise VerificationError(f"{what}: it is not text in UTF-8") from None
    if text.lstrip()[:1] == "<":
        raise VerificationError(
            f"{what}: it is a page of HTML, not a table: a login page may stand before the collection"
        )
    try:
        rows, wrong = _rows(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise VerificationError(f"{what}: it cannot be read as a table: {error}") from None
    except KeyError as error:
        raise VerificationError(f"{what}: it lacks {error.args[0]}; its first line must name the columns") from None
    if wrong:
        raise VerificationError(f"{what}: {few(wrong, 5)}")
    return rows


def _rows(reader: csv.DictReader[str]) -> tuple[list[ManifestRow], list[str]]:
    """The rows, and what is wrong with others. Raises KeyError with the names of columns that are not there."""
    lacking = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if lacking:
        raise KeyError(", ".join(lacking))
    rows: dict[str, ManifestRow] = {}
    wrong: list[str] = []
    for record in reader:
        found = _row(record)
        if isinstance(found, str):
            wrong.append(f"line {reader.line_num}: {found}")
        elif rows.setdefault(found.jdp_file_id, found) != found:
            wrong.append(f"line {reader.line_num}: file {found.jdp_file_id} is there twice, and not the same")
    return list(rows.values()), wrong


def _row(record: dict[str, str | None]) -> ManifestRow | str:
    """One row, or what is wrong with it."""
    name, file_id, folder, md5, size = ((record.get(field) or "").strip() for field in NEEDED)
    if not is_file_id(file_id):
        return f"file_id {printable(file_id, 40)} is no id of JDP"
    if not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
        return f"file {file_id} has no md5"
    if not size.isdecimal():
        return f"file {file_id}: size {printable(size, 40)} is no number of bytes"
    path = PurePosixPath(folder) / name
    if not name or "/" in name or path.is_absolute() or ".." in path.parts or not (folder + name).isprintable():
        return f"file {file_id}: its path {printable(str(path), 80)} leaves the request's folder, or cannot be a path"
    return ManifestRow(file_id, str(path), md5.lower(), int(size))
