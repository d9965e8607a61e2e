"""One file of a task: may it be read and written, is it there already, and what arrives.

Invariant: bytes arrive in one step, when the time for them has passed. Whatever is wrong with a file is found before that step
(nothing has changed then) or is part of what arrived.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from simulators.common import Agenda, Journal
from simulators.globus.collections import Collections, Entry
from simulators.globus.model import Endpoint, Item, Side, Task, Trouble, denied
from simulators.globus.settings import Settings


class Problem(NamedTuple):
    """Why a file could not be moved now; `fatal`: the task ends by it."""

    code: str
    side: Side
    text: str
    fatal: bool = False


class Arrival(NamedTuple):
    """What arrived: size, and MD5 at the source."""

    size: int
    md5: str


class FileMover:
    """Moves single files between collections. `needless`: moves to where the same bytes were already."""

    def __init__(self, collections: Collections, agenda: Agenda, journal: Journal, settings: Settings) -> None:
        self._collections = collections
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self.moves = 0
        self.needless = 0

    def source_problem(self, task: Task, item: Item) -> Problem | None:
        """What keeps the source from being read."""
        endpoint = task.source
        if not endpoint.connected:
            return Problem("CONNECT_FAILED", "source", f"cannot connect to {endpoint.display_name}")
        trouble = self._take(task, "file_error", item, "source")
        if trouble is not None:
            return Problem(trouble.code, "source", f"{trouble.code}: {item.source}")
        if denied(endpoint.read_denied, item.source):
            return Problem("PERMISSION_DENIED", "source", f"not allowed to read {item.source}")
        if item.recursive and self._collections.is_folder(endpoint.id, item.source):
            return None
        if self._collections.entry(endpoint.id, item.source) is None:
            return Problem("FILE_NOT_FOUND", "source", f"no such file: {item.source}")
        return None

    def destination_problem(self, task: Task, item: Item) -> Problem | None:
        """What keeps the destination from being written, given the size of the source."""
        endpoint = task.destination
        if not endpoint.connected:
            return Problem("CONNECT_FAILED", "destination", f"cannot connect to {endpoint.display_name}")
        trouble = self._take(task, "file_error", item, "destination")
        if trouble is not None:
            return Problem(trouble.code, "destination", f"{trouble.code}: {item.destination}")
        if denied(endpoint.write_denied, item.destination):
            return Problem("PERMISSION_DENIED", "destination", f"not allowed to write {item.destination}")
        if self._collections.is_folder(endpoint.id, item.destination):
            return Problem("PATH_IS_A_DIRECTORY", "destination", f"a folder is in the way: {item.destination}")
        if endpoint.free_bytes is not None and self._growth(task, item) > endpoint.free_bytes:
            text = f"no space for {item.destination}: {endpoint.free_bytes} bytes are free"
            return Problem("QUOTA_EXCEEDED", "destination", text, task.options.fail_on_quota_errors)
        return None

    def folder_files(self, task: Task, item: Item) -> list[Item] | None:
        """The files of a recursive item's folder; None where it is none."""
        if not item.recursive or not self._collections.is_folder(task.source.id, item.source):
            return None
        skip = len(item.source.rstrip("/"))
        return [
            Item(path, item.destination.rstrip("/") + path[skip:], found=True)
            for path, _ in self._collections.files(task.source.id, item.source)
        ]

    def size(self, task: Task, item: Item) -> int:
        """The bytes of the source; 0 where there is none."""
        entry = self._collections.entry(task.source.id, item.source)
        return entry.size if entry else 0

    def is_synced(self, task: Task, item: Item) -> bool:
        """Whether the task's sync level takes the file as there already: 0 exists, 1 size, 2 size and time, 3 checksum."""
        level = task.options.sync_level
        ours, theirs = self._both(task, item)
        if level is None or ours is None or theirs is None:
            return False
        if level == 0:
            return True
        if level == 3:
            task.counts.bytes_checksummed += ours.size
            return ours.md5 == theirs.md5 and ours.size == theirs.size
        return ours.size == theirs.size and (level == 1 or theirs.modified >= ours.modified)

    def move(self, task: Task, item: Item) -> Arrival | Problem:
        """Let the file arrive, and check it as the task asks. A `Problem` after that means it arrived wrong."""
        before, endpoint = self._both(task, item), task.destination
        if before[0] is None:
            return Problem("FILE_NOT_FOUND", "source", f"no such file: {item.source}")
        growth = self._growth(task, item)
        try:
            arrived = self._copy(task, item)
        except OSError as error:
            return Problem("ENDPOINT_ERROR", "destination", f"cannot write {item.destination}: {error.strerror}")
        if endpoint.free_bytes is not None:
            endpoint.free_bytes -= growth
        task.counts.bytes_transferred += arrived.size
        if arrived.size and self._take(task, "corrupt_arrival", item):
            arrived = self._collections.flip(endpoint.id, item.destination)
        self._note(task, item, before[1], arrived)
        problem = self._checked(task, item, before[0], arrived)
        if problem is not None:
            return problem
        self._spoil(task, item)
        return Arrival(before[0].size, before[0].md5)

    def leave_partial(self, task: Task, item: Item) -> None:
        """Leave the first bytes of a file whose task ends in the middle of it."""
        size = self.size(task, item)
        keep = min(int(item.done), size - 1)
        if keep <= 0 or not self._settings.leave_partial:
            return
        try:
            self._copy(task, item, keep)
        except OSError:
            return
        task.counts.bytes_transferred += keep
        self._journal.record(
            "file_cut", task_id=task.id, destination=item.destination, size=keep, endpoint=task.destination.id
        )

    def is_there(self, source: Endpoint, destination: Endpoint, pair: tuple[str, str]) -> bool:
        """Whether the destination has the source's bytes already."""
        ours = self._collections.entry(source.id, pair[0])
        theirs = self._collections.entry(destination.id, pair[1])
        return ours is not None and theirs is not None and (ours.size, ours.md5) == (theirs.size, theirs.md5)

    def _both(self, task: Task, item: Item) -> tuple[Entry | None, Entry | None]:
        ours = self._collections.entry(task.source.id, item.source)
        return ours, self._collections.entry(task.destination.id, item.destination)

    def _growth(self, task: Task, item: Item) -> int:
        ours, theirs = self._both(task, item)
        return (ours.size if ours else 0) - (theirs.size if theirs else 0)

    def _copy(self, task: Task, item: Item, keep_bytes: int | None = None) -> Entry:
        source = self._collections.entry(task.source.id, item.source)
        keeps_time = task.options.preserve_timestamp and source is not None
        return self._collections.copy(
            (task.source.id, item.source),
            (task.destination.id, item.destination),
            modified=source.modified if keeps_time and source else self._agenda.time,
            keep_bytes=keep_bytes,
        )

    def _checked(self, task: Task, item: Item, source: Entry, arrived: Entry) -> Problem | None:
        if task.options.verify_checksum:
            task.counts.bytes_checksummed += source.size
            if arrived.md5 != source.md5:
                text = f"the checksum of {item.destination} is not that of its source"
                return Problem("CHECKSUM_MISMATCH", "destination", text)
        wanted = item.external_checksum
        if wanted is not None and {wanted.lower()} != {source.md5, arrived.md5}:
            text = f"the external checksum of {item.source} is not {wanted}"
            return Problem("EXTERNAL_CHECKSUM_MISMATCH", "source", text, fatal=True)
        return None

    def _note(self, task: Task, item: Item, before: Entry | None, arrived: Entry) -> None:
        needless = before is not None and (before.size, before.md5) == (arrived.size, arrived.md5)
        self.moves += 1
        self.needless += needless
        facts: dict[str, Any] = {"source": item.source, "destination": item.destination, "size": arrived.size}
        self._journal.record(
            "file_moved",
            task_id=task.id,
            source_endpoint=task.source.id,
            destination_endpoint=task.destination.id,
            **facts,
            md5=arrived.md5,
            needless=needless,
        )

    def _spoil(self, task: Task, item: Item) -> None:
        """What nobody notices: the task has checked the file by now."""
        where = (task.destination.id, item.destination)
        for kind in ("rot_after_check", "lose_file", "cut_file"):
            if not self.size(task, item) or not self._take(task, kind, item):
                continue
            if kind == "rot_after_check":
                self._collections.flip(*where)
            elif kind == "lose_file":
                self._collections.lose(*where)
            else:
                self._copy(task, item, self.size(task, item) // 2)
            self._journal.record("file_spoilt", task_id=task.id, fault=kind, destination=item.destination)

    def _take(self, task: Task, kind: str, item: Item, side: Side = "source") -> Trouble | None:
        """The first trouble of this kind that is due for the file, counted as met."""
        for trouble, left in task.troubles.items():
            same = (trouble.kind, trouble.side) == (kind, side)
            if same and left > 0 and denied([trouble.path], item.source):
                task.troubles[trouble] = left - 1
                return trouble
        return None
