"""The copy engine on virtual time: each rule of a copy with the simulator's truth beside it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from harness.icav2.ica_world import SOURCE, TARGET, World, manifest, play
from include.core.effects import Phase
from include.core.errors import AuthError, RequestError
from include.core.ledger import Ledger, State
from include.icav2 import report
from include.icav2.models import Verdict
from include.icav2.plan import occupied
from include.icav2.small_files import names_created
from simulators.icav2 import Outcome, Override

OTHER = "99999999-aaaa-4bbb-8ccc-dddddddddddd"
DEST = f"icav2://{TARGET}/cache/d0000/"
CALM = {"failure_rate": 0.0, "api_latency_seconds": 0.05}


def fate(outcome: str, attempts: list[int] | None = None, where: str = "/cache/d0000/", **more: Any) -> Override:
    return Override(destination=where, attempts=attempts or [1], outcome=Outcome(outcome), **more)


def source(path: str) -> str:
    return f"icav2://{SOURCE}{path}"


def phases(progress: Any) -> list[str]:
    return [str(standing.phase) for standing in progress.standings]


async def told(world: World, engine: Any, progress: Any) -> tuple[dict[str, Any], list[str]]:
    """What the caller gets: the SOP's object, and a sentence per file that is not copied."""
    proofs = await engine.final_proofs()
    standings = report.proved(progress.standings, proofs)
    output = report.output(standings, engine.rows(), engine.owner)
    jobs = output["job_list_with_attempt_counter"]
    counters = output["counters"]
    assert sum(counters.values()) == len(jobs) == len({job["dest_uri"] for job in jobs})
    assert output["job_status_iterable_parameter"]["job_status_iterable"] == (
        counters["jobs_passed"] + counters["jobs_failed"]
    )
    for job in jobs:
        if job["job_status"] is not False:
            assert job["job_attempt_counter"] == len(job["failed_jobs_list"]) + 1
            assert job["job_id"] not in job["failed_jobs_list"]
    return output, report.not_copied(standings, proofs)


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


# -- attempts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resubmissions", "submissions"), [(0, 1), (1, 2), (5, 6)])
def test_a_job_is_sent_again_up_to_the_cap_and_the_others_are_not_stopped(resubmissions, submissions):
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        engine = world.engine(await world.plan(what), max_resubmissions=resubmissions)
        progress = await world.run(engine)
        assert phases(progress) == ["passed", "failed", "passed"]
        assert world.sim.counters()["submissions"][f"{TARGET}/cache/d0001/"] == submissions
        output, missing = await told(world, engine, progress)
        assert output["counters"] == {"jobs_failed": 1, "jobs_running": 0, "jobs_passed": 2}
        failed = output["job_list_with_attempt_counter"][-1]
        assert failed["job_attempt_counter"] == len(failed["failed_jobs_list"]) == submissions
        assert failed["job_id"] == failed["failed_jobs_list"][-1]
        assert missing == [
            f"“{source(f'/run/s0001/f{n}.fastq.gz')}” → “icav2://{TARGET}/cache/d0001/”: missing "
            f"(2 items not copied after {submissions} submissions)"
            for n in range(2)
        ]
        world.check_records()

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 50)), "/cache/d0001/")])


def test_a_file_that_always_fails_is_given_up_alone_and_the_report_names_it():
    async def scene(world: World) -> None:
        what = manifest(1, 5)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        _, missing = await told(world, engine, progress)
        assert len(missing) == 1
        assert "f3.fastq.gz" in missing[0]
        assert len(world.jobs()) == 2, "ICA gave the same reason twice"
        assert len(world.wrong_files(what)) == 1

    play(scene, **CALM, failing_files=["f3.fastq.gz$"])


