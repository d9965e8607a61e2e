"""The multipart uploads that a restore has under way, written down, so that the next restore can abort those of a killed one.

Invariant: an upload is aborted only when a journal of ours names its id, and no living restore of the command line holds that
journal. A store's list of uploads does not say who began one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from include.core.errors import WaybillError
from include.core.journal import FileJournal, PartJournal
from include.plates.partial_files import lock
from include.s3.bucket import Bucket
from include.s3.errors import UploadLost

_SUFFIX = ".restore.jsonl"


class RestoreUploads:
    """`own` is where this restore writes; `earlier` are the journals of restores that have ended, in whatever way."""

    def __init__(self, own: PartJournal, earlier: Sequence[PartJournal]):
        self._own = own
        self._earlier = earlier

    async def begun(self, key: str, upload_id: str) -> None:
        await asyncio.to_thread(self._own.append, {"upload": upload_id, "key": key})

    async def completed(self, upload_id: str) -> None:
        await asyncio.to_thread(self._own.append, {"ended": upload_id})

    async def abort_left(self, bucket: Bucket) -> None:
        """Aborts what earlier restores left. What the store refuses to abort is tried again by the next restore."""
        for journal in self._earlier:
            for upload_id, key in (await asyncio.to_thread(_open_in, journal)).items():
                where = {"Bucket": bucket.name, "Key": key, "UploadId": upload_id}
                try:
                    await bucket.access.call("abort_multipart_upload", f"aborting {key}", **where)
                except UploadLost:
                    pass  # completed, or aborted already
                except WaybillError:
                    continue
                await asyncio.to_thread(journal.append, {"ended": upload_id})


def _open_in(journal: PartJournal) -> dict[str, str]:
    """Keys by the id of the uploads that are not known to have ended."""
    found: dict[str, str] = {}
    for row in journal.load():
        if "upload" in row:
            found[row["upload"]] = row["key"]
        else:
            found.pop(row["ended"], None)
    return found


@contextlib.contextmanager
def uploads_in(folder: Path) -> Iterator[RestoreUploads]:
    """For the command line: each restore has a journal of its own in the folder, locked while it lives.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        dead = [path for path in sorted(folder.glob(f"*{_SUFFIX}")) if stack.enter_context(_locked(path))]
        own = stack.enter_context(_new_locked(folder))
        try:
            yield RestoreUploads(FileJournal(own), [FileJournal(path) for path in dead])
        finally:
            for path in (*dead, own):
                if not _open_in(FileJournal(path)):
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock was had: the restore that wrote this is dead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield bool(lock(descriptor)) and path.exists()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _new_locked(folder: Path) -> Iterator[Path]:
    """An empty journal, which gets its name only when it is locked."""
    name = uuid.uuid4().hex
    partial, path = folder / f".{name}", folder / f"{name}{_SUFFIX}"
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        lock(descriptor)
        partial.rename(path)
        yield path
    finally:
        os.close(descriptor)
