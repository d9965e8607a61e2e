"""Where the command line keeps its journals: in one place for each archive bucket, wherever a command is started.

Invariant: the place depends on the user, the endpoint and the bucket, never on the working directory, or a command that is
started elsewhere would send everything again and would not know what it has begun to delete. One plate's journals are
written by one command at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from include.core.errors import ConflictingRequest
from include.plates.partial_files import lock
from include.s3.client import store_of

OLD_PLACE = Path(".waybill/plates")  # where earlier releases kept them, below the working directory


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where programs keep what must outlive them, by the XDG rule: a relative XDG_STATE_HOME does not count."""
    given = Path(environment.get("XDG_STATE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".local" / "state") / "waybill" / "plates"


def restores_folder(bucket: str, endpoint_url: str | None) -> Path:
    """Where restores into a bucket write down which uploads they have under way."""
    return state_folder() / "restores" / _place(bucket, endpoint_url)


def _place(bucket: str, endpoint_url: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", f"{store_of(endpoint_url)}_{bucket}")


@contextlib.contextmanager
def alone_with(tag: str, folder: Path) -> Iterator[None]:
    """Holds the journals of one plate for one command; a command that dies gives them back.

    Raises ConflictingRequest while another holds them. A file system without locks cannot tell, so nobody is refused there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{tag}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if lock(descriptor) is False:
            raise ConflictingRequest(
                f"{tag}: another command archives or deletes this plate at this moment (its journals lie in {folder}); nothing "
                "was done. Wait until it has ended"
            )
        yield
    finally:
        os.close(descriptor)


def journal_folder(bucket: str, endpoint_url: str | None, say: Callable[[str], object]) -> Path:
    """The folder of an archive bucket. Journals that an earlier release left in the working directory are taken over."""
    folder = state_folder() / _place(bucket, endpoint_url)
    if OLD_PLACE.is_dir():
        for old in sorted(OLD_PLACE.iterdir()):
            if not (folder / old.name).exists():
                _take_over(old, folder)
                say(f"the journal {old.resolve()} is taken over into {folder}; the old one is not used any more")
    return folder


def _take_over(old: Path, folder: Path) -> None:
    """A copy, visible only once it is whole: another bucket's command may want the old one, too."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{old.name}.{os.getpid()}"
    try:
        if old.is_dir():
            shutil.copytree(old, partial)
        else:
            shutil.copy2(old, partial)
        partial.rename(folder / old.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
