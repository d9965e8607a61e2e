"""What a slow ICA, a paused worker and a kill cost a batch copy: jobs that nobody needed, and simulated seconds.

The peer is Waybill's own engine of release 0.1.0 in the same scene, measured once: what is compared is a rule, not a machine.
One scene: `python -m benchmarks.icav2.disturbed`.

Invariant: the simulator says which jobs nobody needed: one was at work for the same items, or all of them were whole there.
"""

from __future__ import annotations

import asyncio
from typing import Any

from harness.core.mortal_ledger import Killed
from harness.icav2.ica_world import World, manifest, play
from simulators.icav2 import Outcome, Override

Row = dict[str, Any]
CALM: Row = {"failure_rate": 0.0, "api_latency_seconds": 0.05}
PEER = "release 0.1.0"
SLOW, PAUSED = 60, 8
NEEDLESS_BEFORE, PAUSED_BEFORE, KILL_BEFORE_SECONDS = 7, 8, 7332.9


def two_runs(count: int) -> int:
    """Needless jobs of two runs of one manifest at once, against an ICA that answers five requests a second."""

    async def scene(world: World) -> int:
        what = manifest(count)
        world.seed(what)
        plan = await world.plan(what)
        engines = [world.engine(plan, run, world.mortal()) for run in ("run1", "run2")]
        await asyncio.gather(*(world.run(engine) for engine in engines))
        return len(world.sim.counters()["duplicate_jobs"])

    return play(scene, **CALM, rate_limit_per_second=5.0)


def paused(count: int) -> int:
    """Needless jobs of two workers, of which one stands still for 5 s between its look and its sending."""

    async def scene(world: World) -> int:
        what = manifest(count)
        world.seed(what)
        plan = await world.plan(what)
        slow, fast = (world.engine(plan, run, world.mortal()) for run in ("run1", "run2"))
        make_folder = slow.client.make_folder

        async def late(project_id: str, path: str) -> str:
            if path.count("/") == 2:
                await asyncio.sleep(5.0)
            return await make_folder(project_id, path)

        slow.client.make_folder = late  # type: ignore[method-assign]
        await asyncio.gather(world.run(slow), world.run(fast))
        return len(world.sim.counters()["duplicate_jobs"])

    return play(scene, **CALM, duration_mean_seconds=2.0)


def after_a_kill() -> float:
    """Simulated seconds of a copy of 10 s whose first worker is killed when its request is about to leave, and whose first
    job then fails and leaves a partial file."""

    async def scene(world: World) -> float:
        what = manifest(1, 3)
        world.seed(what)
        plan = await world.plan(what)
        ledger = world.mortal()

        def on_step(name: str, _row: Any) -> None:
            if name == "sending":
                ledger.dead = True
                raise Killed

        ledger.on_step = on_step
        try:
            await world.run(world.engine(plan, "run1", ledger))
        except Killed:
            await world.run(world.engine(plan))
        return world.loop.time()

    outcomes = [Override(destination="/cache/", attempts=[1], outcome=Outcome("failed_partial"))]
    return play(scene, **CALM, overrides=outcomes)


def run(quick: bool = False) -> list[Row]:
    """All rows; each takes seconds. `quick`: the same."""
    seconds = after_a_kill()
    return [
        _none(f"two runs of one manifest, {SLOW} folders, 5 requests a second", two_runs(SLOW), NEEDLESS_BEFORE),
        _none(f"one of two workers paused for 5 s, {PAUSED} folders", paused(PAUSED), PAUSED_BEFORE),
        {
            "figure": "a copy of 10 s after a kill at the first byte and one failed job",
            "value": round(seconds, 1),
            "unit": "s",
            "peer": PEER,
            "peer_value": KILL_BEFORE_SECONDS,
            "ratio": round(KILL_BEFORE_SECONDS / seconds, 1),
            "aim": "≤ 240",
            "met": seconds <= 240,
        },
    ]


def _none(what: str, jobs: int, before: int) -> Row:
    return {
        "figure": f"jobs for files that were all there: {what}",
        "value": jobs,
        "unit": "jobs",
        "peer": PEER,
        "peer_value": before,
        "ratio": None,
        "aim": "0",
        "met": jobs == 0,
    }


if __name__ == "__main__":
    for row in run():
        print(row["figure"], row["value"], row["unit"], f"(before: {row['peer_value']})")