def test_triggering_again_copies_only_what_is_missing_with_all_attempts_anew():
    async def scene(world: World) -> None:
        what = manifest(3)
        world.seed(what)
        first = await world.copy(what)
        assert phases(first) == ["passed", "failed", "passed"]
        sent = len(world.jobs())
        engine = world.engine(await world.plan(what), "run2")
        again = await world.run(engine)
        assert phases(again) == ["passed"] * 3
        assert len(world.jobs()) == sent + 3
        output, _ = await told(world, engine, again)
        counts = {j["dest_uri"][-6:]: j["job_attempt_counter"] for j in output["job_list_with_attempt_counter"]}
        assert counts == {"d0000/": 1, "d0001/": 3, "d0002/": 1}
        world.check(what)

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 9)), "/cache/d0001/")])


def test_an_adopted_job_counts_as_the_first():
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1").act()  # and run1 is never seen again
        engine = world.engine(plan, "run2")
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert len(world.jobs()) == 6
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 6

    play(scene, **CALM, overrides=[fate("failed_clean", list(range(1, 50)))])


@pytest.mark.parametrize(
    "other", [{"dag_id": "another_dag"}, {"request_sha256": "posted anew"}, {"task_id": "another"}]
)
def test_attempts_are_those_of_one_task_for_one_request_whatever_else_has_the_same_run_id(other):
    async def scene(world: World) -> None:
        what = manifest(1)
        world.seed(what)
        plan = await world.plan(what)
        assert phases(await world.run(world.engine(plan, max_resubmissions=1))) == ["failed"]
        engine = world.engine(plan, max_resubmissions=1)
        engine.owner = replace(engine.owner, **other)
        progress = await world.run(engine)
        assert phases(progress) == ["passed"]
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 1
        assert output["job_list_with_attempt_counter"][0]["failed_jobs_list"] == []

    play(scene, **CALM, overrides=[fate("failed_clean", [1, 2])])


def test_what_was_proved_once_and_has_gone_since_is_copied_again():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        await world.copy(what)
        gone = world.target()["/cache/d0001/f0.fastq.gz"]
        await world.client.delete_data(TARGET, gone["id"])
        await asyncio.sleep(10)
        assert phases(await world.copy(what, "run2")) == ["passed", "passed"]
        world.check(what)
        assert [len(job["items"]) for job in world.jobs()] == [2, 2, 1]

    play(scene, **CALM)


def test_a_file_lost_after_its_proof_fails_the_run_in_the_last_look():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        progress = await world.run(engine)
        await world.client.delete_data(TARGET, world.target()["/cache/d0001/f0.fastq.gz"]["id"])
        output, missing = await told(world, engine, progress)
        assert output["counters"]["jobs_failed"] == 1
        assert missing[0].endswith("missing (gone or changed since it was copied)")

    play(scene, **CALM)


# -- slots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 7])
def test_no_more_jobs_run_at_once_than_allowed(slots):
    async def scene(world: World) -> None:
        what = manifest(20)
        world.seed(what)
        await world.copy(what, max_in_flight=slots)
        assert world.sim.counters()["peak_jobs_in_flight"] == slots
        world.check(what)

    play(scene, seed=5, api_latency_seconds=0.05)


def test_adopted_jobs_take_slots_too():
    async def scene(world: World) -> None:
        what = manifest(12)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1", max_in_flight=6).act()
        assert world.sim.counters()["jobs_in_flight"] == 6
        await world.run(world.engine(plan, "run2", max_in_flight=4))
        assert world.sim.counters()["peak_jobs_in_flight"] == 6
        starts = [job["created"] for job in world.jobs()]
        assert len(set(starts[6:9])) > 1, "the seventh job waited until fewer than four were at work"
        world.check(what)

    play(scene, failure_rate=0.0)


def test_a_destination_in_trouble_keeps_its_slot_while_its_job_may_run():
    async def scene(world: World) -> None:
        what = manifest(2)
        world.seed(what)
        engine = world.engine(await world.plan(what), max_in_flight=1)
        await engine.act()
        await asyncio.sleep(100)
        world.fault("status", "/data$", "GET", code=500, times=5)
        progress = await engine.act()
        assert phases(progress) == ["waiting", "waiting"]
        assert len(world.jobs()) == 1
        await world.run(engine)
        world.check(what)

    play(scene, **CALM)


