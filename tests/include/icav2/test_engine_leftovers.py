"""The copy engine on virtual time: partial files, and jobs that do not end."""

from __future__ import annotations

import asyncio

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.core.effects import Phase
from include.core.ledger import Ledger, State
from simulators.icav2 import Override
from tests.include.icav2.engine_checks import CALM, DEST, STUCK, fate, phases, told

# -- partial_files ----------------------------------------------------------------------------------------------------


def test_our_partial_leftover_is_removed_before_the_next_try_and_nothing_else():
    async def scene(world: World) -> None:
        what = manifest(1, 4)
        world.seed(what)
        await world.copy(what)
        asked = world.sim.journal.entries("delete_asked")
        left = world.jobs()[0]["partial"]
        assert [entry.details["path"] for entry in asked] == left
        world.check(what)

    play(scene, **CALM, overrides=[fate("failed_partial")])


def test_a_strangers_upload_with_our_name_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        stranger = world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77, status="PARTIAL")
        await asyncio.sleep(5)
        engine = world.engine(plan)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        assert stranger.status == "PARTIAL"
        _, missing = await told(world, engine, progress)
        assert len(missing) == 1
        assert "partial" in missing[0]

    play(scene, **CALM)


def test_a_strangers_upload_after_our_failed_job_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await engine.act()
        await asyncio.sleep(120)  # our job has failed; nobody has looked yet
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77, status="PARTIAL")
        assert phases(await world.run(engine)) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []

    play(scene, **CALM, overrides=[fate("failed_clean")])


def test_a_strangers_whole_file_that_our_batch_skipped_and_named_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        plan = await world.plan(what)
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77)
        await asyncio.sleep(5)
        engine = world.engine(plan, max_resubmissions=2)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        _, missing = await told(world, engine, progress)
        assert "size mismatch" in missing[0]

    play(scene, **CALM)


def test_a_file_that_became_good_since_the_listing_is_not_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await engine.act()
        await asyncio.sleep(100)
        left = world.target()["/cache/d0000/f0.fastq.gz"]
        assert left["status"] == "PARTIAL"
        original = world.sim.dump(SOURCE)[-1]
        world.sim.change_settings(listing_lag_seconds=30.0)
        await asyncio.sleep(0)
        # Whoever completed it: the listing still shows it PARTIAL, a look by its id does not.
        world.sim.set_data(left["id"], status="AVAILABLE", size_bytes=original["size_bytes"], etag=original["etag"])
        await world.run(engine)
        assert world.sim.journal.entries("delete_asked") == []
        world.check(what, twins=True)  # the listing had shown it PARTIAL

    play(scene, **CALM, overrides=[fate("failed_partial")])


def test_a_deletion_that_takes_long_is_waited_for_and_costs_no_attempt():
    async def scene(world: World) -> None:
        what = manifest(1, 3)
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"]
        assert len(world.jobs()) == 2
        world.check(what)

    play(scene, **CALM, delete_seconds=300.0, overrides=[fate("failed_partial")])


# -- stuck jobs ---------------------------------------------------------------------------------------------------


def test_a_stuck_job_whose_files_are_all_there_is_done():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        engine = world.engine(await world.plan(what), **STUCK)
        await engine.act()
        await asyncio.sleep(560)
        assert phases(await world.run(engine)) == ["passed"]
        assert len(world.jobs()) == 1

    play(scene, **CALM, overrides=[Override(destination="/cache/", final_status="RUNNING")])


def test_a_stuck_job_is_superseded_once_and_what_is_missing_is_sent_once_more():
    async def scene(world: World) -> None:
        what = manifest(2, 2)
        world.seed(what)
        assert phases(await world.copy(what, **STUCK)) == ["passed", "passed"]
        assert len(world.jobs()) == 3
        states = [row.state for row in world.submissions() if row.business_key == DEST]
        assert states == [State.SUPERSEDED, State.DONE]
        await asyncio.sleep(100_000)
        world.check(what, twins=True)

    play(scene, **CALM, stuck_seconds=50_000.0, overrides=[fate("stuck")], stuck_status="WAITING_FOR_RESOURCES")


