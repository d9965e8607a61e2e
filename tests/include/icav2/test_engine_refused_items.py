"""Items that ICA fails each time for the same reason: they are given up after two tries, and ICA's own words are told."""

from __future__ import annotations

from typing import Any

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.icav2 import report
from simulators.icav2 import Outcome, Override

CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}
TAGGING = "Access denied when tagging the object."
MEBIBYTE = 1 << 20


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


def mixed(world: World) -> dict[str, list[str]]:
    """Two large files and two small ones, to one folder."""
    sizes = {"large0": 50 * MEBIBYTE, "large1": 50 * MEBIBYTE, "small0": 1000, "small1": 2000}
    what = {f"icav2://{SOURCE}/run/{name}": [f"icav2://{TARGET}/cache/d0000/"] for name in sizes}
    for project in (SOURCE, TARGET):
        world.sim.seed_project(project)
    for name, size in sizes.items():
        world.sim.seed_file(SOURCE, f"/run/{name}", size)
    return what


def test_an_item_that_ica_refuses_twice_with_the_same_words_is_not_sent_a_third_time_and_they_are_told():
    async def scene(world: World) -> None:
        what = mixed(world)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert [sorted(item["name"] for item in job["items"]) for job in world.jobs()] == [
            ["large0", "large1", "small0", "small1"],
            ["small0", "small1"],
        ]
        assert f"2 items not copied: ICA gave the same reason twice: “{TAGGING}”" in progress.standings[0].why
        missing = report.not_copied(progress.standings, await engine.final_proofs(), engine.item_messages())
        assert len(missing) == 2
        assert all(TAGGING in line and f"small{n}" in line for n, line in enumerate(missing))

    play(scene, **CALM, small_file_fails_below_bytes=8 * MEBIBYTE)


def test_a_new_run_tries_a_refused_item_again():
    async def scene(world: World) -> None:
        what = mixed(world)
        assert phases(await world.copy(what)) == ["failed"]
        world.sim.change_settings(small_file_fails_below_bytes=0)
        assert phases(await world.copy(what, "run2")) == ["passed"]
        assert len(world.jobs()) == 3
        world.check(what)

    play(scene, **CALM, small_file_fails_below_bytes=8 * MEBIBYTE)


def test_words_about_the_job_as_a_whole_do_not_end_the_tries_of_its_items():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"]
        assert len(world.jobs()) == 5
        world.check(what)

    attempts = [Override(destination="/cache/", attempts=[1, 2, 3, 4], outcome=Outcome("failed_clean"))]
    play(scene, **CALM, overrides=attempts)


@pytest.mark.parametrize(("repeated", "jobs", "ends"), [(False, 3, "passed"), (True, 2, "failed")])
def test_words_that_differ_each_time_do_not_end_the_tries(repeated, jobs, ends):
    async def scene(world: World) -> None:
        what = manifest(1, 30)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        assert phases(await world.run(engine)) == [ends]
        assert len(world.jobs()) == jobs

    subset = [Override(destination="/cache/", attempts=[1, 2], outcome=Outcome("partially_succeeded"))]
    play(scene, **CALM, overrides=subset, repeated_messages=repeated)


def test_what_is_told_of_a_file_is_its_own_reason_and_not_that_of_its_neighbour():
    async def scene(world: World) -> None:
        what = mixed(world)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        missing = report.not_copied(progress.standings, await engine.final_proofs(), engine.item_messages())
        told = {
            name: line for line in missing for name in ("large1", "small0", "small1") if name in line.split(" → ")[0]
        }
        assert sorted(told) == ["large1", "small0", "small1"]
        assert "ICA: “Copy of this file failed.”" in told["large1"]
        assert f"ICA: “{TAGGING}”" in told["small0"]

    play(scene, **CALM, small_file_fails_below_bytes=8 * MEBIBYTE, failing_files=["large1$"])


def test_messages_of_another_length_or_number_than_anybody_wants_are_cut():
    from include.icav2.rules import MESSAGE_LIMIT, MESSAGES_LIMIT, item_reasons

    ids = [f"fil.{n}" for n in range(1000)]
    found = item_reasons(ids, {data_id: f"{data_id} {'x' * 1000}" for data_id in ids}, "")
    assert len(found) == MESSAGES_LIMIT
    assert max(map(len, found)) == MESSAGE_LIMIT
    assert item_reasons(ids, dict.fromkeys(ids, " the same "), "the same") == {}
