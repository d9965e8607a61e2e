"""The copy engine on virtual time: two runs, or two tries, on one folder."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.icav2.ica_world import SOURCE, World, manifest, play
from include.core.ledger import State
from tests.include.icav2.engine_checks import CALM, DEST, STUCK, fate, phases, source, told

# -- two runs, two tries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("runs", [("run1", "run2"), ("run1", "run1")])
def test_two_engines_at_once_on_one_plan_share_the_jobs(runs, seed):
    async def scene(world: World) -> None:
        what = manifest(12)
        world.seed(what)
        plan = await world.plan(what)
        engines = [world.engine(plan, run, world.mortal()) for run in runs]
        ends = await asyncio.gather(*(world.run(engine) for engine in engines))
        assert [set(phases(end)) for end in ends] == [{"passed"}, {"passed"}]
        world.check(what)
        one_after_another = world.sim.counters()["submissions"].values()
        assert sum(one_after_another) == len(world.jobs())

    play(scene, seed=seed, api_latency_seconds=0.05)


def sets(world: World, second: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    files = {n: source(f"/run/f{n}") for n in range(6)}
    mine = {files[n]: [DEST] for n in (0, 1, 2)}
    theirs = {files[n]: [DEST] for n in {"equal": (0, 1, 2), "overlapping": (2, 3), "disjoint": (3, 4)}[second]}
    world.seed(mine | theirs)
    return mine, theirs


@pytest.mark.parametrize("outcome", ["succeeded", "failed_partial", "partially_succeeded", "truncated"])
@pytest.mark.parametrize("second", ["equal", "overlapping", "disjoint"])
def test_of_two_runs_on_one_folder_the_second_waits_and_both_end_right(second, outcome):
    async def scene(world: World) -> None:
        mine, theirs = sets(world, second)
        plans = [await world.plan(what) for what in (mine, theirs)]
        first, other = world.engine(plans[0], "run1", world.mortal()), world.engine(plans[1], "run2", world.mortal())

        async def later() -> Any:
            await asyncio.sleep(1)
            return await world.run(other)

        ends = await asyncio.gather(world.run(first), later())
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        world.check(mine | theirs)
        for engine, end in zip((first, other), ends, strict=True):
            _, missing = await told(world, engine, end)
            assert missing == []

    play(scene, **CALM, overrides=[fate(outcome)])


@pytest.mark.parametrize("second", ["equal", "overlapping", "disjoint"])
def test_a_run_that_died_is_adopted_by_the_next_one_on_its_folder(second):
    async def scene(world: World) -> None:
        mine, theirs = sets(world, second)
        await world.engine(await world.plan(mine), "run1").act()
        assert phases(await world.copy(theirs, "run2")) == ["passed"]
        assert phases(await world.copy(mine, "run3")) == ["passed"]
        world.check(mine | theirs)

    play(scene, **CALM)


def test_a_run_does_not_pass_on_another_runs_file_of_the_same_name():
    async def scene(world: World) -> None:
        mine, theirs = {source("/one/f"): [DEST]}, {source("/two/f"): [DEST]}
        world.seed(mine)
        world.sim.seed_file(SOURCE, "/two/f", 77)
        plans = [await world.plan(what) for what in (mine, theirs)]
        first, other = world.engine(plans[0], "run1"), world.engine(plans[1], "run2", max_resubmissions=1)
        await first.act()
        await other.act()  # attached to run1's job
        assert phases(await world.run(first)) == ["passed"]
        progress = await world.run(other)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        assert world.wrong_files(mine) == []

    play(scene, **CALM)


def test_a_stuck_job_of_another_run_with_other_files_is_not_called_done():
    async def scene(world: World) -> None:
        mine, theirs = sets(world, "disjoint")
        plans = [await world.plan(what) for what in (mine, theirs)]
        await world.engine(plans[0], "run1").act()
        world.sim.change_settings(overrides=[])
        other = world.engine(plans[1], "run2", **STUCK)
        assert phases(await world.run(other)) == ["passed"]
        assert [row.state for row in world.submissions()] == [State.SUPERSEDED, State.DONE]
        assert phases(await world.run(world.engine(plans[0], "run3", **STUCK))) == ["passed"]
        await asyncio.sleep(9e6)
        world.check(mine | theirs, twins=True)

    play(scene, **CALM, stuck_seconds=5e6, overrides=[fate("stuck")], stuck_status="WAITING_FOR_RESOURCES")
