"""Which keys no file system takes as names: an archive keeps them, but they cannot be restored into a folder."""

from __future__ import annotations

from collections.abc import Iterable

_NAME_BYTES, _PATH_BYTES = 255, 4095


def name_warnings(keys: Iterable[str]) -> list[str]:
    """One sentence, with the first of them; none where all names are fit."""
    unfit = sorted(key for key in keys if len(key) > _NAME_BYTES // 4 and _too_long(key))
    if not unfit:
        return []
    return [
        f"{len(unfit)} names are longer than any file system takes ({_NAME_BYTES} bytes each, {_PATH_BYTES} with all "
        f"folders): they are archived and come back to a bucket, but to no folder, the first {unfit[0]!r}"
    ]


def _too_long(key: str) -> bool:
    steps = key.encode().split(b"/")
    return max(map(len, steps)) > _NAME_BYTES or len(key.encode()) > _PATH_BYTES
