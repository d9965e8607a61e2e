"""Reads plates.csv as people really save it: by a spreadsheet in UTF-16, with a byte order mark, with semicolons or tabs.

Invariant: a file is read in one way only, which is reported where it is not the plain one, or refused with line, column and
remedy; a character that cannot be read is never dropped or replaced.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from include.core.errors import RequestError
from include.core.text import pluralize

HEADER = ("plate_id", "plate_id_full")
_REMEDY = "save it as CSV in UTF-8"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "", "UTF-32"),  # begins as UTF-16 does, so it is looked for first
    (codecs.BOM_UTF32_BE, "", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_BARE = ((b"p\0l\0", "utf-16-le"), (b"\0p\0l", "utf-16-be"), (b'"\0p\0', "utf-16-le"), (b'\0"\0p', "utf-16-be"))
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Reading:
    """The rows of a plates.csv, the lines where they stand, and how it was read; `told` is empty for UTF-8 with commas."""

    rows: tuple[tuple[str, str], ...]
    lines: tuple[int, ...]
    told: str


def read_plates_csv(document: bytes, name: str = "plates.csv") -> Reading:
    """Raises RequestError with every fault: the file's name, line, column, remedy."""
    text, encoding = _decoded(document, name)
    skipped, separator = _separator_line(text)
    separator = separator or _separator(text)
    told = [f"as {encoding}"] if encoding else []
    told += [f"with {_SEPARATORS[separator]} between the columns"] if separator != "," else []
    found = tuple(_rows(text, separator, skipped, name))
    if not found:
        raise RequestError(f"{name} holds no plate: write a line for each below the header")
    rows, lines = tuple(row for _, row in found), tuple(line for line, _ in found)
    how = f"{name} was read {' '.join(told)}: {pluralize(len(rows), 'plate')}" if told else ""
    return Reading(rows, lines, how)


def _decoded(document: bytes, file: str) -> tuple[str, str]:
    for mark, codec, name in _MARKS:
        if document.startswith(mark):
            if not codec:
                raise RequestError(f"{file} line 1, column 1: it is in {name}; {_REMEDY}")
            return _text(document[len(mark) :], codec, name, file), name
    bare = next((codec for start, codec in _BARE if document.startswith(start)), "")
    if bare:
        name = "UTF-16 without a byte order mark"
        return _text(document, bare, name, file), name
    return _text(document, "utf-8", "UTF-8", file), ""


def _text(data: bytes, codec: str, name: str, file: str) -> str:
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        line, column = _place(data[: error.start].decode(codec, "replace"))
        raise RequestError(f"{file} line {line}, column {column}: what stands here is not {name}; {_REMEDY}") from None
    odd = next((at for at, char in enumerate(text) if ord(char) < 32 and char not in "\t\r\n"), None)
    if odd is not None:
        line, column = _place(text[:odd])
        raise RequestError(
            f"{file} line {line}, column {column}: a control character (U+{ord(text[odd]):04X}); {_REMEDY}"
        )
    return text


def _place(before: str) -> tuple[int, int]:
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return len(lines), len(lines[-1]) + 1


def _separator_line(text: str) -> tuple[int, str | None]:
    """`sep=;`, by which a spreadsheet tells the separator in a line before the header."""
    first = text.splitlines()[0].strip() if text.strip() else ""
    if first.lower().startswith("sep=") and first[4:] in _SEPARATORS:
        return 1, first[4:]
    return 0, None


def _separator(text: str) -> str:
    first = next(iter(text.splitlines()), "")
    return next((mark for mark in _SEPARATORS if mark in first), ",")


def _header_remedy(first: list[str]) -> str:
    """A line that is a header already is to be replaced: below the right one it would be taken for a plate."""
    names = [name.strip().lower().replace(" ", "_") for name in first]
    if not set(names) & set(HEADER):
        return "write this line above the plates"
    more = "and leave these two columns only" if len(names) > len(HEADER) else "for the one that is there"
    return f"write it in place of this line, {more}"


def _rows(text: str, separator: str, skipped: int, file: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Each row with its line."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    reader = csv.reader(
        io.StringIO("".join(plain.splitlines(keepends=True)[skipped:]), newline=""), delimiter=separator
    )
    header = next(reader, [])
    if tuple(name.strip() for name in header) != HEADER:
        raise RequestError(
            f"{file} line {1 + skipped}, column 1: it begins with {separator.join(header)[:80]!r} and not with the "
            f"header {','.join(HEADER)}; {_header_remedy(header)}"
        )
    problems = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) == len(HEADER):
            yield reader.line_num + skipped, (row[0], row[1])
            continue
        where = f"line {reader.line_num + skipped}, column {min(len(row), len(HEADER)) + 1}"
        problems.append(f"{file} {where}: two columns are expected and {len(row)} found; quote a name with a comma")
    if problems:
        raise RequestError(problems)
