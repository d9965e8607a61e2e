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
import stat
import tempfile
from collections.abc import Callable, Iterator
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
        locked = lock(descriptor)
        if locked and _names(partial, descriptor):
            return descriptor
        if locked is None:
            partial.unlink(missing_ok=True)
        os.close(descriptor)  # else a restore that looks for what dead ones left had it first
        if locked is None:
            return None
    raise ConflictingRequest(f"{path}: another restore writes this file at this moment; nothing was changed")


def lock(descriptor: int) -> bool | None:
    """Takes the lock of an open file. False: somebody holds it. None: there are no locks here."""
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


def _opened(partial: Path) -> int:
    """Raises FileExistsError for what is no file, which no restore has made: opening a pipe would wait for its other end."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if stat.S_ISREG(partial.lstat().st_mode):
        descriptor = os.open(partial, flags)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise FileExistsError(errno.EEXIST, "this is no file, and a restore needs its name", str(partial))


def _remove_dead(partial: Path) -> bool:
    """Removes what a restore left that is no more; False where a living one writes it."""
    try:
        descriptor = _opened(partial)
    except FileNotFoundError:
        return True
    try:
        if not lock(descriptor):
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


def finish_naming(path: Path, is_whole: Callable[[Path], bool]) -> None:
    """Ends what a restore died in after it had taken the name by an empty file, and before its file was there.

    The proof: beside the empty file lies a partial file of this very target that no living restore holds, older than the
    empty file, and `is_whole` finds all of the target's bytes in it. An empty file without that is somebody's own.
    """
    partial = partial_of(path)
    try:
        descriptor = _opened(partial)
    except OSError:
        return
    try:
        if lock(descriptor) and _names(partial, descriptor) and _took_the_name(path, descriptor) and is_whole(partial):
            partial.replace(path)
    finally:
        os.close(descriptor)


def _took_the_name(path: Path, partial: int) -> bool:
    try:
        there, written = path.lstat(), os.fstat(partial)
    except FileNotFoundError:
        return False
    return (
        stat.S_ISREG(there.st_mode)
        and there.st_size == 0 < written.st_size
        and written.st_ctime_ns <= there.st_ctime_ns
    )


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
    # Neither links nor such a rename: the name is taken by an empty file first (finish_naming, should we die here).
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
