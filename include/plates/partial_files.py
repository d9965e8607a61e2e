"""The file that a restore writes before its target gets its name, and how it gets it.

Invariant: a partial file is locked while a living restore writes it, so one that can be locked was left by a dead one and
is removed. It is never written into: it may be the target's own file under a second name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from include.core.errors import ConflictingRequest

_NAME = re.compile(r"\.waybill-[0-9a-f]{16}")
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NO_RENAME = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_TRIES = 20
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def partial_of(path: Path) -> Path:
    """Beside the target, of a name that fits any file system; the same for every restore of this target."""
    return path.with_name(f".waybill-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """An empty, locked file beside the target, gone afterwards. Raises ConflictingRequest where a living restore has it."""
    partial = partial_of(path)
    descriptor = _create(partial, path)
    if descriptor is None:  # a file system without locks: nobody could tell whose a shared name is
        own, name = tempfile.mkstemp(dir=path.parent, prefix=f"{partial.name}-")
        with os.fdopen(own, "wb") as file, _gone_afterwards(Path(name)):
            yield file, Path(name)
        return
    with os.fdopen(descriptor, "wb") as file, _gone_afterwards(partial):
        yield file, partial


@contextlib.contextmanager
def _gone_afterwards(partial: Path) -> Iterator[None]:
    try:
        yield
    finally:
        partial.unlink(missing_ok=True)


def _create(partial: Path, path: Path) -> int | None:
    for _ in range(_TRIES):
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            if _remove_dead(partial):
                continue
            break
        locked = _lock(descriptor)
        if locked and _names(partial, descriptor):
            return descriptor
        if locked is None:
            partial.unlink(missing_ok=True)
        os.close(descriptor)  # else a restore that looks for what dead ones left had it first
        if locked is None:
            return None
    raise ConflictingRequest(f"{path}: another restore writes this file at this moment; nothing was changed")


def _lock(descriptor: int) -> bool | None:
    """False: somebody holds the lock. None: there are no locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _names(partial: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(partial), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_dead(partial: Path) -> bool:
    """Removes what a restore left that is no more; False where a living one writes it."""
    try:
        descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor):
            return False
        if _names(partial, descriptor):
            partial.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def remove_dead_in(folder: Path) -> None:
    """Removes every partial file of a folder that no living restore writes."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
        for partial in found:
            with contextlib.suppress(OSError):
                _remove_dead(partial)


def give_name(partial: Path, path: Path) -> None:
    """Gives the finished file its name. Raises FileExistsError where something has it: unlike rename, none of these replaces."""
    try:
        os.link(partial, path, follow_symlinks=False)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    if _rename_noreplace(partial, path):
        return
    # Neither links nor such a rename: the name is taken by an empty file first.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        partial.replace(path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _rename_noreplace(partial: Path, path: Path) -> bool:
    """Linux's renameat2; False where the system or the file system has none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(partial), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_RENAME:
        return False
    raise OSError(code, os.strerror(code), str(path))