def test_large_destinations_are_copied_chunk_after_chunk():
    async def scene(world: World) -> None:
        what = manifest(1, 10)
        world.seed(what)
        engine = world.engine(await world.plan(what), items_per_job=4)
        progress = await world.run(engine)
        world.check(what)
        assert [len(job["items"]) for job in world.jobs()][:1] == [4]
        output, _ = await told(world, engine, progress)
        assert output["counters"]["jobs_passed"] == 1

    play(scene, seed=3)


# -- partial_files ----------------------------------------------------------------------------------------------------


def test_our_partial_leftover_is_removed_before_the_next_try_and_nothing_else():
    async def scene(world: World) -> None:
        what = manifest(1, 4)
        world.seed(what)
        await world.copy(what)
        asked = world.sim.journal.entries("delete_asked")
        left = world.jobs()[0]["partial"]
        assert [entry.details["path"] for entry in asked] == left
        world.check(what)

    play(scene, **CALM, overrides=[fate("failed_partial")])


def test_a_strangers_upload_with_our_name_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        stranger = world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77, status="PARTIAL")
        await asyncio.sleep(5)
        engine = world.engine(plan)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        assert stranger.status == "PARTIAL"
        _, missing = await told(world, engine, progress)
        assert len(missing) == 1
        assert "partial" in missing[0]

    play(scene, **CALM)


def test_a_strangers_upload_after_our_failed_job_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await engine.act()
        await asyncio.sleep(120)  # our job has failed; nobody has looked yet
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77, status="PARTIAL")
        assert phases(await world.run(engine)) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []

    play(scene, **CALM, overrides=[fate("failed_clean")])


def test_a_strangers_whole_file_that_our_batch_skipped_and_named_is_never_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        plan = await world.plan(what)
        world.sim.seed_file(TARGET, "/cache/d0000/f0.fastq.gz", 77)
        await asyncio.sleep(5)
        engine = world.engine(plan, max_resubmissions=2)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        _, missing = await told(world, engine, progress)
        assert "size mismatch" in missing[0]

    play(scene, **CALM)


def test_a_file_that_became_good_since_the_listing_is_not_deleted():
    async def scene(world: World) -> None:
        what = manifest(1, 1)
        world.seed(what)
        engine = world.engine(await world.plan(what))
        await engine.act()
        await asyncio.sleep(100)
        left = world.target()["/cache/d0000/f0.fastq.gz"]
        assert left["status"] == "PARTIAL"
        original = world.sim.dump(SOURCE)[-1]
        world.sim.change_settings(listing_lag_seconds=30.0)
        await asyncio.sleep(0)
        # Whoever completed it: the listing still shows it PARTIAL, a look by its id does not.
        world.sim.set_data(left["id"], status="AVAILABLE", size_bytes=original["size_bytes"], etag=original["etag"])
        await world.run(engine)
        assert world.sim.journal.entries("delete_asked") == []
        world.check(what, twins=True)  # the listing had shown it PARTIAL

    play(scene, **CALM, overrides=[fate("failed_partial")])


def test_a_deletion_that_takes_long_is_waited_for_and_costs_no_attempt():
    async def scene(world: World) -> None:
        what = manifest(1, 3)
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"]
        assert len(world.jobs()) == 2
        world.check(what)

    play(scene, **CALM, delete_seconds=300.0, overrides=[fate("failed_partial")])


# -- stuck jobs ---------------------------------------------------------------------------------------------------

STUCK = {"job_timeout_seconds": 600.0}


def test_a_stuck_job_whose_files_are_all_there_is_done():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        engine = world.engine(await world.plan(what), **STUCK)
        await engine.act()
        await asyncio.sleep(560)
        assert phases(await world.run(engine)) == ["passed"]
        assert len(world.jobs()) == 1

    play(scene, **CALM, overrides=[Override(destination="/cache/", final_status="RUNNING")])


