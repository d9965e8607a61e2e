"""Judges plans of tape restores, and makes what they are to be made of.

Invariant: the judge shares nothing with the planner: it counts every window, and the disk, from the plan's requests alone, in
exact fractions.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction

TB = 10**12
NOW = 1_795_651_200.0  # 2026-11-26T00:00:00Z


@dataclass(frozen=True)
class Wanted:
    """A file that is to be asked for."""

    id: str
    size: int
    analysis: str = ""
    project: str = "grow"
    priority: float = 1.0
    days_waited: float = 0.0

    @property
    def waiting_since(self) -> datetime:
        return datetime.fromtimestamp(NOW, UTC) - timedelta(days=self.days_waited)


@dataclass(frozen=True)
class Asked:
    """A restore request of a plan, or what was accepted before (without ids)."""

    at: float
    size: int
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """What must hold: bytes in any window of `span_seconds`, ids in a request, bytes on disk that are not moved yet."""

    window: int = 10 * TB
    span_seconds: float = 90_900.0
    ids: int = 750
    drain_rate: float = 3.7e8
    room: float = 3.7e8 * 14 * 86_400 * 0.5


def faults_of(files: Sequence[Wanted], before: Sequence[Asked], asked: Sequence[Asked], rules: Rules) -> list[str]:
    """What is wrong with a plan that asks for these files."""
    return [
        *_content_faults(files, asked, rules),
        *_window_faults(before, asked, rules),
        *_disk_faults(before, asked, rules),
        *_analysis_faults(files, before, asked, rules),
    ]


def window_faults(before: Sequence[Asked], asked: Sequence[Asked], rules: Rules) -> list[str]:
    return list(_window_faults(before, asked, rules))


def _content_faults(files: Sequence[Wanted], asked: Sequence[Asked], rules: Rules) -> Iterator[str]:
    sizes = {file.id: file.size for file in files}
    ids = [one for request in asked for one in request.ids]
    if sorted(ids) != sorted(sizes):
        yield f"{len(ids)} ids are asked for, {len(set(ids))} different ones, of {len(sizes)}"
    for request in asked:
        if not 0 < len(request.ids) <= rules.ids:
            yield f"a request has {len(request.ids)} ids"
        if request.size != sum(sizes.get(one, 0) for one in request.ids):
            yield "a request's bytes are not those of its files"
    if any(one.at < NOW for one in asked) or [one.at for one in asked] != sorted(one.at for one in asked):
        yield "a request is to be sent before now, or out of order"


def _window_faults(before: Sequence[Asked], asked: Sequence[Asked], rules: Rules) -> Iterator[str]:
    events = sorted((Fraction(one.at), one.size, bool(one.ids)) for one in (*before, *asked))
    span = Fraction(rules.span_seconds)
    begin = used = planned = 0
    for at, group in _by_instant(events):
        for _, size, own in group:
            used += size
            planned += size if own else 0
        while events[begin][0] <= at - span:
            used -= events[begin][1]
            planned -= events[begin][1] if events[begin][2] else 0
            begin += 1
        if planned and used > rules.window:
            yield f"the window that ends at {float(at)} holds {used} bytes"


def _by_instant(
    events: list[tuple[Fraction, int, bool]],
) -> Iterator[tuple[Fraction, list[tuple[Fraction, int, bool]]]]:
    at = 0
    while at < len(events):
        end = at
        while end < len(events) and events[end][0] == events[at][0]:
            end += 1
        yield events[at][0], events[at:end]
        at = end


def _disk_faults(before: Sequence[Asked], asked: Sequence[Asked], rules: Rules) -> Iterator[str]:
    rate, room = Fraction(rules.drain_rate), Fraction(rules.room)
    on_disk, last = Fraction(0), Fraction(0)
    for at, group in _by_instant(sorted((Fraction(one.at), one.size, bool(one.ids)) for one in (*before, *asked))):
        on_disk = max(Fraction(0), on_disk - rate * (at - last)) + sum(size for _, size, _ in group)
        last = at
        if any(own for _, _, own in group) and on_disk > room:
            yield f"at {float(at)} there are {float(on_disk)} bytes on disk"


def _analysis_faults(
    files: Sequence[Wanted], before: Sequence[Asked], asked: Sequence[Asked], rules: Rules
) -> Iterator[str]:
    """An analysis is in one request, unless it is too large for one, or a window ended in its midst."""
    by_id = {file.id: file for file in files}
    members: defaultdict[str, list[Wanted]] = defaultdict(list)
    for file in files:
        members[file.analysis or file.id].append(file)
    where: defaultdict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for request in asked:
        for name in {by_id[one].analysis or one for one in request.ids}:
            where[name][request.at] += 1
    free = free_after(before, asked, rules)
    sent = {one: request.at for request in asked for one in request.ids}
    for name, instants in where.items():
        if max(instants.values()) > 1 and len(members[name]) <= rules.ids:
            yield f"{name} is in {max(instants.values())} requests of one instant"
        if max(file.size for file in files) * 20 > rules.window:
            continue  # a large file may be waited for, with room left
        for at in sorted(instants)[:-1]:
            left = min(file.size for file in members[name] if sent[file.id] > at)
            if left <= free[at]:
                yield f"{name} is split at {at}, where {free[at]} bytes were free and {left} would have fitted"


def free_after(before: Sequence[Asked], asked: Sequence[Asked], rules: Rules) -> dict[float, int]:
    """Bytes that a plan leaves unused at each of its instants."""
    events = sorted((Fraction(one.at), one.size, False) for one in (*before, *asked))
    rate, span = Fraction(rules.drain_rate), Fraction(rules.span_seconds)
    free: dict[float, int] = {}
    on_disk, last, begin, used = Fraction(0), Fraction(0), 0, 0
    for at, group in _by_instant(events):
        size = sum(one[1] for one in group)
        on_disk, last, used = max(Fraction(0), on_disk - rate * (at - last)) + size, at, used + size
        while events[begin][0] <= at - span:
            used -= events[begin][1]
            begin += 1
        free[float(at)] = min(rules.window - used, math.floor(Fraction(rules.room) - on_disk))
    return free


# -- instances --------------------------------------------------------------------------------------------------------


def file_id(number: int) -> str:
    return f"{number:024x}"


def fixture_shaped(rng: random.Random, analyses: int) -> list[Wanted]:
    """Analyses as JDP has them: about 80 files, 90 GB, the largest a third of it, many of a few bytes."""
    files: list[Wanted] = []
    for number in range(analyses):
        scale = rng.lognormvariate(0.0, 0.6)
        project, waited = rng.choice(("grow", "bioscales", "sorgho")), rng.choice((0.0, 0.0, 1.0, 9.0))
        sizes = [int(scale * size) for size in (36e9, 18e9, 12e9, 7.4e9, 5e9, 3e9, 2e9)]
        sizes += [int(scale * rng.lognormvariate(17.0, 3.0)) % 4_000_000_000 for _ in range(rng.randint(60, 90))]
        for size in sizes:
            files.append(Wanted(file_id(len(files)), size, f"Ga{number:07}", project, days_waited=waited))
    return files


def random_files(rng: random.Random, count: int, large: float) -> list[Wanted]:
    """Any sizes; a share of `large` of the files has up to nine tenths of a window."""
    files: list[Wanted] = []
    analysis = 0
    while len(files) < count:
        analysis += 1
        priority, waited = rng.choice((1.0, 1.0, 2.0, 0.5)), rng.uniform(0.0, 20.0)
        for _ in range(rng.choice((1, 2, 5, 20, 80, 81, 79, 300, 900))):
            size = rng.randrange(int(9 * TB)) if rng.random() < large else int(rng.lognormvariate(20.0, 2.5)) % TB
            name = f"Ga{analysis:07}" if rng.random() < 0.98 else ""
            files.append(Wanted(file_id(len(files)), size, name, rng.choice("ab"), priority, waited))
    return files


def random_before(rng: random.Random, rules: Rules) -> list[Asked]:
    """What was accepted within the last two windows: nothing, one day's requests, or many small ones."""
    kind = rng.randrange(4)
    if kind == 0:
        return []
    if kind == 1:
        at = NOW - rng.uniform(0.0, rules.span_seconds)
        return [Asked(at + 60.0 * one, rules.window // 8) for one in range(8) if at + 60.0 * one <= NOW]
    count = rng.choice((1, 3, 30))
    instants = sorted(NOW - rng.uniform(1.0, 2 * rules.span_seconds) for _ in range(count))
    return [Asked(float(round(at)), rng.randrange(rules.window // count)) for at in instants]
