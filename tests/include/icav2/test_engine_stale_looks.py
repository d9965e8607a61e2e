"""A look is old by the time that somebody acts on it: whoever was slow, or paused, looks again and sends nothing twice.

A job that is accepted while all its items are whole at the destination is a duplicate, also where no other job is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.core.ledger import State
from include.icav2.engine import CopyEngine
from include.icav2.plan import occupied
from include.icav2.small_files import names_created
from simulators.icav2 import Outcome, Override

DEST = f"icav2://{TARGET}/cache/d0000/"
CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


def fate(outcome: str, attempts: list[int] | None = None, where: str = "/cache/") -> Override:
    return Override(destination=where, attempts=attempts or [1], outcome=Outcome(outcome))


def pause(engine: CopyEngine, call: str, seconds: float, first: int = 0) -> None:
    """This engine's process stands still for so long when it comes to the call number `first` of its client."""
    whole: Callable[..., Any] = getattr(engine.client, call)
    seen: list[None] = []

    async def paused(*args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        if len(seen) == first + 1:
            await asyncio.sleep(seconds)
        return await whole(*args, **kwargs)

    setattr(engine.client, call, paused)


@pytest.mark.parametrize(("destinations", "rate"), [(60, 5.0), (60, 10.0)])
def test_two_runs_of_one_manifest_against_a_slow_ica_send_each_copy_once(destinations, rate):
    async def scene(world: World) -> None:
        what = manifest(destinations)
        world.seed(what)
        plan = await world.plan(what)
        engines = [world.engine(plan, run, world.mortal()) for run in ("run1", "run2")]
        ends = await asyncio.gather(*(world.run(engine) for engine in engines))
        assert [set(phases(end)) for end in ends] == [{"passed"}, {"passed"}]
        assert world.sim.counters()["duplicate_jobs"] == []
        assert len(world.jobs()) == destinations
        world.check(what)

    play(scene, **CALM, rate_limit_per_second=rate)


# `make_folder` comes after the look and before the sending.
@pytest.mark.parametrize("runs", [("run1", "run2"), ("run1", "run1")])
@pytest.mark.parametrize("seconds", [5.0, 90.0, 4000.0])
def test_a_worker_that_was_paused_after_its_look_sends_nothing_that_was_sent_and_proved_meanwhile(seconds, runs):
    async def scene(world: World) -> None:
        what = manifest(8)
        world.seed(what)
        plan = await world.plan(what)
        slow, fast = (world.engine(plan, run, world.mortal()) for run in runs)
        pause(slow, "make_folder", seconds)
        ends = await asyncio.gather(world.run(slow), world.run(fast))
        assert [set(phases(end)) for end in ends] == [{"passed"}, {"passed"}]
        assert world.sim.counters()["duplicate_jobs"] == []
        assert len(world.jobs()) == 8
        world.check(what)

    play(scene, **CALM, duration_mean_seconds=2.0)


def test_a_submission_that_another_worker_sent_after_the_look_is_not_taken_for_seen_absent():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        world.fault("status", "dataCopyBatch$", "POST", code=429, retry_after=1)
        await world.engine(plan, "run1").act()  # it is reserved, and nothing has left
        assert [row.state for row in world.submissions()] == [State.RESERVED]
        await asyncio.sleep(5)
        slow, fast = (world.engine(plan, run, world.mortal()) for run in ("run2", "run3"))
        pause(slow, "find_folders", 120.0)
        ends = await asyncio.gather(world.run(slow), world.run(fast))
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        assert world.sim.counters()["duplicate_jobs"] == []
        assert len(world.jobs()) == 1

    play(scene, **CALM)


def test_what_a_failed_job_of_another_run_has_copied_since_the_look_is_not_sent_again():
    async def scene(world: World) -> None:
        files = [f"icav2://{SOURCE}/run/f{n}" for n in range(3)]
        mine, theirs = {files[0]: [DEST]}, {name: [DEST] for name in files}
        world.seed(theirs)
        slow = world.engine(await world.plan(mine), "run1", world.mortal())
        fast = world.engine(await world.plan(theirs), "run2", world.mortal(), max_resubmissions=0)
        pause(slow, "make_folder", 60.0)
        ends = await asyncio.gather(world.run(slow), world.run(fast))
        assert [phases(end) for end in ends] == [["passed"], ["failed"]]
        assert world.sim.counters()["duplicate_jobs"] == []

    play(scene, **CALM, failing_files=["/run/f2$"])


def test_a_worker_that_was_paused_before_its_clean_up_deletes_nothing_of_a_later_job():
    async def scene(world: World) -> None:
        what = manifest(1, 3)
        world.seed(what)
        plan = await world.plan(what)
        slow, fast = (world.engine(plan, run, world.mortal()) for run in ("run1", "run2"))
        pause(slow, "data", 300.0)  # the look by id, right before the deletion
        ends = await asyncio.gather(world.run(slow), world.run(fast))
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        assert world.sim.counters()["duplicate_jobs"] == []
        world.check(what)
        assert len(world.sim.journal.entries("delete_asked")) == 2

    play(scene, **CALM, overrides=[fate("failed_partial", [1, 2])])


def test_a_destination_folder_that_was_deleted_since_it_was_found_is_made_anew():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        folder = world.sim.seed_folder(TARGET, "/cache/d0000/")
        assert folder is not None

        async def somebody() -> None:
            await asyncio.sleep(20)
            await world.client_of(world.sim).delete_data(TARGET, folder.id)

        pause(engine, "copy", 30.0)
        progress, _ = await asyncio.gather(world.run(engine), somebody())
        assert phases(progress) == ["passed"]
        world.check(what)

    play(scene, **CALM)


def test_a_listing_that_lags_behind_another_runs_copy_is_not_taken_for_absence():
    async def scene(world: World) -> None:
        theirs = manifest(1, 2)
        mine = dict(list(theirs.items())[:1])
        world.seed(theirs)
        plans = [await world.plan(what) for what in (theirs, mine)]
        first = world.engine(plans[0], "run1")
        second = world.engine(plans[1], "run2", world.mortal(), listing_lag_seconds=60.0)
        assert phases(await world.run(first)) == ["passed"]
        world.sim.change_settings(listing_lag_seconds=50.0)  # as another host of ICA may still answer
        assert phases(await world.run(second)) == ["passed"]
        assert world.sim.counters()["duplicate_jobs"] == []

    play(scene, **CALM)


def test_what_another_run_places_while_a_plan_looks_is_not_taken_for_unmanaged():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        looker = world.client_of(world.sim)
        list_folder = looker.list_folder

        async def slow(project_id: str, path: str) -> Any:
            await asyncio.sleep(60.0)
            return await list_folder(project_id, path)

        looker.list_folder = slow  # type: ignore[method-assign]

        created = partial(names_created, world.ledger, plan)
        judged, _ = await asyncio.gather(
            occupied(looker, plan, created, refuse_unmanaged=True, use_etag=True), world.run(world.engine(plan))
        )
        assert judged == []

    play(scene, **CALM)


@pytest.mark.parametrize("seed", range(3))
def test_a_row_is_not_closed_as_failed_by_a_listing_that_lags_behind_its_job(seed):
    async def scene(world: World) -> None:
        what = manifest(2, 2)
        world.seed(what)
        await asyncio.sleep(61)
        assert set(phases(await world.copy(what))) == {"passed"}
        assert world.sim.counters()["duplicate_jobs"] == []
        assert len(world.jobs()) == 2

    play(scene, **CALM, seed=seed, listing_lag_seconds=60.0)


def test_a_submission_whose_ground_is_just_being_cleared_is_not_withdrawn_by_another_run():
    async def scene(world: World) -> None:
        files = [f"icav2://{SOURCE}/run/f{n}" for n in range(4)]
        mine, theirs = {name: [DEST] for name in files[:3]}, {name: [DEST] for name in files[1:]}
        world.seed(mine | theirs)
        first = world.engine(await world.plan(mine), "run1", world.mortal())
        second = world.engine(await world.plan(theirs), "run2", world.mortal())
        await first.act()
        await asyncio.sleep(60)  # its job has failed and left a partial file

        async def later() -> Any:
            await asyncio.sleep(3)
            return await world.run(second)

        first.wait_for_deletion = True
        cleared = asyncio.ensure_future(first.act())
        other = asyncio.ensure_future(later())
        await cleared
        ends = [await world.run(first), await other]
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        assert State.CANCELLED not in {row.state for row in world.submissions()}
        world.check(mine | theirs)

    play(scene, **CALM, delete_seconds=20.0, overrides=[fate("failed_partial")])
