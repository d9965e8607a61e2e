"""The sensor: waits for jobs that somebody else started, and starts none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import TaskDeferred
from sensors.icav2_jobs import ICAv2JobsSensor

from include.core.errors import RemoteError
from include.core.ledger import Ledger
from simulators.icav2 import DEFAULT_API_KEY
from tests.plugins.conftest import SOURCE, TARGET, Ica, rows_of
from tests.plugins.doubles import Run


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path, quick_looks: None) -> None:
    """The list of jobs lies beside the receipts; the trigger opens the ledger."""


Start = Callable[..., list[str]]


@pytest.fixture
def start(ica: Ica) -> Start:
    """Somebody starts two jobs by hand; what is given is the fate of the second."""

    def by_hand(folder: str) -> str:
        uri = next(iter(ica.conf(1, 1, root=f"/{folder}")["manifest"]))
        source = ica.call(lambda sim: sim.tree.at(SOURCE, uri.removeprefix(f"icav2://{SOURCE}")).id)
        target = ica.call(lambda sim: sim.seed_folder(TARGET, f"/by-hand/{folder}/").id)
        body = {
            "items": [{"dataId": source}], "destinationFolderId": target, "actionOnExist": "SKIP",
            "copyUserTags": True, "copyTechnicalTags": True, "copyInstrumentInfo": True,
        }  # fmt: skip
        url = f"{ica.server.url}/api/projects/{TARGET}/dataCopyBatch"
        answer = httpx.post(url, json=body, headers={"X-API-Key": DEFAULT_API_KEY}, trust_env=False)
        return str(answer.raise_for_status().json()["job"]["id"])

    def both(**fate: Any) -> list[str]:
        ica.change_settings(overrides=[{"destination": "/by-hand/two/", **fate}] if fate else [])
        return [by_hand("one"), by_hand("two")]

    return both


@pytest.fixture
def started(start: Start) -> list[str]:
    return start()


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
    assert deferred.kwargs == {"began": pytest.approx(deferred.trigger.since, abs=15), "trouble": None}
    _, kwargs = deferred.trigger.serialize()
    assert not any(job_id in json.dumps(kwargs) for job_id in started), "ids travel by document, not in the trigger"
    ica.pass_time(60)
    event = asyncio.run(anext(deferred.trigger.run())).payload
    assert event["kind"] == "wake"
    told = sensor(started).resume(run.context("wait"), event, **deferred.kwargs)
    assert told == dict.fromkeys(started, "SUCCEEDED")


def test_it_waits_for_all_also_when_one_has_failed_and_then_names_the_bad_one(ica: Ica, ledger: Ledger, start: Start):
    one, two = started = start(outcome="failed_clean", duration_seconds=1.0)
    ica.pass_time(2)
    run, deferred = wait(started)
    events = deferred.trigger.run()

    async def watched() -> None:
        look = asyncio.ensure_future(anext(events))
        assert not (await asyncio.wait([look], timeout=1.0))[0], "nobody sends the failed job again: no reason to wake"
        ica.pass_time(60)
        assert (await look).payload["counts"] == {"jobs passed": 1, "running": 0, "failed": 1}

    asyncio.run(watched())
    with pytest.raises(RemoteError, match="1 of 2 jobs did not succeed") as failed:
        sensor(started).resume(run.context("wait"), None, **deferred.kwargs)
    assert f"{two} FAILED" in str(failed.value)
    assert one not in str(failed.value)
    assert len(ica.jobs()) == 2, "nothing was sent again"
    assert rows_of(ledger) == []


def test_at_its_deadline_it_names_the_jobs_that_have_not_ended(ica: Ica, started: list[str]):
    run, _ = wait(started, timeout=3600)
    with pytest.raises(RemoteError, match="2 of 2 jobs did not succeed") as failed:
        sensor(started, timeout=3600).resume(
            run.context("wait"), {"kind": "deadline", "why": ""}, began=time.time() - 3601
        )
    assert "not ended" in str(failed.value)


def test_a_job_that_ica_does_not_know_is_named(ica: Ica):
    with pytest.raises(RemoteError, match="ICA knows no job 00000000-0000-4000-8000-000000000000: correct job_ids"):
        sensor(["00000000-0000-4000-8000-000000000000"]).execute(Run().context("wait"))


def test_without_deferring_it_waits_on_the_worker(ica: Ica, started: list[str]):
    ica.call(lambda sim: setattr(sim.clock, "speed", 20.0))
    told = sensor(started, deferrable=False).execute(Run().context("wait"))
    assert told == dict.fromkeys(started, "SUCCEEDED")


def test_without_deferring_it_names_the_bad_jobs_too(ica: Ica, start: Start):
    started = start(final_status="STOPPED")
    ica.call(lambda sim: setattr(sim.clock, "speed", 20.0))
    with pytest.raises(RemoteError, match=f"{started[1]} STOPPED"):
        sensor(started, deferrable=False).execute(Run().context("wait"))
    assert len(ica.jobs()) == 2
