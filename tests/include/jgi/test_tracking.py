"""What MongoDB keeps, on the stand-in, and on a real server where WAYBILL_TEST_MONGO_URI names one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo  # noqa: TID253
import pytest

from include.core.errors import AuthError, ConflictingRequest, NotFound, RequestError, TransientError
from include.jgi.documents import TrackedBatch, TrackedRequest
from include.jgi.models import (
    FILE_MOVES,
    BatchState,
    FileState,
    Placement,
    Project,
    RequestState,
    StagedFile,
)
from include.jgi.tracking import HISTORY, NAMES, Tracking
from simulators.mongo import MongoServer

AT = datetime(2027, 1, 15, 9, 0, tzinfo=UTC)


@pytest.fixture
def tracking(mongo: Any) -> Tracking:
    kept = Tracking(mongo)
    kept.ensure_indexes()
    return kept


def file_id(number: int) -> str:
    return f"65aa{number:020x}"


def a_file(number: int = 1, **facts: Any) -> StagedFile:
    return replace(StagedFile(file_id(number), f"f{number}.fastq.gz", 100 + number, "grow"), **facts)


def a_placement(number: int = 1, analysis: str = "Ga1", **facts: Any) -> Placement:
    file = a_file(number)
    place = f"/staging/grow/analysis_files/{analysis}/{file.file_name}"
    return replace(Placement(file.jdp_file_id, analysis, "grow", place, file.size_bytes), **facts)


def only(tracking: Tracking, number: int = 1) -> StagedFile:
    (found,) = tracking.files(ids=[file_id(number)])
    return found


# -- values -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tracking: Tracking) -> None:
    file = a_file(
        md5="0" * 32, jdp_status="PURGED", purge_at=AT, priority=2.0, waiting_since=AT, analyses=("Ga1", "Ga2")
    )
    assert tracking.put_files([file]) == 1
    assert only(tracking) == file
    tracking.put_placements([a_placement(md5="0" * 32)])
    assert list(tracking.placements()) == [a_placement(md5="0" * 32)]
    request = TrackedRequest("restore-1", RequestState.INTENT, 3, 10**13, "grow", sent_at=AT)
    tracking.put_request(request)
    assert tracking.requests() == [request]
    batch = TrackedBatch("batch-1", BatchState.INTENT, "restore-1", 3, 10**13, deadline=AT)
    tracking.put_batch(batch)
    assert tracking.batches(request_key="restore-1") == [batch]
    project = Project("grow", 503568, "nmdc:sty-11-1", 2.0, ("x",))
    tracking.put_project(project)
    assert (tracking.project("grow"), tracking.projects()) == (project, [project])


def test_nothing_is_stored_as_null(tracking: Tracking, mongo: Any) -> None:
    tracking.put_files([a_file()])
    (document,) = mongo[NAMES["files"]].find({})
    assert None not in document.values()
    assert "md5sum" not in document


def test_the_same_again_changes_nothing(tracking: Tracking) -> None:
    for count in (2, 0):
        assert tracking.put_files([a_file(1), a_file(2)]) == count
        assert tracking.put_placements([a_placement(1), a_placement(1, "Ga2")]) == count
        tracking.put_request(TrackedRequest("restore-1", RequestState.INTENT, 1, 1))
    assert len(list(tracking.files())) == len(list(tracking.placements())) == 2
    assert len(tracking.requests()) == 1


def test_a_known_file_keeps_its_state_and_gets_what_jdp_says(tracking: Tracking) -> None:
    tracking.put_files([a_file(analyses=("Ga1",))])
    tracking.claim([file_id(1)], "restore-1")
    tracking.put_files([a_file(jdp_status="RESTORED", purge_at=AT, analyses=("Ga2",), project="other", attempts=7)])
    found = only(tracking)
    assert (found.state, found.claim, found.attempts, found.project) == (FileState.REQUESTING, "restore-1", 0, "grow")
    assert (found.jdp_status, found.purge_at, found.analyses) == ("RESTORED", AT, ("Ga1", "Ga2"))


def test_a_file_of_another_size_is_refused_and_stops_no_other(tracking: Tracking) -> None:
    tracking.put_files([a_file(1)])
    with pytest.raises(ConflictingRequest, match=rf"{file_id(1)} \(f1.fastq.gz\) had 101 bytes and has 5 now"):
        tracking.put_files([a_file(1, size_bytes=5), a_file(2)])
    assert [one.size_bytes for one in tracking.files()] == [101, 102]


def test_a_destination_belongs_to_one_file(tracking: Tracking) -> None:
    tracking.put_placements([a_placement(1)])
    with pytest.raises(ConflictingRequest, match="is the place of file"):
        tracking.put_placements([a_placement(2, destination=a_placement(1).destination)])


def test_two_placements_of_one_call_do_not_share_a_destination(tracking: Tracking) -> None:
    with pytest.raises(ConflictingRequest):
        tracking.put_placements([a_placement(1), a_placement(2, destination=a_placement(1).destination)])


def test_a_project_keeps_its_proposal(tracking: Tracking) -> None:
    tracking.put_project(Project("grow", 1))
    tracking.put_project(Project("grow", 1, priority=3.0))
    assert tracking.project("grow").priority == 3.0
    tracking.put_project(Project("grow", 1, remove_files=()))
    assert tracking.project("grow").remove_files == ()
    with pytest.raises(ConflictingRequest, match="is of proposal 1, not 2"):
        tracking.put_project(Project("grow", 2))
    with pytest.raises(NotFound, match="trigger the DAG with its proposal_id"):
        tracking.project("blue")


# -- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(FileState))
def test_a_move_that_the_table_does_not_have_is_refused(tracking: Tracking, state: FileState) -> None:
    tracking.put_files([a_file(state=state)])
    for after in set(FileState) - FILE_MOVES[state]:
        with pytest.raises(RequestError, match="no move from"):
            tracking.move_files([file_id(1)], state, after, "why")
    assert only(tracking).state == state


def test_a_move_needs_the_state_of_before(tracking: Tracking) -> None:
    tracking.put_files([a_file()])
    assert tracking.move_files([file_id(1)], FileState.QUEUED, FileState.ON_DISK, "why") == 0
    assert only(tracking).state == FileState.DISCOVERED


def test_a_claim_ends_where_nothing_is_asked_for_any_more(tracking: Tracking) -> None:
    tracking.put_files([a_file()])
    tracking.claim([file_id(1)], "restore-1")
    assert tracking.release("restore-2", FileState.PLANNED, "not mine") == 0
    assert tracking.release("restore-1", FileState.PLANNED, "not sent", attempt=True) == 1
    assert (only(tracking).claim, only(tracking).attempts, only(tracking).why) == (None, 1, "not sent")


def test_the_history_is_bounded_and_tells_why(tracking: Tracking) -> None:
    tracking.put_files([a_file()])
    for number in range(HISTORY):
        tracking.move_files([file_id(1)], FileState.DISCOVERED, FileState.FILTERED, f"out {number}")
        tracking.move_files([file_id(1)], FileState.FILTERED, FileState.DISCOVERED, f"in {number}")
    history = only(tracking).history
    assert len(history) == HISTORY
    assert history[-1].endswith(f"DISCOVERED: in {HISTORY - 1}")


def test_a_batch_s_number_is_its_own(tracking: Tracking) -> None:
    for key in ("batch-1", "batch-2"):
        tracking.put_batch(TrackedBatch(key, BatchState.INTENT, "restore-1", 1, 1))
    assert tracking.move_batch("batch-1", BatchState.INTENT, BatchState.SUBMITTED, task_id="task-1")
    with pytest.raises(ConflictingRequest):
        tracking.move_batch("batch-2", BatchState.INTENT, BatchState.SUBMITTED, task_id="task-1")


def test_a_request_that_is_sent_again_forgets_its_old_number(tracking: Tracking) -> None:
    tracking.put_request(TrackedRequest("restore-1", RequestState.INTENT, 1, 1))
    tracking.move_request("restore-1", RequestState.INTENT, RequestState.EXPIRED, request_id=5, expires_at=AT)
    assert tracking.begin_request_again("restore-1", (RequestState.EXPIRED,))
    assert tracking.requests() == [TrackedRequest("restore-1", RequestState.INTENT, 1, 1, why="again")]


def test_counts_are_files_and_bytes_by_state(tracking: Tracking) -> None:
    tracking.put_files([a_file(1), a_file(2), a_file(3, project="blue")])
    tracking.put_placements([a_placement(1)])
    assert tracking.counts("grow") == {"DISCOVERED": (2, 203), "placed WAITING": (1, 101)}


# -- many, and many at once ---------------------------------------------------------------------------------------------


def calls(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The commands that pymongo has sent since the last look."""
    told = [json.loads(record.getMessage()) for record in caplog.records if record.name == "pymongo.command"]
    caplog.clear()
    return [one["commandName"] for one in told if one["message"] == "Command started"]


