"""Restore requests: each file in one at a time, never more than a window, and what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from include.core.errors import (
    AuthError,
    ConflictingRequest,
    NotFound,
    QuotaExceeded,
    RemoteError,
    RequestError,
    TransientError,
)
from include.core.ledger import Intent, State
from include.core.ledger.submit import InDoubt
from include.jgi.documents import TrackedRequest
from include.jgi.forecast import planned
from include.jgi.manifest import ManifestRow
from include.jgi.models import FileState, Limits, PlacementState, RequestState, StagedFile
from include.jgi.restoring import KIND, SYSTEM, VISIBLE_WITHIN_SECONDS, believe, request_key
from include.jgi.take_up import TakenUp, repair, take_up
from include.jgi.tracking import NAMES
from simulators.globus.collections import JGI_COLLECTION, JGI_ROOT
from simulators.jgi import DEFAULT_SESSION
from tests.include.jgi.conftest import BLUE, GROW, Bench, in_a_loop

DAY = 86_400.0
POST = {"method": "POST", "path": "/download_files/"}
STATUS = {"method": "GET", "path": "/request_archived_files/requests/.*"}


def states(bench: Bench, files: Sequence[StagedFile]) -> set[tuple[FileState, int]]:
    return {(one.state, one.attempts) for one in bench.tracking.files(ids=[one.jdp_file_id for one in files])}


def now_of(bench: Bench, files: Sequence[StagedFile]) -> list[StagedFile]:
    return list(bench.tracking.files(ids=[one.jdp_file_id for one in files]))


def listed(files: Sequence[StagedFile]) -> list[ManifestRow]:
    return [ManifestRow(one.jdp_file_id, f"a/{one.file_name}", "0" * 32, one.size_bytes) for one in files]


@in_a_loop
async def test_a_request_is_in_the_journal_the_ledger_and_mongodb(bench: Bench) -> None:
    files = bench.project("grow", GROW, 5, 5000)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
    (accepted,) = bench.jdp.journal("restore_accepted")
    assert (accepted["ids"], accepted["bytes"]) == (sorted(one.jdp_file_id for one in files), 5000)
    assert (row.state, row.external_id, row.account) == (State.SENT, str(accepted["request_id"]), "nmdc")
    (request,) = bench.tracking.requests()
    assert (request.state, request.request_id, request.ids) == (RequestState.SENT, accepted["request_id"], 5)
    assert {(one.state, one.request_id, one.claim) for one in now_of(bench, files)} == {
        (FileState.QUEUED, accepted["request_id"], row.business_key)
    }


@in_a_loop
async def test_the_ids_of_a_request_are_kept_once(bench: Bench) -> None:
    """Each event of the ledger holds the whole row: a list of 750 ids in each would be a hundred kilobytes per request."""
    ids = [f"65aa{number:020x}" for number in range(750)]
    files = [StagedFile(one, one, 10, "grow") for one in ids]
    bench.tracking.put_files(files)
    bench.jdp.fault(**POST, fault="status", code=422)
    async with bench.restoring() as restoring:
        with pytest.raises(RemoteError):
            await restoring.ask(files)
        (row,) = restoring.ledger.in_states(State.REJECTED)
        events = [str(body) for body in restoring.ledger.event_bodies(row.id)]
        assert len(events) >= 3 and max(map(len, events)) < 3000
        assert list(row.detail["ids"]) == ids


@in_a_loop
async def test_more_files_than_a_request_may_hold_are_refused(bench: Bench) -> None:
    bench.limits = Limits(request_ids=2)
    files = bench.project("grow", GROW, 3, 3000)
    async with bench.restoring() as restoring:
        with pytest.raises(RequestError, match="3 files are more than the 2 of one restore request"):
            await restoring.ask(files)
    assert states(bench, files) == {(FileState.DISCOVERED, 0)}


@in_a_loop
async def test_no_file_is_in_two_requests(bench: Bench) -> None:
    files = bench.project("grow", GROW, 4, 4000)
    async with bench.restoring() as restoring:
        await restoring.ask(files[:2])
        with pytest.raises(ConflictingRequest, match="1 of 3 files belong to another restore request"):
            await restoring.ask(files[1:])
    assert len(bench.jdp.journal("restore_accepted")) == 1
    assert states(bench, files[2:]) == {(FileState.PLANNED, 0)}


@in_a_loop
async def test_a_plan_that_is_old_is_not_sent(bench: Bench) -> None:
    """Its file has been in a request since, which did not bring it."""
    files = bench.project("grow", GROW, 2, 2000)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        believe(bench.tracking, restoring.ledger, row, listed(files[:1]), bench.limits)
        with pytest.raises(ConflictingRequest, match="plan anew"):
            await restoring.ask(files)
        assert [(one.state, one.attempts) for one in now_of(bench, files)] == [
            (FileState.ON_DISK, 0),
            (FileState.PLANNED, 1),
        ]
        again = await restoring.ask(now_of(bench, files[1:]))
    assert again.business_key != row.business_key


# -- the window -------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_what_the_window_does_not_hold_is_planned_anew_and_blocks_nothing(bench: Bench) -> None:
    bench.limits = Limits(window_bytes=6000)
    files = bench.project("grow", GROW, 10, 10_000)
    small = sorted(files, key=lambda one: one.size_bytes)
    first = [one for one in small if one.size_bytes <= 5000][:5]
    rest = [one for one in files if one not in first]
    async with bench.restoring() as restoring:
        filler = replace(first[0], size_bytes=first[0].size_bytes)
        await restoring.ask([filler])
        with pytest.raises((QuotaExceeded, RequestError)):
            await restoring.ask(rest + first[1:])
        assert states(bench, rest + first[1:]) == {(FileState.PLANNED, 0)}
        assert not [row for row in restoring.ledger.in_states(*State) if row.state != State.SENT]
        reading = restoring.ledger.quota_reading(SYSTEM, KIND, restoring.account.quota, account="nmdc")
        assert (reading.used_bytes, reading.free_bytes) == (filler.size_bytes, 6000 - filler.size_bytes)
        bench.pass_time(DAY + 4500 + 61)
        assert planned(restoring).window.used_bytes == 0


@in_a_loop
async def test_two_projects_that_race_never_exceed_a_window(bench: Bench) -> None:
    bench.limits = Limits(window_bytes=10_000, request_ids=7)
    for name, proposal in (("grow", GROW), ("blue", BLUE)):
        bench.project(name, proposal, 40, 25_000)
    limits = bench.limits

    async def works(name: str) -> None:
        async with bench.restoring(run_id=name) as restoring:
            for one in planned(restoring, name).requests:
                try:
                    await restoring.ask(one.files)
                except (QuotaExceeded, RequestError, ConflictingRequest):
                    continue

    for _ in range(14):
        await asyncio.gather(works("grow"), works("blue"))
        bench.pass_time(DAY / 2)
    journal = bench.jdp.journal("restore_accepted")
    ids = [one for entry in journal for one in entry["ids"]]
    assert len(ids) == len(set(ids)) > 60
    peak = bench.jdp.server.call(lambda: bench.jdp.sim.engine.peak(DAY, limits.window_bytes))
    assert (peak.exceeded, peak.bytes <= limits.window_bytes) == (0, True)
    assert max(len(entry["ids"]) for entry in journal) <= 7


@in_a_loop
async def test_a_doubt_counts_for_one_window_and_no_longer(bench: Bench) -> None:
    bench.limits = Limits(window_bytes=10_000)
    files = bench.project("grow", GROW, 2, 4000)
    bench.jdp.fault(**POST, fault="drop_before_commit")
    async with bench.restoring() as restoring:
        with pytest.raises(InDoubt):
            await restoring.ask(files)
        assert planned(restoring).window.used_bytes == 4000
        bench.pass_time(DAY)
        assert planned(restoring).window.used_bytes == 4000
        bench.pass_time(4500 + 120)
        assert planned(restoring).window.used_bytes == 0


# -- refusals ---------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_a_dead_token_leaves_nothing_behind_and_a_new_one_goes_on(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    async with bench.restoring(token="Bearer /api/sessions/" + "0" * 32) as restoring:
        with pytest.raises(AuthError, match="waybill_jdp"):
            await restoring.ask(files)
    assert states(bench, files) == {(FileState.PLANNED, 0)}
    async with bench.restoring() as restoring:
        row = await restoring.ask(now_of(bench, files))
        await take_up(restoring)
    assert (row.state, len(bench.jdp.journal("restore_accepted"))) == (State.SENT, 1)
    (request,) = bench.tracking.requests()
    assert request.state in (RequestState.SENT, RequestState.NEW, RequestState.PENDING), "it is watched"


@in_a_loop
async def test_what_jdp_refuses_three_times_is_held_with_its_reason(bench: Bench) -> None:
    (file,) = bench.project("grow", GROW, 1, 1000)
    bench.jdp.fault(**POST, fault="status", code=422, problem={"detail": "no such tape"}, times=None)
    async with bench.restoring() as restoring:
        for attempt in range(3):
            with pytest.raises(RemoteError, match="no such tape"):
                await restoring.ask(now_of(bench, [file]))
            assert now_of(bench, [file])[0].attempts == attempt + 1
        assert planned(restoring).requests == ()
    (held,) = now_of(bench, [file])
    assert (held.state, held.claim) == (FileState.HELD, None)
    assert "no such tape" in held.why and "set its state to PLANNED and its attempts to 0" in held.why


@in_a_loop
async def test_a_file_that_jdp_does_not_know_any_more_stops_no_other(bench: Bench) -> None:
    files = bench.project("grow", GROW, 3, 3000)
    bench.jdp.server.call(lambda: bench.jdp.sim.withdraw(files[1].jdp_file_id))
    async with bench.restoring() as restoring:
        with pytest.raises(NotFound, match="Unknown file ids"):
            await restoring.ask(files)
        assert [(one.state, one.attempts) for one in now_of(bench, files)] == [
            (FileState.PLANNED, 0),
            (FileState.LOST, 0),
            (FileState.PLANNED, 0),
        ]
        (request,) = planned(restoring).requests
        assert (await restoring.ask(request.files)).state == State.SENT


@in_a_loop
async def test_an_outage_leaves_files_that_a_later_run_asks_for(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**POST, fault="status", code=429)
    async with bench.restoring() as restoring:
        with pytest.raises(TransientError):
            await restoring.ask(files)
        await take_up(restoring)
        assert states(bench, files) == {(FileState.PLANNED, 0)}
        assert (await restoring.ask(now_of(bench, files))).state == State.SENT


# -- orphans, doubts --------------------------------------------------------------------------------------------------


@in_a_loop
async def test_what_was_reserved_and_never_sent_is_withdrawn_by_the_next_run(bench: Bench) -> None:
    bench.limits = Limits(window_bytes=3000)
    files = bench.project("grow", GROW, 2, 2000)
    key = request_key(files)
    async with bench.restoring() as restoring:
        bench.tracking.claim([one.jdp_file_id for one in files], key)
        bench.tracking.put_request(TrackedRequest(key, RequestState.INTENT, 2, 2000))
        ids = sorted(one.jdp_file_id for one in files)
        restoring.ledger.open(
            Intent(SYSTEM, KIND, key, {"x": 1}, restoring.owner, 2000, {"ids": ids}, "nmdc"),
            quota=restoring.account.quota,
        )
        assert planned(restoring).window.used_bytes == 2000
    async with bench.restoring(run_id="run-2") as restoring:
        found = await take_up(restoring)
        assert found.withdrawn == [key]
        assert planned(restoring).window.used_bytes == 0
        assert (await restoring.ask(now_of(bench, files))).state == State.SENT
        assert (await take_up(restoring)).withdrawn == []


@in_a_loop
async def test_a_lost_answer_is_found_by_its_folder(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**POST, fault="drop_after_commit")
    async with bench.restoring() as restoring:
        with pytest.raises(InDoubt):
            await restoring.ask(files)
        assert bench.tracking.requests()[0].state == RequestState.DOUBTFUL
        found = await take_up(restoring)
        assert len(found.in_doubt) == 1 and not found.open_requests, "its folder comes with its files"
        bench.jdp.run_until_idle()
        found = await take_up(restoring)
    (accepted,) = bench.jdp.journal("restore_accepted")
    (request,) = bench.tracking.requests()
    assert (request.request_id, found.in_doubt, found.held) == (accepted["request_id"], [], [])
    assert states(bench, files) == {(FileState.QUEUED, 0)}


@in_a_loop
async def test_numbers_that_are_not_in_our_root_are_never_looked_at(bench: Bench) -> None:
    files = bench.project("grow", GROW, 3, 3000)
    bench.jdp.ready([files[0].jdp_file_id])
    bench.jdp.fault(**POST, fault="drop_before_commit")
    async with bench.restoring() as restoring:
        with pytest.raises(InDoubt):
            await restoring.ask(files)
        await take_up(restoring)
    asked = {entry["path"].rsplit("/", 1)[1] for entry in bench.jdp.journal("request") if "/requests/" in entry["path"]}
    folders = bench.jdp.server.call(lambda: bench.jdp.collections.children(JGI_COLLECTION, f"/{JGI_ROOT}"))
    assert asked <= {name[1:] for name, _, _ in folders}


@in_a_loop
async def test_what_is_not_found_for_two_days_is_held_alone(bench: Bench) -> None:
    files = bench.project("grow", GROW, 4, 4000)
    bench.jdp.fault(**POST, fault="drop_before_commit")
    async with bench.restoring() as restoring:
        with pytest.raises(InDoubt):
            await restoring.ask(files[:2])
        row = await restoring.ask(files[2:])
        bench.pass_time(VISIBLE_WITHIN_SECONDS / 2)
        assert (await take_up(restoring)).held == []
        bench.pass_time(VISIBLE_WITHIN_SECONDS / 2 + 61)
        found = await take_up(restoring)
        (told,) = found.held
        assert "python -m include.core.ledger resolve" in told
        assert found.open_requests == [row.business_key], "the other goes on"
        assert (await take_up(restoring)).held == found.held
    assert states(bench, files[:2]) == {(FileState.REQUESTING, 0)}


@pytest.mark.parametrize("written", ["{number}", "R{number}", "the one of monday"])
@in_a_loop
async def test_a_person_s_number_is_taken_as_people_write_it(bench: Bench, written: str) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**POST, fault="drop_after_commit")
    async with bench.restoring() as restoring:
        with pytest.raises(InDoubt):
            await restoring.ask(files)
        (accepted,) = bench.jdp.journal("restore_accepted")
        given = written.format(number=accepted["request_id"])
        (row,) = restoring.ledger.in_states(State.IN_DOUBT)
        held = restoring.ledger.move(row, State.HELD, why="not found")
        restoring.ledger.move(held, State.SENT, why="JDP's page", who="a person", external_id=given)
        found = await take_up(restoring)
    if written.startswith("the"):
        assert "the one of monday" in found.failed[0] and states(bench, files) == {(FileState.PLANNED, 0)}
    else:
        assert bench.tracking.requests()[0].request_id == accepted["request_id"]
        assert states(bench, files) == {(FileState.QUEUED, 0)}


# -- ready, expired, unknown --------------------------------------------------------------------------------------------


@in_a_loop
async def test_ready_is_believed_for_what_the_manifest_lists(bench: Bench) -> None:
    files = bench.project("grow", GROW, 3, 3000)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        there, missing = believe(bench.tracking, restoring.ledger, row, listed(files[:2]), bench.limits)
        assert (there, missing) == ([one.jdp_file_id for one in files[:2]], [files[2].jdp_file_id])
        assert restoring.ledger.get(row.id).state == State.DONE
        believe(bench.tracking, restoring.ledger, restoring.ledger.get(row.id), listed(files[:2]), bench.limits)
    assert [(one.state, one.attempts) for one in now_of(bench, files)] == [
        (FileState.ON_DISK, 0),
        (FileState.ON_DISK, 0),
        (FileState.PLANNED, 1),
    ]
    assert "its manifest does not list it" in now_of(bench, files)[2].why


@in_a_loop
async def test_an_expired_request_gives_back_what_has_not_arrived(bench: Bench) -> None:
    files = bench.project("grow", GROW, 3, 3000)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        bench.jdp.run_until_idle()
        believe(bench.tracking, restoring.ledger, row, listed(files), bench.limits)
        (place,) = bench.tracking.placements(ids=[files[0].jdp_file_id])
        bench.tracking.move_placements(
            [place.destination], PlacementState.WAITING, PlacementState.VERIFIED, "it is there"
        )
        bench.jdp.server.call(lambda: bench.jdp.sim.purge(everything=True))
        found = await take_up(restoring)
        assert found.expired == [f"restore request {row.external_id}: JDP took its files off the disk"]
        assert (await take_up(restoring)).expired == []
    assert [(one.state, one.attempts) for one in now_of(bench, files)] == [
        (FileState.ON_DISK, 0),
        (FileState.PLANNED, 1),
        (FileState.PLANNED, 1),
    ]
    (request,) = bench.tracking.requests()
    assert request.state == RequestState.EXPIRED


@in_a_loop
async def test_a_number_that_jdp_does_not_show_yet_is_waited_for(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**STATUS, fault="status", code=404, times=None)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        found = await take_up(restoring)
        assert (found.expired, found.open_requests) == ([], [row.business_key])
        bench.pass_time(VISIBLE_WITHIN_SECONDS)
        found = await take_up(restoring)
        assert found.expired == [f"restore request {row.external_id}: JDP does not know it any more"]
        assert restoring.ledger.get(row.id).state == State.FAILED
    assert states(bench, files) == {(FileState.PLANNED, 1)}


@in_a_loop
async def test_tapes_that_are_slow_are_watched_and_not_asked_twice(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**POST, fault="stuck_pending")
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        for _ in range(4):
            bench.pass_time(DAY)
            found = await take_up(restoring)
            assert found.open_requests == [row.business_key]
            assert planned(restoring).requests == ()
    assert len(bench.jdp.journal("restore_accepted")) == 1
    assert bench.tracking.requests()[0].state == RequestState.PENDING


@in_a_loop
async def test_a_word_that_is_not_known_runs_on(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    bench.jdp.fault(**STATUS, fault="show_status", options={"status": "restaging"}, times=None)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files)
        found = await take_up(restoring)
    assert (found.open_requests, found.expired, found.failed) == ([row.business_key], [], [])
    assert bench.tracking.requests()[0].jdp_status == "restaging"


@in_a_loop
async def test_a_dead_token_is_told_once_and_ends_the_looking(bench: Bench) -> None:
    files = bench.project("grow", GROW, 4, 4000)
    async with bench.restoring() as restoring:
        for one in files:
            await restoring.ask([one])
    before = len(bench.jdp.journal("request"))
    async with bench.restoring(token="dead-token-of-somebody") as restoring:
        found = await take_up(restoring)
    assert "waybill_jdp" in found.refused and "dead-token" not in found.refused
    assert len(found.open_requests) == 4, "what is open is moved all the same"
    assert len(bench.jdp.journal("request")) - before <= 2


@in_a_loop
async def test_a_request_of_a_lost_ledger_is_given_up(bench: Bench) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    number = bench.jdp.restore([one.jdp_file_id for one in files])
    bench.tracking.put_request(
        TrackedRequest("lost", RequestState.SENT, 2, 2000, request_id=number, sent_at=datetime.now(UTC))
    )
    bench.tracking.claim([one.jdp_file_id for one in files], "lost")
    bench.tracking.move_files(
        [one.jdp_file_id for one in files], FileState.REQUESTING, FileState.QUEUED, "sent", claim="lost"
    )
    async with bench.restoring() as restoring:
        found = await take_up(restoring)
    assert (found.open_requests, states(bench, files)) == ([], {(FileState.PLANNED, 1)})


@in_a_loop
async def test_files_of_an_open_request_are_not_free_after_an_older_copy_of_mongodb(bench: Bench, mongo: Any) -> None:
    """Planned together with others they would have another key, and be asked for twice."""
    files = bench.project("grow", GROW, 4, 4000)
    older = {name: list(mongo[name].find({})) for name in (NAMES["files"], NAMES["requests"])}
    bench.jdp.fault(**POST, fault="stuck_pending")
    async with bench.restoring() as restoring:
        row = await restoring.ask(files[:2])
        for name, documents in older.items():
            mongo[name].delete_many({})
            if documents:
                mongo[name].insert_many(documents)
        found = await take_up(restoring)
        assert (found.repaired, found.open_requests) == ([f"restore request {row.external_id}"], [row.business_key])
        asked_next = {one.jdp_file_id for request in planned(restoring).requests for one in request.files}
        assert asked_next == {one.jdp_file_id for one in files[2:]}
        assert (await take_up(restoring)).repaired == []


@in_a_loop
async def test_files_of_an_open_request_that_mongodb_had_lost_are_not_asked_for_again_once_found(
    bench: Bench, mongo: Any
) -> None:
    files = bench.project("grow", GROW, 3, 3000)
    async with bench.restoring() as restoring:
        row = await restoring.ask(files[:2])
        for name in (NAMES["files"], NAMES["requests"]):
            mongo[name].delete_many({})
        await take_up(restoring)
        bench.tracking.put_files(files)  # as the search of the same run does
        repair(restoring, TakenUp())
        (request,) = planned(restoring).requests
        assert [one.jdp_file_id for one in request.files] == [files[2].jdp_file_id]
    assert {one.claim for one in now_of(bench, files[:2])} == {row.business_key}


# -- secrets ----------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_no_log_holds_the_token(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    files = bench.project("grow", GROW, 2, 2000)
    with caplog.at_level(logging.DEBUG):
        async with bench.restoring() as restoring:
            await restoring.ask(files)
            await take_up(restoring)
    assert DEFAULT_SESSION.rpartition(" ")[2] not in caplog.text
