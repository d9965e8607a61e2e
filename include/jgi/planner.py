"""What is asked of JDP, and when: from files, and what was accepted lately, to restore requests.

Read it in this order: `plan`; `_Timeline`, what may be asked for at an instant; `_fill`, what is chosen for it; `_requests`,
how that is cut into restore requests. What no plan can do better is in `bound`.

Invariant: pure; the same files in any order give the same plan. No window (`Limits.span_seconds`, open at its begin) ever
holds more than `window_bytes`, each file is in one request, and no request holds more than `request_ids` files.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from include.jgi.bound import LARGE, Accepted, lower_bound
from include.jgi.models import FileState, Limits, StagedFile

DRAIN_RATE = 3.7e8  # bytes per second that Globus moves off JDP's disk, as measured by NMDC
SAFETY = 0.5  # of what can be moved within a file's life on disk
DAY_SECONDS = 86_400.0
WEEK_DAYS = 7.0
SHARE = 20  # what is asked for at one instant is at least a twentieth of a window, or all that is left
LOOK_AHEAD = 1000  # analyses that are looked at to fill up a window

DONE = "DONE"
HELD, OVERSIZE, QUEUED = str(FileState.HELD), str(FileState.OVERSIZE), str(FileState.QUEUED)
NOT_PLANNED = {
    FileState.FILTERED: (str(FileState.FILTERED), "the project's filters leave it out"),
    FileState.REQUESTING: (QUEUED, "a restore request that has it is being sent, or its answer is missing"),
    FileState.QUEUED: (QUEUED, "a restore request has it"),
    FileState.ON_DISK: (QUEUED, "it is on JDP's disk, and is moved from there"),
    FileState.HELD: (HELD, "its attempts are used up: a person decides"),
    FileState.REJECTED: (str(FileState.REJECTED), "JDP refuses it"),
    FileState.LOST: (str(FileState.LOST), "JDP does not list it any more"),
}


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
    """A file that is not asked for. `state` is the planner's word: OVERSIZE, FILTERED, QUEUED, DONE, HELD, REJECTED or LOST."""

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
    """`days`: 1 + whole windows from now to the last send; `lower_bound_days`: what no plan can be better than."""

    window: Window
    requests: tuple[PlannedRequest, ...]
    not_planned: tuple[NotPlanned, ...]
    days: int
    lower_bound_days: int


@dataclass(slots=True)
class _Group:
    """Files that are asked for together where they fit, largest first: one analysis, or one large file of it."""

    name: str
    turn: float
    files: list[StagedFile]
    size_bytes: int

    @property
    def largest(self) -> int:
        return self.files[0].size_bytes

    @property
    def smallest(self) -> int:
        return self.files[-1].size_bytes


