"""Bytes in a sliding window of time: what JDP counts, and what tests read from its journal.

Invariant: a request counts for the window's length from the instant of its acceptance on, and no longer: a request at t and
one at t + 24 h are never in one window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class Peak(NamedTuple):
    """The fullest window: its bytes, when it ends, and how many windows that end at a request exceed the limit."""

    bytes: int
    at: float | None
    exceeded: int


def used_bytes(points: Iterable[tuple[float, int]], now: float, seconds: float) -> int:
    """The bytes accepted in the window that ends now."""
    return sum(size for at, size in points if now - seconds < at <= now)


def fits_at(points: Iterable[tuple[float, int]], size: int, now: float, seconds: float, limit: int) -> float | None:
    """The first instant from now on at which `size` more bytes fit; None where they never do."""
    if size > limit:
        return None
    inside = sorted(point for point in points if point[0] > now - seconds)
    used = sum(each for _, each in inside)
    for at, each in inside:
        if used + size <= limit:
            break
        used -= each
        now = at + seconds
    return now


def sliding_peak(points: Iterable[tuple[float, int]], seconds: float, limit: int) -> Peak:
    """The fullest window over (time, bytes) of accepted requests: the reading by which a run is judged."""
    inside: deque[tuple[float, int]] = deque()
    used, peak, when, exceeded = 0, 0, None, 0
    for at, size in sorted(points):
        inside.append((at, size))
        used += size
        while inside[0][0] <= at - seconds:
            used -= inside.popleft()[1]
        exceeded += used > limit
        if used > peak:
            peak, when = used, at
    return Peak(peak, when, exceeded)
