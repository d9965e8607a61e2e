"""The client against the simulator: over a real socket, and in process for what is rare on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, play
from include.core.errors import AuthError, Forbidden, NotFound, RemoteError, TransientError
from include.core.http import Credential, HttpPolicy
from include.icav2.client import PAGE_SIZE, ICAv2Client, _chunks
from include.icav2.credentials import ApiKey, KeptToken
from include.icav2.folders import ancestors, ensure_folders
from simulators.common import Clock, serve
from simulators.icav2 import IcaSimulator, Settings

T = TypeVar("T")
CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}


def on_socket(scene: Callable[[ICAv2Client, IcaSimulator], Awaitable[T]], speed: float = 200.0, **policy: Any) -> T:
    sim = IcaSimulator(Clock(speed=speed), Settings(failure_rate=0.0))
    for project in (SOURCE, TARGET):
        sim.seed_project(project)

    async def main(url: str) -> T:
        limits = HttpPolicy(backoff_seconds=0.01, **policy)
        async with ICAv2Client(f"{url}/ica/rest", ApiKey("rehearsal-key"), policy=limits) as client:
            return await scene(client, sim)

    with serve(sim.app) as server:
        return asyncio.run(main(server.url))


def test_a_copy_over_a_real_socket_from_listing_to_proof():
    async def scene(client: ICAv2Client, sim: IcaSimulator) -> None:
        name = "odd #?%20+é \n.txt"
        made = sim.seed_file(SOURCE, f"/in/{name}", 1000)
        [found] = await client.list_folder(SOURCE, "/in/")
        assert (found.id, found.name, found.size_bytes, found.is_folder) == (made.id, name, 1000, False)
        folder = await client.make_folder(TARGET, "/a #1/b+c/")
        assert await client.make_folder(TARGET, "/a #1/b+c/") == folder
        batch = await client.copy(TARGET, folder, [found.id], fence=lambda: None)
        assert (await client.batch(TARGET, batch.id)).folder_id == folder
        while not (job := (await client.statuses({batch.job.id: batch.job.created}))[batch.job.id]).ended:
            await asyncio.sleep(0.02)
        assert job.status == "SUCCEEDED"
        assert job.finished is not None and job.finished >= job.created
        [item] = await client.batch_items(TARGET, batch.id)
        [copy] = await client.list_folder(TARGET, "/a #1/b+c/")
        assert (copy.name, copy.size_bytes, copy.etag) == (name, 1000, found.etag)
        assert (item.data_id, item.created_id, item.status) == (found.id, copy.id, "COPIED")
        assert await client.data(TARGET, copy.id) == copy

    on_socket(scene)


@pytest.mark.parametrize("fault", ["drop_before_commit", "drop_after_commit", "non_json", "error_after_commit"])
def test_reads_over_a_socket_are_tried_again_and_a_launch_is_not(fault):
    async def scene(client: ICAv2Client, sim: IcaSimulator) -> None:
        data = sim.seed_file(SOURCE, "/in/f", 10)
        folder = await client.make_folder(TARGET, "/x/")
        sim.faults.add(fault=fault, path="/data$", times=3)
        assert len(await client.list_folder(SOURCE, "/in/")) == 1
        sim.faults.add(fault=fault, path="dataCopyBatch$")
        with pytest.raises(TransientError) as caught:
            await client.copy(TARGET, folder, [data.id], fence=lambda: None)
        assert not caught.value.no_effect
        assert sim.counters()["calls"]["POST /api/projects/{projectId}/dataCopyBatch"] == 1

    on_socket(scene)


def test_a_server_that_is_not_there_is_proof_of_no_effect():
    async def main() -> None:
        policy = HttpPolicy(read_attempts=2, backoff_seconds=0.01)
        async with ICAv2Client("http://127.0.0.1:9", ApiKey("k"), policy=policy) as client:
            with pytest.raises(TransientError) as caught:
                await client.copy(TARGET, None, ["fil.1"], fence=lambda: None)
            assert caught.value.no_effect

    asyncio.run(main())


def test_a_trickle_on_the_wire_ends_in_time():
    async def scene(client: ICAv2Client, sim: IcaSimulator) -> None:
        sim.faults.add(fault="slow_body", path="/api/jobs", seconds=20.0, chunks=100, times=None)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(TransientError):
            await client.jobs_since(0.0)
        assert asyncio.get_running_loop().time() - begun < 5

    on_socket(scene, speed=1.0, timeout_seconds=0.5, read_attempts=2)


def test_lists_are_read_to_the_end_page_by_page():
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        for n in range(2 * PAGE_SIZE + 1):
            world.sim.seed_file(SOURCE, f"/in/f{n}", 0)
        assert len(await world.client.list_folder(SOURCE, "/in/")) == 2 * PAGE_SIZE + 1
        assert world.sim.counters()["calls"]["GET /api/projects/{projectId}/data"] == 3

    play(scene, **CALM)


def test_case_twins_are_told_apart_though_the_server_does_not():
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        for path in ("/in/a", "/in/A", "/IN/a", "/in/sub/a"):
            world.sim.seed_file(SOURCE, path, 1)
        assert sorted(d.path for d in await world.client.list_folder(SOURCE, "/in/")) == ["/in/A", "/in/a", "/in/sub/"]
        assert sorted(d.path for d in await world.client.list_tree(SOURCE, "/in/")) == ["/in/A", "/in/a", "/in/sub/a"]
        assert set(await world.client.find_folders(SOURCE, ["/in/", "/In/"])) == {"/in/"}

    play(scene, **CALM)


async def run_jobs(world: World, count: int) -> dict[str, float]:
    for project in (SOURCE, TARGET):
        world.sim.seed_project(project)
    data = world.sim.seed_file(SOURCE, "/f", 1)
    folder = await world.client.make_folder(TARGET, "/x/")
    made = {}
    for _ in range(count):
        batch = await world.client.copy(TARGET, folder, [data.id], fence=lambda: None)
        made[batch.job.id] = batch.job.created
    return made


def listings(world: World) -> int:
    return int(world.sim.counters()["calls"].get("GET /api/jobs", 0))


def test_one_call_looks_at_all_jobs_and_hidden_ones_are_asked_for_by_id():
    async def scene(world: World) -> None:
        jobs = await run_jobs(world, 40)
        assert (await world.client.statuses(jobs)).keys() == jobs.keys()
        assert listings(world) == 1
        hidden = next(iter(jobs))
        world.sim.engine.jobs[hidden].hidden_until = world.loop.now() + 1000
        assert (await world.client.statuses(jobs)).keys() == jobs.keys() - {hidden}
        assert (await world.client.statuses({"no such job": 0.0})) == {}
        assert (await world.client.statuses({})) == {}
        assert listings(world) == 3

    play(scene, **CALM)


def test_an_old_job_does_not_make_the_client_walk_through_all_that_came_after_it():
    async def scene(world: World) -> None:
        jobs = await run_jobs(world, 65)
        old, *_, new = jobs
        assert len(await world.client.statuses({job: jobs[job] for job in (old, new)})) == 2
        assert listings(world) == 1

    play(scene, **CALM, max_page_size=20)


def test_a_service_that_gives_smaller_pages_than_asked_for_is_read_to_the_end():
    async def scene(world: World) -> None:
        jobs = await run_jobs(world, 65)
        assert (await world.client.statuses(jobs)).keys() == jobs.keys()
        assert listings(world) == 3, "the last five are asked for by id"
        assert {job.id for job in await world.client.jobs_since(0.0)} == jobs.keys()
        since = await world.client.jobs_since(jobs[list(jobs)[30]])
        assert {job.id for job in since} == set(list(jobs)[30:])
        assert listings(world) == 3 + 4 + 2

    play(scene, **CALM, max_page_size=20)


def test_ten_calls_refused_at_once_need_one_new_token():
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        await world.client.list_folder(SOURCE, "/")
        world.sim.tokens.revoke_all()
        await asyncio.gather(*(world.client.list_folder(SOURCE, "/") for _ in range(10)))
        assert world.sim.counters()["calls"]["POST /api/tokens"] == 2

    play(scene, **CALM)


def test_a_kept_token_is_fetched_again_when_it_is_refused():
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        await world.client.list_folder(SOURCE, "/")
        assert world.client.http._credential is not None
        token = world.client.http._credential.headers["Authorization"].removeprefix("Bearer ")
        kept, fetched = [f"{token}\n"], []

        async def fetch() -> str:
            fetched.append(1)
            return kept[0]

        world.client.http._credentials = KeptToken(fetch)
        world.client.http._credential = Credential({"Authorization": "Bearer old"})
        await world.client.list_folder(SOURCE, "/")
        assert len(fetched) == 1
        kept[0] = " "
        world.sim.tokens.revoke_all()
        with pytest.raises(AuthError, match="is empty"):
            await world.client.list_folder(SOURCE, "/")

    play(scene, **CALM)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_is_an_error_of_the_connection_whatever_the_code(code):
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        world.fault("status", "/api/tokens", code=code, times=None)
        with pytest.raises(AuthError) as caught:
            await world.client.list_folder(SOURCE, "/")
        assert not isinstance(caught.value, Forbidden)
        assert "rehearsal-key" not in f"{caught.value!r} {caught.value.__cause__!r} {ApiKey('rehearsal-key')!r}"

    play(scene, **CALM)


def test_deleting_twice_is_deleting_once():
    async def scene(world: World) -> None:
        world.sim.seed_project(SOURCE)
        data = world.sim.seed_file(SOURCE, "/f", 1)
        await world.client.delete_data(SOURCE, data.id)
        await asyncio.sleep(10)
        await world.client.delete_data(SOURCE, data.id)
        with pytest.raises(NotFound):
            await world.client.data(SOURCE, data.id)

    play(scene, **CALM)


def test_folders_are_made_top_down_once_and_a_bad_one_spoils_only_those_below_it():
    async def scene(world: World) -> None:
        world.sim.seed_project(TARGET)
        world.sim.seed_file(TARGET, "/a/file", 1)
        places = [(TARGET, p) for p in ("/a/b/c/", "/a/b/d/", "/a/file/e/", "/")]
        ids = await ensure_folders(world.client, places)
        assert isinstance(ids[TARGET, "/a/file/"], RemoteError)
        assert isinstance(ids[TARGET, "/a/file/e/"], RemoteError)
        assert all(str(ids[TARGET, p]).startswith("fol.") for p in ("/a/", "/a/b/", "/a/b/c/", "/a/b/d/"))
        assert (TARGET, "/") not in ids
        made = world.sim.counters()["calls"]["POST /api/projects/{projectId}/data:createFolder"]
        again = await ensure_folders(world.client, places[:2])
        assert {place: ids[place] for place in again} == again
        assert world.sim.counters()["calls"]["POST /api/projects/{projectId}/data:createFolder"] == made

    play(scene, **CALM)


def test_ancestors_go_from_the_outside_in_and_the_root_is_nobodys_to_make():
    assert ancestors("/a/b c/") == ["/a/", "/a/b c/"]
    assert ancestors("/") == []


def test_no_query_grows_beyond_what_servers_take():
    long = [f"/{'日本語' * 40}/{n}/" for n in range(50)]
    chunks = _chunks(long)
    assert [path for chunk in chunks for path in chunk] == long
    assert max(len(chunk) for chunk in chunks) < 6
    assert len(_chunks([f"/short/{n}/" for n in range(100)])) == 1
    assert _chunks([]) == []
