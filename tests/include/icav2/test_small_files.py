"""Small files that the worker copies itself: what it takes, how they are proved, and what a fault or a kill leaves."""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from typing import Any

import pytest

from harness.core.mortal_ledger import Killed
from harness.icav2.ica_world import SOURCE, TARGET, World, play
from include.core.ledger import State
from include.icav2 import report
from include.icav2.models import Content, CopyPlan
from include.icav2.plan import occupied
from include.icav2.small_files import STREAM_KIND, is_small, names_created
from simulators.icav2 import Outcome, Override

DEST = f"icav2://{TARGET}/cache/d0000/"
MEBIBYTE = 1 << 20
REFUSING = {"failure_rate": 0.0, "api_latency_seconds": 0.05, "small_file_fails_below_bytes": 8 * MEBIBYTE}
STREAM = {"stream_small_files": True}
MD5, MULTIPART = "a" * 32, f"{'a' * 32}-3"


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


def files(world: World, sizes: dict[str, int], folder: str = "/run/") -> dict[str, list[str]]:
    for project in (SOURCE, TARGET):
        world.sim.seed_project(project)
    for name, size in sizes.items():
        world.sim.seed_file(SOURCE, folder + name, size)
    return {f"icav2://{SOURCE}{folder}{name}": [DEST] for name in sizes if "/" not in name}


def streamed(world: World) -> list[Any]:
    return [row for row in world.submissions() if row.kind == STREAM_KIND]


@pytest.mark.parametrize(
    ("size", "etag", "small"),
    [
        (0, MD5, True),
        (8 * MEBIBYTE - 1, MULTIPART, True),
        (8 * MEBIBYTE, MULTIPART, False),
        (100 * MEBIBYTE, MD5, True),
        (100 * MEBIBYTE + 1, MD5, False),
        (8 * MEBIBYTE, None, False),
    ],
)
def test_small_is_what_the_batch_copy_was_seen_to_refuse_up_to_a_limit(size, etag, small):
    assert is_small(Content(path="f", size_bytes=size, etag=etag, data_id="fil.1")) == small
    assert not is_small(Content(path="f", size_bytes=size, etag=etag)), (
        "without an id at the source it cannot be fetched"
    )


def test_small_files_are_streamed_beside_the_batch_and_proved_by_the_same_proof():
    async def scene(world: World) -> None:
        what = files(world, {"large": 50 * MEBIBYTE, "small": 1000, "empty": 0, "other": 3000})
        engine = world.engine(await world.plan(what), **STREAM)
        assert phases(await world.run(engine)) == ["passed"]
        world.check(what)
        assert [[item["name"] for item in job["items"]] for job in world.jobs()] == [["large"]]
        proofs = {proof.path: (proof.verdict, proof.by) for proof in await engine.final_proofs()}
        assert proofs["small"] == ("ok", "size and MD5")
        assert {row.state for row in streamed(world)} == {State.DONE}
        assert {row.external_id for row in streamed(world)} == {
            node["id"] for path, node in world.target().items() if not path.endswith("large")
        }

    play(scene, **REFUSING)


def test_a_destination_of_small_files_only_needs_no_job():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1, "b": 2})
        assert phases(await world.copy(what, **STREAM)) == ["passed"]
        world.check(what)
        assert world.jobs() == []
        before = len(world.sim.journal.entries("file_uploaded"))
        assert phases(await world.copy(what, "run2", **STREAM)) == ["passed"]
        assert len(world.sim.journal.entries("file_uploaded")) == before, "what is there is left"

    play(scene, **REFUSING)


def test_in_a_folder_the_batch_copies_the_large_files_and_the_worker_what_it_refuses():
    async def scene(world: World) -> None:
        files(world, {"Reports/large": 50 * MEBIBYTE, "Reports/deep/er/small": 1000, "Reports/small": 2000})
        what = {f"icav2://{SOURCE}/run/Reports/": [DEST]}
        assert phases(await world.copy(what, **STREAM)) == ["passed"]
        world.check(what)
        assert len(world.jobs()) == 1
        assert len(streamed(world)) == 2

    play(scene, **REFUSING)


def test_what_a_run_in_batch_mode_left_of_them_is_cleaned_up_by_one_that_streams():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000, "b": 2000})
        assert phases(await world.copy(what, max_resubmissions=0)) == ["failed"]
        assert [node["status"] for node in world.target().values()] == ["PARTIAL"]
        assert phases(await world.copy(what, "run2", **STREAM)) == ["passed"]
        world.check(what)

    partial = [Override(destination="/cache/", attempts=[1], outcome=Outcome("failed_partial"))]
    play(scene, **{**REFUSING, "small_file_fails_below_bytes": 1500}, overrides=partial)


