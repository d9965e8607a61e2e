"""How long a run waits for what may still happen, in simulated seconds, and what it says meanwhile: no destination waits
for ever, and none for hours where ICA itself shows that there is nothing to wait for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.core.mortal_ledger import Killed
from harness.icav2.ica_world import World, manifest, play
from include.core.ledger import Intent, Ledger, State
from include.icav2.reconcile import Reconciler
from include.icav2.rules import KIND, SYSTEM, clock
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


async def lost_submission(world: World, engine: Any) -> Any:
    """A submission whose answer was lost, and whose job was then not found: written down as the ledger would."""
    destination = engine.plan.destinations[0]
    row = world.ledger.generations(SYSTEM, KIND, destination.key)[-1]
    intent = Intent(SYSTEM, KIND, destination.key, {"lost": True}, engine.owner, detail=dict(row.detail))
    for fact in ("job_created", "job_finished", "created_ids", "complete_for"):
        intent.detail.pop(fact, None)
    lost = world.ledger.begin(world.ledger.open(intent), response_deadline=120.0)
    lost = world.ledger.move(lost, State.IN_DOUBT, why="no answer")
    return world.ledger.move(lost, State.SUPERSEDED, why="not found", detail={"is_effective": False})


def test_who_waits_for_a_job_that_may_still_write_says_why_and_until_when():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await engine.act()
        await asyncio.sleep(60)
        jobs = await world.client.statuses({world.jobs()[0]["id"]: world.loop.now()})
        await Reconciler(engine._context, world.loop.now()).reconcile(
            engine.plan.destinations[0], world.submissions(), jobs
        )
        lost = await lost_submission(world, engine)
        progress = await engine.act()
        assert phases(progress) == ["waiting"]
        why, until = progress.standings[0].why, progress.look_again_at
        assert why == (
            "the answer to an earlier submission was lost, so its job may still write: until "
            f"{clock(until)} the partial files that failed copies left are not cleaned up"
        )
        assert until == pytest.approx(lost.closed_at + 120.0, abs=2.0)
        assert world.sim.journal.entries("delete_asked") == []
        assert phases(await world.run(engine)) == ["passed"]
        assert world.loop.time() < 240
        assert "s after it was given up" in world.ledger.get(lost.id).detail["absent"]
        world.check(what)

    play(scene, **CALM, **fails(1))


def test_a_later_job_of_ours_in_the_listing_shows_that_a_lost_one_does_not_exist():
    async def scene(world: World) -> None:
        what = manifest(2, 1)
        world.seed(what)
        plan = await world.plan(what)
        first = world.engine(plan.model_copy(update={"destinations": plan.destinations[:1]}), max_resubmissions=0)
        assert phases(await world.run(first)) == ["failed"]
        lost = await lost_submission(world, first)
        assert not await first._context.search.find(plan.destinations[0], [lost])
        assert "absent" not in world.ledger.get(lost.id).detail
        await asyncio.sleep(5)
        await world.engine(plan, "run2").act()  # sends a job to another folder
        lost = world.ledger.get(lost.id)
        assert not await first._context.search.find(plan.destinations[0], [lost])
        assert world.ledger.get(lost.id).detail["absent"] == "a later job of ours is listed, and this one is not"

    play(scene, **CALM, **fails(1, outcome="failed_clean"))


@pytest.mark.parametrize("fate", ["hidden", "endless"])
def test_a_job_that_ica_forgets_or_never_ends_does_not_close_its_folder_for_ever(fate):
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        if fate == "hidden":
            world.fault("hide_job", LAUNCH, "POST", seconds=1e9)
        plan = await world.plan(what)
        assert phases(await world.run(world.engine(plan, job_timeout_seconds=600.0))) == ["failed"]
        await asyncio.sleep(1000 if fate == "hidden" else 8 * 86_400)
        assert phases(await world.run(world.engine(plan, "run2", job_timeout_seconds=600.0))) == ["passed"]
        world.check(what, twins=True)

    stuck = [Override(destination="/cache/", attempts=[1], outcome=Outcome("failed_partial"), final_status="RUNNING")]
    play(scene, **CALM, overrides=stuck if fate == "endless" else fails(1)["overrides"])


def test_a_time_to_wait_that_an_earlier_release_wrote_down_unbounded_does_not_park_a_destination():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        world.fault("status", LAUNCH, "POST", code=429, retry_after=9_999_999_999)
        engine = world.engine(plan)
        progress = await engine.act()
        assert 0 < progress.look_again_at - world.loop.now() <= 3600.0
        row = next(row for row in world.submissions() if row.state == State.RESERVED)
        world.ledger.annotate(row, {"not_before": world.loop.now() + 9_999_999_999}, why="as it was written before")
        assert phases(await world.run(world.engine(plan, "run2"))) == ["passed", "passed"]
        assert world.loop.time() < 3600
        world.check(what)

    play(scene, **CALM)


def ahead(world: World) -> Ledger:
    return Ledger(world.url, clock=lambda: world.loop.now() + 3 * 3600.0, monotonic=world.loop.time)


def test_a_lost_job_is_not_taken_for_absent_because_a_hosts_clock_is_ahead_for_a_moment():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        plan = await world.plan(what)
        assert phases(await world.run(world.engine(plan, max_resubmissions=0))) == ["failed"]
        lost = await lost_submission(world, world.engine(plan))
        searched = {"token": lost.fencing_token, "remote_now": world.client.http.remote_now - 120.0}
        lost = world.ledger.annotate(lost, {"first_empty_search": searched}, why="not found yet")
        with ahead(world) as book:
            await world.engine(plan, ledger=book)._context.search.find(plan.destinations[0], [lost])
        assert "absent" not in world.ledger.get(lost.id).detail

    play(scene, **CALM, **fails(1))


def test_a_superseded_job_is_not_taken_to_have_ended_because_a_hosts_clock_is_ahead_for_a_moment():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what), job_timeout_seconds=600.0)
        await engine.act()
        await asyncio.sleep(610)
        await engine.act()  # it is stuck, so another is sent
        destination, row = engine.plan.destinations[0], world.submissions()[0]
        assert (row.state, row.detail["stuck"]) == (State.SUPERSEDED, True)
        with ahead(world) as book:
            other = world.engine(engine.plan, ledger=book)
            await other.client.statuses({str(row.external_id): row.reserved_at})
            await Reconciler(other._context, book.now())._note_ends(destination, [row], {})
        assert "job_finished" not in world.ledger.get(row.id).detail
        await asyncio.sleep(130)
        await engine.client.statuses({str(row.external_id): row.reserved_at})
        await Reconciler(engine._context, world.ledger.now())._note_ends(destination, [row], {})
        assert "job_finished" in world.ledger.get(row.id).detail

    stuck = [Override(destination="/cache/", attempts=[1], outcome=Outcome("stuck"))]
    play(scene, **CALM, stuck_seconds=50_000.0, overrides=stuck)
