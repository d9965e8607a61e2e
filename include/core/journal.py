"""The durable journal of an upload or a deletion: append a line, and after a crash read every whole line back.

Invariant: a line is durable when `append` returns (fsync), and a torn last line, which a crash leaves, is cut
off on loading. Give each volume and each plate's deletion a journal of its own; two processes must not share one at the same
time (the command line holds a lock, include/plates/journal_place.py; in Airflow the ledger sees to it).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # a journal in a file needs no object store
    from include.core.objects import Objects


class PartJournal(Protocol):
    """Where progress is kept. Implement it on whatever outlives the worker."""

    def load(self) -> list[dict[str, Any]]:
        """All lines appended so far, in order."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """The same one by one, for a journal whose lines would fill the memory."""
        return iter(self.load())

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a line; it is durable on return."""


JournalFor = Callable[[str], PartJournal]


class FileJournal:
    """JSON Lines in one file."""

    def __init__(self, path: Path):
        self.path = path

    def load(self) -> list[dict[str, Any]]:
        return list(self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    whole += len(line)
                    yield json.loads(line)
                    continue
                with self.path.open("r+b") as file:
                    file.truncate(whole)
                    os.fsync(file.fileno())

    def append(self, row: Mapping[str, Any]) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write: a crash leaves a whole line or a torn last one, which load() cuts off.
            written = os.write(descriptor, line)
            if written < len(line):  # a disk that fills up takes less than it was given, and says nothing
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            _sync_folder(self.path.parent)


def journals_in(folder: Path) -> JournalFor:
    """One file per name in a folder (the worker's, or one that all workers share)."""
    return lambda name: FileJournal(folder / f"{name}.journal.jsonl")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_READS_AT_ONCE = 32


class ObjectJournal(PartJournal):
    """A journal on an object store: one object per line, since objects cannot be appended to.

    Two writers of one journal (a killed worker's orphan and its successor) do not lose each other's lines.
    """

    def __init__(self, objects: Objects):
        self._objects = objects
        self._next: int | None = None
        self._lock = threading.Lock()

    def load(self) -> list[dict[str, Any]]:
        return list(self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        names = asyncio.run(self._objects.names(".json"))
        with self._lock:
            self._next = max([self._next or 0, *(int(name.split(".")[0]) + 1 for name in names)])
        for at in range(0, len(names), _READS_AT_ONCE):
            yield from asyncio.run(self._read(names[at : at + _READS_AT_ONCE]))

    def append(self, row: Mapping[str, Any]) -> None:
        if self._next is None:
            self.load()
        with self._lock:
            number = self._next or 0
            self._next = number + 1
        name = f"{number:08d}.{uuid.uuid4().hex[:8]}.json"
        asyncio.run(self._objects.put(name, json.dumps(dict(row), ensure_ascii=False).encode()))

    async def _read(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return [json.loads(text) for text in await asyncio.gather(*map(self._objects.get, names))]
