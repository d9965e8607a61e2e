"""Keeps the process's memory at what is in use, on glibc.

Invariant: by itself, glibc moves the size from which on it asks the system for memory, and a heap grows that
fragments and is not given back. Both settings here are measured (docs/figures.md has the peaks). Uncompressed, what is
read is sent as it is, in blocks of like sizes, which a heap serves again and again without a page fault: 8 MiB (with 16, a
plate of large images took 100 MB more). With compression, blocks of all sizes come and go: 1 MiB. Elsewhere than on glibc
this does nothing.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MIB = 1024 * 1024


def keep_memory_steady(*, compressing: bool) -> bool:
    """For what this process allocates from now on. True where the C library took the settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_THRESHOLD, (1 if compressing else 8) * _MIB)) and bool(
            mallopt(_M_TRIM_THRESHOLD, (1 if compressing else 64) * _MIB)
        )
    except (OSError, AttributeError, TypeError):
        return False