def test_750_files_change_their_state_in_three_calls(
    tracking: Tracking, mongo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [file_id(number) for number in range(750)]
    tracking.put_files(a_file(number) for number in range(750))
    with caplog.at_level(logging.DEBUG, logger="pymongo.command"):
        assert len(tracking.claim(ids, "restore-1")) == 750
        assert 1 <= len(calls(caplog)) <= 3
        facts = {"claim": "restore-1", "request_id": 7}
        assert tracking.move_files(ids, FileState.REQUESTING, FileState.QUEUED, "why", **facts) == 750
        assert calls(caplog) == ["update"]
    assert {(one.state, one.request_id) for one in kept_files(mongo)} == {(FileState.QUEUED, 7)}


def kept_files(mongo: Any) -> Iterator[StagedFile]:
    return Tracking(mongo).files()


def test_of_many_workers_one_wins_each_file(tracking: Tracking) -> None:
    ids = [file_id(number) for number in range(40)]
    tracking.put_files(a_file(number) for number in range(40))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda worker: [one.jdp_file_id for one in tracking.claim(ids, f"r{worker}")], range(8)))
    assert sorted(one for each in won for one in each) == sorted(ids)
    for worker, each in enumerate(won):
        assert sorted(one.jdp_file_id for one in tracking.files(claim=f"r{worker}")) == sorted(each)


