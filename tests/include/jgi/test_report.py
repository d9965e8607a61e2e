"""What the receipt of a staging run says of files, placements and restore requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from include.core.remedies import lines_of, remedy_of
from include.jgi.documents import TrackedRequest
from include.jgi.models import FileState, Placement, PlacementState, Project, RequestState, StagedFile
from include.jgi.report import Report
from include.jgi.tracking import Tracking

NOW = datetime(2026, 11, 27, tzinfo=UTC)


@dataclass
class Kept:
    """The five questions that a report asks of MongoDB, answered from lists."""

    staged: list[StagedFile] = field(default_factory=list)
    placed: list[Placement] = field(default_factory=list)
    asked: list[TrackedRequest] = field(default_factory=list)

    def projects(self) -> list[Project]:
        return [Project("grow", 503568)]

    def counts(self, _project: str) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        rows = [(str(one.state), one.size_bytes) for one in self.staged]
        for name, size in [*rows, *((f"placed {one.state}", one.size_bytes) for one in self.placed)]:
            count, total = found.get(name, (0, 0))
            found[name] = (count + 1, total + size)
        return found

    def requests(self, states: Any) -> list[TrackedRequest]:
        return [one for one in self.asked if one.state in states]

    def files(self, *, project: str, states: Any) -> Iterator[StagedFile]:
        return (one for one in self.staged if one.project == project and one.state in states)

    def placements(self, *, project: str, states: Any) -> Iterator[Placement]:
        return (one for one in self.placed if one.project == project and one.state in states)


def report(kept: Kept) -> Report:
    return Report.of(cast(Tracking, kept), NOW)


def a_file(number: int, state: FileState, **more: Any) -> StagedFile:
    return StagedFile(f"{number:024x}", f"f{number}.gz", 10, "grow", state, **more)


def a_place(number: int, state: PlacementState, **more: Any) -> Placement:
    return Placement(f"{number:024x}", "Ga1", "grow", f"/staging/grow/f{number}.gz", 10, None, state, **more)


def test_what_needs_nobody_is_no_problem() -> None:
    found = report(
        Kept(
            [a_file(1, FileState.ON_DISK), a_file(2, FileState.QUEUED), a_file(3, FileState.PLANNED)],
            [
                a_place(1, PlacementState.VERIFIED),
                a_place(2, PlacementState.WAITING),
                a_place(3, PlacementState.WAITING),
            ],
        )
    )
    assert found.problems == [] and found.still_to_come == 2
    assert found.totals == {"projects": 1, "files": 3, "verified": 1, "verified bytes": 10}
    assert found.outcome(None) == "1 file (10 B) of 1 project are staged and verified. 2 files are still to come."


@pytest.mark.parametrize("state", [FileState.HELD, FileState.OVERSIZE, FileState.REJECTED, FileState.LOST])
def test_files_that_need_a_person_are_named_with_reason_and_remedy_and_are_not_to_come(state: FileState) -> None:
    found = report(Kept([a_file(7, state, why="so it was")], [a_place(7, PlacementState.WAITING)]))
    (line,) = lines_of(found.problems)
    assert line == f"grow: 1 file {state}: f7.gz ({7:024x}: so it was)"
    assert "JGI" in remedy_of(found.problems) or "JDP" in remedy_of(found.problems)
    assert found.still_to_come == 0


@pytest.mark.parametrize(
    ("state", "remedy"), [(PlacementState.MISMATCH, "JGI"), (PlacementState.UNVERIFIABLE, "mount")]
)
def test_places_without_a_proof_are_named(state: PlacementState, remedy: str) -> None:
    found = report(Kept([a_file(7, FileState.ON_DISK)], [a_place(7, state, why="its md5 differs")]))
    assert lines_of(found.problems) == [f"grow: 1 file {state}: /staging/grow/f7.gz (its md5 differs)"]
    assert remedy in remedy_of(found.problems)


def test_a_long_list_names_the_first_and_says_where_all_are() -> None:
    (line,) = lines_of(report(Kept([a_file(n, FileState.HELD, why="no") for n in range(9)])).problems)
    assert line.startswith("grow: 9 files HELD: f0.gz") and "and 6 more: all stand in MongoDB" in line


def test_slow_tapes_are_named_and_are_no_problem() -> None:
    slow = TrackedRequest("k1", RequestState.PENDING, 3, 30, request_id=101, sent_at=NOW - timedelta(hours=96))
    soon = TrackedRequest("k2", RequestState.PENDING, 3, 30, request_id=102, sent_at=NOW - timedelta(hours=20))
    ready = TrackedRequest("k3", RequestState.READY, 3, 30, request_id=103, sent_at=NOW - timedelta(hours=96))
    found = report(Kept(asked=[slow, soon, ready]))
    assert "restore request 101 for 4 days" in found.outcome(None) and "102" not in found.outcome(None)
    assert found.problems == []
    assert [row["restore request"] for row in found.requests] == [101, 102, 103]