def test_what_was_streamed_is_not_unmanaged_to_a_later_run():
    async def scene(world: World) -> None:
        files(world, {"Reports/small": 1000, "f": 1, "other": 2})
        what = {f"icav2://{SOURCE}/run/{name}": [DEST] for name in ("Reports/", "f", "other")}
        plan = await world.plan(what)
        assert phases(await world.run(world.engine(plan, **STREAM))) == ["passed"]

        async def judged(some: CopyPlan) -> list[str]:
            created = partial(names_created, world.ledger, some)
            return await occupied(world.client, some, created, refuse_unmanaged=True, use_etag=True)

        assert await judged(plan) == []
        less = await world.plan({f"icav2://{SOURCE}/run/f": [DEST]})
        assert await judged(less) == []
        world.sim.seed_file(TARGET, "/cache/d0000/theirs", 5)
        assert "theirs" in (await judged(less))[0]

    play(scene, **REFUSING)


def test_a_dead_run_that_wanted_another_content_there_does_not_park_the_file():
    async def scene(world: World) -> None:
        files(world, {"a": 1000})
        files(world, {"a": 2000}, "/other/")
        theirs, mine = ({f"icav2://{SOURCE}{folder}a": [DEST]} for folder in ("/run/", "/other/"))
        plans = [await world.plan(what) for what in (theirs, mine)]
        ledger = world.mortal()

        def on_step(name: str, _row: Any) -> None:
            if name == "recorded":
                ledger.dead = True
                raise Killed

        ledger.on_step = on_step
        with pytest.raises(Killed):
            await world.engine(plans[0], "run1", ledger, **STREAM).act()
        assert [row.state for row in streamed(world)] == [State.SENT]
        assert phases(await world.run(world.engine(plans[1], "run2", **STREAM))) == ["passed"]
        world.check(mine)
        assert world.loop.time() < 700

    play(scene, **REFUSING)


@pytest.mark.parametrize("seconds", [20.0, 100.0, 170.0])
def test_a_file_that_is_made_long_after_its_answer_was_given_up_is_made_once(seconds):
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        plan = await world.plan(what)
        world.fault("commit_delayed", ":createFileWithUploadUrl", "POST", seconds=seconds, hold=35.0)
        assert phases(await world.run(world.engine(plan, **STREAM))) == ["passed"]
        await asyncio.sleep(200)
        world.check(what)

    play(scene, **REFUSING)


def test_a_folder_that_was_deleted_since_it_was_found_is_made_anew():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        engine = world.engine(await world.plan(what), **STREAM)
        folder = world.sim.seed_folder(TARGET, "/cache/d0000/")
        assert folder is not None
        make_file, waited = engine.client.make_file, []

        async def late(*args: Any, **options: Any) -> str:
            if not waited:
                waited.append(await world.client_of(world.sim).delete_data(TARGET, folder.id))
                await asyncio.sleep(10)
            return await make_file(*args, **options)

        engine.client.make_file = late  # type: ignore[method-assign]
        assert phases(await world.run(engine)) == ["passed"]
        world.check(what)

    play(scene, **REFUSING)


def test_a_streamed_file_that_somebody_changed_after_its_proof_is_left_and_told():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        assert phases(await world.copy(what, **STREAM)) == ["passed"]
        world.sim.set_data(world.target()["/cache/d0000/a"]["id"], etag="0" * 32)
        progress = await world.copy(what, "run2", **STREAM)
        assert phases(progress) == ["failed"]
        assert "another a lies there" in progress.standings[0].why
        assert world.sim.journal.entries("delete_asked") == []

    play(scene, **REFUSING)


def test_a_strangers_file_in_the_way_is_left_and_told():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000, "b": 1000})
        plan = await world.plan(what)
        world.sim.seed_file(TARGET, "/cache/d0000/a", 77, status="PARTIAL")
        engine = world.engine(plan, **STREAM)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        missing = report.not_copied(progress.standings, await engine.final_proofs(), engine.item_messages())
        assert len(missing) == 1
        assert "another a lies there (PARTIAL), which Waybill did not make: move it away" in missing[0]
        assert world.sim.journal.entries("delete_asked") == []

    play(scene, **REFUSING)


FAULTS = ["drop_before_commit", "drop_after_commit", "error_after_commit", "status", "slow_body"]
CALLS = [
    (":createFileWithUploadUrl", "POST"),
    (":createDownloadUrl", "POST"),
    (":createUploadUrl", "POST"),
    ("/storage/", "GET"),
    ("/storage/", "PUT"),
    ("/data/fil", "GET"),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("path", "method"), CALLS)
def test_trouble_with_any_call_of_a_streamed_copy_costs_time_only(path, method, fault):
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000, "b": 2000})
        plan = await world.plan(what)
        world.fault(fault, path, method, times=2, seconds=300.0)
        assert phases(await world.run(world.engine(plan, **STREAM))) == ["passed"]
        world.check(what)
        assert len(world.target()) == 2

    play(scene, **REFUSING)


