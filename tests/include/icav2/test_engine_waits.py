"""How long a run waits for what may still happen, in simulated seconds, and what it says meanwhile: no destination waits
for ever, and none for hours where ICA itself shows that there is nothing to wait for."""

from __future__ import annotations

from typing import Any

import pytest

from harness.icav2.ica_world import Killed, World, manifest, play
from simulators.icav2 import Outcome, Override

CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}
LAUNCH = "dataCopyBatch$"


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


def fails(*attempts: int, outcome: str = "failed_partial") -> dict[str, Any]:
    return {"overrides": [Override(destination="/cache/", attempts=list(attempts), outcome=Outcome(outcome))]}


async def kill_at(world: World, plan: Any, step: str) -> None:
    """A worker that is killed when it comes to a step of its first submission."""
    ledger = world.mortal()

    def on_step(name: str, _row: Any) -> None:
        if name == step:
            ledger.dead = True
            raise Killed

    ledger.on_step = on_step
    with pytest.raises(Killed):
        await world.run(world.engine(plan, "run1", ledger))


@pytest.mark.parametrize(("step", "seconds"), [("intent", 60.0), ("sending", 240.0)])
def test_a_kill_before_the_first_byte_and_a_failed_job_cost_minutes_and_not_hours(step, seconds):
    """7,333 s where a lost job counted as writing for `job_timeout_minutes`."""

    async def scene(world: World) -> None:
        what = manifest(1, 3)
        world.seed(what)
        plan = await world.plan(what)
        await kill_at(world, plan, step)
        assert phases(await world.run(world.engine(plan))) == ["passed"]
        world.check(what)
        assert world.loop.time() < seconds

    play(scene, **CALM, **fails(1))
