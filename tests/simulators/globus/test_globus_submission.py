"""Submissions: identity, order of checks, refusals, lost answers."""

from __future__ import annotations

import uuid

import globus_sdk  # noqa: TID253
import pytest
from globus_rehearsal import at

from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION


def refusal_of(globus, data) -> tuple[int, str, str]:
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.client.submit_transfer(data)
    return refusal.value.http_status, refusal.value.code, refusal.value.message


def test_a_submission_is_accepted_once_and_answered_duplicate_with_the_same_task_after(globus):
    data = globus.document(globus.seed("a", "b"), label="nmdc grow R1 b1")
    first, second = globus.client.submit_transfer(data), globus.client.submit_transfer(data)
    assert (first.http_status, first["code"], second["code"]) == (202, "Accepted", "Duplicate")
    assert first["task_id"] == second["task_id"]
    globus.advance(10)
    assert globus.client.submit_transfer(data)["code"] == "Duplicate"  # also when the task is over
    accepted = globus.journal("task_accepted")
    assert [(entry["task_id"], entry["files"], entry["label"]) for entry in accepted] == [
        (first["task_id"], 2, "nmdc grow R1 b1")
    ]


def test_a_submission_whose_answer_is_lost_makes_one_task(globus):
    globus.fault("drop_after_commit", method="POST", path="/transfer$")
    answer = globus.client.submit_transfer(globus.document(globus.seed("a")))  # the SDK posts again by itself
    assert answer["code"] == "Duplicate"
    assert globus.calls("/v0.10/transfer") == ["dropped", 200]
    assert [entry["task_id"] for entry in globus.journal("task_accepted")] == [answer["task_id"]]


def test_identical_paths_meet_409_without_the_id_while_the_task_lives(globus):
    pairs = globus.seed("a", "b")
    task = globus.submit(pairs)
    assert refusal_of(globus, globus.document(pairs[::-1])) == (
        409,
        "Conflict",
        "A transfer with identical paths has not yet completed",
    )
    assert globus.client.submit_transfer(globus.document(pairs[:1]))["code"] == "Accepted"  # not the same set
    globus.advance(10)
    assert globus.status(task) == ("SUCCEEDED", None)
    assert globus.client.submit_transfer(globus.document(pairs))["code"] == "Accepted"


def test_a_task_that_hangs_blocks_its_paths_too(globus):
    pairs = [("/73709/R1/missing", "/staging/missing")]
    task = globus.submit(pairs)
    globus.advance(3600)
    assert globus.status(task) == ("ACTIVE", "FILE_NOT_FOUND")
    assert refusal_of(globus, globus.document(pairs))[1] == "Conflict"
    globus.client.cancel_task(task)
    assert globus.client.submit_transfer(globus.document(pairs))["code"] == "Accepted"


@pytest.mark.parametrize(
    ("setting", "codes"),
    [
        ("same_set", ["Accepted", "Conflict"]),
        ("any_pair", ["Conflict", "Conflict"]),
        ("allow", ["Accepted", "Accepted"]),
    ],
)
def test_which_paths_are_identical_is_a_setting(start, setting, codes):
    globus = start(identical_paths=setting)
    pairs = globus.seed("a", "b")
    globus.submit(pairs)
    seen = []
    for asked in (pairs[:1], pairs):
        try:
            seen.append(globus.client.submit_transfer(globus.document(asked))["code"])
        except globus_sdk.TransferAPIError as error:
            seen.append(error.code)
    assert seen == codes


@pytest.mark.parametrize("known_first", [True, False])
def test_the_order_of_the_two_checks_is_a_setting(start, known_first):
    globus = start(known_submission_first=known_first)
    data = globus.document(globus.seed("a"))
    globus.client.submit_transfer(data)
    if known_first:
        assert globus.client.submit_transfer(data)["code"] == "Duplicate"
    else:
        assert refusal_of(globus, data)[1] == "Conflict"
    globus.advance(10)
    assert globus.client.submit_transfer(data)["code"] == "Duplicate"
    assert len(globus.journal("task_accepted")) == 1


