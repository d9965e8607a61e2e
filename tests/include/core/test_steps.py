"""Step records: each try, each request and each mapped task has its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from include.core.errors import AuthError, QuotaExceeded, VerificationError
from include.core.objects import Objects
from include.core.steps import StepRecords

ORDER = ("plan", "upload", "verify")


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path.as_uri())


def records(objects: Objects, index: int = -1, request: str = "r1") -> StepRecords:
    return StepRecords(objects, "dag/run/steps", ORDER, map_index=index, request_sha256=request)


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_mapped_tasks_do_not_write_over_each_other_and_carry_their_index(objects: Objects):
    for index, error in ((0, None), (1, VerificationError("three files differ")), (10, None)):
        run(records(objects, index).begin("upload", task_id="upload"))
        run(records(objects, index).end("upload", error, task_id="upload"))
    found = run(records(objects).read_mapped("upload"))
    assert {index: record["state"] for index, record in found.items()} == {0: "done", 1: "failed", 10: "done"}
    assert found[1]["map_index"] == 1
    assert run(records(objects).read("upload")) == {}


def test_a_mapped_task_takes_away_what_follows_it_alone_and_one_before_the_mapping_all(objects: Objects):
    for index in (0, 1):
        run(records(objects, index).write("verify", "done"))
    run(records(objects, 1).begin("upload"))
    assert list(run(records(objects).read_mapped("verify"))) == [0]
    run(records(objects).begin("plan"))
    assert run(records(objects).read_mapped("verify")) == {}
    assert run(records(objects).read_mapped("upload")) == {}


def test_a_record_of_another_request_under_the_same_run_id_is_not_seen(objects: Objects):
    run(records(objects, request="r1").write("plan", "done", plan="of r1"))
    assert run(records(objects, request="r2").read("plan")) == {}
    assert run(records(objects, request="r1").read("plan")) == {"state": "done", "plan": "of r1"}


def test_a_failure_is_recorded_with_its_cause_and_when_to_try_again(objects: Objects):
    run(records(objects).begin("plan"))
    run(records(objects).end("plan", AuthError("401 at ICA"), connections=["waybill_icav2"]))
    record = run(records(objects).read("plan"))
    assert (record["cause"], record["error"], record["connections"]) == ("credential", "AuthError", ["waybill_icav2"])
    run(records(objects).begin("upload"))
    run(records(objects).end("upload", QuotaExceeded("full", available_at=7.0)))
    assert run(records(objects).read("upload"))["again_at"] == 7.0
