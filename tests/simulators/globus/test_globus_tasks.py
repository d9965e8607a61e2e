"""The life of a task: its numbers, its files, its errors, its end."""

from __future__ import annotations

import globus_sdk  # noqa: TID253
import pytest
from globus_rehearsal import ROOT, START, at, md5

from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION

DAY = 86400.0


def numbers(task, *names: str) -> list[int]:
    return [task[name] for name in names]


def subtasks(task) -> dict[str, int]:
    """The counts of subtasks that are not 0."""
    return {key.removeprefix("subtasks_"): task[key] for key in task if key.startswith("subtasks_") and task[key]}


def test_a_task_moves_real_bytes_and_its_document_counts_them(globus):
    pairs = globus.seed("a", "deep/b")  # 100 bytes each, at 100 bytes a second
    task = globus.submit(pairs, label="two files", preserve_timestamp=True)
    globus.advance(1.5)
    half = globus.task(task)
    assert (half["status"], half["nice_status"], half["is_ok"], half["completion_time"]) == ("ACTIVE", "OK", True, None)
    assert numbers(half, "files", "files_transferred", "bytes_transferred") == [2, 1, 150]
    assert subtasks(half) == {"total": 4, "succeeded": 3, "pending": 1}
    globus.advance(0.5)
    done = globus.task(task)
    assert (done["status"], done["nice_status"], done["is_ok"], done["fatal_error"]) == ("SUCCEEDED", None, None, None)
    assert numbers(done, "files", "files_transferred", "bytes_transferred", "bytes_checksummed") == [2, 2, 200, 200]
    assert numbers(done, "effective_bytes_per_second", "faults", "files_skipped") == [100, 0, 0]
    assert subtasks(done) == {"total": 4, "succeeded": 4}
    assert (done["request_time"], done["completion_time"], done["label"]) == (at(0), at(2), "two files")
    arrived = globus.files.folder_of(DESTINATION_COLLECTION) / "staging" / "deep" / "b"
    assert arrived.read_bytes().startswith(b"deep/b ")
    assert arrived.stat().st_mtime == START - 1000
    assert globus.codes(task) == ["STARTED", "SUCCEEDED"]


def test_virtual_files_move_as_entries(start):
    globus = start(task_bytes_per_second=3.7e8)
    globus.files.put(JGI_COLLECTION, f"{ROOT}/huge", size=10**13, md5="0" * 32)
    task = globus.submit([(f"{ROOT}/huge", "/staging/huge")])
    globus.advance(7 * 3600)
    assert globus.status(task) == ("ACTIVE", "OK")
    globus.advance(3600)
    assert globus.status(task) == ("SUCCEEDED", None)
    entry = globus.files.entry(DESTINATION_COLLECTION, "/staging/huge")
    assert (entry.size, entry.md5, entry.data) == (10**13, "0" * 32, None)


def test_successful_transfers_are_paged_and_there_for_finished_tasks_only(start):
    globus = start(page_size=2)
    pairs = globus.seed("a", "b", "c", "d", "e")
    task = globus.submit(pairs)
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.moved(task)
    assert refusal.value.http_status == 400
    globus.advance(10)
    rows = globus.moved(task)
    assert [(row["source_path"], row["destination_path"]) for row in rows] == pairs
    first = {key: rows[0][key] for key in ("size", "checksum", "checksum_algorithm")}
    assert first == {"size": 100, "checksum": globus.source_md5("a"), "checksum_algorithm": "MD5"}
    assert len(globus.calls("/successful_transfers")) == 1 + 3
    assert globus.client.task_successful_transfers(task)["next_marker"] == 2


def test_without_checksum_verification_rows_have_none(globus):
    task = globus.submit(globus.seed("a"), verify_checksum=False)
    globus.advance(10)
    assert (globus.moved(task)[0]["checksum"], globus.task(task)["bytes_checksummed"]) == (None, 0)


# Turns and rates


def test_three_tasks_of_a_user_work_and_others_are_queued(globus):
    tasks = [globus.submit([pair]) for pair in globus.seed("a", "b", "c", "d", "e")]
    assert [globus.status(task)[1] for task in tasks] == ["OK", "OK", "OK", "Queued", "Queued"]
    assert globus.task(tasks[3])["is_ok"] is True
    globus.advance(1)
    assert [globus.status(task)[0] for task in tasks] == ["SUCCEEDED"] * 3 + ["ACTIVE"] * 2
    globus.advance(1)
    assert [globus.task(task)["completion_time"] for task in tasks] == [at(1)] * 3 + [at(2)] * 2
    assert globus.counters()["peak_working"] == 3


