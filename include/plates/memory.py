"""Keeps the process's memory at what is in use, on glibc.

Know before changing: after the first 32 MiB buffer is freed, glibc moves its mmap threshold up to that size; from then on
part buffers come from a heap that fragments and is not given back (measured: 390 MB instead of 275 MB from the second
volume on). Setting the threshold switches the moving off. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import functools

_M_MMAP_THRESHOLD = -3
_MIB = 1024 * 1024


@functools.cache
def keep_memory_steady() -> bool:
    """Large buffers are given back to the system when they are freed. True where the C library took the setting."""
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MIB))
    except (OSError, AttributeError, TypeError):
        return False