@pytest.mark.parametrize("fault", ["cut_upload", "late"])
def test_an_upload_that_arrives_cut_or_is_noticed_late_is_made_good(fault):
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        if fault == "cut_upload":
            world.fault("cut_upload", "/storage/", "PUT")
        assert phases(await world.copy(what, **STREAM)) == ["passed"]
        world.check(what)
        states = [row.state for row in streamed(world)]
        assert states == ([State.FAILED, State.DONE] if fault == "cut_upload" else [State.DONE])

    play(scene, **REFUSING, upload_seconds=45.0 if fault == "late" else 0.0)


def test_an_upload_that_is_never_noticed_uses_up_the_tries_and_is_told():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        engine = world.engine(await world.plan(what), **STREAM)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "ICA has not noticed its upload in 10 min" in progress.standings[0].why
        assert world.loop.time() < 3600

    play(scene, **REFUSING, upload_seconds=1e9)


def test_a_source_that_changed_since_the_plan_is_not_uploaded():
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000})
        plan = await world.plan(what)
        source = next(node for node in world.sim.tree.nodes.values() if node.path == "/run/a")
        source.content = b"x" * 1000
        engine = world.engine(plan, **STREAM)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "its source is not what it was when this run was planned" in progress.standings[0].why
        assert world.sim.journal.entries("file_uploaded") == []

    play(scene, **REFUSING)


@pytest.mark.parametrize("step", ["intent", "sending", "answered", "recorded"])
def test_a_worker_killed_at_any_step_is_followed_by_one_that_completes_the_copy(step):
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000, "b": 2000, "c": 3000})
        plan = await world.plan(what)
        ledger, seen = world.mortal(), []

        def on_step(name: str, _row: Any) -> None:
            seen.append(name)
            if name == step and seen.count(step) == 2:
                ledger.dead = True
                raise Killed

        ledger.on_step = on_step
        with pytest.raises(Killed):
            await world.run(world.engine(plan, "run1", ledger, **STREAM))
        for run_id in ("run1", "run2"):
            assert phases(await world.run(world.engine(plan, run_id, world.mortal(), **STREAM))) == ["passed"]
        world.check(what)
        assert len(world.target()) == 3

    play(scene, **REFUSING)


@pytest.mark.parametrize("seed", range(6))
def test_two_workers_at_once_of_which_either_may_die_make_each_file_once(seed):
    async def scene(world: World) -> None:
        rng = random.Random(seed)
        what = files(world, {f"f{n}": 1000 + n for n in range(12)})
        plan = await world.plan(what)
        for path, method in CALLS:
            if rng.random() < 0.5:
                world.fault(rng.choice(FAULTS), path, method, after=rng.randint(0, 8), times=2, seconds=40.0)

        async def live(run_id: str) -> None:
            ledger = world.mortal()
            work = asyncio.ensure_future(world.run(world.engine(plan, run_id, ledger, **STREAM)))
            await asyncio.wait([work], timeout=rng.choice([1.0, 5.0, 60.0]) * rng.random())
            ledger.dead = True
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

        await asyncio.gather(live("run1"), live(rng.choice(["run1", "run2"])))
        world.sim.faults.clear()
        ends = await asyncio.gather(
            *(
                world.run(world.engine(plan, run, world.mortal(), max_resubmissions=20, **STREAM))
                for run in ("run1", "run2")
            )
        )
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        world.check(what)
        assert len(world.target()) == 12

    play(scene, **REFUSING)


def test_no_more_files_are_on_the_workers_disk_at_once_than_allowed(monkeypatch):
    from include.icav2.client import ICAv2Client

    here, most = [0], [0]
    download, upload = ICAv2Client.download, ICAv2Client.upload

    async def counted(self: Any, *args: Any, **options: Any) -> None:
        here[0] += 1
        most[0] = max(most[0], here[0])
        await download(self, *args, **options)

    async def released(self: Any, *args: Any, **options: Any) -> None:
        await upload(self, *args, **options)
        here[0] -= 1

    monkeypatch.setattr(ICAv2Client, "download", counted)
    monkeypatch.setattr(ICAv2Client, "upload", released)

    async def scene(world: World) -> None:
        what = files(world, {f"f{n}": 1000 for n in range(20)})
        assert phases(await world.copy(what, **STREAM)) == ["passed"]
        assert most[0] == 4

    play(scene, **REFUSING)


def test_a_signed_url_stands_in_no_log_no_row_and_no_message(caplog):
    async def scene(world: World) -> None:
        what = files(world, {"a": 1000, "b": 2000})
        plan = await world.plan(what)
        world.fault("status", "/storage/", "GET", code=403, times=None, problem={"detail": "signature=0123"})
        engine = world.engine(plan, **STREAM)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        bodies = [str(world.ledger.event_bodies(row.id)) for row in world.submissions()]
        told = [*bodies, *(standing.why for standing in progress.standings), *(r.getMessage() for r in caplog.records)]
        assert any("/storage/" in str(entry.details) for entry in world.sim.journal.entries("request"))
        assert not [text for text in told if "expires=" in text or "/storage/" in text]

    with caplog.at_level(logging.INFO):
        play(scene, **REFUSING)