def test_tasks_share_a_rate_and_one_gets_more_when_another_ends(start):
    globus = start(shared_bytes_per_second=100.0)
    small = globus.submit([globus.put("small", b"s" * 50)])
    large = globus.submit([globus.put("large", b"l" * 100)])
    globus.advance(1)  # both at 50 bytes a second
    assert globus.status(small)[0] == "SUCCEEDED"
    assert globus.task(large)["bytes_transferred"] == 50
    globus.advance(0.5)  # the large one alone at 100
    assert globus.task(large)["completion_time"] == at(1)
    assert globus.status(large)[0] == "SUCCEEDED"


def test_a_task_with_nothing_but_errors_leaves_its_place_to_others(start):
    globus = start(active_per_user=1)
    hanging = globus.submit([(f"{ROOT}/missing", "/staging/missing")])
    other = globus.submit(globus.seed("a"))
    globus.advance(1)
    assert globus.status(hanging) == ("ACTIVE", "FILE_NOT_FOUND")
    assert globus.status(other)[0] == "SUCCEEDED"


def test_a_new_rate_holds_at_once(globus):
    task = globus.submit([globus.put("a", b"a" * 1000)])
    globus.advance(1)
    globus.on(lambda: globus.sim.change_settings(task_bytes_per_second=900.0))
    globus.advance(1)
    assert globus.status(task)[0] == "SUCCEEDED"


# What is there already


@pytest.mark.parametrize(
    ("level", "moved"),
    [
        (None, ["same", "rotten", "older", "short"]),
        ("exists", []),
        ("size", ["short"]),
        ("mtime", ["older", "short"]),
        ("checksum", ["rotten", "short"]),
    ],
)
def test_sync_levels(globus, level, moved):
    pairs = globus.seed("same", "rotten", "older", "short")
    for source, destination in pairs:
        globus.files.copy((JGI_COLLECTION, source), (DESTINATION_COLLECTION, destination), modified=START)
    globus.files.flip(DESTINATION_COLLECTION, "/staging/rotten")
    there = (DESTINATION_COLLECTION, "/staging/older")
    globus.files.copy((JGI_COLLECTION, f"{ROOT}/older"), there, modified=START - 5000)
    there = (DESTINATION_COLLECTION, "/staging/short")
    globus.files.copy((JGI_COLLECTION, f"{ROOT}/short"), there, modified=START, keep_bytes=5)
    task = globus.submit(pairs, **({} if level is None else {"sync_level": level}))
    globus.advance(10)
    assert [row["source_path"].rpartition("/")[2] for row in globus.moved(task)] == moved
    done = globus.task(task)
    assert numbers(done, "files", "files_transferred", "files_skipped") == [4, len(moved), 4 - len(moved)]
    assert done["status"] == "SUCCEEDED"


def test_a_folder_is_moved_with_all_in_it(globus):
    globus.seed("run/a", "run/sub/b")
    data = globus.document([])
    data.add_item(f"{ROOT}/run/", "/staging/run/", recursive=True)
    task = globus.client.submit_transfer(data)["task_id"]
    globus.advance(10)
    assert sorted(globus.arrived()) == ["/staging/run/a", "/staging/run/sub/b"]
    assert numbers(globus.task(task), "files", "directories") == [2, 1]


# Errors


def test_a_missing_source_hangs_until_it_comes_back(globus):
    pairs = globus.seed("a", "b")
    globus.files.remove(JGI_COLLECTION, f"{ROOT}/b")
    task = globus.submit(pairs)
    globus.advance(60)
    seen = globus.task(task)
    assert (seen["status"], seen["nice_status"], seen["is_ok"]) == ("ACTIVE", "FILE_NOT_FOUND", False)
    assert numbers(seen, "files", "files_transferred", "faults") == [1, 1, 2]
    assert subtasks(seen) == {"total": 3, "succeeded": 2, "retrying": 1}
    assert f"{ROOT}/b" in seen["nice_status_details"]
    globus.seed("b")
    globus.advance(600)
    assert globus.status(task)[0] == "SUCCEEDED"
    assert globus.codes(task) == ["STARTED", "FILE_NOT_FOUND", "FILE_NOT_FOUND", "SUCCEEDED"]
    errors = [event for event in globus.client.task_event_list(task) if event["is_error"]]
    assert [event["time"] for event in errors] == [at(60), at(0)]


