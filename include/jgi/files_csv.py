"""Reads what the command line plans: a CSV of files as NMDC's tools write it, and what JDP accepted lately.

Invariant: every fault is listed at once, each with its line, column, value and remedy; a size is never guessed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from sys import intern

from include.core.errors import RequestError
from include.core.text import printable
from include.jgi.bound import Accepted
from include.jgi.models import REMOVE_FILES, FileState, StagedFile, is_file_id
from include.jgi.planner import DONE, QUEUED, NotPlanned

NEEDED = ("jdp_file_id", "file_name", "file_size", "file_status")
OPTIONAL = ("apGoldId", "biosample_id", "project_name", "dt_to_purge", "priority", "waiting_since", "attempts")
IN_WORK = {
    "new": "a restore request has it",
    "pending": "a restore request has it",
    "restore in progress": "a restore request has it",
    "ready": "it is restored, and is to be moved",
    "in transit": "Globus is moving it",
}
TRANSFERRED = "transferred"
FILTERED = str(FileState.FILTERED)
WHOLE = re.compile(r"([0-9]{1,18})(\.0*)?")
MOST_FAULTS = 1000
SHAPE = 'write [{"at": "2026-11-26T02:00:00+00:00", "bytes": 9800000000000}]'


@dataclass(frozen=True)
class Listed:
    """What a CSV names: files that are to be planned, and those that are not."""

    files: list[StagedFile]
    left_out: list[NotPlanned]


@dataclass
class _Faults:
    """Faults in their order. Of very many the first are kept, and the rest are counted."""

    told: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, value: str, remedy: str) -> None:
        self.count += 1
        if self.count <= MOST_FAULTS:
            self.told.append(f"{where}: {printable(value, 80)} {remedy}")

    def all(self) -> list[str]:
        more = self.count - len(self.told)
        return [*self.told, f"and {more} more of this kind"] if more else self.told


def read_files(data: bytes, remove_files: Sequence[str] = REMOVE_FILES) -> Listed:
    """The files of a CSV. Raises RequestError with every fault."""
    first = data.partition(b"\n")[0]
    separator = max(",;\t", key=lambda mark: first.count(mark.encode()))
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), delimiter=separator)
    faults = _Faults()
    rows: dict[str, _Row] = {}
    more: defaultdict[str, list[_Row]] = defaultdict(list)  # further lines of a file
    try:
        lines = _Lines([name.strip() for name in next(reader, [])], faults)
        for cells in reader:
            row = lines.row(cells, reader.line_num) if any(cells) else None
            if row is not None and rows.setdefault(row.file.jdp_file_id, row) is not row:
                _check_size(rows[row.file.jdp_file_id], row, faults)
                more[row.file.jdp_file_id].append(row)
    except csv.Error as error:
        faults.add(f"line {reader.line_num}", str(error), "is what the CSV reader says: close the quotes of this line")
    except UnicodeDecodeError:
        faults.add(f"after line {reader.line_num}", "", "no text in UTF-8: save the file as CSV in UTF-8")
    if faults.count:
        raise RequestError(faults.all())
    return _listed(rows, more, remove_files)


@dataclass(frozen=True, slots=True)
class _Row:
    file: StagedFile
    status: str
    line: int


class _Lines:
    """Lines under one header; their faults are added to `faults`. Values that come again and again are kept once."""

    def __init__(self, header: Sequence[str], faults: _Faults):
        """Raises RequestError with all columns that are missing, or there twice."""
        named = printable(", ".join(header), 300) if header else "nothing"
        wrong = [
            f"line 1, column {name}: it is missing among {named}; add it, with a value in each line"
            for name in NEEDED
            if name not in header
        ]
        wrong += [
            f"line 1, column {name}: it is there {header.count(name)} times; keep one of them"
            for name in (*NEEDED, *OPTIONAL)
            if header.count(name) > 1
        ]
        if wrong:
            raise RequestError(wrong)
        self._width = len(header)
        self._columns = {name: header.index(name) for name in (*NEEDED, *OPTIONAL) if name in header}
        self._faults = faults
        self._line = 0
        self._values: dict[str, str] = {}
        self._dates: dict[str, datetime] = {}
        self._analyses: dict[str, tuple[str, ...]] = {"": ()}

    def row(self, cells: list[str], line: int) -> _Row | None:
        """One line; None where it is empty, or has faults."""
        self._line, before = line, self._faults.count
        self._values = {name: cells[at].strip() if at < len(cells) else "" for name, at in self._columns.items()}
        if any(cell.strip() for cell in cells[self._width :]):
            self._wrong(str(self._width + 1), cells[self._width], "stands beyond the header: quote values with commas")
            return None
        if not any(self._values.values()):
            return None
        name, analysis = self._of("jdp_file_id").lower(), intern(self._of("apGoldId"))
        if not is_file_id(name):
            self._wrong("jdp_file_id", self._of("jdp_file_id"), "is no id: write JDP's _id, 24 hex digits")
        if not self._of("file_name"):
            self._wrong("file_name", "", "is empty: write the file's name")
        file = StagedFile(
            jdp_file_id=name,
            file_name=self._of("file_name"),
            size_bytes=self._whole("file_size", "the file's size in bytes, a whole number as 7424934505"),
            project=intern(self._of("project_name")),
            jdp_status=intern(self._of("file_status")),
            purge_at=self._date("dt_to_purge"),
            attempts=self._whole("attempts", "how often it was asked for, as 0") if self._of("attempts") else 0,
            priority=self._priority(),
            waiting_since=self._date("waiting_since"),
            biosample=intern(self._of("biosample_id")),
            analyses=self._analyses.setdefault(analysis, (analysis,)),
        )
        return (
            _Row(file, intern(file.jdp_status.lower().replace("_", " ")), line)
            if self._faults.count == before
            else None
        )

    def _of(self, column: str) -> str:
        return self._values.get(column, "")

    def _wrong(self, column: str, value: str, remedy: str) -> None:
        self._faults.add(f"line {self._line}, column {column}", value, remedy)

    def _whole(self, column: str, what: str) -> int:
        """A number as pandas writes it, 3645.0, is whole too; one with an exponent has lost digits."""
        text = self._of(column)
        found = WHOLE.fullmatch(text)
        if found is None:
            self._wrong(column, text, f"is {'empty' if not text else 'no such number'}: write {what}")
            return 0
        return int(found[1])

    def _priority(self) -> float:
        text = self._of("priority") or "1"
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self._wrong("priority", text, "is no priority: write a number above 0, as 1")
        return number

    def _date(self, column: str) -> datetime | None:
        text = self._of(column)
        if text and text not in self._dates:
            try:
                self._dates[text] = read_instant(text)
            except ValueError:
                self._wrong(column, text, "is no date: write it as 2026-11-26T02:00:00+00:00")
        return self._dates.get(text)


def read_instant(text: str) -> datetime:
    """An instant in ISO 8601, in UTC where it has no zone. Raises ValueError."""
    found = datetime.fromisoformat(text)
    try:
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except OverflowError:
        raise ValueError(text) from None


def _check_size(first: _Row, again: _Row, faults: _Faults) -> None:
    size, known = again.file.size_bytes, first.file.size_bytes
    if size != known:
        faults.add(
            f"line {again.line}, column file_size",
            str(size),
            f"is not the {known} of line {first.line} for the same id {first.file.jdp_file_id}: write JDP's size in both",
        )


def _listed(rows: Mapping[str, _Row], more: Mapping[str, list[_Row]], remove_files: Sequence[str]) -> Listed:
    """Each file once: one that two analyses share has a line for each, and in a list that was written twice each has two.

    It is in work where one of its lines says so, and done where each of its analyses has it.
    """
    listed = Listed([], [])
    for name, row in rows.items():
        same = [row, *more.get(name, ())]
        in_work = next((one.status for one in same if one.status in IN_WORK), None)
        done = {one.file.analyses for one in same if one.status == TRANSFERRED}
        still = [one.file for one in same if one.file.analyses not in done]
        mark = next((mark for mark in remove_files if mark in row.file.file_name), None)
        if in_work is not None:
            reason = QUEUED, f"its status is {in_work}: {IN_WORK[in_work]}"
        elif not still:
            reason = DONE, f"its status is {TRANSFERRED}"
        elif mark is not None:
            reason = FILTERED, f"remove_files: its name contains {mark}"
        else:
            listed.files.append(_one(still))
            continue
        listed.left_out.append(NotPlanned(row.file, *reason))
    return listed


def _one(files: Sequence[StagedFile]) -> StagedFile:
    """One file of several lines: the first line's, with all analyses, and what brings it its turn soonest."""
    if len(files) == 1:
        return files[0]
    waits = [file.waiting_since for file in files if file.waiting_since is not None]
    return replace(
        files[0],
        analyses=tuple(dict.fromkeys(name for file in files for name in file.analyses)),
        priority=max(file.priority for file in files),
        attempts=max(file.attempts for file in files),
        waiting_since=min(waits, default=None),
    )