Sends = list[tuple[float, list[_Group]]]


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

    Analyses go in turn: priority × (1 + days waited / 7). Where that order needs more days than the bytes do, analyses with
    large files go first; if that does not help, large files go first by themselves; and then the same, but only once
    nothing of what was accepted lately is left in the window.
    """
    room = int(drain_rate * limits.disk_life_days * DAY_SECONDS * SAFETY)
    room = room if free_bytes is None else min(room, free_bytes)
    wanted, left_out = _sort_out(files, limits, room)
    bound = lower_bound([file.size_bytes for file in wanted], accepted, now, limits, drain_rate, room)
    groups = _groups(wanted, now)
    begin = _Timeline(accepted, now, limits, drain_rate, room)
    window = begin.window(limits)
    best: Sends = []
    best_days = 0
    for large_first, wait in ((_none, False), (_analyses, False), (_files, False), (_analyses, True), (_files, True)):
        timeline = _Timeline(accepted, now, limits, drain_rate, room)
        if wait:
            timeline.go_on(limits.window_bytes, 0)
        sends = _schedule(*large_first(groups, min(limits.window_bytes, room)), timeline)
        days = 1 + int((sends[-1][0] - now) // limits.span_seconds) if sends else 0
        if not best or days < best_days:
            best, best_days = sends, days
        if best_days <= bound:
            break
    requests = [
        PlannedRequest(at, tuple(part)) for at, chosen in best for part in _requests(chosen, limits.request_ids)
    ]
    return Plan(window, tuple(requests), tuple(left_out), best_days, bound)


# -- which files ------------------------------------------------------------------------------------------------------


def _sort_out(files: Iterable[StagedFile], limits: Limits, room: int) -> tuple[list[StagedFile], list[NotPlanned]]:
    """Files to plan, each id once, and those that are not planned."""
    wanted: list[StagedFile] = []
    left_out: list[NotPlanned] = []
    for file in {file.jdp_file_id: file for file in files}.values():
        state, why = _reason(file, limits, room)
        if state:
            left_out.append(NotPlanned(file, state, why))
        else:
            wanted.append(file)
    return wanted, left_out


def _reason(file: StagedFile, limits: Limits, room: int) -> tuple[str, str]:
    """Why a file is not planned, as (state, sentence); both are empty where it is planned.

    In state PLANNED it is planned whatever its attempts: a person has decided so. Whether it is oversize is judged anew each
    time, since limits are changed.
    """
    if file.state in NOT_PLANNED:
        state, why = NOT_PLANNED[file.state]
        return state, file.why or why
    if file.attempts >= limits.max_attempts and file.state != FileState.PLANNED:
        return HELD, f"it was asked for {file.attempts} times: a person decides"
    if file.size_bytes > limits.window_bytes:
        return OVERSIZE, f"it is larger than a whole window of {limits.window_bytes} bytes: arrange it with JGI"
    if file.size_bytes > room:
        return OVERSIZE, f"it is larger than the {room} bytes that may wait on JDP's disk for the destination"
    return "", ""


def _groups(files: Sequence[StagedFile], now: float) -> list[_Group]:
    """The files by analysis, in turn.

    Of equal turns the one goes first before which less of its own project goes: so a small project is not kept waiting by a
    large one that was there at the same time.
    """
    by_name: defaultdict[str, list[StagedFile]] = defaultdict(list)
    for file in files:
        by_name[file.analyses[0] if file.analyses else file.jdp_file_id].append(file)
    groups = [_group(name, max(_turn(file, now) for file in members), members) for name, members in by_name.items()]
    groups.sort(key=lambda group: (-group.turn, group.name))
    before: defaultdict[tuple[float, str], int] = defaultdict(int)
    keys = []
    for group in groups:
        project = group.turn, group.files[0].project
        keys.append((-group.turn, before[project], group.name))
        before[project] += group.size_bytes
    return [groups[at] for at in sorted(range(len(groups)), key=keys.__getitem__)]


def _group(name: str, turn: float, files: list[StagedFile]) -> _Group:
    files.sort(key=lambda file: (-file.size_bytes, file.jdp_file_id))
    return _Group(name, turn, files, sum(file.size_bytes for file in files))


def _turn(file: StagedFile, now: float) -> float:
    days = 0.0 if file.waiting_since is None else max(0.0, now - file.waiting_since.timestamp()) / DAY_SECONDS
    return file.priority * (1.0 + days / WEEK_DAYS)


def _none(groups: list[_Group], window: int) -> tuple[list[_Group], list[_Group]]:
    """(what goes first, by size; the rest, in turn): all in turn."""
    return [], groups


def _analyses(groups: list[_Group], window: int) -> tuple[list[_Group], list[_Group]]:
    """Analyses with a large file first; one that is larger than a window, by file."""
    first = [group for group in groups if LARGE * group.largest > window and group.size_bytes <= window]
    rest = [group for group in groups if LARGE * group.largest <= window or group.size_bytes > window]
    alone, rest = _files(rest, window)
    return _by_size(first + alone), rest


def _files(groups: list[_Group], window: int) -> tuple[list[_Group], list[_Group]]:
    """Large files first, each by itself."""
    first, rest = [], []
    for group in groups:
        large = [file for file in group.files if LARGE * file.size_bytes > window]
        first += [_Group(group.name, group.turn, [file], file.size_bytes) for file in large]
        if len(large) < len(group.files):
            small = group.files[len(large) :]
            rest.append(replace(group, files=small, size_bytes=group.size_bytes - sum(f.size_bytes for f in large)))
    return _by_size(first), rest


def _by_size(groups: list[_Group]) -> list[_Group]:
    return sorted(groups, key=lambda group: (-group.size_bytes, -group.turn, group.name))


# -- when -------------------------------------------------------------------------------------------------------------


class _Timeline:
    """What was asked for when, and so what may be asked for at an instant: by the window, and by JDP's disk. Time only goes on.

    On the disk lie bytes that are asked for and not moved yet; they are moved first in, first out, at a steady rate. All but
    the first instant are whole seconds, and bytes are integers, rounded to the safe side: so no sum is a little too small.
    """

    def __init__(self, accepted: Sequence[Accepted], now: float, limits: Limits, drain_rate: float, room: int):
        self.now = now
        self.limit = limits.window_bytes
        self.room = room
        self.used = 0
        self._span = math.ceil(limits.span_seconds)
        self._sent: deque[tuple[int, int]] = deque()  # (when it leaves the window, bytes), soonest first
        self._rate, self._parts = drain_rate.as_integer_ratio()
        self._backlog, self._since = 0, 0
        for one in sorted(accepted, key=lambda one: one.at):
            self._put_on_disk(one.at, one.size_bytes)
            leaves = math.ceil(one.at) + self._span
            if leaves > now:
                self._sent.append((leaves, one.size_bytes))
                self.used += one.size_bytes

    def window(self, limits: Limits) -> Window:
        next_free_at = float(self._sent[0][0]) if self._sent else None
        free = max(0, self.limit - self.used)
        return Window(self.limit, limits.request_ids, limits.span_seconds, self.used, free, next_free_at)

    def free(self) -> int:
        """Bytes that may be asked for now."""
        return max(0, min(self.limit - self.used, self.room - self._on_disk(self.now)))

    def beside(self, size_bytes: int) -> int:
        """Bytes that may be asked for now without putting off the instant from which `size_bytes` may be."""
        if self.room - self._on_disk(self.now) < size_bytes:
            return 0
        left, kept = self.used, self.limit - size_bytes
        for _, size in self._sent:
            if left <= kept:
                break
            left -= size
        return min(self.free(), max(0, kept - left))

    def send(self, size_bytes: int) -> None:
        self._sent.append((math.ceil(self.now) + self._span, size_bytes))
        self.used += size_bytes
        self._put_on_disk(self.now, size_bytes)

    def go_on(self, window_bytes: int, disk_bytes: int) -> None:
        """To the first instant at which the window has so many bytes free, and the disk."""
        over = self._backlog - (self.room - disk_bytes)
        if over > 0:
            self.now = max(self.now, self._since - (-over * self._parts // self._rate))
        while self._sent and (self._sent[0][0] <= self.now or self.limit - self.used < window_bytes):
            leaves, size = self._sent.popleft()
            self.now = max(self.now, leaves)
            self.used -= size

    def _on_disk(self, at: float) -> int:
        return max(0, self._backlog - max(0, math.floor(at) - self._since) * self._rate // self._parts)

    def _put_on_disk(self, at: float, size_bytes: int) -> None:
        self._backlog, self._since = self._on_disk(at) + size_bytes, max(math.ceil(at), self._since)


def _schedule(first: list[_Group], in_turn: list[_Group], timeline: _Timeline) -> Sends:
    """(instant, what is asked for then) until nothing is left."""
    rest = deque(in_turn)
    sends: Sends = []
    remaining = sum(group.size_bytes for group in (*first, *rest))
    while first or rest:
        chosen, first = _fill(first, rest, timeline)
        if chosen:
            size = sum(group.size_bytes for group in chosen)
            sends.append((timeline.now, chosen))
            timeline.send(size)
            remaining -= size
        if first or rest:
            least = min(remaining, timeline.limit // SHARE, timeline.room)
            need = max(least, _head(first, rest))
            timeline.go_on(need, need)
    return sends


def _head(first: Sequence[_Group], rest: Sequence[_Group]) -> int:
    """Bytes that must fit for the next in turn to go on: those that go first are whole, of others one file may go."""
    return first[0].size_bytes if first else rest[0].largest


def _fill(first: list[_Group], rest: deque[_Group], timeline: _Timeline) -> tuple[list[_Group], list[_Group]]:
    """What is asked for now, and what is left of those that go first; it is taken off `rest`.

    Of those that go first, the largest ones that fit. Of the rest whole analyses in turn; the first one that does not fit is
    split, and what is then left is filled with whole ones that fit. What is next in turn and fits nowhere beside what was
    asked for lately keeps its place: what goes before it does not put it off.
    """
    free, head = timeline.free(), _head(first, rest)
    split = head > free  # then nothing is
    if split:
        free = timeline.beside(head)
    chosen, left = _largest(first, free)
    free -= sum(group.size_bytes for group in chosen)
    begun = {group.name for group in chosen}
    kept: list[_Group] = []
    while rest and len(kept) <= LOOK_AHEAD:
        group = rest.popleft()
        if group.size_bytes <= free:
            chosen.append(group)
            free -= group.size_bytes
        elif group.smallest <= free and (not split or group.name in begun):
            part, after = _split(group, free)
            chosen.append(part)
            free -= part.size_bytes
            kept.append(after)
            split = True
        else:
            kept.append(group)
    rest.extendleft(reversed(kept))
    return chosen, left


def _largest(groups: list[_Group], free: int) -> tuple[list[_Group], list[_Group]]:
    """Of groups by size, the largest that fits, and again, until none does; and what is left."""
    chosen, left = [], []
    at = 0
    while at < len(groups):
        fits = bisect.bisect_left(groups, -free, lo=at, key=lambda group: -group.size_bytes)
        left += groups[at:fits]
        if fits < len(groups):
            chosen.append(groups[fits])
            free -= groups[fits].size_bytes
        at = fits + 1
    return chosen, left


def _split(group: _Group, free: int) -> tuple[_Group, _Group]:
    """Of one analysis, files that fit, largest first, and the rest."""
    part, left = [], []
    size = 0
    for file in group.files:
        if size + file.size_bytes <= free:
            part.append(file)
            size += file.size_bytes
        else:
            left.append(file)
    return replace(group, files=part, size_bytes=size), replace(group, files=left, size_bytes=group.size_bytes - size)


# -- requests ---------------------------------------------------------------------------------------------------------


def _requests(chosen: Sequence[_Group], most: int) -> list[list[StagedFile]]:
    """Requests of at most `most` files, with about as many files each. An analysis is in one of them, unless it has more."""
    by_name: defaultdict[str, list[StagedFile]] = defaultdict(list)
    for group in chosen:
        by_name[group.name] += group.files
    parts = [part for files in by_name.values() for part in _cut(files, most)]
    count = -(-sum(len(part) for part in parts) // most)
    while (cut := _balanced(parts, count, most)) is None:
        count += 1
    return cut


def _cut(files: list[StagedFile], most: int) -> list[list[StagedFile]]:
    """In as few parts as `most` allows, about equally long."""
    count = -(-len(files) // most)
    borders = [len(files) * at // count for at in range(count + 1)]
    return [files[begin:end] for begin, end in pairwise(borders)]


def _balanced(parts: Sequence[list[StagedFile]], count: int, most: int) -> list[list[StagedFile]] | None:
    """The longest part first, each into the request with the fewest files; None where one finds no room."""
    requests: list[list[StagedFile]] = [[] for _ in range(count)]
    heap = [(0, at) for at in range(count)]
    for part in sorted(parts, key=len, reverse=True):
        size, at = heap[0]
        if size + len(part) > most:
            return None
        requests[at].extend(part)
        heapq.heapreplace(heap, (size + len(part), at))
    return [request for request in requests if request]