def test_a_purge_in_the_middle_skips_what_is_gone_if_asked_to(globus):
    pairs = globus.seed("a", "b", "c")
    task = globus.submit(pairs, skip_source_errors=True)
    globus.advance(1)
    globus.files.remove(JGI_COLLECTION, ROOT)
    globus.advance(1)
    done = globus.task(task)
    assert done["status"] == "SUCCEEDED"
    assert numbers(done, "files", "files_transferred", "files_skipped", "faults") == [3, 1, 2, 2]
    assert subtasks(done) == {"total": 6, "succeeded": 4, "skipped_errors": 2}
    assert [(row["source_path"], row["error_code"]) for row in globus.skipped(task)] == [
        (f"{ROOT}/b", "FILE_NOT_FOUND"),
        (f"{ROOT}/c", "FILE_NOT_FOUND"),
    ]
    assert [row["source_path"] for row in globus.moved(task)] == [f"{ROOT}/a"]


def test_an_error_at_the_destination_is_never_skipped(globus):
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=["/staging/b"]))
    task = globus.submit(globus.seed("a", "b"), skip_source_errors=True)
    globus.advance(60)
    assert globus.status(task) == ("ACTIVE", "PERMISSION_DENIED")
    assert sorted(globus.arrived()) == ["/staging/a"]


def test_a_right_that_is_lost_while_a_file_flows_is_noticed_before_it_arrives(globus):
    task = globus.submit(globus.seed("a"))
    globus.advance(0.5)
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=["^/staging"]))
    globus.advance(1)
    assert globus.status(task) == ("ACTIVE", "PERMISSION_DENIED")
    assert globus.arrived() == {}


def test_an_error_is_shown_for_a_quarter_of_an_hour(start):
    globus = start(retry_seconds=3600, retry_max_seconds=3600)
    globus.fault_of_submission("file_error", code="TIMEOUT")
    task = globus.submit(globus.seed("a"))
    globus.advance(899)
    assert globus.status(task) == ("ACTIVE", "TIMEOUT")
    globus.advance(2)
    assert globus.status(task) == ("ACTIVE", "Queued")
    globus.advance(3600)
    assert globus.status(task) == ("SUCCEEDED", None)


@pytest.mark.parametrize("code", ["AUTH", "CONNECT_FAILED", "SOMETHING_NEW"])
def test_any_code_of_a_file_by_the_fault_language(globus, code):
    globus.fault_of_submission("file_error", times=None, code=code, path="b$", side="destination")
    task = globus.submit(globus.seed("a", "b"))
    globus.advance(60)
    assert globus.status(task) == ("ACTIVE", code)


def test_a_collection_that_is_away_stops_its_tasks_until_it_is_back(globus):
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, connected=False))
    task = globus.submit(globus.seed("a"))
    globus.advance(10)
    assert globus.status(task) == ("ACTIVE", "CONNECT_FAILED")
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, connected=True))
    globus.advance(120)
    assert globus.status(task)[0] == "SUCCEEDED"


# Checksums


def test_a_corrupt_arrival_is_moved_again_until_it_is_right(globus):
    globus.fault_of_submission("corrupt_arrival", times=2, path="a$")
    task = globus.submit(globus.seed("a"))
    globus.advance(1)
    assert globus.status(task) == ("ACTIVE", "CHECKSUM_MISMATCH")
    assert globus.arrived()["/staging/a"] != globus.source_md5("a")
    globus.advance(600)
    done = globus.task(task)
    assert (done["status"], done["faults"], done["bytes_transferred"]) == ("SUCCEEDED", 2, 300)
    assert globus.arrived()["/staging/a"] == globus.source_md5("a")


def test_a_file_that_always_arrives_corrupt_ends_at_the_deadline(globus):
    globus.fault_of_submission("corrupt_arrival", times=None)
    task = globus.submit(globus.seed("a"), deadline=at(DAY))
    globus.advance(DAY - 1)
    assert globus.status(task)[0] == "ACTIVE"
    globus.advance(2)
    done = globus.task(task)
    assert (done["status"], done["fatal_error"]["code"], done["nice_status"]) == ("FAILED", "EXPIRED", None)
    assert done["faults"] > 100
    assert subtasks(done) == {"total": 2, "succeeded": 1, "expired": 1}


