"""The copy operator: legs between deferrals, what wakes it, and what it tells at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from operators.common.load_request import LoadRequestOperator
from operators.common.receipt import ReceiptLink
from operators.icav2.copy_batch import ICAv2CopyBatchOperator
from operators.icav2.plan import ICAv2PlanOperator
from operators.icav2.receipt import ICAv2ReceiptOperator
from triggers.icav2_jobs import ICAv2JobsTrigger
from triggers.until import UntilTrigger

from include.core.errors import DeadlinePassed, Held, RequestError, VerificationError
from include.core.http import HttpPolicy
from include.core.ledger import Ledger, State
from include.core.request import XCOM_LIMIT_BYTES
from include.icav2.engine import CopyEngine, CopyProgress
from include.icav2.models import CopyRequest
from tests.plugins.conftest import SIZE_BYTES, SOURCE, TARGET, Ica, rows_of
from tests.plugins.doubles import Run

LATE_SECONDS = 15.0  # between the deadline that an operator computes and the test's look at it


class Copy:
    """One run up to its copy task: leg after leg, as Airflow would call them."""

    def __init__(self, conf: dict[str, Any], run_id: str = "first"):
        self.run = Run(conf, run_id)
        self.request = self.run.execute(LoadRequestOperator(task_id="load_request", model=CopyRequest))
        self.plan = self.run.execute(ICAv2PlanOperator(task_id="plan"))

    def operator(self, **options: Any) -> ICAv2CopyBatchOperator:
        return ICAv2CopyBatchOperator(task_id="copy", plan=self.plan, request=self.request, **options)

    def leg(self, kind: str | None = None) -> Any:
        """The first leg, or the one after an event of this kind. Raises TaskDeferred where it waits."""
        event = {"kind": kind, "why": f"a {kind}", "counts": {}} if kind else None
        value = self.operator().resume(self.run.context("copy"), event)
        self.run.xcoms["copy", "return_value"] = value
        return value

    def wait(self, kind: str | None = None) -> TaskDeferred:
        with pytest.raises(TaskDeferred) as deferred:
            self.leg(kind)
        return deferred.value

    def receipt(self) -> dict[str, Any]:
        """What the receipt task writes, also where it fails the run."""
        operator = ICAv2ReceiptOperator(task_id="receipt")
        try:
            uri = self.run.execute(operator)["uri"]
        except VerificationError:
            uri = next(str(p) for p in self.folder.rglob("receipt.json"))
        return json.loads(Path(uri.removeprefix("file://")).read_text())

    @property
    def folder(self) -> Path:
        return Path(self.plan["plan"]["uri"].removeprefix("file://")).parent


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path) -> None:
    """Every copy needs a ledger and a place for its documents."""


def test_it_defers_once_for_all_destinations_until_the_job_timeout(ica: Ica, ledger: Ledger):
    copy = Copy(ica.conf(3, job_timeout_minutes=90, poll_seconds=7))
    deferred = copy.wait()
    assert isinstance(deferred.trigger, ICAv2JobsTrigger)
    assert deferred.method_name == "resume"
    assert 90 * 60 - LATE_SECONDS < deferred.trigger.deadline - time.time() <= 90 * 60
    assert abs(deferred.trigger.since - time.time()) < LATE_SECONDS
    assert deferred.trigger.poll_seconds == 7
    assert [row.state for row in rows_of(ledger)] == [State.SENT] * 3
    assert len(ica.jobs()) == 3


def test_the_partial_receipt_can_be_opened_while_it_waits(ica: Ica):
    copy = Copy(ica.conf(2))
    copy.wait()
    receipt = json.loads((copy.folder / "receipt.json").read_text())
    assert receipt["state"] == "running"
    assert len(receipt["items"]) == 2
    assert copy.run.xcoms["copy", ReceiptLink().xcom_key].endswith(
        f"/waybill/receipts/icav2_copy_batch/{copy.run.run_id}"
    )


@pytest.mark.parametrize("kind", ["wake", "deadline", "lost"])
def test_whatever_woke_it_it_looks_for_itself(ica: Ica, kind: str):
    copy = Copy(ica.conf(2))
    copy.wait()
    copy.wait(kind)  # the event says why to wake, never what is true: the jobs still run
    assert len(ica.jobs()) == 2
    ica.pass_time(60)
    output = copy.leg(kind)
    assert output["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": 2}
    assert len(ica.jobs()) == 2, "one job per destination"


def test_a_retry_of_the_task_attaches_to_the_jobs_that_run(ica: Ica):
    copy = Copy(ica.conf(2))
    copy.wait()
    copy.wait()  # execute() again, as after a clear or a killed worker
    ica.pass_time(60)
    copy.leg()
    assert len(ica.jobs()) == 2


def test_the_deadline_of_a_wait_is_that_of_the_oldest_job(ica: Ica, ledger: Ledger):
    """By ICA's clock, whose answers name whole seconds."""
    ica.change_settings(overrides=[{"destination": "/cache/", "outcome": "stuck"}], stuck_seconds=1e6)
    copy = Copy(ica.conf(2, job_timeout_minutes=90))
    first = copy.wait().trigger.deadline
    ica.pass_time(600)
    assert copy.wait("wake").trigger.deadline == pytest.approx(first - 600, abs=60)


