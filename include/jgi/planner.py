"""What is asked of JDP, and when: from files, and what was accepted lately, to restore requests and a forecast.

Read it in this order: `plan`; `_Timeline`, what may be sent at an instant; `_fill`, what is chosen for it; `_requests`, how
that is cut into restore requests.

Invariant: pure; the same input gives the same plan. No window (`Limits.span_seconds`, open at its begin) ever holds more than
`window_bytes` of requests, each file is in one request, and no request holds more than `request_ids` files.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from include.jgi.models import FileState, Limits, StagedFile

DRAIN_RATE = 3.7e8  # bytes per second that Globus moves off JDP's disk, as measured by NMDC
SAFETY = 0.5  # of what can be moved within a file's life on disk
WEEK_DAYS = 7.0
LARGE = 20  # a file of more than a twentieth of a window decides how many windows are needed
WAYS = ((False, False), (True, False), (True, True))  # large files alone; only in an empty window
DAY_SECONDS = 86_400.0

NOT_PLANNED = {
    FileState.FILTERED: "the project's filters leave it out",
    FileState.OVERSIZE: "it is larger than a whole window; a person may ask for it alone",
    FileState.REQUESTING: "a restore request that has it is being sent, or its answer is missing",
    FileState.QUEUED: "a restore request has it",
    FileState.ON_DISK: "it is on JDP's disk, and waits to be moved",
    FileState.HELD: "its attempts are used up: a person decides",
    FileState.REJECTED: "JDP refuses it",
    FileState.LOST: "JDP does not list it any more",
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What JDP accepted, or may have: epoch seconds, bytes."""

    at: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One restore request. `send_at` in epoch seconds."""

    send_at: float
    files: tuple[StagedFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class NotPlanned:
    file: StagedFile
    state: str
    why: str


@dataclass(frozen=True, slots=True)
class Window:
    """The window now. `next_free_at`: when its next bytes become free, None while none are used."""

    limit_bytes: int
    limit_ids: int
    seconds: float
    used_bytes: int
    free_bytes: int
    next_free_at: float | None


@dataclass(frozen=True)
class Plan:
    window: Window
    requests: tuple[PlannedRequest, ...]
    not_planned: tuple[NotPlanned, ...]
    days: int
    lower_bound_days: int

    @property
    def due(self) -> list[PlannedRequest]:
        """What is to be sent now."""
        first = self.requests[0].send_at if self.requests else 0.0
        return [one for one in self.requests if one.send_at == first]


@dataclass(slots=True)
class _Group:
    """Files of one analysis that are asked for together where they fit, largest first."""

    turn: float
    name: str
    files: list[StagedFile]
    size_bytes: int = 0
    smallest: int = 0

    def measure(self) -> _Group:
        self.files.sort(key=lambda file: (-file.size_bytes, file.jdp_file_id))
        self.size_bytes = sum(file.size_bytes for file in self.files)
        self.smallest = self.files[-1].size_bytes if self.files else 0
        return self


def plan(
    files: Iterable[StagedFile],
    accepted: Sequence[Accepted],
    now: float,
    limits: Limits,
    *,
    drain_rate: float = DRAIN_RATE,
    free_bytes: int | None = None,
) -> Plan:
    """The plan from `now` (epoch seconds) on. `free_bytes`: what the destination has room for, None where that is not known.

    Analyses go in turn: priority × (1 + days waited / 7). One is split only where a window ends, or where it is larger than a
    request or a window. Where that order needs more days than the bytes do, the largest files go first, and if that helps
    each of these alone, and only once nothing of what was accepted lately is left in the window.
    """
    disk = drain_rate * limits.disk_life_days * DAY_SECONDS * SAFETY
    room = disk if free_bytes is None else min(disk, float(free_bytes))
    wanted, left_out = _sorted_out(files, limits, room)
    bound = lower_bound(wanted, accepted, now, limits, drain_rate, room)
    best: list[tuple[float, list[list[StagedFile]]]] = []
    best_days = 0
    for order, alone, empty in ((_in_turn, False, False), *((_largest_first, *how) for how in WAYS)):
        groups = sorted(_groups(wanted, now, limits, alone=alone), key=order)
        timeline = _Timeline(accepted, now, limits, drain_rate, room)
        if empty:
            timeline.empty()
        sends = _schedule(groups, timeline)
        days = days_of([at for at, _ in sends], now, limits)
        if not best or days < best_days:
            best, best_days = sends, days
        if best_days <= bound:
            break
    requests = [
        PlannedRequest(at, tuple(part)) for at, chosen in best for part in _requests(chosen, limits.request_ids)
    ]
    window = _Timeline(accepted, now, limits, drain_rate, room).window()
    return Plan(window, tuple(requests), tuple(left_out), best_days, bound)


def days_of(sends: Sequence[float], now: float, limits: Limits) -> int:
    """1 + whole windows from now to the last send; 0 where nothing is sent."""
    return 1 + int((max(sends) - now) // limits.span_seconds) if sends else 0


def lower_bound(
    files: Sequence[StagedFile],
    accepted: Sequence[Accepted],
    now: float,
    limits: Limits,
    drain_rate: float = DRAIN_RATE,
    room: float = math.inf,
) -> int:
    """Days that no plan can do without: by the bytes, by files of which no two fit into one window, by the disk."""
    if not files:
        return 0
    total = sum(file.size_bytes for file in files)
    by_bytes = max(1, -(-total // limits.window_bytes))
    backlog = _Backlog(drain_rate)
    for one in sorted(accepted, key=lambda one: one.at):
        backlog.send(one.at, one.size_bytes)
    over = total + backlog.at(now) - room  # so many bytes must have been moved before the last is asked for
    by_disk = 1 + int(over / drain_rate // limits.span_seconds) if over > 0 else 1
    return max(by_bytes, _windows_of_large(files, limits.window_bytes), by_disk)


def _windows_of_large(files: Sequence[StagedFile], window: int) -> int:
    """Windows that the large files need by themselves (the bound L2 of Martello and Toth for bin packing).

    For a size k: files over window - k lie alone; those over half a window lie apart; what of the files from k to half a
    window does not fit beside these needs windows of its own.
    """
    large = sorted((file.size_bytes for file in files if LARGE * file.size_bytes > window), reverse=True)
    most = 0
    for least in sorted({size for size in large if 2 * size <= window} | {0}):
        alone = sum(1 for size in large if size > window - least)
        apart = [size for size in large if window - least >= size and 2 * size > window]
        small = sum(size for size in large if least <= size and 2 * size <= window)
        over = small - (len(apart) * window - sum(apart))
        most = max(most, alone + len(apart) + max(0, -(-over // window)))
    return most


# -- which files ------------------------------------------------------------------------------------------------------


def _sorted_out(files: Iterable[StagedFile], limits: Limits, room: float) -> tuple[list[StagedFile], list[NotPlanned]]:
    """Files to plan, each id once, and those that are not planned."""
    wanted: dict[str, StagedFile] = {}
    left_out: dict[str, NotPlanned] = {}
    for file in files:
        if file.jdp_file_id in wanted or file.jdp_file_id in left_out:
            continue
        state, why = _reason(file, limits, room)
        if why:
            left_out[file.jdp_file_id] = NotPlanned(file, state, why)
        else:
            wanted[file.jdp_file_id] = file
    return list(wanted.values()), list(left_out.values())


def _reason(file: StagedFile, limits: Limits, room: float) -> tuple[str, str]:
    """Why a file is not planned, as (state, sentence); the sentence is empty where it is planned."""
    if file.state in NOT_PLANNED:
        return str(file.state), file.why or NOT_PLANNED[file.state]
    if file.attempts >= limits.max_attempts:
        return str(FileState.HELD), f"it was asked for {file.attempts} times: a person decides"
    if file.size_bytes > limits.window_bytes:
        return str(FileState.OVERSIZE), NOT_PLANNED[FileState.OVERSIZE]
    if file.size_bytes > room:
        return str(
            FileState.OVERSIZE
        ), "it is larger than what can lie on JDP's disk, or at the destination, at one time"
    return "", ""


def _groups(files: Sequence[StagedFile], now: float, limits: Limits, *, alone: bool = False) -> list[_Group]:
    """The files by analysis; analyses that are larger than a request or a window in parts that are not. `alone`: large files
    are analyses of their own."""
    by_name: defaultdict[str, list[StagedFile]] = defaultdict(list)
    for file in files:
        large = alone and LARGE * file.size_bytes > limits.window_bytes
        by_name[file.analyses[0] if file.analyses and not large else file.jdp_file_id].append(file)
    groups = []
    for name, members in by_name.items():
        turn = max(_turn(file, now) for file in members)
        whole = _Group(turn, name, members).measure()
        if len(members) <= limits.request_ids and whole.size_bytes <= limits.window_bytes:
            groups.append(whole)
        else:
            groups += [_Group(turn, name, part).measure() for part in _parts(whole.files, limits)]
    return groups


def _turn(file: StagedFile, now: float) -> float:
    days = 0.0 if file.waiting_since is None else max(0.0, now - file.waiting_since.timestamp()) / DAY_SECONDS
    return file.priority * (1.0 + days / WEEK_DAYS)


def _parts(files: Sequence[StagedFile], limits: Limits) -> list[list[StagedFile]]:
    """First fit of files, largest first, into parts that fit into a request and a window."""
    parts: list[list[StagedFile]] = []
    sizes: list[int] = []
    start = 0  # parts before it are full by number
    for file in files:
        for at in range(start, len(parts)):
            if sizes[at] + file.size_bytes <= limits.window_bytes and len(parts[at]) < limits.request_ids:
                break
        else:
            at = len(parts)
            parts.append([])
            sizes.append(0)
        parts[at].append(file)
        sizes[at] += file.size_bytes
        while start < len(parts) and len(parts[start]) == limits.request_ids:
            start += 1
    return parts


def _in_turn(group: _Group) -> tuple[float, str, str]:
    return (-group.turn, group.name, group.files[0].jdp_file_id)


def _largest_first(group: _Group) -> tuple[int, float, str, str]:
    return (-group.files[0].size_bytes, *_in_turn(group))


# -- when -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Backlog:
    """Bytes asked for and not yet moved, first in, first out, at a steady rate."""

    rate: float
    size: float = 0.0
    since: float = 0.0

    def at(self, time: float) -> float:
        return max(0.0, self.size - self.rate * max(0.0, time - self.since))

    def send(self, time: float, size_bytes: int) -> None:
        self.size, self.since = self.at(time) + size_bytes, max(time, self.since)

    def falls_to(self, size: float) -> float:
        """When it will be down to `size`."""
        return self.since + max(0.0, self.size - size) / self.rate


class _Timeline:
    """What was sent when, and so what may be sent at an instant. Time only goes on."""

    def __init__(self, accepted: Sequence[Accepted], now: float, limits: Limits, drain_rate: float, room: float):
        self.limits = limits
        self.now = now
        self.room = room
        self.used = 0
        self._sent: deque[tuple[float, int]] = deque()  # (when it leaves the window, bytes), soonest first
        self._backlog = _Backlog(drain_rate)
        for one in sorted(accepted, key=lambda one: one.at):
            self._backlog.send(one.at, one.size_bytes)
            if one.at + limits.span_seconds > now:
                self._sent.append((one.at + limits.span_seconds, one.size_bytes))
                self.used += one.size_bytes

    def window(self) -> Window:
        limits = self.limits
        free = max(0, limits.window_bytes - self.used)
        next_free_at = self._sent[0][0] if self._sent else None
        return Window(limits.window_bytes, limits.request_ids, limits.span_seconds, self.used, free, next_free_at)

    def empty(self) -> None:
        """Goes on to when nothing of what was accepted is in the window any more."""
        while self._sent:
            self.now, size = self._sent.popleft()
            self.used -= size

    def free(self) -> int:
        """Bytes that may be asked for now, by the window and by the disk."""
        return max(0, int(min(self.limits.window_bytes - self.used, self.room - self._backlog.at(self.now))))

    def beside(self, size_bytes: int) -> int:
        """Bytes that may be asked for now without putting off the instant from which `size_bytes` fit into the window."""
        left, kept = self.used, self.limits.window_bytes - size_bytes
        for _, size in self._sent:
            if left <= kept:
                break
            left -= size
        return max(0, kept - left)

    def send(self, size_bytes: int) -> None:
        self._sent.append((self.now + self.limits.span_seconds, size_bytes))
        self.used += size_bytes
        self._backlog.send(self.now, size_bytes)

    def go_on(self, remaining: int) -> None:
        """To the next instant at which more may be asked for; `remaining`: bytes that are still to be asked for."""
        chunk = min(self.room, float(self.limits.window_bytes), float(remaining))
        drained = self._backlog.falls_to(self.room - chunk - 1)
        times = [self._sent[0][0]] if self._sent else []
        if drained > self.now and self.room - self._backlog.at(self.now) < self.limits.window_bytes - self.used:
            times = [max([drained, *(times if self.used >= self.limits.window_bytes else [])])]
        self.now = max(times) if times else math.nextafter(max(self.now, drained), math.inf)
        while self._sent and self._sent[0][0] <= self.now:
            self.used -= self._sent.popleft()[1]


def _schedule(groups: list[_Group], timeline: _Timeline) -> list[tuple[float, list[list[StagedFile]]]]:
    """(instant, files by analysis) until nothing is left."""
    sends = []
    remaining = sum(group.size_bytes for group in groups)
    pending = groups
    while pending:
        chosen, pending = _fill(pending, timeline)
        if chosen:
            size = sum(file.size_bytes for part in chosen for file in part)
            sends.append((timeline.now, chosen))
            timeline.send(size)
            remaining -= size
        if pending:
            timeline.go_on(remaining)
    return sends


def _fill(pending: Sequence[_Group], timeline: _Timeline) -> tuple[list[list[StagedFile]], list[_Group]]:
    """What is asked for now, and what is left, in order.

    Whole analyses in turn; the first one that does not fit is split, and what is then left is filled with whole ones that fit.
    A file that is next and fits into no window beside what was sent lately keeps its place: what goes before it does not put
    it off.
    """
    free = timeline.free()
    if pending[0].files[0].size_bytes > free:
        free = min(free, timeline.beside(pending[0].files[0].size_bytes))
    chosen: list[list[StagedFile]] = []
    rest: list[_Group] = []
    split = False
    for group in pending:
        if group.size_bytes <= free:
            chosen.append(group.files)
            free -= group.size_bytes
        elif split or group.smallest > free:
            rest.append(group)
        else:
            part, left = _split(group.files, free)
            chosen.append(part)
            free -= sum(file.size_bytes for file in part)
            rest.append(_Group(group.turn, group.name, left).measure())
            split = True
    return chosen, rest


def _split(files: Sequence[StagedFile], free: int) -> tuple[list[StagedFile], list[StagedFile]]:
    """Of one analysis, files that fit, largest first, and the rest."""
    part, left = [], []
    for file in files:
        if file.size_bytes <= free:
            part.append(file)
            free -= file.size_bytes
        else:
            left.append(file)
    return part, left


# -- requests ---------------------------------------------------------------------------------------------------------


def _requests(parts: Sequence[Sequence[StagedFile]], most: int) -> list[list[StagedFile]]:
    """Requests of at most `most` files, about equally large, each analysis in one of them."""
    total = sum(len(part) for part in parts)
    count = -(-total // most)
    while True:
        cut = _balanced(parts, count, most)
        if cut is not None:
            return cut
        count += 1


def _balanced(parts: Sequence[Sequence[StagedFile]], count: int, most: int) -> list[list[StagedFile]] | None:
    """The largest analysis first, each into the request with the fewest files that has room; None where one finds no room."""
    requests: list[list[StagedFile]] = [[] for _ in range(count)]
    heap = [(0, at) for at in range(count)]
    for part in sorted(parts, key=len, reverse=True):
        size, at = heap[0]
        if size + len(part) > most:
            return None
        requests[at].extend(part)
        heapq.heapreplace(heap, (size + len(part), at))
    return [request for request in requests if request]