def test_a_corrupt_arrival_is_not_seen_without_verification(globus):
    globus.fault_of_submission("corrupt_arrival")
    task = globus.submit(globus.seed("a"), verify_checksum=False)
    globus.advance(1)
    assert globus.status(task)[0] == "SUCCEEDED"
    assert globus.arrived()["/staging/a"] != globus.source_md5("a")


def test_an_external_checksum_that_is_not_so_fails_the_whole_task(globus):
    pairs = globus.seed("a", "b", "c")
    wanted = {source: globus.source_md5(source[-1]) for source, _ in pairs}
    good = globus.client.submit_transfer(globus.document(pairs[:1], wanted))["task_id"]
    bad = globus.client.submit_transfer(globus.document(pairs[1:], wanted | {f"{ROOT}/b": md5(b"other")}))["task_id"]
    globus.advance(10)
    assert globus.status(good)[0] == "SUCCEEDED"
    failed = globus.task(bad)
    assert (failed["status"], failed["fatal_error"]["code"]) == ("FAILED", "EXTERNAL_CHECKSUM_MISMATCH")
    assert globus.moved(bad) == []
    assert subtasks(failed) == {"total": 4, "succeeded": 2, "failed": 2}


def test_an_external_checksum_finds_a_corrupt_arrival_without_verification(globus):
    globus.fault_of_submission("corrupt_arrival")
    document = globus.document(globus.seed("a"), {f"{ROOT}/a": globus.source_md5("a")}, verify_checksum=False)
    task = globus.client.submit_transfer(document)["task_id"]
    globus.advance(10)
    assert globus.task(task)["fatal_error"]["code"] == "EXTERNAL_CHECKSUM_MISMATCH"


@pytest.mark.parametrize(
    ("fault", "left"),
    [
        ("lose_file", None),
        ("cut_file", md5(b"a ................................................")),
        ("rot_after_check", "?"),
    ],
)
def test_what_happens_after_the_check_is_reported_as_success(globus, fault, left):
    globus.fault_of_submission(fault)
    task = globus.submit(globus.seed("a"))
    globus.advance(10)
    assert globus.status(task)[0] == "SUCCEEDED"
    assert globus.moved(task)[0]["checksum"] == globus.source_md5("a")
    there = globus.arrived().get("/staging/a")
    assert there not in (globus.source_md5("a"), None) if left == "?" else there == left
    assert [entry["fault"] for entry in globus.journal("file_spoilt")] == [fault]


# A full destination


def test_a_full_destination_fails_the_task_if_asked_to(globus):
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, free_bytes=150))
    pairs = globus.seed("a", "b")
    task = globus.submit(pairs, fail_on_quota_errors=True)
    globus.advance(10)
    failed = globus.task(task)
    assert (failed["status"], failed["fatal_error"]["code"]) == ("FAILED", "QUOTA_EXCEEDED")
    assert sorted(globus.arrived()) == ["/staging/a"]
    assert [row["destination_path"] for row in globus.moved(task)] == ["/staging/a"]


def test_a_full_destination_is_tried_again_else(globus):
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, free_bytes=150))
    task = globus.submit(globus.seed("a", "b"))
    globus.advance(100)
    assert globus.status(task) == ("ACTIVE", "QUOTA_EXCEEDED")
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, free_bytes=1000))
    globus.advance(600)
    assert globus.status(task)[0] == "SUCCEEDED"
    assert globus.sim.endpoints[DESTINATION_COLLECTION].free_bytes == 900


def test_a_name_that_the_destination_cannot_hold_is_an_error_of_the_endpoint(globus):
    source, _ = globus.seed("a")[0]
    task = globus.submit([(source, f"/staging/{'n' * 300}")])
    globus.advance(10)
    assert globus.status(task) == ("ACTIVE", "ENDPOINT_ERROR")


# Deadlines


def test_a_deadline_that_is_set_ends_the_task_and_leaves_the_file_in_the_middle_cut(globus):
    task = globus.submit([globus.put("a", b"x" * 1000)], deadline=at(5))
    globus.advance(6)
    done = globus.task(task)
    assert (done["status"], done["fatal_error"]["code"]) == ("FAILED", "EXPIRED")
    assert (done["completion_time"], done["deadline"]) == (at(5), at(5))
    assert globus.arrived() == {"/staging/a": md5(b"x" * 500)}
    assert globus.moved(task) == []