@pytest.mark.parametrize("step", [3 * 3600.0, -3 * 3600.0])
def test_a_hosts_clock_that_is_set_makes_no_running_job_stuck(step: float):
    """How long a job has run is read off ICA's own clock."""

    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1").act()
        await asyncio.sleep(60.0)
        stepped = Ledger(world.url, clock=lambda: world.loop.now() + step, monotonic=world.loop.time)
        progress = await world.engine(plan, "run1", ledger=stepped).act()
        assert [standing.phase for standing in progress.standings] == [Phase.RUNNING]
        assert progress.standings[0].look_again_at == pytest.approx(progress.now + 7200 - 60, abs=10)
        assert len(world.jobs()) == 1
        stepped.close()

    play(scene, **CALM, stuck_seconds=50_000.0, overrides=[fate("stuck")])


@pytest.mark.parametrize("made_at_known", [True, False])
def test_a_job_that_is_not_listed_yet_is_not_stuck_because_a_hosts_clock_is_ahead_for_a_moment(made_at_known: bool):
    """How old a job is that ICA does not show is read off ICA's own clock too: else a second one is sent."""

    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        world.fault("hide_job", "dataCopyBatch", "POST", seconds=30.0)
        await world.engine(plan, "run1").act()
        if not made_at_known:  # as where a search has found it
            world.ledger.annotate(world.submissions()[0], {"job_created": None}, why="test")
        await asyncio.sleep(5.0)
        ahead = Ledger(world.url, clock=lambda: world.loop.now() + 3 * 3600.0, monotonic=world.loop.time)
        progress = await world.engine(plan, "run2", ledger=ahead).act()
        ahead.close()
        assert [standing.phase for standing in progress.standings] == [Phase.RUNNING]
        assert phases(await world.copy(what, "run2")) == ["passed"]
        assert [row.state for row in world.submissions()] == [State.DONE]
        world.check(what)

    play(scene, **CALM)


def test_a_second_stuck_job_ends_the_try_and_the_next_run_adopts_it():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        engine = world.engine(plan, **STUCK)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "too has not ended after 10 min; the next run adopts it" in progress.standings[0].why
        assert len(world.jobs()) == 2
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 2
        assert phases(await world.run(world.engine(plan, "run2", job_timeout_seconds=9e4))) == ["passed"]
        assert len(world.jobs()) == 2
        world.check(what, twins=True)

    play(scene, **CALM, stuck_seconds=5000.0, overrides=[fate("stuck", [1, 2])], stuck_status="WAITING_FOR_RESOURCES")


def test_nothing_is_deleted_while_a_superseded_job_may_still_write():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        engine = world.engine(await world.plan(what), **STUCK)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "is stuck and may still write" in progress.standings[0].why
        assert world.sim.journal.entries("delete_asked") == []
        await asyncio.sleep(60_000)  # the stuck job has ended: now its leftover may go
        assert phases(await world.copy(what, "run2", **STUCK)) == ["passed"]
        world.check(what, twins=True)

    overrides = [fate("stuck"), fate("failed_partial", [2])]
    play(scene, **CALM, stuck_seconds=50_000.0, overrides=overrides, stuck_then="failed_partial")


def test_a_stuck_job_that_never_ends_does_not_close_the_folder_to_later_runs():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        assert phases(await world.copy(what, **STUCK)) == ["failed"]
        assert phases(await world.copy(what, "run2", **STUCK)) == ["passed"]
        world.check(what, twins=True)

    overrides = [fate("stuck"), fate("failed_clean", [2])]
    play(scene, **CALM, stuck_seconds=5e6, overrides=overrides, stuck_status="WAITING_FOR_RESOURCES")
