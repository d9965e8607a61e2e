"""The copy engine against a remote in trouble: lost answers, hidden jobs, outages, slow and senseless answers, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.icav2.ica_world import TARGET, World, manifest, play
from include.core.ledger import State
from include.icav2.rules import CopySettings
from simulators.icav2 import Outcome, Override

CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}
LAUNCH = "dataCopyBatch$"
BEFORE_COMMIT = ["drop_before_commit", "non_json", "status"]
AFTER_COMMIT = ["drop_after_commit", "error_after_commit", "hold_after_commit", "slow_body"]
MINUTES = {"seconds": 300.0}


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


def always(outcome: str, *attempts: int) -> dict[str, Any]:
    return {"overrides": [Override(destination="/cache/", attempts=list(attempts), outcome=Outcome(outcome))]}


# -- the answer to a launch is lost (docs/faults.md, F9)
# ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", AFTER_COMMIT)
def test_a_job_whose_answer_was_lost_is_found_and_not_sent_again(fault):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        world.fault(fault, LAUNCH, "POST", after=1, **MINUTES)
        assert phases(await world.copy(what)) == ["passed"] * 3
        assert len(world.jobs()) == 3
        world.check(what)

    play(scene, **CALM)


@pytest.mark.parametrize("fault", BEFORE_COMMIT)
def test_a_launch_that_never_arrived_is_superseded_after_a_look_and_sent_once_more(fault):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        world.fault(fault, LAUNCH, "POST", after=1)
        assert phases(await world.copy(what)) == ["passed"] * 3
        assert len(world.jobs()) == 3
        world.check(what)

    play(scene, **CALM)


@pytest.mark.parametrize("code", [400, 409, 422, 429, 500, 502, 503])
def test_a_launch_that_is_answered_by_an_error_before_the_commit_makes_no_twin(code):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        world.fault("status", LAUNCH, "POST", after=1, code=code)
        progress = await world.copy(what)
        assert sorted(phases(progress)) == (["failed", "passed", "passed"] if code in (400, 422) else ["passed"] * 3)
        assert phases(await world.copy(what, "run2")) == ["passed"] * 3
        assert len(world.jobs()) == 3
        world.check(what)

    play(scene, **CALM)


@pytest.mark.parametrize("delay", [40.0, 100.0, 130.0])
def test_a_commit_that_comes_after_the_client_gave_up_is_found(delay):
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("commit_delayed", LAUNCH, "POST", seconds=delay, hold=35.0)
        assert phases(await world.copy(what)) == ["passed"] * 2
        assert len(world.jobs()) == 2
        world.check(what)

    play(scene, **CALM)


def test_a_commit_that_comes_after_the_horizon_makes_a_harmless_twin_that_is_written_down():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        world.fault("commit_delayed", LAUNCH, "POST", seconds=170.0, hold=35.0)
        engine = world.engine(await world.plan(what))
        assert phases(await world.run(engine)) == ["passed"]
        await engine.final_proofs()
        assert len(world.jobs()) == 2
        assert [row.state for row in world.submissions()] == [State.SUPERSEDED, State.DONE]
        world.check(what, twins=True)

    play(scene, **CALM, overrides=[Override(destination="/cache/", duration_seconds=100.0)])


@pytest.mark.parametrize("hidden", [30.0, 100.0])
def test_a_job_that_is_hidden_for_a_while_is_found(hidden):
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("hide_job", LAUNCH, "POST", seconds=hidden)
        world.fault("drop_after_commit", LAUNCH, "POST")
        assert phases(await world.copy(what)) == ["passed"] * 2
        assert len(world.jobs()) == 2
        world.check(what)

    play(scene, **CALM)


def test_a_hidden_job_whose_answer_came_is_waited_for():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("hide_job", LAUNCH, "POST", seconds=400.0)
        assert phases(await world.copy(what)) == ["passed"] * 2
        assert len(world.jobs()) == 2
        world.check(what)

    play(scene, **CALM)


def test_a_batch_that_cannot_be_read_does_not_stop_what_the_destination_proves():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("status", "/items$", "GET", code=404, times=None)
        assert phases(await world.copy(what)) == ["passed"] * 2
        world.check(what)

    play(scene, **CALM, **always("failed_partial", 1))


@pytest.mark.parametrize("second_hidden", [80.0, 150.0], ids=["both appear at once", "one after the other"])
def test_two_lost_answers_in_a_row_are_told_apart(second_hidden):
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        world.fault("hide_job", LAUNCH, "POST", seconds=200.0 if second_hidden == 80.0 else 150.0)
        world.fault("hide_job", LAUNCH, "POST", seconds=second_hidden, after=1)
        world.fault("drop_after_commit", LAUNCH, "POST", times=2)
        engine = world.engine(await world.plan(what))
        assert phases(await world.run(engine)) == ["passed"]
        rows = world.submissions()
        assert [row.state for row in rows] == [State.SUPERSEDED, State.DONE]
        if second_hidden == 80.0:
            assert [row.external_id for row in rows] == [job["id"] for job in world.jobs()]
        await engine.final_proofs()
        world.check(what, twins=True)

    play(scene, **CALM, stuck_seconds=400.0, stuck_status="WAITING_FOR_RESOURCES", **always("stuck", 1, 2))


def test_a_lost_launch_and_a_failed_one_do_not_use_up_the_destination():
    async def scene(world: World) -> None:
        what = manifest(1, 3)
        world.seed(what)
        world.fault("drop_before_commit", LAUNCH, "POST")
        assert phases(await world.copy(what)) == ["passed"]
        world.check(what)

    play(scene, **CALM, **always("failed_clean", 1, 2))


def test_a_strangers_batch_is_not_taken_for_ours():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        stranger = world.client_of(world.sim)
        folder = await stranger.make_folder(TARGET, "/other/")
        world.fault("drop_before_commit", LAUNCH, "POST", after=1)
        batch = await stranger.copy(TARGET, folder, [plan.destinations[0].items[0].data_id], fence=lambda: None)
        assert phases(await world.run(world.engine(plan))) == ["passed"] * 2
        assert batch.job.id not in {row.external_id for row in world.submissions()}

    play(scene, **CALM)


def test_two_jobs_that_fit_are_held_for_a_person_and_the_others_go_on():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        engine = world.engine(plan)
        stranger = world.client_of(world.sim)
        destination = plan.destinations[0]
        world.fault("drop_after_commit", LAUNCH, "POST", contains=destination.items[0].data_id, after=1)
        await stranger.make_folder(TARGET, "/cache/")
        folder = await stranger.make_folder(TARGET, destination.path)
        await stranger.copy(TARGET, folder, [item.data_id for item in destination.items], fence=lambda: None)
        progress = await world.run(engine)
        assert phases(progress) == ["held", "passed"]
        assert "python -m include.core.ledger resolve" in progress.standings[0].why
        row = next(row for row in world.submissions() if row.state == State.HELD)
        job = row.detail["candidates"][0]
        world.ledger.move(row, State.SENT, why="looked", who="Ann", external_id=job)
        assert phases(await world.run(engine)) == ["passed", "passed"]
        assert world.wrong_files(what) == []

    play(scene, **CALM)


# -- reads, folders, deletions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*BEFORE_COMMIT, "drop_after_commit", "error_after_commit", "slow_body", "slow"])
@pytest.mark.parametrize(
    ("path", "method"),
    [("/data$", "GET"), ("/api/jobs", "GET"), ("/items$", "GET"), (":createFolder", "POST"), (":delete", "POST"),
     ("/api/tokens", "POST")],
)  # fmt: skip
def test_trouble_with_any_other_call_costs_time_only(path, method, fault):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        plan = await world.plan(what)
        if path == "/api/tokens":
            world.sim.tokens.revoke_all()
        world.fault(fault, path, method, times=3, **MINUTES)
        assert phases(await world.run(world.engine(plan))) == ["passed"] * 3
        world.check(what)
        assert len(world.jobs()) == 6

    play(scene, **CALM, **always("failed_partial", 1))


@pytest.mark.parametrize("body", ["{}", "[]", "null", '{"items": null}', '{"items": [{}]}', '{"items": [7]}', '"text"'])
@pytest.mark.parametrize("path", ["/data$", "/api/jobs", "/items$", ":createFolder", LAUNCH, "/api/tokens"])
def test_a_success_that_does_not_look_like_icas_is_a_doubt_and_not_a_crash(path, body):
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        if path == "/api/tokens":
            world.sim.tokens.revoke_all()
        world.fault("non_json", path, code=200, body=body, times=3)
        assert phases(await world.run(world.engine(plan))) == ["passed"] * 2
        world.check(what)

    play(scene, **CALM, **always("failed_partial", 1))


def test_folders_that_others_make_at_the_same_time_are_shared():
    async def scene(world: World) -> None:
        what = manifest(8)
        world.seed(what)
        plan = await world.plan(what)
        engines = [world.engine(plan, f"run{n}", world.mortal()) for n in range(3)]
        await asyncio.gather(*(world.run(engine) for engine in engines))
        world.check(what)
        entries = world.sim.journal.entries("folder_created")
        created = [entry.details["path"] for entry in entries if entry.details["project_id"] == TARGET]
        assert len(created) == len(set(created)) == 9

    play(scene, **CALM, folder_create_seconds=3.0)


@pytest.mark.parametrize("lag", [4.0, 25.0])
@pytest.mark.parametrize("seed", range(3))
def test_listings_that_lag_behind_mislead_nobody(lag, seed):
    async def scene(world: World) -> None:
        what = manifest(6, 3)
        world.seed(what)
        await asyncio.sleep(lag + 1)
        assert set(phases(await world.copy(what, max_resubmissions=12))) == {"passed"}
        await asyncio.sleep(lag + 1)
        world.check(what, twins=lag > CopySettings().listing_lag_seconds)

    play(scene, seed=seed, api_latency_seconds=0.05, listing_lag_seconds=lag)


# -- busy, out of reach (docs/faults.md, F11), credentials (F12)
# --------------------------------------------------------------------


@pytest.mark.parametrize("retry_after", [None, 2])
@pytest.mark.parametrize("rate", [5.0, 50.0])
def test_a_rate_limit_slows_the_run_down_and_fails_nothing(rate, retry_after):
    async def scene(world: World) -> None:
        what = manifest(60)
        world.seed(what)
        assert set(phases(await world.copy(what))) == {"passed"}
        world.check(what)
        refused = world.sim.counters()["statuses"].get("429", 0)
        served = sum(world.sim.counters()["statuses"].values()) - refused
        assert refused < served, "most calls are answered: the client keeps the pace it was told"

    play(scene, seed=2, api_latency_seconds=0.05, rate_limit_per_second=rate, rate_limit_retry_after=retry_after)


@pytest.mark.parametrize("retry_after", [None, 7, 600, "Wed, 21 Oct 2099 07:28:00 GMT", "soon"])
def test_a_launch_that_is_told_to_come_later_comes_later(retry_after):
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("status", LAUNCH, "POST", code=429, retry_after=retry_after, times=1)
        engine = world.engine(await world.plan(what))
        assert phases(await world.run(engine)) == ["passed"] * 2
        if isinstance(retry_after, int):
            assert world.loop.time() >= retry_after
        assert world.loop.time() < 3700, "no remote parks a destination for longer than an hour"
        world.check(what)

    play(scene, **CALM)


@pytest.mark.parametrize(("begin", "hours"), [(0.2, 0.2), (5.0, 2.0)])
def test_an_outage_is_waited_out(hours, begin):
    async def scene(world: World) -> None:
        what = manifest(4)
        world.seed(what)
        plan = await world.plan(what)

        async def trouble() -> None:
            await asyncio.sleep(begin)
            world.fault("outage", seconds=hours * 3600)

        progress, _ = await asyncio.gather(world.run(world.engine(plan)), trouble())
        assert phases(progress) == ["passed"] * 4
        world.check(what)
        assert world.loop.time() >= hours * 3600

    play(scene, **CALM)


def test_tokens_that_expire_in_mid_wait_are_renewed():
    async def scene(world: World) -> None:
        what = manifest(4)
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"] * 4
        assert world.sim.counters()["calls"]["POST /api/tokens"] > 5
        assert world.sim.counters()["statuses"]["401"] > 5
        world.check(what)

    play(scene, **CALM, token_lifetime_seconds=20.0, overrides=[Override(destination="/cache/", duration_seconds=300)])


@pytest.mark.parametrize("seconds", [30.0, 200.0])
def test_a_storage_outage_fails_many_jobs_at_once_and_all_are_sent_again(seconds):
    async def scene(world: World) -> None:
        what = manifest(15)
        world.seed(what)
        plan = await world.plan(what)

        async def trouble() -> None:
            await asyncio.sleep(4)
            world.sim.job_outage(seconds)

        progress, _ = await asyncio.gather(world.run(world.engine(plan, max_resubmissions=20)), trouble())
        assert set(phases(progress)) == {"passed"}
        world.check(what)

    play(scene, seed=4, api_latency_seconds=0.05)
