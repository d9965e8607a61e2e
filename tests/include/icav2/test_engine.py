"""The copy engine on virtual time: each rule of a copy with the simulator's truth beside it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.icav2.models import Verdict
from simulators.icav2 import Outcome, Override
from tests.include.icav2.engine_checks import CALM, DEST, fate, phases, source, told

# -- the way it should go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_every_file_arrives_under_the_sops_failure_rate(seed):
    async def scene(world: World) -> None:
        what = manifest(25, 3)
        world.seed(what)
        plan = await world.plan(what)
        engine = world.engine(plan)
        progress = await world.run(engine)
        assert set(phases(progress)) == {"passed"}
        world.check(what)
        output, missing = await told(world, engine, progress)
        assert missing == []
        assert output["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": 25}
        pairs = {(s, j["dest_uri"]) for j in output["job_list_with_attempt_counter"] for s in j["source_uris"]}
        assert pairs == {(s, d) for s, ds in what.items() for d in ds}
        tried = {job["dest_uri"]: job["job_attempt_counter"] for job in output["job_list_with_attempt_counter"]}
        sent = world.sim.counters()["submissions"]
        assert tried == {f"icav2://{place[:36]}{place[36:]}": count for place, count in sent.items()}

    play(scene, seed=seed, api_latency_seconds=0.05)


def test_one_source_goes_to_many_places_and_odd_names_arrive_to_the_letter():
    names = [
        "a b",
        "#",
        "q?x",
        "%20",
        "a+b",
        "naïve",
        "nai\u0308ve",
        "A",
        "a",
        "'",
        '"',
        "&=",
        " x ",
        "new\nline",
        "日本",
    ]

    async def scene(world: World) -> None:
        what = {source(f"/run 1/{name}"): [f"icav2://{TARGET}/x/", f"icav2://{TARGET}/y #1/"] for name in names}
        world.seed(what, 1000)
        progress = await world.copy(what)
        assert phases(progress) == ["passed", "passed"]
        world.check(what)
        assert {path.rsplit("/", 1)[-1] for path in world.target()} == set(names)

    play(scene, **CALM)


def test_the_root_of_a_project_is_filled():
    async def scene(world: World) -> None:
        what = {source("/a/f"): [f"icav2://{TARGET}/"]}
        world.seed(what)
        await world.copy(what)
        world.check(what)
        assert list(world.target()) == ["/f"]

    play(scene, failure_rate=0.0, overrides=[fate("failed_partial", where=f"{TARGET}/$")])


def test_folders_arrive_with_all_below_them_and_without_empty_ones():
    async def scene(world: World) -> None:
        what = {source("/run/Reports/"): [DEST]}
        world.seed(what)
        for path in ("a", "deep/er/b", "deep/c"):
            world.sim.seed_file(SOURCE, f"/run/Reports/{path}", 1000)
        world.sim.seed_folder(SOURCE, "/run/Reports/hollow/")
        progress = await world.copy(what)
        assert phases(progress) == ["passed"]
        world.check(what)
        assert sorted(world.target()) == [f"/cache/d0000/Reports/{p}" for p in ("a", "deep/c", "deep/er/b")]
        assert len(world.jobs()) == 1

    play(scene, **CALM)


@pytest.mark.parametrize("outcome", ["failed_partial", "truncated", "missing", "partially_succeeded", "stopped"])
def test_a_folder_whose_copy_goes_wrong_is_completed(outcome):
    async def scene(world: World) -> None:
        what = {source("/run/Reports/"): [DEST]}
        world.seed(what)
        for path in ("a", "deep/er/b", "deep/c", "d"):
            world.sim.seed_file(SOURCE, f"/run/Reports/{path}", 1000)
        assert phases(await world.copy(what)) == ["passed"]
        world.check(what)

    play(scene, **CALM, overrides=[fate(outcome)])


def test_an_empty_file_arrives():
    async def scene(world: World) -> None:
        what = {source("/f"): [DEST]}
        world.seed(what, 0)
        assert phases(await world.copy(what)) == ["passed"]
        world.check(what)

    play(scene, **CALM)


# -- how a job can end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [str(o) for o in Outcome if o not in (Outcome.SUCCEEDED, Outcome.STUCK)])
def test_whatever_way_a_job_goes_wrong_the_next_one_completes_it(outcome):
    async def scene(world: World) -> None:
        what = manifest(1, 4)
        world.seed(what, 10_000_000)
        plan = await world.plan(what)
        engine = world.engine(plan)
        progress = await world.run(engine)
        world.check(what)
        output, _ = await told(world, engine, progress)
        job = output["job_list_with_attempt_counter"][0]
        first, second = (j["id"] for j in world.jobs())
        assert (job["job_id"], job["failed_jobs_list"], job["job_attempt_counter"]) == (second, [first], 2)

    play(scene, **CALM, overrides=[fate(outcome)])


def test_only_what_is_not_copied_is_sent_again():
    async def scene(world: World) -> None:
        what = manifest(1, 6)
        world.seed(what)
        await world.copy(what)
        first, second = world.jobs()
        assert len(first["items"]) == 6
        assert {item["name"] for item in second["items"]} == {path.rsplit("/", 1)[-1] for path in first["failed"]}
        world.check(what)

    play(scene, **CALM, overrides=[fate("partially_succeeded")])


def test_a_job_that_lies_about_its_items_is_not_believed():
    async def scene(world: World) -> None:
        what = manifest(1, 6)
        world.seed(what)
        await world.copy(what)
        world.check(what)
        assert len(world.jobs()) == 2

    play(scene, **CALM, overrides=[fate("wrong_items")])


def test_an_unknown_status_counts_as_running_with_one_warning(caplog):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"] * 3
        world.check(what)

    with caplog.at_level(logging.WARNING, "include.core.watch"):
        play(scene, **CALM, overrides=[Override(destination="/cache/", show_status="PONDERING")])
    warnings = [r.message for r in caplog.records if "PONDERING" in r.message]
    assert len(warnings) == 1
    assert warnings[0].endswith("is PONDERING, a status that Waybill does not know: such jobs count as running")


def test_a_job_that_ends_in_an_unknown_status_is_judged_by_what_is_there_once_it_is_overdue():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        assert phases(await world.copy(what, job_timeout_seconds=600.0)) == ["passed"]
        world.check(what)
        assert len(world.jobs()) == 1
        assert world.loop.time() == pytest.approx(600, abs=60)

    play(scene, **CALM, overrides=[Override(destination="/cache/", final_status="SPLENDID")])


def test_a_same_size_file_with_another_md5_is_found_out_and_copied_again():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what, 1000)
        plan = await world.plan(what)
        engine = world.engine(plan)
        assert (await engine.act()).counts["running"] == 1
        await asyncio.sleep(60)
        copy = world.target()["/cache/d0000/f0.fastq.gz"]
        world.sim.set_data(copy["id"], etag="0" * 32)
        progress = await world.run(engine)
        assert phases(progress) == ["passed"]
        assert len(world.jobs()) == 2
        proofs = await engine.final_proofs()
        assert {(p.verdict, p.by) for p in proofs} == {(Verdict.OK, "size and MD5")}
        world.check(what)

    play(scene, **CALM)


def test_multipart_etags_may_differ_and_size_alone_is_then_the_proof():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await world.run(engine)
        assert {(p.verdict, p.by) for p in await engine.final_proofs()} == {(Verdict.OK, "size")}
        assert len(world.jobs()) == 1

    play(scene, **CALM, multipart_etag_changes=True)