def test_a_stuck_job_is_superseded_once_and_the_rest_sent_again(ica: Ica, ledger: Ledger):
    ica.change_settings(overrides=[{"destination": "/cache/d0/", "attempts": [1], "outcome": "stuck"}])
    ica.change_settings(stuck_seconds=1e6, stuck_status="WAITING_FOR_RESOURCES")
    copy = Copy(ica.conf(1, job_timeout_minutes=1 / 60))
    copy.wait()
    ica.pass_time(5)  # longer than the job's timeout, on ICA's clock
    copy.wait("deadline")
    assert [row.state for row in rows_of(ledger)] == [State.SUPERSEDED, State.SENT]
    ica.pass_time(60)
    output = copy.leg("wake")
    assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 2


def test_failed_jobs_are_sent_again_and_the_output_lists_them(ica: Ica):
    ica.change_settings(overrides=[{"destination": "/cache/d1/", "attempts": [1, 2], "outcome": "failed_clean"}])
    copy = Copy(ica.conf(2))
    copy.wait()
    for _ in range(2):
        ica.pass_time(60)
        copy.wait("wake")
    ica.pass_time(60)
    output = copy.leg("wake")
    counted = {job["dest_uri"][-3:]: job["job_attempt_counter"] for job in output["job_list_with_attempt_counter"]}
    assert counted == {"d0/": 1, "d1/": 3}
    failed = [job["id"] for job in ica.jobs() if job["status"] == "FAILED"]
    listed = [job["failed_jobs_list"] for job in output["job_list_with_attempt_counter"] if "d1/" in job["dest_uri"]]
    assert listed == [failed]


def test_used_up_attempts_fail_the_task_with_a_report_that_names_each_file_and_why(ica: Ica):
    ica.change_settings(overrides=[{"destination": "/cache/d0/", "outcome": "failed_clean"}])
    copy = Copy(ica.conf(2, max_resubmissions=1))
    copy.wait()
    ica.pass_time(60)
    copy.wait("wake")
    ica.pass_time(60)
    with pytest.raises(VerificationError, match="2 of 4 files are not copied") as failed:
        copy.leg("wake")
    assert "trigger the DAG again with the same conf" in str(failed.value)
    missing = json.loads((copy.folder / "not_copied.json").read_text())
    assert len(missing) == 2
    assert all(name in line for name, line in zip(["f0.fastq.gz", "f1.fastq.gz"], missing, strict=True))
    assert all(f"icav2://{TARGET}/cache/d0/" in line and "after 2 submissions" in line for line in missing)
    assert len([path for path in ica.files() if "/d1/" in path]) == 2, "the other destination is done"
    assert ("copy", "return_value") not in copy.run.xcoms
    receipt = copy.receipt()
    assert receipt["state"] == "incomplete"
    assert "f0.fastq.gz" in receipt["remedy"]


def test_a_new_run_copies_only_what_is_missing(ica: Ica):
    ica.change_settings(overrides=[{"destination": "/cache/d0/", "outcome": "failed_clean"}])
    conf = ica.conf(2, max_resubmissions=0)
    first = Copy(conf)
    first.wait()
    ica.pass_time(60)
    with pytest.raises(VerificationError):
        first.leg("wake")
    ica.change_settings(overrides=[])
    second = Copy(conf, "second")
    second.wait()
    ica.pass_time(60)
    assert second.leg("wake")["counters"]["jobs_passed"] == 2
    assert [job["destination"][-3:] for job in ica.jobs()].count("d1/") == 1


