"""Copy jobs of the simulated ICA: life cycle, failure model, what happens to files that exist."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from ica_rehearsal import SOURCE, TARGET

from simulators.icav2 import Outcome, Override, Settings, destination_key, draw

IN = destination_key(TARGET, "/in/")


def statuses(ica, batch) -> list[str]:
    return [item["processing"]["status"] for item in ica.items(batch)]


def fate(outcome: str, **more) -> dict:
    """Settings that give the first job this outcome and let later ones succeed."""
    return {"overrides": [Override(destination="/in/", attempts=[1], outcome=Outcome(outcome), **more)]}


def two_files(ica) -> list[str]:
    return [ica.seed("/r/a.gz", 10**9), ica.seed("/r/b.gz", 2 * 10**9)]


def test_a_job_passes_through_its_states_and_its_files_through_theirs(rehearse):
    ica = rehearse(overrides=[Override(destination="/in/", duration_seconds=100)])
    batch = ica.submit(two_files(ica), ica.folder("/in/")).json()
    seen = []
    for _ in range(21):
        job = ica.get(f"/api/jobs/{batch['job']['id']}")
        files = [file["status"] for _, file in sorted(ica.files().items())]
        state = (job["status"], *files, *statuses(ica, batch))
        if not seen or seen[-1] != state:
            seen.append(state)
        ica.advance(5.01)
    assert seen == [
        ("INITIALIZED", "QUEUED", "QUEUED"),
        ("WAITING_FOR_RESOURCES", "QUEUED", "QUEUED"),
        ("RUNNING", "PARTIAL", "COPYING", "QUEUED"),
        ("RUNNING", "AVAILABLE", "PARTIAL", "COPYING", "COPYING"),
        ("SUCCEEDED", "AVAILABLE", "AVAILABLE", "COPIED", "COPIED"),
    ]
    assert job["timeCreated"] < job["timeStarted"] < job["timeFinished"]


def test_the_job_of_a_batch_names_the_batch_and_finished_jobs_list_what_they_wrote(rehearse):
    ica = rehearse()
    batch = ica.copy(two_files(ica), ica.folder("/in/"))
    assert batch["job"]["subjectId"] == batch["id"]
    accepted, finished = ica.journal("job_accepted")[0], ica.journal("job_finished")[0]
    assert (accepted["job_id"], accepted["batch_id"]) == (batch["job"]["id"], batch["id"])
    assert (accepted["project_id"], accepted["path"]) == (TARGET, "/in/")
    assert [item["name"] for item in accepted["items"]] == ["a.gz", "b.gz"]
    assert (finished["status"], finished["written"]) == ("SUCCEEDED", ["/in/a.gz", "/in/b.gz"])


def test_a_job_that_fails_before_any_item_writes_nothing(rehearse):
    ica = rehearse(**fate("failed_clean"))
    batch = ica.copy(two_files(ica), ica.folder("/in/"))
    assert (batch["job"]["status"], statuses(ica, batch)) == ("FAILED", ["FAILED", "FAILED"])
    assert ica.files() == {}


@pytest.mark.parametrize(("outcome", "status"), [("failed_partial", "FAILED"), ("stopped", "STOPPED")])
def test_a_job_that_breaks_off_leaves_a_partial_file(rehearse, outcome, status):
    ica = rehearse(**fate(outcome))
    batch = ica.copy(two_files(ica), ica.folder("/in/"))
    assert batch["job"]["status"] == status
    assert [file["status"] for file in ica.files().values()].count("PARTIAL") == 1
    assert "FAILED" in statuses(ica, batch)
    assert len(ica.journal("job_finished")[0]["partial"]) == 1


def test_a_partially_succeeded_job_copies_a_proper_subset(rehearse):
    ica = rehearse(**fate("partially_succeeded"))
    batch = ica.copy([ica.seed(f"/r/{n}") for n in range(6)], ica.folder("/in/"))
    assert batch["job"]["status"] == "PARTIALLY_SUCCEEDED"
    copied = [item for item in ica.items(batch) if item["processing"]["status"] == "COPIED"]
    assert 0 < len(copied) < 6
    there = {item["createdProjectData"]["data"]["details"]["path"] for item in copied}
    assert there == {path for path, file in ica.files().items() if file["status"] == "AVAILABLE"}
    assert len(ica.items(batch, status="FAILED")) == 6 - len(copied)


def test_a_wrong_item_list_names_a_file_that_is_not_there(rehearse):
    ica = rehearse(**fate("wrong_items"))
    batch = ica.copy([ica.seed(f"/r/{n}") for n in range(6)], ica.folder("/in/"))
    assert batch["job"]["status"] == "PARTIALLY_SUCCEEDED"
    assert statuses(ica, batch).count("COPIED") == len(ica.files()) + 1


def test_a_truncated_copy_succeeds_with_a_shorter_file_and_another_etag(rehearse):
    ica = rehearse(**fate("truncated"))
    batch = ica.copy([ica.seed("/r/a.txt", 1000)], ica.folder("/in/"))
    assert (batch["job"]["status"], statuses(ica, batch)) == ("SUCCEEDED", ["COPIED"])
    copy, source = ica.files()["/in/a.txt"], ica.files(SOURCE)["/r/a.txt"]
    assert copy["size_bytes"] == 500
    assert copy["etag"] != source["etag"]


def test_a_copy_that_goes_missing_succeeds_without_the_file(rehearse):
    ica = rehearse(**fate("missing"))
    batch = ica.copy([ica.seed("/r/a.txt")], ica.folder("/in/"))
    assert (batch["job"]["status"], ica.files()) == ("SUCCEEDED", {})
    assert ica.journal("job_finished")[0]["omitted"] == ["/in/a.txt"]


@pytest.mark.parametrize("where", ["RUNNING", "WAITING_FOR_RESOURCES"])
def test_a_stuck_job_stays_for_that_long_and_then_ends_as_told(rehearse, where):
    ica = rehearse(stuck_seconds=5000, stuck_status=where, stuck_then="failed_clean", **fate("stuck"))
    batch = ica.submit([ica.seed("/r/a.txt")], ica.folder("/in/")).json()
    ica.advance(4900)
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == where
    ica.run_until_idle()
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "FAILED"


@pytest.mark.parametrize(
    "settings",
    [{"failing_files": [r"b\.txt$"]}, {"small_file_fails_below_bytes": 5000}, {"single_part_fails": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_some_files_fail_in_every_job(rehearse, settings):
    ica = rehearse(**settings)
    data, folder = [ica.seed("/r/a.gz", 10**9), ica.seed("/r/b.txt", 4000)], ica.folder("/in/")
    for _ in range(3):
        batch = ica.copy(data, folder)
        assert (batch["job"]["status"], statuses(ica, batch)) == ("PARTIALLY_SUCCEEDED", ["COPIED", "FAILED"])
    assert list(ica.files()) == ["/in/a.gz"]


def test_an_outage_fails_what_runs_and_what_starts_in_it_and_nothing_after(rehearse):
    ica = rehearse(overrides=[Override(destination=".", duration_seconds=100)])
    data = ica.seed("/r/a.gz", 10**9)
    running = ica.submit([data], ica.folder("/one/")).json()["job"]["id"]
    ica.advance(50)
    ica.control.post("/job-outage", json={"seconds": 50})
    starting = ica.submit([data], ica.folder("/two/")).json()["job"]["id"]
    ica.advance(40)
    later = ica.submit([data], ica.folder("/three/")).json()["job"]["id"]
    ica.advance(10)
    assert ica.get(f"/api/jobs/{running}")["status"] == "FAILED"
    assert ica.get(f"/api/jobs/{starting}")["status"] == "FAILED"
    ica.advance(100)
    assert ica.get(f"/api/jobs/{later}")["status"] == "SUCCEEDED"
    assert ica.files()["/one/a.gz"]["status"] == "PARTIAL"


def test_a_status_outside_the_enum_is_shown_as_told(rehearse):
    ica = rehearse(**fate("succeeded", show_status="PAUSED", final_status="REVIEWED"))
    job = ica.submit([ica.seed("/r/a.txt")], ica.folder("/in/")).json()["job"]["id"]
    ica.advance(4)
    assert ica.http.get(f"/api/jobs/{job}").json()["status"] == "PAUSED"
    ica.run_until_idle()
    assert ica.http.get(f"/api/jobs/{job}").json()["status"] == "REVIEWED"


# What is there already


def test_skip_keeps_what_is_there_and_overwrite_and_rename_do_what_they_say(rehearse):
    ica = rehearse()
    ica.seed("/in/a.txt", 77, project=TARGET)
    data, folder = ica.seed("/r/a.txt", 1000), ica.folder("/in/")
    batch = ica.copy([data], folder, "SKIP")
    assert (batch["job"]["status"], statuses(ica, batch)) == ("SUCCEEDED", ["COPIED"])
    assert ica.files()["/in/a.txt"]["size_bytes"] == 77
    assert ica.journal("job_finished")[0]["skipped"] == ["/in/a.txt"]
    ica.copy([data], folder, "RENAME")
    assert {path: file["size_bytes"] for path, file in ica.files().items()} == {"/in/a.txt": 77, "/in/a (1).txt": 1000}
    ica.copy([data], folder, "OVERWRITE")
    assert ica.files()["/in/a.txt"]["size_bytes"] == 1000


@pytest.mark.parametrize(
    ("setting", "job", "file"),
    [("skip", "SUCCEEDED", "PARTIAL"), ("overwrite", "SUCCEEDED", "AVAILABLE"), ("fail", "FAILED", "PARTIAL")],
)
def test_what_skip_does_to_a_partial_file_is_a_setting(rehearse, setting, job, file):
    ica = rehearse(skip_partial=setting, **fate("failed_partial"))
    data, folder = [ica.seed("/r/a.txt")], ica.folder("/in/")
    ica.copy(data, folder)
    assert ica.files()["/in/a.txt"]["status"] == "PARTIAL"
    assert ica.copy(data, folder)["job"]["status"] == job
    assert ica.files()["/in/a.txt"]["status"] == file


def test_a_file_skipped_while_it_is_deleted_vanishes_after_a_job_that_succeeded(rehearse):
    ica = rehearse(delete_seconds=600)
    there = ica.seed("/in/a.txt", project=TARGET)
    ica.call("POST", f"/api/projects/{TARGET}/data/{there}:delete")
    data, folder = [ica.seed("/r/a.txt")], ica.folder("/in/")
    batch = ica.submit(data, folder).json()
    ica.advance(300)
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "SUCCEEDED"
    assert ica.files()["/in/a.txt"]["status"] == "DELETING"
    ica.control.patch("/settings", json={"skip_deleting": "fail"})
    second = ica.submit(data, folder).json()
    ica.advance(299)
    assert ica.get(f"/api/jobs/{second['job']['id']}")["status"] == "FAILED"
    ica.advance(2)
    assert ica.files() == {}


def test_a_file_deleted_while_it_is_written_fails_its_item(rehearse):
    ica = rehearse(overrides=[Override(destination="/in/", duration_seconds=100)])
    batch = ica.submit([ica.seed("/r/a.txt")], ica.folder("/in/")).json()
    ica.advance(50)
    ica.call("POST", f"/api/projects/{TARGET}/data/{ica.files()['/in/a.txt']['id']}:delete")
    ica.run_until_idle()
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "FAILED"
    assert ica.files() == {}


def test_a_destination_folder_deleted_after_acceptance_fails_the_job_and_is_not_made_again(rehearse):
    ica = rehearse(delete_seconds=0)
    folder = ica.folder("/in/")
    batch = ica.submit([ica.seed("/r/a.txt")], folder).json()
    ica.call("POST", f"/api/projects/{TARGET}/data/{folder}:delete")
    ica.run_until_idle()
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "FAILED"
    assert ica.listing() == []


def test_a_copy_carries_tags_only_when_asked(rehearse):
    ica = rehearse()
    data = ica.seed("/r/a.txt", user_tags=["mine"], technical_tags=["run=1"])
    ica.submit([data], ica.folder("/with/"))
    ica.submit([data], ica.folder("/without/"), copyUserTags=False, copyTechnicalTags=False)
    ica.run_until_idle()
    files = ica.files()
    assert (files["/with/a.txt"]["user_tags"], files["/with/a.txt"]["technical_tags"]) == (["mine"], ["run=1"])
    assert (files["/without/a.txt"]["user_tags"], files["/without/a.txt"]["technical_tags"]) == ([], [])


# Sources


def test_a_folder_is_copied_with_everything_below_it_but_empty_folders(rehearse):
    ica = rehearse()
    ica.seed("/run/Logs/a.log")
    ica.seed("/run/top.txt")
    ica.folder("/run/empty/", SOURCE)
    batch = ica.copy([ica.listing(SOURCE, filePath="/run/", type="FOLDER")[0]["id"]], ica.folder("/in/"))
    assert (batch["job"]["status"], statuses(ica, batch)) == ("SUCCEEDED", ["COPIED"])
    assert sorted(ica.files()) == ["/in/run/Logs/a.log", "/in/run/top.txt"]
    assert ica.items(batch)[0]["createdProjectData"]["data"]["details"]["path"] == "/in/run/"
    assert ica.listing(filePath="/in/run/empty/") == []


def test_a_folder_of_which_a_part_fails_is_partially_copied(rehearse):
    ica = rehearse(failing_files=["a.log"])
    ica.seed("/run/a.log")
    ica.seed("/run/b.log")
    batch = ica.copy([ica.listing(SOURCE, filePath="/run/", type="FOLDER")[0]["id"]], ica.folder("/in/"))
    assert (batch["job"]["status"], statuses(ica, batch)) == ("PARTIALLY_SUCCEEDED", ["PARTIALLY_COPIED"])


def test_archived_and_vanished_sources_fail_their_item_only(rehearse):
    ica = rehearse(delete_seconds=0)
    good, archived, gone = ica.seed("/a"), ica.seed("/b", status="ARCHIVED"), ica.seed("/c")
    batch = ica.submit([good, archived, gone], ica.folder("/in/")).json()
    ica.call("POST", f"/api/projects/{SOURCE}/data/{gone}:delete")
    ica.run_until_idle()
    assert statuses(ica, batch) == ["COPIED", "FAILED", "FAILED"]


def test_an_unknown_source_or_destination_refuses_the_batch(rehearse):
    ica = rehearse()
    data, folder = ica.seed("/a"), ica.folder("/in/")
    assert ica.submit([data, "fil." + "0" * 32], folder).status_code == 404
    assert ica.submit([data], "fol." + "0" * 32).status_code == 404
    assert ica.submit([data], data).status_code == 404
    assert ica.journal("job_accepted") == []


def test_without_a_folder_the_copy_goes_to_the_root(rehearse):
    ica = rehearse()
    assert "destinationFolderId" not in ica.copy([ica.seed("/x/a.txt")], None)
    assert list(ica.files()) == ["/a.txt"]


@pytest.mark.parametrize(("setting", "code", "status"), [("reject_400", 400, None), ("job_failed", 201, "FAILED")])
def test_a_copy_within_one_project_meets_the_setting(rehearse, setting, code, status):
    ica = rehearse(same_project=setting)
    answer = ica.submit([ica.seed("/a.txt", project=TARGET)], ica.folder("/in/"))
    assert answer.status_code == code
    ica.run_until_idle()
    assert [entry["status"] for entry in ica.journal("job_finished")] == ([status] if status else [])


def test_within_one_project_a_folder_cannot_go_into_itself_and_a_file_not_onto_itself(rehearse):
    ica = rehearse(same_project="allow")
    data, folder = ica.seed("/in/a.txt", 10, project=TARGET), ica.folder("/in/")
    assert ica.submit([folder], ica.folder("/in/sub/")).status_code == 400
    assert ica.copy([data], folder, "OVERWRITE")["job"]["status"] == "FAILED"
    assert ica.files()["/in/a.txt"]["size_bytes"] == 10


@pytest.mark.parametrize("changes", [False, True])
def test_whether_a_multipart_etag_survives_a_copy_is_a_setting(rehearse, changes):
    ica = rehearse(multipart_etag_changes=changes)
    ica.copy([ica.seed("/r/a.gz", 10**9), ica.seed("/r/b.txt", 1000)], ica.folder("/in/"))
    copies, sources = ica.files(), ica.files(SOURCE)
    assert (copies["/in/a.gz"]["etag"] != sources["/r/a.gz"]["etag"]) is changes
    assert copies["/in/b.txt"]["etag"] == sources["/r/b.txt"]["etag"]


def test_a_batch_over_the_item_limit_is_refused(rehearse):
    ica = rehearse(max_items_per_batch=1)
    assert ica.submit(two_files(ica), ica.folder("/in/")).status_code == 400


# Counting


def test_two_open_jobs_for_the_same_items_and_folder_are_counted_as_duplicates(rehearse):
    ica = rehearse()
    data, folder = two_files(ica), ica.folder("/in/")
    first = ica.submit(data[:1], folder).json()["job"]["id"]
    ica.submit(data[1:], folder)
    assert ica.control.get("/counters").json()["duplicate_jobs"] == []
    second = ica.submit(data, folder).json()["job"]["id"]
    counters = ica.control.get("/counters").json()
    assert counters["duplicate_jobs"][0]["jobs"] == [first, second]
    assert (counters["peak_jobs_in_flight"], counters["submissions"]) == (3, {IN: 3})
    assert {pair["why"] for pair in counters["duplicate_jobs"]} == {"at work for the same items"}


def test_a_job_accepted_while_all_its_items_are_whole_is_a_duplicate_too(rehearse):
    ica = rehearse()
    data, folder = two_files(ica), ica.folder("/in/")
    ica.copy(data[:1], folder)
    ica.copy(data, folder)  # one of its files is missing: somebody needs it
    assert ica.control.get("/counters").json()["duplicate_jobs"] == []
    job = ica.copy(data, folder)["job"]["id"]
    duplicate = {"why": "all items are whole there", "jobs": [job], "destination": IN, "data_ids": sorted(data)}
    assert ica.control.get("/counters").json()["duplicate_jobs"] == [duplicate]
    assert ica.journal("duplicate_job") == [duplicate]


@pytest.mark.parametrize("spoilt", [{"size_bytes": 9}, {"status": "PARTIAL"}, {"status": "DELETING"}])
def test_a_job_for_a_file_that_is_not_whole_is_no_duplicate(rehearse, spoilt):
    ica = rehearse()
    data, folder = [ica.seed("/run/a.txt")], ica.folder("/in/")
    ica.copy(data, folder)
    ica.control.patch(f"/data/{ica.files()['/in/a.txt']['id']}", json=spoilt)
    ica.submit(data, folder)
    assert ica.control.get("/counters").json()["duplicate_jobs"] == []


def test_a_folder_is_whole_when_all_its_files_are(rehearse):
    ica = rehearse()
    ica.seed("/run/a.txt")
    data, folder = [ica.folder("/run/", SOURCE)], ica.folder("/in/")
    ica.copy(data, folder)
    ica.seed("/run/b.txt")
    ica.copy(data, folder)
    assert ica.control.get("/counters").json()["duplicate_jobs"] == []
    ica.copy(data, folder)
    assert len(ica.control.get("/counters").json()["duplicate_jobs"]) == 1


def test_one_listing_shows_every_job_by_status_and_the_newest_first(rehearse):
    ica = rehearse(**fate("failed_clean"))
    data, folder, ids = [ica.seed("/a")], ica.folder("/in/"), []
    for _ in range(3):
        ids.append(ica.copy(data, folder)["job"]["id"])
    page = ica.get("/api/jobs", sort="timeCreated desc", pageSize=2)
    assert ([job["id"] for job in page["items"]], page["totalItemCount"]) == (ids[:0:-1], 3)
    assert [job["id"] for job in ica.get("/api/jobs", status=["FAILED", "STOPPED"])["items"]] == ids[:1]
    first = ica.get("/api/jobs", pageSize=2)
    last = ica.get("/api/jobs", pageSize=2, pageToken=first["nextPageToken"])
    assert [job["id"] for job in first["items"] + last["items"]] == ids
    assert last["nextPageToken"] == ""


def test_jobs_of_other_users_are_seen_or_not_by_setting(rehearse):
    ica = rehearse()
    ica.control.post("/users", json={"name": "other", "api_key": "other-key"})
    ica.submit([ica.seed("/a")], ica.folder("/in/"))
    mine = {"Authorization": "", "X-API-Key": "other-key"}
    assert len(ica.call("GET", "/api/jobs", headers=mine).json()["items"]) == 1
    ica.control.patch("/settings", json={"job_scope": "user"})
    assert ica.call("GET", "/api/jobs", headers=mine).json()["items"] == []


# Draws


def test_draws_do_not_depend_on_the_order_of_submission(rehearse):
    def run(order: list[int]) -> dict[tuple[str, int], tuple[float, str]]:
        ica = rehearse(failure_rate=0.5, seed=7)
        data = ica.seed("/a")
        folders = {number: ica.folder(f"/f{number}/") for number in set(order)}
        for number in order:
            ica.submit([data], folders[number])
        truth = ica.control.get("/jobs").json()
        return {(job["destination"], job["attempt"]): (job["drawn_seconds"], job["drawn_outcome"]) for job in truth}

    order = [number for number in range(6) for _ in range(2)]
    shuffled = order.copy()
    random.Random(3).shuffle(shuffled)
    first = run(order)
    assert run(shuffled) == first
    expected = {key: draw(7, *key, Settings(failure_rate=0.5))[:2] for key in first}
    assert first == {key: (seconds, outcome.value) for key, (seconds, outcome) in expected.items()}


def test_draws_follow_the_settings():
    settings = Settings(duration_mean_seconds=20, duration_cv=0.5, failure_rate=0.3)
    draws = [draw(1, f"p/{number}/", 1, settings) for number in range(4000)]
    seconds = [each.duration_seconds for each in draws]
    assert math.isclose(statistics.mean(seconds), 20, rel_tol=0.05)
    assert math.isclose(statistics.stdev(seconds) / statistics.mean(seconds), 0.5, rel_tol=0.1)
    assert math.isclose(sum(each.outcome is not Outcome.SUCCEEDED for each in draws) / 4000, 0.3, abs_tol=0.03)
    one_kind = Settings(failure_rate=1, failure_weights={Outcome.STOPPED: 1})
    assert {draw(1, f"p/{number}/", 1, one_kind).outcome for number in range(50)} == {Outcome.STOPPED}
    assert draw(1, "p/", 1) != draw(2, "p/", 1) != draw(2, "p/", 2)
    assert draw(1, "p/9/", 1).duration_seconds == draw(1, "p/9/", 1, Settings(failure_rate=1)).duration_seconds


def test_a_job_takes_its_draw_plus_the_bandwidth_term(rehearse):
    ica = rehearse(bandwidth_bytes_per_second=10**8)
    batch = ica.submit([ica.seed("/a.gz", 10**10)], ica.folder("/in/")).json()
    seconds = draw(1, IN, 1).duration_seconds + 100
    ica.advance(seconds - 0.01)
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "RUNNING"
    ica.advance(0.02)
    assert ica.get(f"/api/jobs/{batch['job']['id']}")["status"] == "SUCCEEDED"
