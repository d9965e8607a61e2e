"""The sensor: waits for jobs that somebody else started, and starts none."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import TaskDeferred
from sensors.icav2_jobs import ICAv2JobsSensor

from include.core.errors import RemoteError
from include.core.ledger import Ledger
from simulators.icav2 import DEFAULT_API_KEY
from tests.plugins.conftest import TARGET, Ica, rows_of
from tests.plugins.doubles import Run


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path, quick_looks: None) -> None:
    """The list of jobs lies beside the receipts; the trigger opens the ledger."""


@pytest.fixture
def started(ica: Ica) -> list[str]:
    """Two jobs that somebody started by hand."""
    http = httpx.Client(base_url=ica.server.url, headers={"X-API-Key": DEFAULT_API_KEY})
    ids = []
    for folder in ("one", "two"):
        source = next(iter(ica.conf(1, 1, root=f"/{folder}")["manifest"]))
        project, _, path = source.removeprefix("icav2://").partition("/")
        data_id = ica.call(lambda sim, project=project, path=path: sim.tree.at(project, "/" + path).id)
        target = ica.call(lambda sim, folder=folder: sim.seed_folder(TARGET, f"/by-hand/{folder}/").id)
        body = {
            "items": [{"dataId": data_id}], "destinationFolderId": target, "actionOnExist": "SKIP",
            "copyUserTags": True, "copyTechnicalTags": True, "copyInstrumentInfo": True,
        }  # fmt: skip
        answer = http.post(f"/api/projects/{TARGET}/dataCopyBatch", json=body).raise_for_status().json()
        ids.append(answer["job"]["id"])
    return ids


def sensor(job_ids: list[str], **options: Any) -> ICAv2JobsSensor:
    return ICAv2JobsSensor(task_id="wait", job_ids=job_ids, poll_seconds=1, **options)


def wait(job_ids: list[str], **options: Any) -> tuple[Run, TaskDeferred]:
    run = Run()
    with pytest.raises(TaskDeferred) as deferred:
        sensor(job_ids, **options).execute(run.context("wait"))
    return run, deferred.value


def test_jobs_that_have_succeeded_are_told_at_once(ica: Ica, started: list[str]):
    ica.pass_time(60)
    assert sensor(started).execute(Run().context("wait")) == dict.fromkeys(started, "SUCCEEDED")


def test_it_defers_with_its_timeout_as_the_deadline_and_tells_when_all_have_ended(ica: Ica, started: list[str]):
    run, deferred = wait(started, timeout=3600)
    assert deferred.trigger.deadline - time.time() == pytest.approx(3600, abs=15)
    assert deferred.kwargs == {"deadline": deferred.trigger.deadline}
    _, kwargs = deferred.trigger.serialize()
    assert not any(job_id in json.dumps(kwargs) for job_id in started), "ids travel by document, not in the trigger"
    ica.pass_time(60)
    event = asyncio.run(anext(deferred.trigger.run())).payload
    assert event["kind"] == "wake"
    told = sensor(started).resume(run.context("wait"), event, **deferred.kwargs)
    assert told == dict.fromkeys(started, "SUCCEEDED")


def test_it_waits_for_all_also_when_one_has_failed_and_then_names_the_bad_one(ica: Ica, ledger: Ledger, started: list[str]):
    one, two = started
    ica.knobs(overrides=[{"destination": "/by-hand/two/", "final_status": "FAILED"}])
    run, deferred = wait(started)
    ica.pass_time(60)
    asyncio.run(anext(deferred.trigger.run()))
    with pytest.raises(RemoteError, match="1 of 2 jobs did not succeed") as failed:
        sensor(started).resume(run.context("wait"), None, **deferred.kwargs)
    assert f"{two} FAILED" in str(failed.value)
    assert one not in str(failed.value)
    assert len(ica.jobs()) == 2, "nothing was sent again"
    assert rows_of(ledger) == []


def test_at_its_deadline_it_names_the_jobs_that_have_not_ended(ica: Ica, started: list[str]):
    run, deferred = wait(started, timeout=3600)
    with pytest.raises(RemoteError, match="2 of 2 jobs did not succeed") as failed:
        sensor(started).resume(run.context("wait"), {"kind": "deadline"}, deadline=time.time() - 1)
    assert "not ended" in str(failed.value)


def test_a_job_that_ica_does_not_know_is_named(ica: Ica):
    with pytest.raises(RemoteError, match="ICA knows no job 00000000-0000-4000-8000-000000000000: correct job_ids"):
        sensor(["00000000-0000-4000-8000-000000000000"]).execute(Run().context("wait"))


def test_without_deferring_it_waits_on_the_worker(ica: Ica, started: list[str]):
    ica.call(lambda sim: setattr(sim.clock, "speed", 20.0))
    told = sensor(started, deferrable=False).execute(Run().context("wait"))
    assert told == dict.fromkeys(started, "SUCCEEDED")


def test_without_deferring_it_names_the_bad_jobs_too(ica: Ica, started: list[str]):
    ica.knobs(overrides=[{"destination": "/by-hand/two/", "final_status": "STOPPED"}])
    ica.call(lambda sim: setattr(sim.clock, "speed", 20.0))
    with pytest.raises(RemoteError, match=f"{started[1]} STOPPED"):
        sensor(started, deferrable=False).execute(Run().context("wait"))
    assert len(ica.jobs()) == 2
