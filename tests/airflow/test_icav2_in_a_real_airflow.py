"""What users and failures do to a run in a real Airflow: each time the tree is right and the journal shows no twin."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from include.core.ledger import State
from include.core.ledger.audit import verify
from rehearsal.api import ApiError
from rehearsal.scenes.icav2 import ICAv2Scene
from rehearsal.stack import Stack
from tests.airflow.conftest import DAG_ID, HANG, TARGET, Rehearsal

pytestmark = [pytest.mark.airflow, HANG]

LONG = 20.0  # seconds: a job that is still running when the test strikes


# -- played at the same time, as users do it: each scenario has folders of its own -----------------------------------------


def a_triggerer_that_stalls_for_a_minute_and_comes_back_cancels_nothing(rehearsal: Rehearsal):
    root = rehearsal.folder("stalled")
    rehearsal.fate({"destination": root, "duration_seconds": 90.0, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    run_id = rehearsal.start(conf)
    rehearsal.until_waiting(run_id)
    time.sleep(4)  # the trigger is at work in one of the two triggerers
    stopped = stop_between_writes(rehearsal.stack, "triggerer")
    time.sleep(60)
    for pid in stopped:
        signal_process(pid, signal.SIGCONT)
    assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2
    assert all(row.cancel_requested_at is None for row in rehearsal.rows(root))


def both_inputs_of_the_procedure_give_its_output_and_every_file(rehearsal: Rehearsal):
    scene = ICAv2Scene(rehearsal.stack, rehearsal.ledger)
    runs = {name: rehearsal.start(conf) for name, conf in scene.confs().items()}
    for name, run_id in runs.items():
        assert rehearsal.api.wait(DAG_ID, run_id, 240).state == "success", name
        output = rehearsal.api.xcom(DAG_ID, run_id, "copy")
        assert output["counters"]["jobs_failed"] == output["counters"]["jobs_running"] == 0
        for job in output["job_list_with_attempt_counter"]:
            assert job["job_status"] is True
            assert job["job_attempt_counter"] == len(job["failed_jobs_list"]) + 1
        assert rehearsal.document(run_id)["state"] == "complete"
    receipts = [rehearsal.document(run_id) for run_id in runs.values()]
    assert scene.check(receipts) == []
    assert verify(rehearsal.ledger, receipts).problems == []


def a_wrong_type_is_refused_by_airflow_at_once(rehearsal: Rehearsal):
    with pytest.raises(ApiError) as refused:
        rehearsal.start({"manifest": {}, "max_in_flight": "many"})
    assert refused.value.status == 400
    assert "max_in_flight" in refused.value.body


def what_airflow_lets_through_is_refused_by_load_request_all_at_once(rehearsal: Rehearsal):
    run_id = rehearsal.start({"manifest": {"nowhere/a": ["s3://bucket/x/"]}, "typo": 1, "manifest_b64gz": "AAAA"})
    assert rehearsal.api.wait(DAG_ID, run_id, 90).state == "failed"
    problems = rehearsal.api.xcom(DAG_ID, run_id, "load_request", "request_errors")
    assert any("typo" in problem for problem in problems)
    assert rehearsal.api.task(DAG_ID, run_id, "load_request").try_number == 1
    again = rehearsal.start({"manifest": {"nowhere/a": ["s3://bucket/x/"], "icav2://my project/b": []}})
    assert rehearsal.api.wait(DAG_ID, again, 90).state == "failed"
    assert rehearsal.document(again)["state"] == "incomplete"


def clear_adopts_what_runs(rehearsal: Rehearsal):
    root = rehearsal.folder("clear")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    run_id = rehearsal.start(conf)
    rehearsal.until_waiting(run_id)
    rehearsal.api.clear(DAG_ID, run_id, ["copy"])
    assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2
    assert all(row.cancel_requested_at is None for row in rehearsal.rows(root))


def mark_failed_ends_no_job_and_the_next_run_adopts(rehearsal: Rehearsal):
    root = rehearsal.folder("marked")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    first = rehearsal.start(conf)
    rehearsal.until_waiting(first)
    rehearsal.api.set_task_state(DAG_ID, first, "copy", "failed")
    assert rehearsal.api.wait(DAG_ID, first, 90).state == "failed"
    assert rehearsal.document(first)["state"] == "incomplete"
    second = rehearsal.start(conf)
    assert rehearsal.api.wait(DAG_ID, second, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2, "the second run adopted both jobs"
    assert {tuple(one.run_id for one in row.owners) for row in rehearsal.rows(root)} == {(first, second)}
    assert all(row.cancel_requested_at is None for row in rehearsal.rows(root)), "nothing can be cancelled at ICA"


def mark_success_leaves_the_receipt_incomplete(rehearsal: Rehearsal):
    root = rehearsal.folder("success")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    run_id = rehearsal.start(rehearsal.conf(root, 1))
    rehearsal.until_waiting(run_id)
    rehearsal.api.set_task_state(DAG_ID, run_id, "copy", "success")
    assert rehearsal.api.wait(DAG_ID, run_id, 90).state == "failed"
    assert rehearsal.document(run_id)["state"] == "incomplete"
    assert all(row.cancel_requested_at is None for row in rehearsal.rows(root))
    rehearsal.assert_one_effective_job_per_intent(root)


def a_deleted_run_leaves_its_jobs_to_the_next(rehearsal: Rehearsal):
    root = rehearsal.folder("deleted")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    first = rehearsal.start(conf)
    rehearsal.until_waiting(first)
    rehearsal.api.set_run_state(DAG_ID, first, "failed")
    rehearsal.api.delete_run(DAG_ID, first)
    second = rehearsal.start(conf)
    assert rehearsal.api.wait(DAG_ID, second, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2


def a_second_trigger_copies_only_what_is_missing(rehearsal: Rehearsal):
    root = rehearsal.folder("again")
    rehearsal.fate({"destination": root, "duration_seconds": 4.0, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 3)
    assert rehearsal.api.wait(DAG_ID, rehearsal.start(conf), 120).state == "success"
    tree = {node["path"]: node for node in rehearsal.get(f"/projects/{TARGET}/tree")}
    lost = tree[f"{root}/d1/f0.fastq.gz"]
    rehearsal.sim.post(
        f"/api/projects/{TARGET}/data/{lost['id']}:delete",
        headers={"X-API-Key": "rehearsal-key"},
    ).raise_for_status()
    rehearsal.until(lambda: lost["path"] not in str(rehearsal.get(f"/projects/{TARGET}/tree")), "gone")
    assert rehearsal.api.wait(DAG_ID, rehearsal.start(conf), 120).state == "success"
    rehearsal.assert_proved(conf, root)
    assert [[item["name"] for item in job["items"]] for job in rehearsal.jobs(root)][3:] == [["f0.fastq.gz"]]


def two_runs_on_one_folder_share_its_jobs(rehearsal: Rehearsal):
    root = rehearsal.folder("shared")
    rehearsal.fate({"destination": root, "duration_seconds": 12.0, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    runs = [rehearsal.start(conf), rehearsal.start(conf)]
    for run_id in runs:
        assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2


def a_destination_that_always_fails_does_not_stop_the_others(rehearsal: Rehearsal):
    root = rehearsal.folder("poison")
    rehearsal.fate(
        {"destination": f"{root}/d0/", "duration_seconds": 1.0, "outcome": "failed_clean"},
        {"destination": root, "duration_seconds": 2.0, "outcome": "succeeded"},
    )
    run_id = rehearsal.start(rehearsal.conf(root, 3, max_resubmissions=1))
    assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "failed"
    assert rehearsal.api.task(DAG_ID, run_id, "copy").try_number == 1, "used-up attempts are not multiplied by retries"
    receipt = rehearsal.document(run_id)
    assert {item["destination"].split("/")[-2]: item["state"] for item in receipt["items"]} == {
        "d0": "failed", "d1": "passed", "d2": "passed",
    }  # fmt: skip
    assert receipt["totals"]["files proved"] == 4
    missing = rehearsal.document(run_id, "not_copied.json")
    assert len(missing) == 2
    assert all("f0.fastq.gz" in missing[0] or "f1.fastq.gz" in line for line in missing)
    assert len([job for job in rehearsal.jobs(root) if "/d0/" in job["destination"]]) == 2
    assert [row.state for row in rehearsal.rows(f"{root}/d0/")] == [State.FAILED, State.FAILED]
    rehearsal.assert_one_effective_job_per_intent(root)


def stop_between_writes(stack: Stack, name: str) -> list[int]:
    """Stops a component's processes where none of them holds SQLite's one write lock: all of Airflow would stop with it."""
    database = stack.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].removeprefix("sqlite:///")
    while True:
        pids = stack.pids(name)
        for pid in pids:
            signal_process(pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(database, timeout=3, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                return pids
        except sqlite3.OperationalError:  # locked, by it or by another: look again
            for pid in pids:
                signal_process(pid, signal.SIGCONT)
            time.sleep(0.2)


def signal_process(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


SCENARIOS = [
    a_triggerer_that_stalls_for_a_minute_and_comes_back_cancels_nothing,
    both_inputs_of_the_procedure_give_its_output_and_every_file,
    a_wrong_type_is_refused_by_airflow_at_once,
    what_airflow_lets_through_is_refused_by_load_request_all_at_once,
    clear_adopts_what_runs,
    mark_failed_ends_no_job_and_the_next_run_adopts,
    mark_success_leaves_the_receipt_incomplete,
    a_deleted_run_leaves_its_jobs_to_the_next,
    a_second_trigger_copies_only_what_is_missing,
    two_runs_on_one_folder_share_its_jobs,
    a_destination_that_always_fails_does_not_stop_the_others,
]


@pytest.fixture(scope="module")
def playing(shared: Rehearsal) -> Iterator[dict[str, Future[None]]]:
    """All scenarios under way; the first one asked for waits longest."""
    with ThreadPoolExecutor(max_workers=5) as pool:
        yield {scenario.__name__: pool.submit(scenario, shared) for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test(scenario: str, playing: dict[str, Future[None]]):
    playing[scenario].result()


# -- one after the other: components are killed ------------------------------------------------------------------------------


def test_a_triggerer_killed_in_mid_wait_changes_nothing(rehearsal: Rehearsal):
    root = rehearsal.folder("triggerer")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 3)
    run_id = rehearsal.start(conf)
    rehearsal.until_waiting(run_id)
    for name in ("triggerer", "triggerer-2"):
        rehearsal.stack.kill(name, tree=True)
    rehearsal.stack.start("triggerer")
    assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 3


def test_a_worker_killed_while_it_sends_is_followed_by_one_that_adopts(rehearsal: Rehearsal):
    root = rehearsal.folder("worker")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 3)
    # The first copy is accepted at once, but its answer is held back: the worker dies not knowing.
    rehearsal.post("/faults", {"method": "POST", "path": "dataCopyBatch", "fault": "hold_after_commit", "seconds": 30})
    run_id = rehearsal.start(conf)
    rehearsal.until(lambda: rehearsal.jobs(root), "a job was accepted")
    for process in rehearsal.stack.task_processes():
        process.kill()
    assert rehearsal.api.wait(DAG_ID, run_id, 300).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 3


def test_a_scheduler_killed_in_mid_wait_changes_nothing(rehearsal: Rehearsal):
    root = rehearsal.folder("scheduler")
    rehearsal.fate({"destination": root, "duration_seconds": LONG, "outcome": "succeeded"})
    conf = rehearsal.conf(root, 2)
    run_id = rehearsal.start(conf)
    rehearsal.until_waiting(run_id)
    rehearsal.stack.restart("scheduler")
    assert rehearsal.api.wait(DAG_ID, run_id, 180).state == "success"
    rehearsal.assert_proved(conf, root)
    assert len(rehearsal.jobs(root)) == 2


def test_the_receipt_opens_for_a_viewer_and_for_nobody_without_a_login(rehearsal: Rehearsal):
    run_id = next(run.run_id for run in rehearsal.api.runs(DAG_ID) if run.state == "success")
    url = f"{rehearsal.stack.address}/waybill/receipts/{DAG_ID}/{run_id}"
    link = rehearsal.api.get(f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances/copy/links")["extra_links"]["Receipt"]
    assert link == url
    assert httpx.get(url).status_code == 401
    token = rehearsal.stack.api_as("vic").token()
    page = httpx.get(url, headers={"Authorization": f"Bearer {token}"})
    assert page.status_code == 200
    assert run_id in page.text


def test_airflow_loads_our_dags_and_plugin_without_errors(stack: Stack):
    assert stack.api.import_errors() == {}
    assert stack.api.get("/plugins/importErrors")["import_errors"] == []
    assert "waybill" in [plugin["name"] for plugin in stack.api.get("/plugins")["plugins"]]