def test_a_small_output_travels_in_xcom_and_a_large_one_by_uri_and_digest(ica: Ica):
    small = Copy(ica.conf(1))
    small.wait()
    ica.pass_time(60)
    assert len(json.dumps(small.leg("wake"))) <= XCOM_LIMIT_BYTES

    many = Copy(ica.conf(1, files=250, root="/" + "many" * 50), "many")
    many.wait()
    ica.pass_time(60)
    value = many.leg("wake")
    assert value.keys() == {"uri", "sha256", "size_bytes"}
    assert value["size_bytes"] > XCOM_LIMIT_BYTES
    output = json.loads(Path(value["uri"].removeprefix("file://")).read_text())
    assert output["counters"]["jobs_passed"] == 1
    assert len(json.dumps(many.run.xcoms["copy", "report"])) <= XCOM_LIMIT_BYTES
    assert many.receipt()["state"] == "complete"


def test_a_plan_that_was_changed_after_it_was_written_is_refused(ica: Ica):
    copy = Copy(ica.conf(1))
    (copy.folder / "plan.json").write_text("{}")
    with pytest.raises(RequestError):
        copy.leg()
    assert "sha256 differs" in copy.run.xcoms["copy", "request_errors"][0]
    assert ica.jobs() == []
    told = copy.receipt()["outcome"]
    assert "sha256 differs" in told
    assert "by a person" not in told


def test_a_copy_that_left_no_reason_behind_is_not_blamed_on_anybody(ica: Ica):
    copy = Copy(ica.conf(1))
    copy.wait()
    assert "stopped or marked by a person, or its worker was lost" in copy.receipt()["outcome"]


def test_without_deferring_it_waits_on_the_worker_and_gives_the_same(ica: Ica):
    ica.change_settings(overrides=[{"destination": "/cache/d1/", "attempts": [1], "outcome": "failed_partial"}])
    copy = Copy(ica.conf(2, poll_seconds=1))
    ica.call(lambda sim: setattr(sim.clock, "speed", 60.0))
    output = copy.operator(deferrable=False).execute(copy.run.context("copy"))
    assert output["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": 2}
    assert len(ica.jobs()) == 3


