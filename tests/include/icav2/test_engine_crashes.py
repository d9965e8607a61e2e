"""Random faults and random kills: whatever dies when, in the end the tree is right, nothing is twice, nothing forgotten.

A killed worker neither reads nor writes any more (`MortalLedger`), while ICA goes on with what it had received.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from harness.core.mortal_ledger import Killed
from harness.icav2.ica_world import TARGET, World, manifest, play
from simulators.icav2 import Outcome, Override

SEEDS = 40
LAUNCH = "dataCopyBatch$"
OTHER_CALLS = ["/data$", "/api/jobs", "/items$", ":createFolder", ":delete", "/dataCopyBatch/"]
TRANSPORT = ["drop_before_commit", "drop_after_commit", "error_after_commit", "non_json", "status", "slow_body", "slow"]


def random_faults(world: World, rng: random.Random) -> None:
    for _ in range(rng.randint(0, 4)):
        fault = rng.choice([*TRANSPORT, "commit_delayed", "hold_after_commit"])
        seconds = rng.choice([20.0, 50.0, 70.0])
        world.fault(fault, LAUNCH, "POST", after=rng.randint(0, 12), seconds=seconds, hold=rng.choice([1.0, 40.0]))
    for _ in range(rng.randint(0, 5)):
        fault, path = rng.choice(TRANSPORT), rng.choice(OTHER_CALLS)
        world.fault(fault, path, after=rng.randint(0, 40), times=rng.randint(1, 6), seconds=rng.choice([5.0, 120.0]))
    for _ in range(rng.randint(0, 2)):
        world.fault("hide_job", LAUNCH, "POST", after=rng.randint(0, 12), seconds=rng.choice([10.0, 60.0]))
    if rng.random() < 0.2:
        world.fault("outage", after=rng.randint(20, 200), seconds=rng.choice([30.0, 600.0]))


async def live(world: World, plan: Any, run_id: str, rng: random.Random) -> Any:
    """One worker that is killed at a random instant, or lives to the end."""
    ledger = world.mortal()
    engine = world.engine(plan, run_id, ledger, max_resubmissions=20, max_in_flight=rng.choice([3, 50]))
    work = asyncio.ensure_future(world.run(engine))
    done, _ = await asyncio.wait([work], timeout=rng.choice([0.3, 1.0, 5.0, 30.0, 130.0]) * rng.random())
    if done:
        return work.result()
    ledger.dead = True
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return None


async def finish(world: World, plan: Any, run_id: str) -> None:
    engine = world.engine(plan, run_id, world.mortal(), max_resubmissions=20)
    progress = await world.run(engine)
    assert {str(s.phase) for s in progress.standings} == {"passed"}, [s.why for s in progress.standings]
    await engine.final_proofs()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_workers_killed_at_random_under_random_faults_leave_the_tree_right_nothing_twice_and_nothing_forgotten(seed):
    async def scene(world: World) -> None:
        rng = random.Random(seed)
        what = manifest(rng.randint(1, 8), rng.randint(1, 3))
        world.seed(what)
        plan = await world.plan(what)
        random_faults(world, rng)
        for attempt in range(rng.randint(1, 6)):
            await live(world, plan, rng.choice(["run1", f"run{attempt}"]), rng)
            await asyncio.sleep(rng.choice([0.0, 1.0, 100.0]) * rng.random())
        world.sim.faults.clear()
        await finish(world, plan, "the last run")
        await asyncio.sleep(200)
        await finish(world, plan, "a look afterwards")
        world.check(what)

    play(scene, seed=seed, api_latency_seconds=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_two_workers_at_once_of_which_either_may_die_end_right(seed):
    async def scene(world: World) -> None:
        rng = random.Random(1000 + seed)
        what = manifest(5, 2)
        world.seed(what)
        plan = await world.plan(what)
        random_faults(world, rng)
        runs = ["run1", rng.choice(["run1", "run2"])]
        await asyncio.gather(*(live(world, plan, run_id, rng) for run_id in runs))
        world.sim.faults.clear()
        await asyncio.gather(*(finish(world, plan, run_id) for run_id in runs))
        world.check(what)

    play(scene, seed=seed, api_latency_seconds=0.05)


STEPS = ["intent", "sending", "answered", "recorded"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed_partial"])
@pytest.mark.parametrize("which", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_of_a_submission_is_taken_up_by_the_next(step, which, outcome):
    async def scene(world: World) -> None:
        what = manifest(3, 2)
        world.seed(what)
        plan = await world.plan(what)
        ledger, seen = world.mortal(), []

        def on_step(name: str, _row: Any) -> None:
            seen.append(name)
            if name == step and seen.count(step) == which:
                ledger.dead = True
                raise Killed

        ledger.on_step = on_step
        with pytest.raises(Killed):
            await world.run(world.engine(plan, "run1", ledger))
        for run_id in ("run1", "run2"):
            await finish(world, plan, run_id)
        world.check(what)
        assert len(world.jobs()) == (3 if outcome == "succeeded" else 6)

    overrides = [Override(destination=TARGET, attempts=[1], outcome=Outcome(outcome))]
    play(scene, failure_rate=0.0, api_latency_seconds=0.05, overrides=overrides)


def test_the_same_seed_gives_the_same_history():
    async def scene(world: World) -> list[Any]:
        what = manifest(10)
        world.seed(what)
        await world.copy(what)
        return [(job["id"], job["created"]) for job in world.jobs()]

    assert play(scene, seed=3, api_latency_seconds=0.05) == play(scene, seed=3, api_latency_seconds=0.05)