def read_accepted(text: str) -> list[Accepted]:
    """`[{"at": ISO, "bytes": n}]`, or the name of a file with that. Raises RequestError with every fault."""
    if not text.lstrip().startswith("["):
        try:
            text = Path(text).read_text("utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise RequestError(
                f'--accepted: {printable(text, 80)} cannot be read: {why}; give [{{"at": …, "bytes": …}}]'
            ) from None
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise RequestError(f"--accepted: it is no JSON ({error}): {SHAPE}") from None
    if not isinstance(entries, list):
        raise RequestError(f"--accepted: it is no list: {SHAPE}")
    found, wrong = [], []
    for number, entry in enumerate(entries, 1):
        one = entry if isinstance(entry, dict) else {}
        at, size = one.get("at"), one.get("bytes")
        try:
            instant = read_instant(at if isinstance(at, str) else "")
        except ValueError:
            wrong.append(
                f"--accepted: entry {number}, at: {printable(at, 80)} is no date: write it as 2026-11-26T02:00:00+00:00"
            )
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            wrong.append(
                f"--accepted: entry {number}, bytes: {printable(size, 80)} is no size: write a whole number of bytes"
            )
            continue
        found.append(Accepted(instant.timestamp(), size))
    if wrong:
        raise RequestError(wrong)
    return found
