"""Where restored files go: a bucket or a folder. Both keep what is there unless overwriting is asked for.

Invariant: bytes become visible under their name only after their checksum was found right: `check` is called
when all bytes have passed and before anything is completed, renamed or linked.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Protocol

from include.core.errors import AuthError, ConflictingRequest, RemoteError, RequestError
from include.plates.models import MIB, ManifestMember
from include.plates.partial_files import finish_naming, give_name, partial_file, remove_dead_in
from include.plates.restore_uploads import RestoreUploads
from include.plates.same_bytes import agrees, digester_for, same_bytes
from include.s3.bucket import Bucket
from include.s3.errors import ConcurrentWriter, ObjectExists, PreconditionFailed
from include.s3.headers import SHA256_METADATA, STORAGE_CLASS, TAGGING, put_parameters
from include.s3.multipart import PartDone, Upload

_PART = 16 * MIB
_READ = 4 * MIB
_METADATA_BYTES = 2048  # S3's limit, names and values together
_READ_AT_ONCE = ("STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY")
_WITHOUT = ((), (TAGGING,), (STORAGE_CLASS,), (TAGGING, STORAGE_CLASS))
_WORDS = {TAGGING: "tags", STORAGE_CLASS: "storage class"}
_NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

Chunks = AsyncIterator[memoryview]


class Sink(Protocol):
    """A place for restored files, named by their keys."""

    async def existing(self, member: ManifestMember) -> bool | None:
        """None: nothing is there. True: these very bytes are. False: something else is."""

    async def write(self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool) -> str:
        """Writes a file; gives what could not be restored of it beside its bytes, in words.

        Raises ObjectExists where one came into being meanwhile and `overwrite` is not set.
        """


def ends_all(error: OSError) -> bool:
    """Whether no other file could be written either."""
    return error.errno in _NO_MORE


class FolderSink:
    """Files under a local folder, at their keys. Headers, metadata and tags have no place there.

    Invariant: nothing is written outside of the folder: a folder in it that is a link to elsewhere is not followed.
    """

    def __init__(self, root: Path):
        self.root = root.resolve()
        self._seen: set[Path] = set()

    def _path(self, member: ManifestMember) -> Path:
        key = member.key or ""
        if any(step in ("", ".", "..") for step in key.rstrip("/").split("/")) or "\0" in key:
            raise RequestError(f"the key {key!r} does not name a file below a folder")
        return self.root / key

    def _check_links(self, path: Path) -> None:
        """Raises ConflictingRequest where a folder on the way is a link that leads out of the target."""
        folder = Path(os.path.realpath(path.parent))
        if not folder.is_relative_to(self.root):
            raise ConflictingRequest(
                f"{path}: a folder on the way is a link, and the file would lie in {folder}, outside of {self.root}. Nothing "
                "was written; take the link away, or restore into another folder."
            )

    async def existing(self, member: ManifestMember) -> bool | None:
        path = self._path(member)
        self._check_links(path)
        if member.size and path.is_file():
            await asyncio.to_thread(finish_naming, path, lambda partial: _same_file(partial, member))
        if path.parent not in self._seen:
            self._seen.add(path.parent)
            await asyncio.to_thread(remove_dead_in, path.parent)
        if not path.exists() and not path.is_symlink():
            return None
        if path.is_dir() or (member.key or "").endswith("/"):
            return path.is_dir() and (member.key or "").endswith("/")
        if not path.is_file():
            return False  # a pipe, a device, or a link to nothing
        return await asyncio.to_thread(_same_file, path, member)

    async def write(self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool) -> str:
        path = self._path(member)
        self._check_links(path)
        if (member.key or "").endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            return ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as (file, partial):
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
            check()
            await asyncio.to_thread(_publish, file, partial, path, member.modified, overwrite)
        return ""


def _publish(file: IO[bytes], partial: Path, path: Path, modified: int, overwrite: bool) -> None:
    file.flush()
    os.fsync(file.fileno())
    # Not every file system has modes, or every time: the bytes are right all the same.
    with contextlib.suppress(OSError):
        partial.chmod(0o644)
    with contextlib.suppress(OSError, OverflowError):
        os.utime(partial, (modified, modified))
    if overwrite:
        partial.replace(path)
        return
    try:
        give_name(partial, path)
    except FileExistsError:
        raise ObjectExists(f"{path} exists; nothing was overwritten") from None


def _same_file(path: Path, member: ManifestMember) -> bool:
    if path.stat().st_size != member.size:
        return False
    digester = digester_for(member)
    with path.open("rb") as file:
        while data := file.read(_READ):
            digester.feed(data)
    return agrees(member, digester.result())


class BucketSink:
    """Objects in a bucket, at their own keys or below another prefix, with the headers that they had.

    What the store refuses of these (tags without the right to set them, a storage class it does not have) is left out
    and told, not fatal. Without `uploads` a killed restore leaves its multipart uploads to the bucket's lifecycle rule.
    """

    def __init__(self, bucket: Bucket, prefix: str = "", *, uploads: RestoreUploads | None = None):
        self._bucket = bucket
        self._prefix = prefix
        self._uploads = uploads
        self._refused: set[str] = set()
        self._aborted: asyncio.Task[None] | None = None

    def _key(self, member: ManifestMember) -> str:
        return self._prefix + (member.key or "")

    async def _without_what_was_left(self) -> None:
        """Once, before the first look: what killed restores have left is aborted."""
        if self._uploads is None:
            return
        if self._aborted is None:
            self._aborted = asyncio.create_task(self._uploads.abort_left(self._bucket))
        await self._aborted

    async def existing(self, member: ManifestMember) -> bool | None:
        await self._without_what_was_left()
        there = await self._bucket.head(self._key(member))
        if there is None:
            return None
        return await same_bytes(self._bucket, there, member, by_metadata=True) is not None

    async def write(self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool) -> str:
        key = self._key(member)
        if member.size <= _PART:
            data = b"".join([bytes(chunk) async for chunk in chunks])
            check()
            put = self._bucket.put if overwrite else self._bucket.put_new

            async def send(extra: dict[str, Any]) -> None:
                await put(key, data, **extra)

            return await self._with_headers(member, send)
        upload: Upload[PartDone] = Upload(self._bucket, key, overwrite=overwrite)

        async def begin(extra: dict[str, Any]) -> None:
            await upload.begin(**extra)
            if self._uploads is not None:
                await self._uploads.begun(key, upload.upload_id or "")

        try:
            note = await self._with_headers(member, begin)
            async with aclosing(upload.send_stream(chunks, _PART)) as sent:
                async for part in sent:
                    await upload.finished(part)
            check()
            await upload.complete()
        except BaseException:
            await asyncio.shield(upload.abort())
            raise
        if self._uploads is not None:
            await self._uploads.completed(upload.upload_id or "")
        return note

    async def _with_headers(self, member: ManifestMember, send: Callable[[dict[str, Any]], Awaitable[None]]) -> str:
        """Sends with all headers, and without those that the store refuses; gives a sentence about these."""
        has = {name for name, _ in member.headers}
        ways = [way for way in _WITHOUT if has.issuperset(way) and not (self._refused & has).difference(way)]
        for without in ways:
            try:
                await send(_arguments(member, without))
            except (ObjectExists, ConcurrentWriter, PreconditionFailed):
                raise
            except (AuthError, RemoteError):
                if without == ways[-1]:
                    raise
                continue
            self._refused |= set(without)
            return f"restored without its {' and '.join(_WORDS[one] for one in without)}" if without else ""
        raise AssertionError("the last way returns or raises")


def _arguments(member: ManifestMember, without: Collection[str]) -> dict[str, Any]:
    """For what writes an object. A cold class is not given back: the object could not be read."""
    kept = [(name, value) for name, value in member.headers if name not in without]
    found = put_parameters(one for one in kept if one[0] != STORAGE_CLASS or one[1] in _READ_AT_ONCE)
    metadata = found.pop("Metadata", {})
    ours = {SHA256_METADATA: member.sha256} if member.sha256 else {}
    if sum(len(name) + len(value) for name, value in (metadata | ours).items()) <= _METADATA_BYTES:
        metadata |= ours
    return {"metadata": metadata, **found}
