"""The copy engine on virtual time: what is refused before a job is sent, and what ICA refuses."""

from __future__ import annotations

from functools import partial

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.core.errors import AuthError, RequestError
from include.icav2.plan import occupied
from include.icav2.small_files import names_created
from tests.include.icav2.engine_checks import CALM, DEST, OTHER, phases, source, told

# -- refusals before anything is launched ---------------------------------------------------------------------------


async def refused_plan(world: World, what: dict[str, list[str]]) -> list[str]:
    with pytest.raises(RequestError) as caught:
        await world.plan(what)
    assert world.jobs() == []
    return caught.value.problems


def test_every_source_that_cannot_be_copied_is_named_at_once():
    async def scene(world: World) -> None:
        good, gone, upper, part, archived = (source(f"/run/{n}") for n in ("good", "gone", "GOOD", "part", "arch"))
        folder, wrong = source("/run/folder/"), source("/run/good/")
        what = {
            uri: [f"icav2://{TARGET}/{n}/"] for n, uri in enumerate((good, gone, upper, part, archived, folder, wrong))
        }
        world.seed({good: [DEST]})
        world.sim.seed_file(SOURCE, "/run/part", 1, status="PARTIAL")
        world.sim.seed_file(SOURCE, "/run/arch", 1, status="ARCHIVED")
        world.sim.seed_file(SOURCE, "/run/folder/x/half", 1, status="PARTIAL")
        world.sim.seed_file(SOURCE, "/run/folder/x/whole", 1)
        problems = await refused_plan(world, what)
        assert len(problems) == 6
        assert next(p for p in problems if gone in p).endswith(
            "this source does not exist (case counts); correct the path or take it out"
        )
        assert any(upper in p and "case counts" in p for p in problems)
        assert any(part in p and "PARTIAL, not AVAILABLE" in p for p in problems)
        assert any(archived in p and "ARCHIVED" in p for p in problems)
        assert any(folder in p and "/run/folder/x/half" in p for p in problems)
        assert any(p.startswith(f"“{wrong}”") for p in problems)

    play(scene)


def test_a_project_that_is_not_there_or_not_ours_to_see_is_a_refusal_of_its_sources():
    async def scene(world: World) -> None:
        what = {f"icav2://{OTHER}/f": [DEST], source("/g"): [DEST]}
        world.seed({source("/g"): [DEST]})
        assert "does not exist" in (await refused_plan(world, what))[0]
        world.sim.seed_project(OTHER, rights={"service": "none"})
        problems = await refused_plan(world, what)
        assert len(problems) == 1
        assert "403" in problems[0]
        assert "waybill_icav2" in problems[0]

    play(scene)


def test_two_folders_whose_files_would_land_on_one_path_are_refused():
    async def scene(world: World) -> None:
        what = {source("/a/sub/"): [f"icav2://{TARGET}/x/"], source("/b/f"): [f"icav2://{TARGET}/x/sub/"]}
        world.seed({})
        world.sim.seed_project(SOURCE)
        world.sim.seed_file(SOURCE, "/a/sub/f", 1)
        world.sim.seed_file(SOURCE, "/b/f", 2)
        problem = (await refused_plan(world, what))[0]
        assert "would both be copied to" in problem
        assert f"icav2://{TARGET}/x/sub/f" in problem

    play(scene)


def test_ten_thousand_files_resolve_with_one_listing_per_parent_folder():
    async def scene(world: World) -> None:
        what = {source(f"/run/{n % 4}/f{n}"): [f"icav2://{TARGET}/{n % 7}/"] for n in range(10_000)}
        world.seed(what, 0)
        plan = await world.plan(what)
        assert plan.files == 10_000
        pages = world.sim.counters()["calls"]["GET /api/projects/{projectId}/data"]
        assert pages == 4 * 3, "2,500 files in each of four folders are three pages each"

    play(scene)


async def occupants(world: World, what: dict[str, list[str]], *, refuse: bool = True) -> list[str]:
    plan = await world.plan(what)

    return await occupied(
        world.client, plan, partial(names_created, world.ledger, plan), refuse_unmanaged=refuse, use_etag=True
    )