def test_a_deadline_that_nobody_set_moves_with_progress_and_with_the_queue(start):
    globus = start(active_per_user=1, task_bytes_per_second=0.01)
    working = globus.submit(globus.seed("a", "b", "c", "d"))  # each takes 10,000 s
    queued = globus.submit(globus.seed("e"))
    assert globus.task(working)["deadline"] == at(DAY)
    globus.advance(10_001)
    assert globus.task(working)["deadline"] == at(10_000 + 3 * DAY)
    globus.advance(2 * DAY)
    assert [globus.status(task)[0] for task in (working, queued)] == ["SUCCEEDED", "SUCCEEDED"]


def test_a_task_that_hangs_without_a_deadline_ends_after_a_day(globus):
    task = globus.submit([(f"{ROOT}/missing", "/staging/missing")])
    globus.advance(DAY + 1)
    assert globus.task(task)["fatal_error"]["code"] == "EXPIRED"
    assert globus.task(task)["files"] == 0


# Cancelling


def test_a_task_is_cancelled_at_once_or_was_over_before(globus):
    task = globus.submit(globus.seed("a", "b"))
    globus.advance(1.5)
    assert globus.client.cancel_task(task)["code"] == "Canceled"
    done = globus.task(task)
    assert (done["status"], done["fatal_error"]["code"]) == ("FAILED", "CANCELED")
    assert subtasks(done) == {"total": 4, "succeeded": 3, "canceled": 1}
    assert [row["destination_path"] for row in globus.moved(task)] == ["/staging/a"]
    assert globus.arrived()["/staging/b"] != globus.source_md5("b")  # cut
    assert globus.client.cancel_task(task)["code"] == "TaskComplete"


def test_a_cancellation_may_take_a_while(start):
    globus = start(cancel_seconds=10)
    long, short = globus.submit([globus.put("a", b"a" * 5000)]), globus.submit(globus.seed("b"))
    assert [globus.client.cancel_task(task)["code"] for task in (long, short, long)] == ["CancelAccepted"] * 3
    globus.advance(9)
    assert [globus.status(task)[0] for task in (long, short)] == ["ACTIVE", "SUCCEEDED"]  # it may still succeed
    globus.advance(2)
    assert globus.task(long)["fatal_error"]["code"] == "CANCELED"
    assert globus.status(short)[0] == "SUCCEEDED"


# Suspended tasks


def test_a_pause_by_an_administrator_is_told_with_its_reason(globus):
    task = globus.submit(globus.seed("a"))
    message = "maintenance until noon"
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, paused=message))
    globus.advance(100)
    seen = globus.task(task)
    assert (seen["status"], seen["is_paused"], seen["nice_status"], seen["is_ok"]) == ("ACTIVE", True, "PAUSED", False)
    info = globus.client.task_pause_info(task)
    assert [rule["message"] for rule in info["pause_rules"]] == [message]
    late = globus.submit(globus.seed("b"))
    assert globus.task(late)["is_paused"]
    assert seen["deadline"] == at(90 * DAY)
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, paused=None))
    globus.advance(10)
    assert [globus.status(each)[0] for each in (task, late)] == ["SUCCEEDED", "SUCCEEDED"]
    assert globus.codes(task) == ["STARTED", "PAUSED", "UNPAUSED", "SUCCEEDED"]


def test_one_task_alone_may_be_paused_for_a_time(globus):
    globus.fault("pause_task", method="POST", path="/transfer$", seconds=100, options={"message": "ask first"})
    task = globus.submit(globus.seed("a"))
    assert globus.client.task_pause_info(task)["destination_pause_message"] == "ask first"
    globus.advance(90)
    assert globus.task(task)["is_paused"]
    globus.advance(20)
    assert globus.status(task)[0] == "SUCCEEDED"


def test_an_inactive_task_waits_for_credentials_beyond_its_deadline(globus):
    pairs = globus.seed("a")
    task = globus.submit(pairs, deadline=at(DAY))
    globus.afflict(task, "inactivate_task")
    globus.advance(DAY * 10)
    seen = globus.task(task)
    assert (seen["status"], seen["nice_status"], seen["is_ok"]) == ("INACTIVE", "AUTH", False)
    assert globus.client.task_wait(task, timeout=1)  # the SDK takes anything but ACTIVE as done
    globus.afflict(task, "renew_task")
    assert globus.task(task)["fatal_error"]["code"] == "EXPIRED"
    again = globus.submit(pairs, deadline=at(20 * DAY))
    globus.afflict(again, "inactivate_task", seconds=60)
    globus.advance(100)
    assert globus.status(again)[0] == "SUCCEEDED"