def test_a_stuck_job_is_superseded_once_and_what_is_missing_is_sent_once_more():
    async def scene(world: World) -> None:
        what = manifest(2, 2)
        world.seed(what)
        assert phases(await world.copy(what, **STUCK)) == ["passed", "passed"]
        assert len(world.jobs()) == 3
        states = [row.state for row in world.submissions() if row.business_key == DEST]
        assert states == [State.SUPERSEDED, State.DONE]
        await asyncio.sleep(100_000)
        world.check(what, twins=True)

    play(scene, **CALM, stuck_seconds=50_000.0, overrides=[fate("stuck")], stuck_status="WAITING_FOR_RESOURCES")


@pytest.mark.parametrize("step", [3 * 3600.0, -3 * 3600.0])
def test_a_hosts_clock_that_is_set_makes_no_running_job_stuck(step: float):
    """How long a job has run is read off ICA's own clock."""

    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        await world.engine(plan, "run1").act()
        await asyncio.sleep(60.0)
        stepped = Ledger(world.url, clock=lambda: world.loop.now() + step, monotonic=world.loop.time)
        progress = await world.engine(plan, "run1", ledger=stepped).act()
        assert [standing.phase for standing in progress.standings] == [Phase.RUNNING]
        assert progress.standings[0].look_again_at == pytest.approx(progress.now + 7200 - 60, abs=10)
        assert len(world.jobs()) == 1
        stepped.close()

    play(scene, **CALM, stuck_seconds=50_000.0, overrides=[fate("stuck")])


def test_a_second_stuck_job_ends_the_try_and_the_next_run_adopts_it():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        plan = await world.plan(what)
        engine = world.engine(plan, **STUCK)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "too has not ended after 10 min; the next run adopts it" in progress.standings[0].why
        assert len(world.jobs()) == 2
        output, _ = await told(world, engine, progress)
        assert output["job_list_with_attempt_counter"][0]["job_attempt_counter"] == 2
        assert phases(await world.run(world.engine(plan, "run2", job_timeout_seconds=9e4))) == ["passed"]
        assert len(world.jobs()) == 2
        world.check(what, twins=True)

    play(scene, **CALM, stuck_seconds=5000.0, overrides=[fate("stuck", [1, 2])], stuck_status="WAITING_FOR_RESOURCES")


def test_nothing_is_deleted_while_a_superseded_job_may_still_write():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        engine = world.engine(await world.plan(what), **STUCK)
        progress = await world.run(engine)
        assert phases(progress) == ["failed"]
        assert "is stuck and may still write" in progress.standings[0].why
        assert world.sim.journal.entries("delete_asked") == []
        await asyncio.sleep(60_000)  # the stuck job has ended: now its leftover may go
        assert phases(await world.copy(what, "run2", **STUCK)) == ["passed"]
        world.check(what, twins=True)

    overrides = [fate("stuck"), fate("failed_partial", [2])]
    play(scene, **CALM, stuck_seconds=50_000.0, overrides=overrides, stuck_then="failed_partial")


def test_a_stuck_job_that_never_ends_does_not_close_the_folder_to_later_runs():
    async def scene(world: World) -> None:
        what = manifest(1, 2)
        world.seed(what)
        assert phases(await world.copy(what, **STUCK)) == ["failed"]
        assert phases(await world.copy(what, "run2", **STUCK)) == ["passed"]
        world.check(what, twins=True)

    overrides = [fate("stuck"), fate("failed_clean", [2])]
    play(scene, **CALM, stuck_seconds=5e6, overrides=overrides, stuck_status="WAITING_FOR_RESOURCES")


