"""How NMDC's scripts chose what to ask JDP for, replayed from descriptions of them: the peers of the planner.

Both cut the list of files into batches by row numbers of which both ends count, so a batch has one file more than it should,
and the file at a border is in two batches. A run of a day knows nothing of the day before. They differ in what happens at a
batch that would go over the limit: the direct version stops there, the later one leaves that batch out and begins its sum anew.

Invariant: as they were, with their faults; a run is given a perfect operator, who starts it every 24 hours to the second, and all
that it asked for is moved by the next run.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.jgi_plans import NOW, Asked, Wanted

BATCH = 750
LIMIT = 10**13
DAY_SECONDS = 86_400.0
BETWEEN_SECONDS = 20.0  # from one request of a run to the next


def direct(files: Sequence[Wanted], most_days: int) -> list[Asked]:
    """The version that wrote to MongoDB itself."""
    asked: list[Asked] = []
    rest = list(files)
    for day in range(most_days):
        total, sent = 0, set[str]()
        for number, batch in enumerate(_batches(rest)):
            size = sum(file.size for file in batch)
            if total + size > LIMIT:
                break
            total += size
            asked.append(_request(day, number, batch))
            sent |= {file.id for file in batch}
        rest = [file for file in rest if file.id not in sent]
        if not rest or not sent:
            break
    return asked


def later(files: Sequence[Wanted], most_days: int) -> list[Asked]:
    """The version for the runtime API, were its fields right. That it asks for everything again each day is not counted."""
    asked: list[Asked] = []
    rest = list(files)
    for day in range(most_days):
        total, sent = 0, set[str]()
        for number, batch in enumerate(_batches(rest)):
            size = sum(file.size for file in batch)
            if total + size > LIMIT:
                total = 0
                continue
            total += size
            asked.append(_request(day, number, batch))
            sent |= {file.id for file in batch}
        rest = [file for file in rest if file.id not in sent]
        if not rest or not sent:
            break
    return asked


def _batches(files: Sequence[Wanted]) -> list[Sequence[Wanted]]:
    return [files[begin : begin + BATCH + 1] for begin in range(0, len(files), BATCH)]


def _request(day: int, number: int, batch: Sequence[Wanted]) -> Asked:
    at = NOW + day * DAY_SECONDS + number * BETWEEN_SECONDS
    return Asked(at, sum(file.size for file in batch), tuple(file.id for file in batch))