def test_workers_that_write_the_same_new_documents_do_not_disturb_each_other(tracking: Tracking) -> None:
    def write(worker: int) -> None:
        tracking.put_files(a_file(number, analyses=(f"Ga{worker}",)) for number in range(30))
        tracking.put_placements(a_placement(number) for number in range(30))
        tracking.put_request(TrackedRequest("restore-1", RequestState.INTENT, 1, 1))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    files = list(tracking.files())
    assert len(files) == len(list(tracking.placements())) == 30
    assert {len(one.analyses) for one in files} == {6}
    assert len(tracking.requests()) == 1


# -- older documents --------------------------------------------------------------------------------------------------

A0 = {
    "apGoldId": "Ga0499978",
    "studyId": "Gs0149396",
    "itsApId": 1323348,
    "project_name": "grow",
    "biosample_id": "Gb0305643",
    "seq_id": "s1323445",
    "file_name": "52614.1.394702.filtered-report.txt",
    "file_status": "in transit",
    "file_size": 3645,
    "jdp_file_id": "6190d7d30de2fc3298da6f7a",
    "md5sum": "fcd87248b5922a8bd0d530bcb23bffae",
    "analysis_project_id": "p1323348",
    "request_id": "201572",
    "create_date": datetime(2025, 1, 2),
}
R = {
    "ap_gold_id": "Ga0499979",
    "gold_study_id": "Gs0149396",
    "its_ap_id": "1196479.0",
    "sequencing_project_name": "grow",
    "gold_biosample_id": "Gb0305644",
    "file_name": "Ga0499979_ko.tsv",
    "jdp_file_status": "EXPIRED",
    "globus_file_status": "FAILED",
    "jdp_file_size": 44000,
    "jdp_file_id": "61a9d6ee8277d7ede604d0f6",
    "md5sum": None,
    "request_id": "201572.0",
}


def test_files_of_older_tools_get_documents_of_ours_and_begin_anew(tracking: Tracking, mongo: Any) -> None:
    older = [A0, A0 | {"apGoldId": "Ga0500000"}, R]
    mongo[NAMES["older_files"]].insert_many([dict(one) for one in older])
    assert list(tracking.files()) == []
    assert tracking.read_older_files() == tracking.read_older_files() == []
    shared, other = sorted(tracking.files(), key=lambda one: one.jdp_file_id)
    assert (shared.state, shared.analyses, shared.size_bytes) == (
        FileState.DISCOVERED,
        ("Ga0499978", "Ga0500000"),
        3645,
    )
    assert (shared.request_id, shared.why) == (201572, "an older tool left it as in transit")
    assert shared.waiting_since == datetime(2025, 1, 2, tzinfo=UTC)
    assert (other.project, other.biosample, other.size_bytes, other.md5) == ("grow", "Gb0305644", 44000, None)
    assert len(tracking.claim([shared.jdp_file_id], "restore-1")) == 1
    untouched = [{k: v for k, v in one.items() if k != "_id"} for one in mongo[NAMES["older_files"]].find({})]
    assert [one.get("state") for one in untouched] == [None, None, None]