# -- two runs, two tries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("runs", [("run1", "run2"), ("run1", "run1")])
def test_two_engines_at_once_on_one_plan_share_the_jobs(runs, seed):
    async def scene(world: World) -> None:
        what = manifest(12)
        world.seed(what)
        plan = await world.plan(what)
        engines = [world.engine(plan, run, world.mortal()) for run in runs]
        ends = await asyncio.gather(*(world.run(engine) for engine in engines))
        assert [set(phases(end)) for end in ends] == [{"passed"}, {"passed"}]
        world.check(what)
        one_after_another = world.sim.counters()["submissions"].values()
        assert sum(one_after_another) == len(world.jobs())

    play(scene, seed=seed, api_latency_seconds=0.05)


def sets(world: World, second: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    files = {n: source(f"/run/f{n}") for n in range(6)}
    mine = {files[n]: [DEST] for n in (0, 1, 2)}
    theirs = {files[n]: [DEST] for n in {"equal": (0, 1, 2), "overlapping": (2, 3), "disjoint": (3, 4)}[second]}
    world.seed(mine | theirs)
    return mine, theirs


@pytest.mark.parametrize("outcome", ["succeeded", "failed_partial", "partially_succeeded", "truncated"])
@pytest.mark.parametrize("second", ["equal", "overlapping", "disjoint"])
def test_of_two_runs_on_one_folder_the_second_waits_and_both_end_right(second, outcome):
    async def scene(world: World) -> None:
        mine, theirs = sets(world, second)
        plans = [await world.plan(what) for what in (mine, theirs)]
        first, other = world.engine(plans[0], "run1", world.mortal()), world.engine(plans[1], "run2", world.mortal())

        async def later() -> Any:
            await asyncio.sleep(1)
            return await world.run(other)

        ends = await asyncio.gather(world.run(first), later())
        assert [phases(end) for end in ends] == [["passed"], ["passed"]]
        world.check(mine | theirs)
        for engine, end in zip((first, other), ends, strict=True):
            _, missing = await told(world, engine, end)
            assert missing == []

    play(scene, **CALM, overrides=[fate(outcome)])


@pytest.mark.parametrize("second", ["equal", "overlapping", "disjoint"])
def test_a_run_that_died_is_adopted_by_the_next_one_on_its_folder(second):
    async def scene(world: World) -> None:
        mine, theirs = sets(world, second)
        await world.engine(await world.plan(mine), "run1").act()
        assert phases(await world.copy(theirs, "run2")) == ["passed"]
        assert phases(await world.copy(mine, "run3")) == ["passed"]
        world.check(mine | theirs)

    play(scene, **CALM)


def test_a_run_does_not_pass_on_another_runs_file_of_the_same_name():
    async def scene(world: World) -> None:
        mine, theirs = {source("/one/f"): [DEST]}, {source("/two/f"): [DEST]}
        world.seed(mine)
        world.sim.seed_file(SOURCE, "/two/f", 77)
        plans = [await world.plan(what) for what in (mine, theirs)]
        first, other = world.engine(plans[0], "run1"), world.engine(plans[1], "run2", max_resubmissions=1)
        await first.act()
        await other.act()  # attached to run1's job
        assert phases(await world.run(first)) == ["passed"]
        progress = await world.run(other)
        assert phases(progress) == ["failed"]
        assert world.sim.journal.entries("delete_asked") == []
        assert world.wrong_files(mine) == []

    play(scene, **CALM)


def test_a_stuck_job_of_another_run_with_other_files_is_not_called_done():
    async def scene(world: World) -> None:
        mine, theirs = sets(world, "disjoint")
        plans = [await world.plan(what) for what in (mine, theirs)]
        await world.engine(plans[0], "run1").act()
        world.sim.change_settings(overrides=[])
        other = world.engine(plans[1], "run2", **STUCK)
        assert phases(await world.run(other)) == ["passed"]
        assert [row.state for row in world.submissions()] == [State.SUPERSEDED, State.DONE]
        assert phases(await world.run(world.engine(plans[0], "run3", **STUCK))) == ["passed"]
        await asyncio.sleep(9e6)
        world.check(mine | theirs, twins=True)

    play(scene, **CALM, stuck_seconds=5e6, overrides=[fate("stuck")], stuck_status="WAITING_FOR_RESOURCES")


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
