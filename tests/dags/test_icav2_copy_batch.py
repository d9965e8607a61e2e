"""The DAG from trigger to receipt, against an ICA that fails, over a real socket."""

from __future__ import annotations

import re
from typing import Any

import pytest

from include.icav2.models import CopyRequest
from simulators.icav2 import seed_scenario
from tests.dags.conftest import World, fixture

SOURCE = "b23fb516-d852-4985-adcc-831c12e8cd22"
TARGET = "7595e8f2-32d3-4c76-a324-c6a85dae87b5"


def manifest_of(destinations: int) -> dict[str, list[str]]:
    """Two files to each of so many folders."""
    return {
        f"icav2://{SOURCE}/run/s{d}/f{f}.fastq.gz": [f"icav2://{TARGET}/cache/d{d}/"]
        for d in range(destinations)
        for f in range(2)
    }


def shape(value: Any) -> Any:
    """Field names and types, all the way down."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


@pytest.mark.parametrize(
    ("given", "manifest"),
    [
        ("gen1_input_manifest.json", lambda: fixture("gen1_input_manifest.json")["manifest"]),
        ("gen1_input_manifest_b64gz.json", lambda: fixture("gen1_input_manifest_b64gz.decoded.json")),
    ],
    ids=["manifest", "manifest_b64gz"],
)
def test_an_input_of_the_procedure_gives_its_output_and_every_file_although_jobs_fail(
    world: World, given: str, manifest: Any
):
    wanted = manifest()
    world.call(lambda sim: seed_scenario(sim, "sop"))
    # One in five fails by chance; the first job of each destination surely, so that the output shows a second.
    world.call(lambda sim: sim.change_settings(
        failure_rate=0.2, overrides=[{"destination": TARGET, "attempts": [1], "outcome": "failed_partial"}]
    ))  # fmt: skip
    run = world.run(fixture(given))
    assert run.state == "success"
    assert world.missing(wanted) == []
    world.assert_one_effective_job_per_intent()

    output = run.xcom("copy")
    example = fixture("gen1_output.json")
    jobs = output["job_list_with_attempt_counter"]
    destinations = sorted({folder for folders in wanted.values() for folder in folders})
    assert output["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": len(destinations)}
    assert output["job_status_iterable_parameter"] == {"job_status_iterable": len(destinations)}
    assert sorted(job["dest_uri"] for job in jobs) == destinations
    for job in jobs:
        assert job["source_uris"] == [source for source, folders in wanted.items() if job["dest_uri"] in folders]
        assert job["job_status"] is True
        assert job["job_attempt_counter"] == len(job["failed_jobs_list"]) + 1 >= 2
        assert job.keys() == example["job_list_with_attempt_counter"][0].keys()
    assert shape({**output, "job_list_with_attempt_counter": []}) == shape(
        {**example, "job_list_with_attempt_counter": []}
    )
    assert {job["id"] for job in world.jobs()} == {j for job in jobs for j in [job["job_id"], *job["failed_jobs_list"]]}

    receipt = run.receipt
    assert receipt["state"] == "complete"
    assert receipt["totals"]["files"] == receipt["totals"]["files proved"] == sum(map(len, wanted.values()))
    assert run.document("output.json") == output
    assert run.xcom("receipt", "outcome").startswith(f"All {receipt['totals']['files']} files")


def test_a_wrong_conf_fails_at_once_lists_every_error_and_leaves_an_incomplete_receipt(world: World):
    run = world.run({"manifest": {"nowhere/a": ["s3://bucket/x/"], f"icav2://{SOURCE}/b": []}, "typo": 1})
    assert run.state == "failed"
    states = {task: str(run.task(task).state) for task in ("load_request", "plan", "copy", "receipt")}
    assert states == {
        "load_request": "failed",
        "plan": "upstream_failed",
        "copy": "upstream_failed",
        "receipt": "failed",
    }
    assert run.task("load_request").try_number == 1, "trying again would not help"
    problems = "\n".join(run.xcom("load_request", "request_errors"))
    for fault in ("typo", "nowhere/a", "s3://bucket/x/", "names no destination"):
        assert fault in problems
    receipt = run.receipt
    assert receipt["state"] == "incomplete"
    assert receipt["outcome"].startswith("Refused, nothing was copied")
    assert (
        receipt["remedy"]
        == "Correct typo, manifest, then trigger the DAG with the corrected conf; nothing was started."
    )
    assert world.jobs() == []


def test_a_destination_that_always_fails_stops_no_other_and_the_next_run_copies_only_what_is_missing(world: World):
    wanted = manifest_of(3)
    world.seed(wanted)
    world.call(lambda sim: sim.change_settings(overrides=[{"destination": "/cache/d1/", "outcome": "failed_clean"}]))
    first = world.run({"manifest": wanted, "max_resubmissions": 1})
    assert first.state == "failed"
    assert first.task("copy").try_number == 1, "Airflow's retries do not multiply ours"
    assert [re.sub(r".*/(d./f.)\..*", r"\1", uri) for uri in world.missing(wanted)] == ["d1/f0", "d1/f1"]
    told = first.document("not_copied.json")
    assert len(told) == first.xcom("copy", "report")["missing_count"] == 2
    assert all(f"icav2://{TARGET}/cache/d1/" in line and "2 submissions" in line for line in told)
    assert first.receipt["state"] == "incomplete"
    assert first.receipt["totals"]["files proved"] == 4

    world.call(lambda sim: sim.change_settings(overrides=[]))
    before = len(world.jobs())
    second = world.run({"manifest": wanted, "max_resubmissions": 1})
    assert second.state == "success"
    assert world.missing(wanted) == []
    assert [job["destination"][-4:] for job in world.jobs()[before:]] == ["/d1/"]
    world.assert_one_effective_job_per_intent()
    assert second.xcom("copy")["counters"]["jobs_passed"] == 3
    assert len(second.xcom("load_request")) == len(CopyRequest.model_fields) - 2
