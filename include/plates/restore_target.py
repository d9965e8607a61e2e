"""Where restored files go: a bucket or a folder. Both keep what is there unless overwriting is asked for.

Invariant: bytes become visible under their name only after their checksum was found right: `check` is called
when all bytes have passed and before anything is completed, renamed or linked.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import IO, Protocol

from include.core.errors import RequestError
from include.plates.models import MIB, ManifestMember
from include.s3.bucket import Bucket
from include.s3.errors import ObjectExists
from include.s3.multipart import PartDone, Upload

_PART = 16 * MIB

Chunks = AsyncIterator[memoryview]


class Sink(Protocol):
    """A place for restored files, named by their keys."""

    async def existing(self, member: ManifestMember) -> bool | None:
        """None: nothing is there. True: these very bytes are. False: something else is."""

    async def write(
        self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool
    ) -> None:
        """Writes a file. Raises ObjectExists where one came into being meanwhile and `overwrite` is not set."""


class FolderSink:
    """Files under a local folder, at their keys."""

    def __init__(self, root: Path):
        self.root = root.resolve()

    def _path(self, member: ManifestMember) -> Path:
        key = member.key or ""
        if any(step in ("", ".", "..") for step in key.rstrip("/").split("/")) or "\0" in key:
            raise RequestError(f"the key {key!r} does not name a file below a folder")
        return self.root / key

    async def existing(self, member: ManifestMember) -> bool | None:
        path = self._path(member)
        if not path.exists() and not path.is_symlink():
            return None
        if path.is_dir():
            return (member.key or "").endswith("/")
        return await asyncio.to_thread(_same_file, path, member)

    async def write(
        self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool
    ) -> None:
        path = self._path(member)
        if (member.key or "").endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".waybill-", delete=False) as file:
            partial = Path(file.name)
            try:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)
                check()
                await asyncio.to_thread(_publish, file, partial, path, member.modified, overwrite)
            finally:
                _discard(partial)


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)


def _publish(file: IO[bytes], partial: Path, path: Path, modified: int, overwrite: bool) -> None:
    file.flush()
    os.fsync(file.fileno())
    partial.chmod(0o644)
    os.utime(partial, (modified, modified))
    if overwrite:
        partial.replace(path)
        return
    try:
        path.hardlink_to(partial)  # unlike rename, this never replaces what is there
    except FileExistsError:
        raise ObjectExists(f"{path} exists; nothing was overwritten") from None


def _same_file(path: Path, member: ManifestMember) -> bool:
    if path.stat().st_size != member.size or member.sha256 is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == member.sha256


class BucketSink:
    """Objects in a bucket, at their own keys or below another prefix."""

    def __init__(self, bucket: Bucket, prefix: str = ""):
        self._bucket = bucket
        self._prefix = prefix

    def _key(self, member: ManifestMember) -> str:
        return self._prefix + (member.key or "")

    async def existing(self, member: ManifestMember) -> bool | None:
        there = await self._bucket.head(self._key(member))
        if there is None:
            return None
        return there.size == member.size and member.etag_is_md5 and there.etag == member.etag

    async def write(
        self, member: ManifestMember, chunks: Chunks, check: Callable[[], None], *, overwrite: bool
    ) -> None:
        key = self._key(member)
        if member.size <= _PART:
            data = b"".join([bytes(chunk) async for chunk in chunks])
            check()
            if overwrite:
                await self._bucket.put(key, data)
            else:
                await self._bucket.put_new(key, data)
            return
        upload: Upload[PartDone] = Upload(self._bucket, key, overwrite=overwrite)
        try:
            await upload.begin()
            async with aclosing(upload.send_stream(chunks, _PART)) as sent:
                async for part in sent:
                    await upload.finished(part)
            check()
            await upload.complete()
        except BaseException:
            await asyncio.shield(upload.abort())
            raise