def test_a_task_can_stall_fail_and_be_cancelled_by_an_administrator(globus):
    stalled, failed, stopped = (globus.submit([pair]) for pair in globus.seed("a", "b", "c"))
    globus.afflict(stalled, "stall_task", seconds=3600)
    globus.afflict(failed, "fail_task", code="ENDPOINT_GONE", message="deleted")
    globus.afflict(stopped, "cancel_by_admin", message="not today")
    globus.advance(3600)
    assert globus.status(stalled) == ("ACTIVE", "OK")
    assert globus.task(failed)["fatal_error"] == {"code": "ENDPOINT_GONE", "description": "deleted"}
    seen = globus.task(stopped)
    assert (seen["canceled_by_admin"], seen["canceled_by_admin_message"]) == ("DESTINATION", "not today")
    globus.advance(2)
    assert globus.status(stalled)[0] == "SUCCEEDED"


# Lists and old tasks


def test_the_task_list_is_filtered_and_paged(globus):
    done = globus.submit(globus.seed("a"), label="nmdc grow R1 b1")
    globus.advance(5)
    hanging = globus.submit([(f"{ROOT}/x", "/x")], label="nmdc grow R2 b1")
    plain = globus.submit([(f"{ROOT}/y", "/y")])

    def found(**query) -> list[str]:
        return [task["task_id"] for task in globus.client.task_list(**query)]

    assert found(orderby="request_time ASC")[0] == done
    assert found()[-1] == done
    assert found(filter={"status": "SUCCEEDED"}) == [done]
    assert set(found(filter={"status": ["ACTIVE", "INACTIVE"]})) == {hanging, plain}
    assert found(filter={"label": "nmdc grow R2 b1"}) == [hanging]
    assert set(found(filter="label:~NMDC*b1/type:TRANSFER")) == {hanging, done}
    assert found(filter={"label": ["!nmdc grow R1 b1", "~nmdc*"]}) == [hanging]
    assert set(found(filter={"task_id": [done, plain]})) == {done, plain}
    assert found(filter={"request_time": [at(0), at(1)]}) == [done]
    assert globus.client.task_list(limit=2)["total"] == 3
    assert len(found(limit=2)) == 2
    assert found(limit=2) + found(limit=2, offset=2) == found()
    assert len(list(globus.client.paginated.task_list().items())) == 3
    with pytest.raises(globus_sdk.TransferAPIError):
        found(filter="colour:red")


def test_what_a_task_did_to_its_files_is_forgotten_after_30_days_and_the_task_later(globus):
    task = globus.submit(globus.seed("a"))
    globus.advance(1)
    globus.advance(30 * DAY - 1)
    assert (globus.task(task)["history_deleted"], len(globus.moved(task))) == (False, 1)
    globus.advance(2)
    assert (globus.task(task)["history_deleted"], globus.moved(task), globus.codes(task)) == (True, [], [])
    globus.advance(90 * DAY)
    for call in (globus.client.get_task, globus.client.cancel_task, globus.client.task_event_list):
        with pytest.raises(globus_sdk.TransferAPIError) as refusal:
            call(task)
        assert (refusal.value.http_status, refusal.value.code) == (404, "TaskNotFound")
    assert list(globus.client.task_list()) == []


def test_a_task_can_be_hidden_for_a_time_or_forgotten_early(globus):
    globus.fault("hide_task", method="POST", path="/transfer$", seconds=60)
    hidden = globus.submit(globus.seed("a"))
    assert list(globus.client.task_list()) == []
    globus.advance(61)
    assert globus.status(hidden)[0] == "SUCCEEDED"
    globus.afflict(hidden, "forget_task")
    with pytest.raises(globus_sdk.TransferAPIError, match="TaskNotFound"):
        globus.client.get_task(hidden)


def test_the_same_seed_gives_the_same_history(start):
    def history() -> list[tuple]:
        globus = start(seed=7, shared_bytes_per_second=130.0)
        globus.fault_of_submission("corrupt_arrival", path="b$")
        tasks = [globus.submit(globus.seed(f"{n}/a", f"{n}/b", f"{n}/c"), deadline=at(1000 + n)) for n in range(5)]
        globus.on(lambda: globus.sim.run_until_idle())
        return [(task, globus.task(task)["completion_time"], globus.codes(task)) for task in tasks]

    assert history() == history()