def test_strangers_at_a_destination_are_refused_by_name_and_ours_are_not():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        assert await occupants(world, what) == []
        await world.copy(what)
        assert await occupants(world, what) == []
        world.sim.seed_folder(TARGET, "/cache/d0000/sub/")
        assert await occupants(world, what) == [], "a folder beside the files is nobody's file"
        world.sim.seed_file(TARGET, "/cache/d0000/notes.txt", 5)
        problems = await occupants(world, what)
        assert len(problems) == 1
        assert "it holds 1 that Waybill did not create there (“notes.txt”)" in problems[0]
        assert "require_empty_destination" in problems[0]
        assert await occupants(world, what, refuse=False) == []

    play(scene, **CALM)


def test_another_file_of_our_name_is_refused_even_where_strangers_are_welcome():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 5)
        problems = await occupants(world, what, refuse=False)
        assert len(problems) == 1
        assert "holds another “f0.fastq.gz” already (size mismatch)" in problems[0]

    play(scene)


def test_a_folder_of_a_strangers_is_seen_where_our_folder_goes():
    async def scene(world: World) -> None:
        what = {source("/run/Reports/"): [DEST]}
        world.seed(what)
        world.sim.seed_file(SOURCE, "/run/Reports/a", 10)
        world.sim.seed_file(TARGET, "/cache/d0000/Reports/a", 11)
        assert "“Reports”" in (await occupants(world, what))[0]
        assert "holds another “Reports/a” already" in (await occupants(world, what, refuse=False))[0]

    play(scene)


def test_names_that_were_never_sent_do_not_count_as_placed():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        world.fault("status", "dataCopyBatch", "POST", code=400)
        assert phases(await world.copy(what)) == ["failed"]
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 5)
        assert len(await occupants(world, what)) == 1

    play(scene, **CALM)


def test_a_destination_that_is_not_ours_to_see_is_refused():
    async def scene(world: World) -> None:
        what = manifest(1) | {source("/f"): [f"icav2://{OTHER}/x/"]}
        world.seed(what)
        world.sim.seed_project(OTHER, rights={"service": "none"})
        problems = await occupants(world, what)
        assert len(problems) == 1
        assert "403" in problems[0]

    play(scene)


# -- rights and refusals by ICA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", ["viewer", "none"])
def test_a_project_where_we_may_not_write_fails_alone_with_the_reason(right):
    async def scene(world: World) -> None:
        what = manifest(2) | {source("/f"): [f"icav2://{OTHER}/x/"]}
        world.seed(what)
        plan = await world.plan(what)
        world.sim.seed_project(OTHER, rights={"service": right})
        engine = world.engine(plan)
        progress = await world.run(engine)
        assert sorted(phases(progress)) == ["failed", "passed", "passed"]
        _, missing = await told(world, engine, progress)
        assert len(missing) == 1
        assert "403" in missing[0]
        world.check_records()

    play(scene, **CALM)


def test_what_ica_refuses_for_good_is_told_and_not_sent_again_in_this_run():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        world.fault("status", "dataCopyBatch", "POST", code=422, problem={"detail": "No such bundle."})
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        assert sorted(phases(progress)) == ["failed", "passed"]
        _, missing = await told(world, engine, progress)
        assert "No such bundle." in missing[0]
        assert phases(await world.copy(what, "run2")) == ["passed", "passed"]
        world.check(what)

    play(scene, **CALM)


def test_a_file_where_the_folder_should_be_is_told():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        world.sim.seed_file(TARGET, "/cache/d0001", 5)
        progress = await world.run(world.engine(plan))
        assert phases(progress) == ["passed", "failed"]
        assert "a file of that name is there; choose another folder" in progress.standings[1].why

    play(scene, **CALM)


def test_a_wrong_key_stops_everything_before_anything_is_sent():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        plan = await world.plan(what)
        world.sim.tokens.revoke_all()
        world.sim.tokens.add_user("service", "another-key")
        with pytest.raises(AuthError) as caught:
            await world.run(world.engine(plan))
        assert "Check the credential of the connection" in str(caught.value)
        assert "rehearsal-key" not in str(caught.value)
        assert world.jobs() == []

    play(scene, **CALM)


def test_a_destination_folder_that_is_being_deleted_is_waited_for_and_made_anew():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        folder = world.sim.seed_folder(TARGET, "/cache/d0000/")
        assert folder is not None
        await world.client.delete_data(TARGET, folder.id)
        assert phases(await world.run(world.engine(plan))) == ["passed"]
        world.check(what)

    play(scene, **CALM, delete_seconds=90.0)
