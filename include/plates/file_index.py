"""The index of archived files: which tarball holds a file, and where in it. One SQLite file, made from manifests alone.

Invariant: the index is a copy that may be thrown away: what is archived is said by the store's listing and the manifests.
So it says of when its listing is, keeps what is gone as gone, and is never the reason that anything is deleted.

Small, since the millions of files of many plates have few names and folders: a row holds their numbers. A file is found by the
last part of its name, which a key and the end of a key both give; only a pattern looks at every row.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from include.core.errors import NotFound, RequestError, VerificationError
from include.core.packed import in_stretches
from include.core.progress import OnProgress, Progress, silent
from include.plates.manifest import read_manifest
from include.plates.models import Manifest, ManifestMember
from include.plates.name_match import is_named
from include.plates.proof import MANIFEST_SUFFIX, SUFFIX, Proof, parse_proof, proof_key
from include.s3.bucket import Bucket, ListedObject

FORMAT = 2
_LARGEST_PROOF = 1 << 20
_FILES_OF_A_STRETCH = 5_000
TARBALL_SUFFIXES = (".tar.gz", ".tar.zst", ".tar")
_SCHEMA = """
CREATE TABLE places (
    store TEXT, bucket TEXT, prefix TEXT, listed_at REAL, alone TEXT, PRIMARY KEY (store, bucket, prefix));
CREATE TABLE manifests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, store TEXT, bucket TEXT, key TEXT, mark TEXT, head TEXT, problem TEXT, gone_at REAL,
    tarball TEXT, tarball_etag TEXT, tarball_bytes INTEGER, storage_class TEXT, proof_mark TEXT, proof TEXT,
    UNIQUE (store, bucket, key));