def test_an_older_document_never_changes_what_is_known(tracking: Tracking, mongo: Any) -> None:
    tracking.put_files([a_file(md5="0" * 32, jdp_status="RESTORED")])
    mongo[NAMES["older_files"]].insert_one({**A0, "jdp_file_id": file_id(1)})
    assert tracking.read_older_files() == []
    assert only(tracking) == a_file(md5="0" * 32, jdp_status="RESTORED", waiting_since=only(tracking).waiting_since)


def test_an_older_document_that_cannot_be_read_is_named_and_stops_no_other(tracking: Tracking, mongo: Any) -> None:
    mongo[NAMES["older_files"]].insert_many([{"jdp_file_id": file_id(1), "file_name": "x"}, dict(A0)])
    (told,) = tracking.read_older_files()
    assert told.startswith(f"the document of file {file_id(1)} cannot be read")
    assert [one.jdp_file_id for one in tracking.files()] == [A0["jdp_file_id"]]


def test_projects_of_older_tools_are_read(tracking: Tracking, mongo: Any) -> None:
    rows = [
        {"project_name": "grow", "proposal_id": "503568", "nmdc_study_id": "nmdc:sty-1", "analysis_projects_dir": "/x"},
        {"sequencing_project_name": "blue", "jgi_proposal_id": 505022, "nmdc_study_id": "nmdc:sty-2"},
        {"sequencing_project_name": "bio", "jgi_proposal_id": 502924},
    ]
    mongo[NAMES["older_projects"]].insert_many(rows)
    assert [(one.name, one.proposal_id) for one in tracking.projects()] == [
        ("bio", 502924),
        ("blue", 505022),
        ("grow", 503568),
    ]
    tracking.put_project(Project("blue", 505022, priority=5.0))
    assert tracking.project("blue").priority == 5.0


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_transient_and_its_address_is_not_told(tmp_path: Path) -> None:
    with (
        pymongo.MongoClient[dict[str, Any]](
            "mongodb://somebody:secret-word@127.0.0.1:9/?directConnection=true", serverSelectionTimeoutMS=50
        ) as client,
        pytest.raises(TransientError, match="connection waybill_mongo: MongoDB is out of reach") as caught,
    ):
        Tracking(client["waybill"]).projects()
    assert not any(word in str(caught.value) for word in ("secret-word", "127.0.0.1", "somebody"))
    assert caught.value.__cause__ is None


def test_a_killed_server_has_kept_what_was_said_to_be_written(tmp_path: Path) -> None:
    async def main() -> None:
        server = MongoServer(tmp_path)
        uri = await server.start()
        with pymongo.MongoClient[dict[str, Any]](uri, tz_aware=True, serverSelectionTimeoutMS=100) as client:
            kept = Tracking(client["waybill"])
            await asyncio.to_thread(kept.ensure_indexes)
            await asyncio.to_thread(kept.put_files, [a_file()])
            await asyncio.to_thread(kept.claim, [file_id(1)], "restore-1")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            await server.stop()
            with pytest.raises(TransientError):
                await asyncio.to_thread(only, kept)
            again = MongoServer(tmp_path)
            try:
                await again.start(int(uri.rsplit(":", 1)[1].partition("/")[0]))
                file = await asyncio.to_thread(only, kept)
                assert (file.state, file.claim) == (FileState.REQUESTING, "restore-1")
            finally:
                await again.stop()

    asyncio.run(main())


def test_a_refused_login_names_the_connection(mongo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Tracking(mongo)

    def refuse(_name: str) -> Any:
        raise pymongo.errors.OperationFailure("Authentication failed for somebody", 18)

    monkeypatch.setattr(kept, "_of", refuse)
    with pytest.raises(AuthError, match="connection waybill_mongo: MongoDB refuses the login") as caught:
        kept.projects()
    assert "somebody" not in str(caught.value)


def test_collections_have_the_names_of_the_connection(mongo: Any) -> None:
    kept = Tracking(mongo, {"files": "samples"})
    kept.put_files([a_file()])
    assert mongo["samples"].count_documents({}) == 1
    with pytest.raises(RequestError, match=r"collections \['sampels'\] are not known"):
        Tracking(mongo, {"sampels": "x"})
