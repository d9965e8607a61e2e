"""The copy engine on virtual time: how often a copy is tried, and how many jobs run at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from harness.icav2.ica_world import TARGET, World, manifest, play
from tests.include.icav2.engine_checks import CALM, fate, phases, source, told

# -- attempts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resubmissions", "submissions"), [(0, 1), (1, 2), (5, 6)])
def test_a_job_is_sent_again_up_to_the_cap_and_the_others_are_not_stopped(resubmissions, submissions):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        engine = world.engine(await world.plan(what), max_resubmissions=resubmissions)
        progress = await world.run(engine)
        assert phases(progress) == ["passed", "failed", "passed"]
        assert world.sim.counters()["submissions"][f"{TARGET}/cache/d0001/"] == submissions
        output, missing = await told(world, engine, progress)
        assert output["counters"] == {"jobs_failed": 1, "jobs_running": 0, "jobs_passed": 2}
        failed = output["job_list_with_attempt_counter"][-1]
        assert failed["job_attempt_counter"] == len(failed["failed_jobs_list"]) == submissions
        assert failed["job_id"] == failed["failed_jobs_list"][-1]
        assert missing == [
            f"“{source(f'/run/s0001/f{n}.fastq.gz')}” → “icav2://{TARGET}/cache/d0001/”: missing "
            f"(2 items not copied after {submissions} submissions)"
            for n in range(2)
        ]
        world.check_records()

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 50)), "/cache/d0001/")])


def test_a_file_that_always_fails_is_given_up_alone_and_the_report_names_it():
    async def scene(world: World) -> None:
        what = manifest(1, 5)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        _, missing = await told(world, engine, progress)
        assert len(missing) == 1
        assert "f3.fastq.gz" in missing[0]
        assert len(world.jobs()) == 2, "ICA gave the same reason twice"
        assert len(world.wrong_files(what)) == 1

    play(scene, **CALM, failing_files=["f3.fastq.gz$"])


def test_triggering_again_copies_only_what_is_missing_with_all_attempts_anew():
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        first = await world.copy(what)
        assert phases(first) == ["passed", "failed", "passed"]
        sent = len(world.jobs())
        engine = world.engine(await world.plan(what), "run2")
        again = await world.run(engine)
        assert phases(again) == ["passed"] * 3
        assert len(world.jobs()) == sent + 3
        output, _ = await told(world, engine, again)
        counts = {j["dest_uri"][-6:]: j["job_attempt_counter"] for j in output["job_list_with_attempt_counter"]}
        assert counts == {"d0000/": 1, "d0001/": 3, "d0002/": 1}
        world.check(what)

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 9)), "/cache/d0001/")])


def test_an_adopted_job_counts_as_the_first():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1").act()  # and run1 is never seen again
        engine = world.engine(plan, "run2")
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert len(world.jobs()) == 6
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 6

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 50)))])


@pytest.mark.parametrize(
    "other", [{"dag_id": "another_dag"}, {"request_sha256": "posted anew"}, {"task_id": "another"}]
)
def test_attempts_are_those_of_one_task_for_one_request_whatever_else_has_the_same_run_id(other):
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        assert phases(await world.run(world.engine(plan, max_resubmissions=1))) == ["failed"]
        engine = world.engine(plan, max_resubmissions=1)
        engine.owner = replace(engine.owner, **other)
        progress = await world.run(engine)
        assert phases(progress) == ["passed"]
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 1
        assert output["job_list_with_attempt_counter"][0]["failed_jobs_list"] == []

    play(scene, **CALM, overrides=[fate("failed_clean", [1, 2])])


def test_what_was_proved_once_and_has_gone_since_is_copied_again():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        await world.copy(what)
        gone = world.target()["/cache/d0001/f0.fastq.gz"]
        await world.client.delete_data(TARGET, gone["id"])
        await asyncio.sleep(10)
        assert phases(await world.copy(what, "run2")) == ["passed", "passed"]
        world.check(what)
        assert [len(job["items"]) for job in world.jobs()] == [2, 2, 1]

    play(scene, **CALM)


def test_a_file_lost_after_its_proof_fails_the_run_in_the_last_look():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        await world.client.delete_data(TARGET, world.target()["/cache/d0001/f0.fastq.gz"]["id"])
        output, missing = await told(world, engine, progress)
        assert output["counters"]["jobs_failed"] == 1
        assert missing[0].endswith("missing (gone or changed since it was copied)")

    play(scene, **CALM)


# -- slots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 7])
def test_no_more_jobs_run_at_once_than_allowed(slots):
    async def scene(world: World) -> None:
        what = manifest(20)
        world.seed(what)
        await world.copy(what, max_in_flight=slots)
        assert world.sim.counters()["peak_jobs_in_flight"] == slots
        world.check(what)

    play(scene, seed=5, api_latency_seconds=0.05)


def test_adopted_jobs_take_slots_too():
    async def scene(world: World) -> None:
        what = manifest(12)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1", max_in_flight=6).act()
        assert world.sim.counters()["jobs_in_flight"] == 6
        await world.run(world.engine(plan, "run2", max_in_flight=4))
        assert world.sim.counters()["peak_jobs_in_flight"] == 6
        starts = [job["created"] for job in world.jobs()]
        assert len(set(starts[6:9])) > 1, "the seventh job waited until fewer than four were at work"
        world.check(what)

    play(scene, failure_rate=0.0)


def test_a_destination_in_trouble_keeps_its_slot_while_its_job_may_run():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        engine = world.engine(await world.plan(what), max_in_flight=1)
        await engine.act()
        await asyncio.sleep(100)
        world.fault("status", "/data$", "GET", code=500, times=5)
        progress = await engine.act()
        assert phases(progress) == ["waiting", "waiting"]
        assert len(world.jobs()) == 1
        await world.run(engine)
        world.check(what)

    play(scene, **CALM)


def test_large_destinations_are_copied_chunk_after_chunk():
    async def scene(world: World) -> None:
        what = manifest(1, 10)
        world.seed(what)
        engine = world.engine(await world.plan(what), items_per_job=4)
        progress = await world.run(engine)
        world.check(what)
        assert [len(job["items"]) for job in world.jobs()][:1] == [4]
        output, _ = await told(world, engine, progress)
        assert output["counters"]["jobs_passed"] == 1

    play(scene, seed=3)