def test_too_many_pending_tasks_are_refused(start):
    globus = start(max_pending_tasks=2)
    pairs = globus.seed("a", "b", "c")
    for pair in pairs[:2]:
        globus.submit([pair])
    assert refusal_of(globus, globus.document(pairs[2:]))[:2] == (409, "TooManyPendingTasks")
    globus.advance(10)
    globus.submit(pairs[2:])


def test_a_transfer_without_items_is_refused(globus):
    assert refusal_of(globus, globus.document([]))[:2] == (400, "ClientError.BadRequest.NoTransferItems")


@pytest.mark.parametrize(
    "options",
    [
        {"label": "x" * 129},
        {"label": " blank "},
        {"label": "two\nlines"},
        {"deadline": at(-1)},
        {"deadline": "soon"},
        {"submission_id": "mine"},
        {"submission_id": str(uuid.uuid4())},
    ],
)
def test_wrong_fields_are_refused(globus, options):
    assert refusal_of(globus, globus.document(globus.seed("a"), **options))[0] == 400
    assert globus.journal("task_accepted") == []


@pytest.mark.parametrize("path", ["/../etc/passwd", "/a/../../b", ""])
def test_paths_that_leave_the_collection_are_refused(globus, path):
    assert refusal_of(globus, globus.document([("/a", path)]))[0] == 400


def test_an_unknown_submission_id_may_be_taken_by_a_setting(start):
    globus = start(unknown_submission_ids="accept")
    mine = str(uuid.uuid4())
    assert globus.client.submit_transfer(globus.document(globus.seed("a"), submission_id=mine))["submission_id"] == mine


def test_an_unknown_collection_is_404(globus):
    data = globus_sdk.TransferData(
        JGI_COLLECTION, str(uuid.uuid4()), submission_id=globus.client.get_submission_id()["value"]
    )
    data.add_item("/a", "/b")
    assert refusal_of(globus, data)[:2] == (404, "EndpointNotFound")


def test_the_journal_tells_tasks_that_nobody_needed(start):
    globus = start(identical_paths="allow")
    pairs = globus.seed("a", "b")
    first, second = globus.submit(pairs), globus.submit(pairs)
    globus.advance(10)
    third = globus.submit(pairs)
    assert globus.counters()["duplicate_tasks"] == [
        {"why": "at work for the same files", "tasks": [first, second], "files": 2},
        {"why": "all files are there", "tasks": [third], "files": 2},
    ]
    globus.advance(10)
    moves = [(entry["task_id"], entry["destination"], entry["needless"]) for entry in globus.journal("file_moved")]
    assert sorted(moves) == sorted((task, path, task != first) for task in (first, second, third) for _, path in pairs)
    assert (globus.counters()["moves"], globus.counters()["needless_moves"]) == (6, 4)


def test_rate_limits_and_collection_errors_by_the_fault_language(globus):
    globus.fault("status", code=429, retry_after=1, path="/submission_id", times=2)
    globus.client.get_submission_id()
    assert globus.calls("/submission_id") == [429, 429, 200]
    problem = {"code": "ExternalError.DirListingFailed.LoginFailed", "message": "the collection is away"}
    globus.fault("status", code=502, path="/ls", problem=problem, times=None)
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        globus.client.operation_ls(DESTINATION_COLLECTION, path="/")
    assert (refusal.value.code, refusal.value.message) == tuple(problem.values())
    assert len(globus.calls("/ls")) == 1  # the SDK does not repeat errors of collections


def test_an_answer_can_be_changed_field_by_field(globus):
    task = globus.submit(globus.seed("a"))
    globus.fault("change_answer", path=f"/task/{task}$", options={"fields": {"status": "MOONWALKING"}})
    assert globus.task(task)["status"] == "MOONWALKING"
    assert globus.task(task)["status"] == "ACTIVE"
