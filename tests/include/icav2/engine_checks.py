"""What the tests of the copy engine share: fates of jobs, names of sources, and what a caller is told."""

from __future__ import annotations

from typing import Any

from harness.icav2.ica_world import SOURCE, TARGET, World
from include.icav2 import report
from simulators.icav2 import Outcome, Override

OTHER = "99999999-aaaa-4bbb-8ccc-dddddddddddd"
DEST = f"icav2://{TARGET}/cache/d0000/"
CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}
STUCK = {"job_timeout_seconds": 600.0}


def fate(outcome: str, attempts: list[int] | None = None, where: str = "/cache/d0000/", **more: Any) -> Override:
    return Override(destination=where, attempts=attempts or [1], outcome=Outcome(outcome), **more)


def source(path: str) -> str:
    return f"icav2://{SOURCE}{path}"


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


async def told(world: World, engine: Any, progress: Any) -> tuple[dict[str, Any], list[str]]:
    """What the caller gets: the SOP's object, and a sentence per file that is not copied."""
    proofs = await engine.final_proofs()
    standings = report.proved(progress.standings, proofs)
    output = report.output(standings, engine.rows(), engine.owner)
    jobs = output["job_list_with_attempt_counter"]
    counters = output["counters"]
    assert sum(counters.values()) == len(jobs) == len({job["dest_uri"] for job in jobs})
    assert output["job_status_iterable_parameter"]["job_status_iterable"] == (
        counters["jobs_passed"] + counters["jobs_failed"]
    )
    for job in jobs:
        if job["job_status"] is not False:
            assert job["job_attempt_counter"] == len(job["failed_jobs_list"]) + 1
            assert job["job_id"] not in job["failed_jobs_list"]
    return output, report.not_copied(standings, proofs)
