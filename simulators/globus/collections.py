"""Globus collections: folders of files that one service fills (JDP, at a restore) and another copies from (Globus).

A collection is a folder of real files under `folder_of`, so that a test can mount it, and beside them *virtual* files: a path,
a size and an MD5 whose bytes nobody keeps, for rehearsals with terabytes. Ask `collections_of(setup)` for the one that all
services of a run share.

Invariant: of a real file, the disk alone says whether it is there and what it holds; an index is kept of virtual files only.
So what somebody else writes to, changes in or removes from a mounted collection is seen.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from simulators.common import Setup

JGI_COLLECTION = "65fa2422-e080-11ec-990f-3b4cfda38030"
DESTINATION_COLLECTION = "9d6d994a-6d04-11e5-ba46-22000b92c6ec"
JGI_ROOT = "73709"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file: `data` is where its bytes lie, None for a virtual one. `modified`: epoch seconds. `private`: `ls` shows it not."""

    size: int
    md5: str
    data: Path | None
    modified: float = 0.0
    private: bool = False


@dataclass
class _Virtual:
    """The virtual files of a collection by path, and for each folder the names in it."""

    files: dict[str, Entry] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)

    def add(self, path: str, entry: Entry) -> None:
        self.files[path] = entry
        while path != "/":
            parent, name = split(path)
            self.names.setdefault(parent, set()).add(name)
            path = parent

    def remove(self, path: str) -> None:
        """Remove the file or folder, and folders that hold nothing any more."""
        for name in list(self.names.get(path, ())):
            self.remove(join(path, name))
        self.files.pop(path, None)
        while path != "/" and path not in self.names:
            parent, name = split(path)
            names = self.names.get(parent, set())
            names.discard(name)
            if names or parent not in self.names:
                break
            del self.names[parent]
            path = parent

    def is_there(self, path: str) -> bool:
        return path in self.files or path in self.names


