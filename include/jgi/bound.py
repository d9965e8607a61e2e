"""The number of days that no plan of restores can do without: what a plan is measured by.

Invariant: never more than the best plan needs. It shares nothing with the planner but the input.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from include.jgi.models import Limits

LARGE = 20  # a file of more than a twentieth of a window may decide how many windows are needed


@dataclass(frozen=True, slots=True)
class Accepted:
    """What JDP accepted, or may have: epoch seconds, bytes."""

    at: float
    size_bytes: int


def lower_bound(
    sizes: Sequence[int], accepted: Sequence[Accepted], now: float, limits: Limits, drain_rate: float, room: int
) -> int:
    """Days of files with these sizes: by the bytes, by files of which no two fit into one window, by the disk.

    Day n is the n-th window from `now` on, so it takes what one window does. `room`: bytes that may lie on JDP's disk, from
    where they go at the drain rate.
    """
    if not sizes:
        return 0
    window = limits.window_bytes
    by_bytes = _by_bytes(sum(sizes), [one for one in accepted if one.at >= now], now, limits)
    large = [size for size in sizes if LARGE * size > window]
    over = sum(sizes) + _on_disk(accepted, now, drain_rate) - room  # to be moved before the last may be asked for
    by_disk = 1 + int(over / drain_rate // limits.span_seconds) if over > 0 else 1
    return max(by_bytes, windows_of_large(large, window), by_disk)


def _by_bytes(total: int, ahead: Sequence[Accepted], now: float, limits: Limits) -> int:
    """`ahead`: what is counted from now on, by a clock that is ahead, or because it was accepted at this instant."""
    taken = sum(one.size_bytes for one in ahead)
    days = max(1, -(-total // limits.window_bytes))
    while taken:
        within = sum(one.size_bytes for one in ahead if one.at < now + days * limits.span_seconds)
        needed = max(1, -(-(total + within) // limits.window_bytes))
        if needed <= days:
            break
        days = needed
    return days


def _on_disk(accepted: Sequence[Accepted], now: float, drain_rate: float) -> float:
    """Bytes that are not moved yet, first in, first out."""
    backlog, since = 0.0, 0.0
    for one in sorted(accepted, key=lambda one: one.at):
        backlog = max(0.0, backlog - drain_rate * (one.at - since)) + one.size_bytes
        since = one.at
    return max(0.0, backlog - drain_rate * max(0.0, now - since))


def windows_of_large(sizes: Sequence[int], window: int) -> int:
    """Windows that files need of which few fit into one (the bound L2 of Martello and Toth for bin packing).

    For a size k: files over window - k lie alone; those over half a window lie apart; what of the files from k to half a
    window does not fit beside these needs windows of its own.
    """
    ordered = sorted(sizes)
    sums = [0, *accumulate(ordered)]
    half = bisect_left(ordered, window // 2 + 1)  # from here on over half a window
    most = 0
    for least in {0, *ordered[:half]}:
        begin, alone = bisect_left(ordered, least), bisect_left(ordered, window - least + 1)
        apart = max(0, alone - half)
        over = sums[half] - sums[begin] - (apart * window - (sums[alone] - sums[half]))
        most = max(most, len(ordered) - alone + apart + max(0, -(-over // window)))
    return most