CREATE TABLE folders (id INTEGER PRIMARY KEY, path TEXT UNIQUE);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE files (
    name INTEGER, folder INTEGER, manifest INTEGER, size INTEGER, at INTEGER, frame_at INTEGER, frame_bytes INTEGER,
    frame_raw INTEGER, PRIMARY KEY (name, folder, manifest)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Archived:
    """One tarball as the index knows it: its manifest's head, and what the listing showed beside it.

    `tarball_etag` is None where the listing showed no tarball; `gone_at` where the manifest is still there.
    """

    number: int
    store: str
    bucket: str
    manifest_key: str
    manifest_bytes: int
    head: dict[str, Any]
    problem: str
    gone_at: float | None
    tarball: str
    tarball_etag: str | None
    tarball_bytes: int | None
    storage_class: str
    proof: Proof | None

    @property
    def proof_now(self) -> Proof | None:
        """The proof, if it is about the object that lies there."""
        if self.proof is None or self.tarball_etag is None or self.tarball_bytes is None:
            return None
        return self.proof if self.proof.is_of(self.tarball_etag, self.tarball_bytes) else None


@dataclass(frozen=True)
class Listing:
    """What one listing of a prefix found. `tarballs_alone` and `proofs_alone` lie there without a manifest beside them."""

    prefix: str
    listed_at: float
    manifests: int
    read: int
    files: int
    gone: tuple[str, ...]
    broken: tuple[str, ...]
    tarballs_alone: tuple[str, ...]
    proofs_alone: tuple[str, ...]


class FileIndex:
    """An index in a file; use as a context manager. `store` names the endpoint, since two stores may share bucket names.

    Raises RequestError where the file is no index of this format.
    """

    def __init__(self, path: Path, store: str, *, read_only: bool = False):
        self.path, self.store = path, store
        if not read_only:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(
                    f"{path} cannot be an index ({error.strerror}): {path.parent} must be a folder"
                ) from None
        elif not path.exists():
            raise NotFound(f"there is no index at {path}: `python -m include.plates index` makes it")
        address = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            self._database = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise RequestError(
                f"{path} cannot be an index ({error}): give the name of a file that may be written"
            ) from None
        self._database.create_function("is_named", 2, is_named, deterministic=True)
        try:
            self._check()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise RequestError(f"{path} is no index ({error}): remove it; it is made anew from the manifests") from None

    def _check(self) -> None:
        found = self._one("PRAGMA user_version")[0]
        if found == 0 and not self._one("SELECT count(*) FROM sqlite_master")[0]:
            self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif found != FORMAT:
            self._database.close()
            raise RequestError(
                f"{self.path} has format {found}, this release reads {FORMAT}: remove it; it is made anew"
            )

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Making it

    async def refresh(
        self, archive: Bucket, prefix: str, *, now: float | None = None, on_progress: OnProgress = silent
    ) -> Listing:
        """Lists a prefix and reads the manifests and proofs that changed since (by ETag, size and time). Each manifest is
        kept whole or not at all, so that a refresh that was killed goes on where it stopped. Raises the store's errors."""
        now = time.time() if now is None else now
        listed = {one.key: one async for one in archive.objects_under(prefix, versions=False)}
        there = sorted(key for key in listed if key.endswith(MANIFEST_SUFFIX))
        known = {row[0]: row[1] for row in self._rows("SELECT key, mark", archive.name, prefix)}
        fresh = [key for key in there if known.get(key) != _mark(listed[key])]
        files = 0
        for count, key in enumerate(fresh, start=1):
            files += await self._read(archive, listed[key])
            on_progress(Progress("index", 0, 0, count, len(fresh), key))
        gone = sorted(known.keys() - set(there))
        bases = {key.removesuffix(MANIFEST_SUFFIX) for key in there}
        alone = tuple(key for key in sorted(listed) if (base := tarball_base(key)) is not None and base not in bases)
        await self._beside(archive, prefix, listed)
        with self._transaction():
            where = "store = ? AND bucket = ? AND key = ?"
            for key in gone:
                changed = f"UPDATE manifests SET gone_at = ? WHERE {where} AND gone_at IS NULL"
                self._database.execute(changed, (now, self.store, archive.name, key))
            place = "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)"
            self._database.execute(place, (self.store, archive.name, prefix, now, json.dumps(alone)))
            if known.keys() & set(fresh):  # the rows of manifests that were replaced
                self._database.execute("DELETE FROM files WHERE manifest NOT IN (SELECT id FROM manifests)")
        rows = self.archived(archive.name, prefix)
        return Listing(
            prefix=prefix,
            listed_at=now,
            manifests=len(there),
            read=len(fresh),
            files=files,
            gone=tuple(row.manifest_key for row in rows if row.gone_at is not None),
            proofs_alone=tuple(
                key for key in sorted(listed) if key.endswith(SUFFIX) and key.removesuffix(SUFFIX) not in bases
            ),
            broken=tuple(f"{row.manifest_key}: {row.problem}" for row in rows if row.problem and row.gone_at is None),
            tarballs_alone=alone,
        )

    async def _read(self, archive: Bucket, listed: ListedObject) -> int:
        """Takes one manifest in, in place of what was known under its key."""
        manifest: Manifest | None = None
        try:
            manifest, problem = await read_manifest(archive, listed.key), ""
            if tarball_base(manifest.head.key) != listed.key.removesuffix(MANIFEST_SUFFIX):
                problem, manifest = f"it is about another tarball, {manifest.head.key}", None
        except NotFound:
            return 0  # it went away since it was listed: the next listing tells
        except VerificationError as error:
            problem = str(error)
        head = manifest.head.model_dump_json() if manifest else "{}"
        with self._transaction():
            # The rows of the one before go at the end of the refresh, all at once.
            where = "store = ? AND bucket = ? AND key = ?"
            self._database.execute(f"DELETE FROM manifests WHERE {where}", (self.store, archive.name, listed.key))
            insert = "INSERT INTO manifests (store, bucket, key, mark, head, problem) VALUES (?, ?, ?, ?, ?, ?)"
            values = (self.store, archive.name, listed.key, _mark(listed), head, problem)
            number = self._database.execute(insert, values).lastrowid or 0
            held = (one for one in (manifest.members if manifest else ()) if one.key is not None)
            return sum(self._add(number, some) for some in in_stretches(held, _FILES_OF_A_STRETCH))

    def _add(self, number: int, members: Sequence[ManifestMember]) -> int:
        split = [_split(member.key or "") for member in members]
        self._database.executemany("INSERT OR IGNORE INTO folders (path) VALUES (?)", {(path,) for path, _ in split})
        self._database.executemany("INSERT OR IGNORE INTO names (name) VALUES (?)", {(name,) for _, name in split})
        rows = (
            (name, path, number, member.size, member.data_offset, *(member.frame or (None, None, None)))
            for (path, name), member in zip(split, members, strict=True)
        )
        ids = "(SELECT id FROM names WHERE name = ?), (SELECT id FROM folders WHERE path = ?)"
        self._database.executemany(f"INSERT OR REPLACE INTO files VALUES ({ids}, ?, ?, ?, ?, ?, ?)", rows)
        return len(members)

    async def _beside(self, archive: Bucket, prefix: str, listed: Mapping[str, ListedObject]) -> None:
        """What lies beside each manifest: the tarball as it was listed, and its proof, read where it changed."""
        known = {row[0]: row[1:] for row in self._rows("SELECT key, head, proof_mark, proof", archive.name, prefix)}
        changes = []
        for key, (head, mark, text) in known.items():
            base = key.removesuffix(MANIFEST_SUFFIX)
            tarball = json.loads(head).get("key") or next(
                (base + s for s in TARBALL_SUFFIXES if base + s in listed), ""
            )
            there, document = listed.get(tarball), listed.get(proof_key(key))
            fresh = _mark(document) if document else None
            if fresh != mark:
                text = (await self._proof(archive, document.key)) if document else None
            seen = (there.etag, there.size, there.storage_class or "STANDARD") if there else (None, None, "")
            changes.append((tarball, *seen, fresh, text, key in listed, self.store, archive.name, key))
        change = (
            "UPDATE manifests SET tarball = ?, tarball_etag = ?, tarball_bytes = ?, storage_class = ?, proof_mark = ?, "
            "proof = ?, gone_at = CASE WHEN ? THEN NULL ELSE gone_at END WHERE store = ? AND bucket = ? AND key = ?"
        )
        with self._transaction():
            self._database.executemany(change, changes)

    async def _proof(self, archive: Bucket, key: str) -> str | None:
        try:
            proof = parse_proof(await archive.read_all(key, _LARGEST_PROOF))
        except (NotFound, VerificationError):
            return None
        return proof.model_dump_json() if proof else None

    # Asking it

    def places(self) -> list[tuple[str, str, float]]:
        """Bucket, prefix and time of each listing of this store."""
        found = self._database.execute(
            "SELECT bucket, prefix, listed_at FROM places WHERE store = ? ORDER BY 1, 2", (self.store,)
        )
        return [(str(bucket), str(prefix), float(at)) for bucket, prefix, at in found]

    def tarballs_alone(self, bucket: str, prefix: str) -> tuple[str, ...]:
        """The tarballs that the listing of a prefix showed without a manifest: what is in them is not known here."""
        which = "store = ? AND bucket = ? AND prefix = ?"
        found = self._database.execute(
            f"SELECT alone FROM places WHERE {which}", (self.store, bucket, prefix)
        ).fetchone()
        return tuple(json.loads(found[0])) if found else ()

    def archived(self, bucket: str, prefix: str) -> list[Archived]:
        """All tarballs under a prefix that a manifest was ever seen of, by manifest key."""
        columns = ", ".join(_COLUMNS)
        return [_archived(row) for row in self._rows(f"SELECT {columns}", bucket, prefix, " ORDER BY key")]

    def find(
        self, name: str, bucket: str, prefix: str, *, limit: int, offset: int = 0
    ) -> list[tuple[Archived, FileRow]]:
        """The files that `name` means (name_match.is_named), by key; a file in two archives is there twice."""
        last = _split(name)[1]
        columns = ", ".join(f"m.{column}" for column in _COLUMNS)
        query = (
            f"SELECT {columns}, o.path || n.name, f.size, f.at, f.frame_at, f.frame_bytes, f.frame_raw FROM files f "
            "JOIN names n ON n.id = f.name JOIN folders o ON o.id = f.folder JOIN manifests m ON m.id = f.manifest "
            "WHERE {which} AND is_named(o.path || n.name, :name) AND m.store = :store AND m.bucket = :bucket "
            "AND substr(m.key, 1, length(:prefix)) = :prefix ORDER BY o.path || n.name, m.key LIMIT :limit OFFSET :offset"
        )
        literal = max(re.split(r"[*?]+", name.split("[")[0]), key=len)  # what every match holds
        which = "instr(o.path || n.name, :literal)" if "*" in name else "n.name = :last"
        values = {
            "name": name, "last": last, "literal": literal, "store": self.store, "bucket": bucket, "prefix": prefix,
            "limit": limit, "offset": offset,
        }  # fmt: skip
        found = self._database.execute(query.format(which=which), values)
        cut = len(_COLUMNS)
        return [(_archived(row[:cut]), FileRow(*row[cut:])) for row in found]

    # SQL

    def _rows(self, select: str, bucket: str, prefix: str, order: str = "") -> list[Any]:
        where = "WHERE store = ? AND bucket = ? AND substr(key, 1, length(?)) = ?"
        return self._database.execute(
            f"{select} FROM manifests {where}{order}", (self.store, bucket, prefix, prefix)
        ).fetchall()

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


_COLUMNS = (
    "id", "store", "bucket", "key", "mark", "head", "problem", "gone_at", "tarball", "tarball_etag", "tarball_bytes",
    "storage_class", "proof",
)  # fmt: skip


@dataclass(frozen=True)
class FileRow:
    """A file in its tarball: `at` is its offset in the uncompressed tar; the frame (offset and length in the stored object,
    offset in the uncompressed tar) is what must be read of a compressed one."""

    key: str
    size: int
    at: int
    frame_at: int | None
    frame_bytes: int | None
    frame_raw: int | None


def _archived(row: Sequence[Any]) -> Archived:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["number"], values["manifest_key"] = values.pop("id"), values.pop("key")
    values["manifest_bytes"] = int(values.pop("mark").split(":")[-2])
    values["head"] = json.loads(values["head"])
    values["tarball"], values["storage_class"] = values["tarball"] or "", values["storage_class"] or ""
    values["proof"] = parse_proof(values["proof"].encode()) if values["proof"] else None
    return Archived(**values)


def _mark(listed: ListedObject) -> str:
    """What changes when an object does."""
    return f"{listed.etag}:{listed.size}:{listed.modified}"


def _split(key: str) -> tuple[str, str]:
    """Folder, with its slash, and name."""
    cut = key.rfind("/") + 1
    return key[:cut], key[cut:]


def tarball_base(key: str) -> str | None:
    """A tarball's key without its extension; None for anything else."""
    return next((key.removesuffix(suffix) for suffix in TARBALL_SUFFIXES if key.endswith(suffix)), None)
