"""From a manifest to a batch, and from what became of each file back into MongoDB."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from include.core.errors import DeadlinePassed
from include.globus.batch import Batch
from include.globus.transfer import Outcome, Verdict
from include.jgi.documents import TrackedRequest
from include.jgi.manifest import ManifestRow
from include.jgi.models import BatchState, FileState, Limits, Placement, PlacementState, RequestState, StagedFile
from include.jgi.moving import Route, drained, files_batch, manifest_batch, record, seconds_left, with_facts
from include.jgi.tracking import Tracking

NOW = 1_800_000_000.0
HOUR = 3600.0
ROUTE = Route("jgi", "/73709", "nersc", "/staging")
IDS = [f"65aa{number:020x}" for number in range(4)]
ROWS = [ManifestRow(one, f"Ga1/{one}.fna", f"{at:032x}", 100 + at) for at, one in enumerate(IDS)]
KEY = "request-1"


@dataclass
class Staged:
    """A restore request whose files are on JDP's disk."""

    tracking: Tracking

    @property
    def request(self) -> TrackedRequest:
        (found,) = self.tracking.requests(key=KEY)
        return found

    def batch(self, left_seconds: float = 10 * HOUR) -> Batch | None:
        return files_batch(self.tracking, ROUTE, self.request, ROWS, left_seconds=left_seconds, globus_now=NOW)

    def begun(self) -> Batch:
        """The batch, as if Globus had accepted it."""
        batch = self.batch()
        assert batch is not None
        places = [item.destination for item in batch.items]
        self.tracking.move_batch(batch.key, (BatchState.INTENT,), BatchState.SUBMITTED, task_id="t1")
        self.tracking.move_placements(places, PlacementState.BATCHED, PlacementState.SUBMITTED, "task t1")
        return batch

    def placements(self) -> dict[str, PlacementState]:
        return {one.jdp_file_id: one.state for one in self.tracking.placements(ids=IDS)}

    def files(self) -> dict[str, tuple[FileState, int]]:
        return {one.jdp_file_id: (one.state, one.attempts) for one in self.tracking.files(ids=IDS)}


@pytest.fixture
def staged(mongo: Any) -> Iterator[Staged]:
    tracking = Tracking(mongo)
    tracking.ensure_indexes()
    tracking.put_files(StagedFile(one, f"{one}.fna", 100 + at, "grow") for at, one in enumerate(IDS))
    tracking.put_placements(
        Placement(one, "Ga1", "grow", f"/staging/grow/Ga1/{one}.fna", 100 + at) for at, one in enumerate(IDS)
    )
    tracking.claim(IDS, KEY)
    tracking.move_files(IDS, FileState.REQUESTING, FileState.QUEUED, "accepted", claim=KEY, request_id=7)
    tracking.move_files(IDS, FileState.QUEUED, FileState.ON_DISK, "in the manifest", claim=KEY)
    tracking.put_request(TrackedRequest(KEY, RequestState.READY, len(IDS), 406, "grow", request_id=7))
    yield Staged(tracking)


def outcome(batch: Batch, at: int, verdict: Verdict, **facts: Any) -> Outcome:
    return Outcome(batch.items[at], verdict, f"a test: {verdict}", **facts)


def test_how_long_files_stay_is_the_earliest_of_what_jdp_says() -> None:
    soon, later = (datetime.fromtimestamp(NOW + hours * HOUR, UTC) for hours in (3, 5))
    assert seconds_left(later, [soon], NOW, Limits()) == 3 * HOUR
    assert seconds_left(soon, [later], NOW, Limits()) == 3 * HOUR
    assert seconds_left(None, [], NOW, Limits(disk_life_days=14)) == 7 * 24 * HOUR


def test_the_manifest_is_a_batch_of_its_own() -> None:
    batch = manifest_batch(ROUTE, 7, left_seconds=HOUR, globus_now=NOW)
    (item,) = batch.items
    assert item.source == "/73709/R7/Globus_Download_7_File_Manifest.csv"
    assert item.destination == "/staging/manifests/Globus_Download_7_File_Manifest.csv"
    assert batch.deadline.timestamp() == NOW + HOUR


def test_a_batch_has_the_facts_of_the_manifest_and_ends_before_the_purge(staged: Staged) -> None:
    batch = staged.batch()
    assert batch is not None
    assert {(item.source, item.size_bytes, item.md5) for item in batch.items} == {
        (f"/73709/R7/{row.path}", row.size_bytes, row.md5) for row in ROWS
    }
    assert batch.deadline.timestamp() == NOW + 10 * HOUR
    assert set(staged.placements().values()) == {PlacementState.BATCHED}
    assert [one.key for one in staged.tracking.batches((BatchState.INTENT,), request_key=KEY)] == [batch.key]


def test_begun_again_after_a_kill_it_is_the_same_batch(staged: Staged) -> None:
    assert staged.batch() == staged.batch()


def test_too_soon_before_the_purge_nothing_is_claimed(staged: Staged) -> None:
    with pytest.raises(DeadlinePassed, match="asked for again"):
        staged.batch(left_seconds=60.0)
    assert set(staged.placements().values()) == {PlacementState.WAITING}


def test_facts_come_back_to_a_batch_that_was_kept_without_them(staged: Staged) -> None:
    batch = staged.batch()
    assert batch is not None
    bare = Batch(batch.key, "jgi", "nersc", tuple(_bare(batch)), batch.deadline, batch.label)
    assert with_facts(bare, ROWS, ROUTE, 7) == batch


def test_what_became_of_each_file_is_written_and_may_be_written_twice(staged: Staged) -> None:
    batch = staged.begun()
    by_id = {item.source.rsplit("/", 1)[1].removesuffix(".fna"): at for at, item in enumerate(batch.items)}
    found = [
        outcome(batch, by_id[IDS[0]], Verdict.VERIFIED),
        outcome(batch, by_id[IDS[1]], Verdict.MISMATCH),
        outcome(batch, by_id[IDS[2]], Verdict.NOT_MOVED),
        outcome(batch, by_id[IDS[3]], Verdict.NOT_MOVED, source_gone=True),
    ]
    for _ in range(2):
        counts = record(staged.tracking, staged.request, batch, found, Limits())
        assert counts == {"verified": 1, "mismatch": 1, "unverifiable": 0, "not moved": 2}
        assert [staged.placements()[one] for one in IDS] == [
            PlacementState.VERIFIED,
            PlacementState.MISMATCH,
            PlacementState.WAITING,
            PlacementState.WAITING,
        ]
        assert [staged.files()[one] for one in IDS[2:]] == [(FileState.ON_DISK, 0), (FileState.PLANNED, 1)]
    assert not staged.tracking.batches((BatchState.INTENT, BatchState.SUBMITTED), request_key=KEY)
    assert not drained(staged.tracking, staged.request)
    again = staged.batch()
    assert again is not None
    assert {item.source for item in again.items} == {batch.items[by_id[one]].source for one in IDS[1:3]}


def test_a_request_is_closed_once_all_of_it_has_arrived(staged: Staged) -> None:
    batch = staged.begun()
    found = [outcome(batch, at, Verdict.VERIFIED) for at in range(len(IDS))]
    record(staged.tracking, staged.request, batch, found, Limits())
    assert drained(staged.tracking, staged.request)
    assert staged.request.state == RequestState.DRAINED
    assert staged.batch() is None


def _bare(batch: Batch) -> Iterator[Any]:
    for item in batch.items:
        yield type(item)(item.source, item.destination)