class Collections:
    """All collections of a run, by id; the first `put` makes one. Paths may come without the leading slash.

    `before_removal` is called before one service removes files: what others have planned with them until now (a copy that is
    due) they do first, since each service only moves on when it is asked something.

    Methods may be called from several threads. They raise ValueError for a path that leaves the collection (`..`).
    """

    def __init__(self, root: Path) -> None:
        self.before_removal: Callable[[], object] = lambda: None
        self._root = root
        self._folders: dict[str, Path] = {}
        self._lock = threading.RLock()
        self._virtual: dict[str, _Virtual] = {}
        self._private: set[tuple[str, str]] = set()
        self._md5s: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def folder_of(self, collection: str) -> Path:
        """Where the real files of a collection lie, made if needed: `/a/b` of the collection is `a/b` in it."""
        if collection not in self._folders:
            folder = self._folders[collection] = self._root / collection
            folder.mkdir(parents=True, exist_ok=True)
        return self._folders[collection]

    def put(
        self,
        collection: str,
        path: str,
        *,
        size: int | None = None,
        md5: str | None = None,
        data: bytes | None = None,
        private: bool = False,
        modified: float | None = None,
    ) -> Entry:
        """Put a file there, in place of what was: one with these bytes, or a virtual one of this size and MD5.

        Raises ValueError when size or MD5 are not those of the bytes (for rotten bytes, `flip` after it), or without bytes
        when one of them is missing.
        """
        key = normal(path)
        if data is not None:
            true = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if size not in (None, len(data)) or md5 not in (None, true):
                raise ValueError(f"{key}: its bytes have size {len(data)} and MD5 {true}, not {size} and {md5}")
            size, md5 = len(data), true
        if size is None or md5 is None:
            raise ValueError(f"{key}: give its bytes, or size and md5 of a virtual file")
        with self._lock:
            self.lose(collection, key)
            if private:
                self._private.add((collection, key))
            if data is None:
                entry = Entry(size, md5, None, time.time() if modified is None else modified, private)
                self._virtual.setdefault(collection, _Virtual()).add(key, entry)
            else:
                self._write(self._real(collection, key), data, modified)
            return self._known(collection, key)

    def remove(self, collection: str, path: str) -> bool:
        """Remove a file, or a folder with all in it; whether anything was there. Calls `before_removal` first."""
        self.before_removal()
        return self.lose(collection, path)

    def lose(self, collection: str, path: str) -> bool:
        """As `remove`, without a word to anybody."""
        key = normal(path)
        with self._lock:
            real, virtual = self._real(collection, key), self._virtual.get(collection)
            was_there = bool(virtual and virtual.is_there(key))
            if real.is_dir():
                shutil.rmtree(real)
                was_there = True
            elif real.is_file():
                real.unlink()
                was_there = True
            if virtual:
                virtual.remove(key)
            if self._private:
                below = key + "/"
                self._private -= {at for at in self._private if at[0] == collection and f"{at[1]}/".startswith(below)}
            return was_there

    def entry(self, collection: str, path: str) -> Entry | None:
        """The file at this path; None for a folder and for nothing."""
        key = normal(path)
        with self._lock:
            virtual = self._virtual.get(collection)
            if virtual and key in virtual.files:
                return virtual.files[key]
            return self._look(collection, key, self._real(collection, key))

    def is_folder(self, collection: str, path: str) -> bool:
        """Whether a folder is there; the root of a collection always is."""
        key = normal(path)
        with self._lock:
            virtual = self._virtual.get(collection)
            return key == "/" or bool(virtual and key in virtual.names) or self._real(collection, key).is_dir()

    def children(self, collection: str, folder: str) -> list[tuple[str, bool, Entry | None]]:
        """What is in a folder, private files too, by name: (name, is a folder, the file); empty where no folder is."""
        key = normal(folder)
        with self._lock:
            virtual = self._virtual.get(collection, _Virtual())
            real = self._real(collection, key)
            names = set(virtual.names.get(key, ())) | ({at.name for at in real.iterdir()} if real.is_dir() else set())
            found = []
            for name in sorted(names):
                entry = self.entry(collection, join(key, name))
                found.append((name, entry is None, entry))
            return found

    def files(self, collection: str, folder: str = "/") -> Iterator[tuple[str, Entry]]:
        """Every file below a folder with its path in the collection, in path order of each folder."""
        for name, is_folder, entry in self.children(collection, folder):
            path = join(normal(folder), name)
            if entry is not None:
                yield path, entry
            elif is_folder:
                yield from self.files(collection, path)

    def make_folder(self, collection: str, path: str) -> None:
        """Make a folder with its parents. Raises FileExistsError or NotADirectoryError where a file is in the way."""
        self._real(collection, normal(path)).mkdir(parents=True, exist_ok=True)

    def flip(self, collection: str, path: str) -> Entry:
        """Rot: another MD5, same size, same time; of a real file one byte changes. Raises KeyError where no such file is."""
        key = normal(path)
        with self._lock:
            old = self._known(collection, key)
            if old.data is None:
                other = hashlib.md5(f"{old.md5} flipped".encode(), usedforsecurity=False).hexdigest()
                entry = Entry(old.size, other, None, old.modified, old.private)
                self._virtual[collection].files[key] = entry
                return entry
            if old.size == 0:
                raise ValueError(f"{key} is empty: no byte of it can change")
            times = old.data.stat()
            with old.data.open("r+b") as file:
                file.seek(old.size // 2)
                byte = file.read(1)[0]
                file.seek(old.size // 2)
                file.write(bytes([byte ^ 1]))
            os.utime(old.data, ns=(times.st_atime_ns, times.st_mtime_ns))
            self._md5s.pop(old.data, None)
            return self._known(collection, key)

    def copy(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        *,
        modified: float,
        keep_bytes: int | None = None,
    ) -> Entry:
        """Copy a file from (collection, path) to another, with its parents; `keep_bytes`: only the first so many.

        Raises KeyError where no such file is, OSError where the target cannot be written.
        """
        at, to = (source[0], normal(source[1])), (target[0], normal(target[1]))
        with self._lock:
            old = self._known(*at)
            whole = keep_bytes is None or keep_bytes >= old.size
            if old.data is not None:
                data = old.data.read_bytes()
                return self.put(*to, data=data if whole else data[:keep_bytes], modified=modified)
            if whole:
                return self.put(*to, size=old.size, md5=old.md5, modified=modified)
            other = hashlib.md5(f"{old.md5} to {keep_bytes}".encode(), usedforsecurity=False).hexdigest()
            return self.put(*to, size=keep_bytes, md5=other, modified=modified)

    def used_bytes(self, collection: str) -> int:
        """The bytes of all files of a collection."""
        return sum(entry.size for _, entry in self.files(collection))

    def _known(self, collection: str, key: str) -> Entry:
        entry = self.entry(collection, key)
        if entry is None:
            raise KeyError(f"no such file in collection {collection}: {key}")
        return entry

    def _real(self, collection: str, key: str) -> Path:
        return self.folder_of(collection) / key.lstrip("/")

    def _write(self, real: Path, data: bytes, modified: float | None) -> None:
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(data)
        if modified is not None:
            os.utime(real, (modified, modified))

    def _look(self, collection: str, key: str, real: Path) -> Entry | None:
        if not real.is_file():
            return None
        found = real.stat()
        version = (found.st_size, found.st_mtime_ns, found.st_ino)
        cached = self._md5s.get(real)
        if cached is None or cached[0] != version:
            digest = hashlib.md5(usedforsecurity=False)
            with real.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
            cached = self._md5s[real] = (version, digest.hexdigest())
        return Entry(found.st_size, cached[1], real, found.st_mtime, (collection, key) in self._private)


def collections_of(setup: Setup) -> Collections:
    """The collections that all services of this run share; their files lie in the folder of the run, by collection id."""
    return setup.world("collections", lambda at: Collections(at.folder))


@lru_cache(maxsize=1 << 16)
def normal(path: str) -> str:
    """A path with one leading slash and no other to spare; `/~/` is the root here. Raises ValueError for `..`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts[:1] == ["~"]:
        del parts[0]
    if ".." in parts or any("\0" in part for part in parts):
        raise ValueError(f"a path must stay in its collection: {path!r}")
    return "/" + "/".join(parts)


def split(path: str) -> tuple[str, str]:
    """The parent folder and the name of a normal path."""
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def join(folder: str, name: str) -> str:
    """The path of a name in a folder, both normal."""
    return f"{folder.rstrip('/')}/{name}"