def test_a_held_destination_names_the_command_that_settles_it(ica: Ica, ledger: Ledger):
    copy = Copy(ica.conf(1))
    copy.wait()
    row = rows_of(ledger)[0]
    with ledger._engine.begin() as conn:  # no path leads a copy to HELD by itself: SKIP makes a second one harmless
        conn.exec_driver_sql("UPDATE waybill_submissions SET state = 'HELD', external_id = NULL")
    with pytest.raises(Held, match=r"python -m include\.core\.ledger resolve"):
        copy.leg("wake")
    assert str(row.business_key) in str(copy.receipt()["held"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails is not tried again, so that an outage is felt at once."""
    monkeypatch.setattr("include.core.http.HttpPolicy", partial(HttpPolicy, read_attempts=1))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("jobs_before", [0, 1])
def test_an_outage_of_ica_is_waited_for_in_short_waits_and_nothing_is_sent_twice(ica: Ica, jobs_before: int):
    copy = Copy(ica.conf(1))
    if jobs_before:
        copy.wait()
    ica.fault(fault="outage", seconds=1e6)
    assert copy.wait("lost").trigger.deadline - time.time() < 600, "not for the two hours that a job may take"
    assert "Waiting: " in json.loads((copy.folder / "receipt.json").read_text())["outcome"]
    ica.clear_faults()
    copy.wait("deadline")
    assert len(ica.jobs()) == 1


# -- the last look decides --------------------------------------------------------------------------------------------


def meanwhile(monkeypatch: pytest.MonkeyPatch, phase: str, happens: Callable[[], Any]) -> None:
    """Something happens between a pass, after which one destination has this phase, and the last look."""
    acted = CopyEngine.act

    async def act(engine: CopyEngine) -> CopyProgress:
        progress = await acted(engine)
        assert progress.counts[phase]
        happens()
        return progress

    monkeypatch.setattr(CopyEngine, "act", act)


def test_a_file_that_is_gone_at_the_last_look_is_in_the_output_too(ica: Ica, monkeypatch: pytest.MonkeyPatch):
    copy = Copy(ica.conf(2))
    copy.wait()
    ica.pass_time(60)
    gone = "/cache/d0/f0.fastq.gz"
    meanwhile(monkeypatch, "passed", lambda: ica.call(lambda sim: sim.tree.delete(sim.tree.at(TARGET, gone))))
    with pytest.raises(VerificationError, match=r"1 of 4 files are not copied.*gone or changed"):
        copy.leg("wake")
    output = json.loads((copy.folder / "output.json").read_text())
    assert output["counters"] == {"jobs_failed": 1, "jobs_running": 0, "jobs_passed": 1}
    assert copy.receipt()["totals"]["destinations passed"] == 1


def test_a_green_run_counts_no_failed_job(ica: Ica, monkeypatch: pytest.MonkeyPatch):
    ica.change_settings(overrides=[{"destination": "/cache/d0/", "outcome": "failed_clean"}])
    copy = Copy(ica.conf(1, files=1, max_resubmissions=0))
    copy.wait()
    ica.pass_time(60)

    def by_hand(sim: Any) -> None:
        etag = sim.tree.at(SOURCE, "/run/s0/f0.fastq.gz").etag
        sim.seed_file(TARGET, "/cache/d0/f0.fastq.gz", SIZE_BYTES, etag=etag)

    meanwhile(monkeypatch, "failed", lambda: ica.call(by_hand))
    assert copy.leg("wake")["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": 1}
    receipt = copy.receipt()
    assert (receipt["state"], receipt["totals"]["destinations passed"]) == ("complete", 1)


# -- the end of the run's time ----------------------------------------------------------------------------------------


def test_a_run_whose_time_is_over_ends_with_what_is_open_sends_nothing_and_the_next_adopts_it(ica: Ica):
    ica.change_settings(overrides=[{"destination": "/cache/d0/", "duration_seconds": 1000.0}])
    conf = ica.conf(3, max_in_flight=2, deadline_days=2)
    copy = Copy(conf)
    copy.run.start_date -= timedelta(days=1, hours=23)
    assert copy.wait().trigger.deadline - time.time() == pytest.approx(3600, abs=LATE_SECONDS)
    copy.run.start_date -= timedelta(hours=1)
    ica.pass_time(60)  # one of the two jobs has ended: there is a free slot
    with pytest.raises(
        VerificationError, match=r"time of this run is over \(conf deadline_days gives more\)"
    ) as failed:
        copy.leg("deadline")
    assert "4 of 6 files" in str(failed.value)
    assert len(ica.jobs()) == 2, "nothing was sent after the deadline"
    told = copy.receipt()
    assert [row["state"] for row in told["items"]] == ["passed", "failed", "failed"]
    assert sum("goes on at ICA" in line and "the next run adopts it" in line for line in told["problems"]) >= 1
    assert "same conf" in told["remedy"]
    second = Copy(conf, "second")
    second.wait()
    ica.pass_time(1000)
    assert second.leg("wake")["counters"]["jobs_passed"] == 3
    assert len(ica.jobs()) == 3, "that of the first run was adopted"


def test_a_run_whose_time_is_over_is_green_if_all_is_there(ica: Ica):
    copy = Copy(ica.conf(2, deadline_days=2))
    copy.wait()
    ica.pass_time(60)
    copy.run.start_date -= timedelta(days=2)
    assert copy.leg("deadline")["counters"]["jobs_passed"] == 2
    assert copy.receipt()["state"] == "complete"


@pytest.mark.usefixtures("impatient")
def test_an_outage_of_ica_that_does_not_end_ends_the_run_at_its_deadline(ica: Ica):
    copy = Copy(ica.conf(2))
    copy.wait()
    ica.fault(fault="outage", seconds=1e6)
    copy.run.start_date -= timedelta(days=7)
    with pytest.raises(DeadlinePassed, match="2 of 2 destinations are open") as failed:
        copy.leg("deadline")
    assert f"icav2://{TARGET}/cache/d0/" in str(failed.value)
    told = copy.receipt()
    assert told["state"] == "incomplete"
    assert "2 of 2 destinations are open" in told["outcome"]
    assert "same conf" in told["remedy"]


@pytest.mark.parametrize("jobs_before", [0, 1])
def test_a_credential_that_is_refused_for_a_while_kills_no_run(ica: Ica, jobs_before: int):
    copy = Copy(ica.conf(1))
    if jobs_before:
        copy.wait()
    ica.fault(fault="status", code=401, path="^/api/", times=None)
    waits = copy.wait("wake" if jobs_before else None)
    assert isinstance(waits.trigger, UntilTrigger)
    ica.clear_faults()
    copy.wait("deadline")
    ica.pass_time(60)
    assert copy.leg("wake")["counters"]["jobs_passed"] == 1
    assert len(ica.jobs()) == 1
