"""JDP's restore requests over a real socket: what it takes, how long tape takes, what lies in the folder, when it is purged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jgi_rehearsal import DAY, HOUR, PROPOSAL, START, Jdp

from simulators.common import Agenda, Clock, Journal, Setup, Shared
from simulators.globus.collections import JGI_COLLECTION, collections_of
from simulators.jgi import (
    DEFAULT_SESSION,
    Catalog,
    JdpSettings,
    add_random,
    catalog_of,
    draw_restore,
    gold_service,
    jdp_service,
    sliding_peak,
)
from simulators.jgi.service import AwakeService
from simulators.jgi.tape import TapeRobot
from simulators.jgi.window import fits_at, used_bytes

TERABYTE = 10**12


@pytest.fixture
def rehearse_jdp(tmp_path: Path) -> Iterator[Callable[..., Jdp]]:
    made: list[Jdp] = []

    def start(catalog: Catalog | None = None, **settings: Any) -> Jdp:
        made.append(Jdp(tmp_path, catalog, **settings))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def jdp(rehearse_jdp: Callable[..., Jdp]) -> Jdp:
    return rehearse_jdp()


def large(files: int, each_about: int = TERABYTE) -> Catalog:
    """Virtual files of exactly `each_about` bytes."""
    catalog = Catalog()
    add_random(
        catalog, PROPOSAL, "large", total_bytes=files * each_about, biosamples=1, files_each=files, trap_rate=0.0
    )
    for file in catalog.files.values():
        file.size = each_about
    return catalog


def midnight(seconds: float) -> float:
    return seconds // DAY * DAY


# -- what a request may look like


@pytest.mark.parametrize("path", ["/download_files/", "/request_archived_files/"])
def test_both_addresses_take_a_request(jdp: Jdp, path: str) -> None:
    answer = jdp.ask(jdp.ids[:3], path).json()
    assert set(answer) == {"updated_count", "restored_count", "request_id", "request_status_url"}
    assert (answer["updated_count"], answer["restored_count"]) == (0, 3)
    assert isinstance(answer["request_id"], int)
    assert jdp.anonymous.get(answer["request_status_url"]).json()["file_ids"] == jdp.ids[:3]


@pytest.mark.parametrize("path", ["/download_files", "/request_archived_files"])
def test_without_its_last_slash_a_post_becomes_a_get_that_does_nothing(jdp: Jdp, path: str) -> None:
    answer = jdp.ask(jdp.ids[:3], path)
    assert (answer.status_code, answer.headers["location"]) == (301, path + "/")
    followed = jdp.http.post(path, json={"ids": jdp.ids[:3]}, follow_redirects=True)
    assert (followed.request.method, followed.status_code) == ("GET", 405)
    assert jdp.journal("restore_accepted") == []


@pytest.mark.parametrize(
    "more",
    [
        {"send_mail": "true", "restore_related_ap_data": "False"},
        {"send_mail": True, "restore_related_ap_data": False},
        {"send_email": True, "include_private_data": 1},
    ],
)
def test_booleans_come_as_strings_numbers_and_booleans(jdp: Jdp, more: dict[str, Any]) -> None:
    assert jdp.ask(jdp.ids[:1], **more).status_code == 200


def test_ids_come_as_a_list_or_as_data_sets(jdp: Jdp) -> None:
    sets = {"one": {"file_ids": jdp.ids[:2], "top_hit": jdp.ids[0]}, "two": {"file_ids": jdp.ids[1:3]}}
    assert jdp.status(jdp.restore(sets))["file_ids"] == jdp.ids[:3]


@pytest.mark.parametrize(
    ("ids", "more"),
    [([], {}), (None, {}), ("one", {}), ([1], {}), ({"a": {}}, {}), (None, {"send_mail": "maybe"})],
)
def test_a_body_that_is_wrong_is_refused(jdp: Jdp, ids: Any, more: dict[str, Any]) -> None:
    answer = jdp.ask(ids if ids is not None else jdp.ids[:1] if more else None, **more)
    assert answer.status_code == 400
    assert set(answer.json()) == {"detail"}
    assert jdp.journal("restore_accepted") == []


def test_750_ids_are_taken_and_751_are_not(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(large(751, 1000))
    assert jdp.ask(jdp.ids).status_code == 400
    assert jdp.ask([*jdp.ids[:750], jdp.ids[0]]).json()["restored_count"] == 750  # the same id twice counts once
    assert rehearse_jdp(large(751, 1000), too_many_status=413).ask(jdp.ids).status_code == 413


def test_one_unknown_id_refuses_the_whole_request(jdp: Jdp) -> None:
    answer = jdp.ask([*jdp.ids[:3], "f" * 24])
    assert answer.status_code == 404
    assert "f" * 24 in answer.json()["detail"]
    assert jdp.journal("restore_accepted") == []


# -- tokens


def test_a_session_token_ends(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(session_seconds=HOUR)
    request_id = jdp.restore(jdp.ids[:1])
    jdp.advance(HOUR)
    refused = jdp.ask(jdp.ids[1:2])
    assert refused.status_code == 401
    assert refused.json() == {"detail": "Authentication credentials were not provided."}
    assert jdp.http.get(f"/request_archived_files/requests/{request_id}").status_code == 401
    assert jdp.http.get(f"/download_files/{jdp.ids[0]}/").status_code == 401
    assert jdp.status(request_id)["request_id"] == request_id  # without any token it may be seen
    jdp.http.headers["Authorization"] = jdp.control("POST", "/sessions")["token"]
    assert jdp.ask(jdp.ids[1:2]).status_code == 200


def test_a_token_is_sent_with_its_scheme(jdp: Jdp) -> None:
    jdp.http.headers["Authorization"] = DEFAULT_SESSION.removeprefix("Bearer ")
    assert jdp.ask(jdp.ids[:1]).status_code == 401
    jdp.http.headers["Authorization"] = "Token 0000-0002-1825-0097_rehearsal-partner"
    assert jdp.ask(jdp.ids[:1]).status_code == 200
    jdp.http.headers["Authorization"] = "Token 0000-0002-1825-0097_another"
    assert jdp.ask(jdp.ids[:1]).status_code == 401
    assert DEFAULT_SESSION not in jdp.anonymous.get("/_sim/journal").text


# -- from new to expired


def test_a_request_is_new_then_pending_then_ready_then_expired(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(new_seconds=120, wait_median_seconds=600, wait_sigma=0)
    request_id = jdp.restore(jdp.ids[:5])
    first = jdp.status(request_id)
    assert first["status"] == "new"
    expires = datetime.fromisoformat(first["expiration_date"])  # stands there while the files are still on tape
    assert expires.utcoffset() == timedelta(hours=-7)
    jdp.advance(121)
    assert jdp.status(request_id)["status"] == "pending"
    jdp.run_until_idle()
    assert jdp.status(request_id)["status"] == "ready"
    assert {row["file_status"] for row in jdp.by_ids(jdp.ids[:5]).values()} == {"RESTORED"}
    jdp.advance(15 * DAY)
    assert jdp.status(request_id)["status"] == "expired"
    assert jdp.placed(request_id) == {}
    assert {row["file_status"] for row in jdp.by_ids(jdp.ids[:5]).values()} == {"PURGED"}
    assert [each["status"] for each in jdp.journal("restore_status")] == ["pending", "ready", "expired"]


def test_files_reach_the_disk_one_cartridge_after_the_other_while_the_request_is_pending(
    rehearse_jdp: Callable[..., Jdp],
) -> None:
    jdp = rehearse_jdp(drives=1, mount_seconds=60)
    request_id = jdp.restore(jdp.ids[:50])
    jdp.advance(61)
    on_disk = [row for row in jdp.by_ids(jdp.ids[:50]).values() if row["file_status"] == "RESTORED"]
    assert 0 < len(on_disk) < 50
    assert jdp.status(request_id)["status"] == "pending"


def test_the_folder_has_the_files_and_a_manifest_of_them(jdp: Jdp) -> None:
    request_id = jdp.ready(jdp.ids)
    placed = jdp.placed(request_id)
    _, rows = jdp.manifest(request_id)
    assert len(placed) == len(rows) + 1 == 86
    for row in rows:
        entry = placed[f"{row['directory/path']}/{row['filename']}"]
        file = jdp.catalog.files[row["file_id"]]
        assert (entry.md5, entry.size) == (row["md5 checksum"], int(row["file size"])) == (file.md5, file.size)
        assert entry.data is not None
        assert hashlib.md5(entry.data.read_bytes()).hexdigest() == file.md5
    twice = [row for row in rows if row["filename"] == "pairedMapped_sorted.bam.cov"]
    assert len({row["directory/path"] for row in twice}) == len({row["file_id"] for row in twice}) == 2


def test_the_manifest_has_the_columns_of_the_published_one_quoted_or_not(rehearse_jdp: Callable[..., Jdp]) -> None:
    published = (Path(__file__).parents[2] / "simulators/data/jgi/Globus_Download_201572_File_Manifest.csv").read_text()
    header = published.splitlines()[0]
    jdp = rehearse_jdp(manifest_style="quoted")
    assert jdp.manifest(jdp.ready(jdp.ids[:3]))[0].splitlines()[0] == header
    jdp.control("PATCH", "/settings", json={"manifest_style": "unquoted"})
    assert jdp.manifest(jdp.ready(jdp.ids[:3]))[0].splitlines()[0] == header.replace('"', "")


def test_names_with_commas_and_quotes_come_out_of_an_unquoted_manifest(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_random(catalog, PROPOSAL, "odd", total_bytes=1000, biosamples=1, files_each=10, odd_names=True)
    jdp = rehearse_jdp(catalog, manifest_style="unquoted")
    request_id = jdp.ready(jdp.ids)
    rows = jdp.manifest(request_id)[1]
    assert {row["filename"] for row in rows} == {file.name for file in jdp.files}
    assert {f"{row['directory/path']}/{row['filename']}" for row in rows} < set(jdp.placed(request_id))


def test_private_files_are_marked_so_that_listings_leave_them_out(rehearse_jdp: Callable[..., Jdp]) -> None:
    catalog = Catalog()
    add_random(catalog, PROPOSAL, "private", total_bytes=1000, biosamples=1, files_each=4, private_rate=1.0)
    jdp = rehearse_jdp(catalog)
    placed = jdp.placed(jdp.ready(jdp.ids))
    assert sorted(entry.private for entry in placed.values()) == [False, True, True, True, True]  # the manifest is open


def test_virtual_files_are_laid_out_by_size_and_md5(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(large(3, 15 * TERABYTE))
    placed = jdp.placed(jdp.ready(jdp.ids))
    assert sorted(entry.size for entry in placed.values() if entry.data is None) == [15 * TERABYTE] * 3


def test_bytes_can_be_had_directly_once_they_are_on_disk(jdp: Jdp) -> None:
    file = jdp.files[0]
    assert jdp.http.get(f"/download_files/{file.id}/").status_code == 409
    jdp.ready([file.id])
    assert jdp.anonymous.get(f"/download_files/{file.id}/").status_code == 401
    answer = jdp.http.get(f"/download_files/{file.id}/")
    assert (answer.content, answer.headers["content-type"]) == (file.content, "application/octet-stream")
    jdp.fault(fault="non_json", path="/download_files/")
    page = jdp.http.get(f"/download_files/{file.id}/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


# -- purges


def test_files_are_purged_within_six_hours_of_the_midnight_fourteen_days_on(jdp: Jdp) -> None:
    jdp.ready(jdp.ids[:3])
    shown = next(iter(jdp.by_ids(jdp.ids[:1]).values()))["dt_to_purge"]
    due = datetime.fromisoformat(shown)
    assert due.tzinfo is None
    assert due.replace(tzinfo=UTC).timestamp() == midnight(START + 14 * DAY)
    jdp.advance(midnight(START + 14 * DAY) - START - 60)
    assert jdp.by_ids(jdp.ids[:1])[jdp.ids[0]]["file_status"] == "RESTORED"
    jdp.advance(60 + 6 * HOUR)
    assert jdp.by_ids(jdp.ids[:1])[jdp.ids[0]]["file_status"] == "PURGED"
    (purged,) = jdp.control("GET", "/journal", params={"kind": "purged"})["entries"]
    assert 0 <= purged["time"] - midnight(START + 14 * DAY) <= 6 * HOUR


def test_asking_again_for_a_file_on_disk_moves_its_purge(jdp: Jdp) -> None:
    jdp.ready(jdp.ids[:2])
    jdp.advance(10 * DAY)
    answer = jdp.ask(jdp.ids[1:3]).json()
    assert (answer["updated_count"], answer["restored_count"]) == (1, 1)
    jdp.advance(5 * DAY)
    assert [jdp.by_ids([each])[each]["file_status"] for each in jdp.ids[:3]] == ["PURGED", "RESTORED", "RESTORED"]


def test_a_request_expires_at_its_date_though_its_files_were_asked_for_again(jdp: Jdp) -> None:
    first = jdp.ready(jdp.ids[:3])
    jdp.advance(10 * DAY)
    second = jdp.ready(jdp.ids[:3])
    jdp.advance(4 * DAY)
    assert [jdp.status(each)["status"] for each in (first, second)] == ["expired", "ready"]
    assert [len(jdp.placed(each)) for each in (first, second)] == [0, 4]
    assert {row["file_status"] for row in jdp.by_ids(jdp.ids[:3]).values()} == {"RESTORED"}


def test_a_purge_now_takes_files_out_of_the_folder(jdp: Jdp) -> None:
    request_id = jdp.ready(jdp.ids[:3])
    assert jdp.control("POST", "/purge", json={"ids": jdp.ids[:1]}) == {"purged": 1}
    assert len(jdp.placed(request_id)) == 3  # two files and the manifest, which still names all three
    assert len(jdp.manifest(request_id)[1]) == 3
    assert jdp.status(request_id)["status"] == "ready"
    assert jdp.control("POST", "/purge", json={"everything": True}) == {"purged": 2}
    assert jdp.status(request_id)["status"] == "expired"


def test_a_file_that_was_withdrawn_is_known_no_more(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(new_seconds=60)
    request_id = jdp.restore(jdp.ids[:2])
    jdp.control("POST", f"/files/{jdp.ids[0]}/withdraw")
    assert jdp.by_ids(jdp.ids[:2]).keys() == {jdp.ids[1]}
    assert jdp.ask(jdp.ids[:1]).status_code == 404
    jdp.run_until_idle()
    assert len(jdp.manifest(request_id)[1]) == 1


# -- faults


def test_an_answer_can_be_lost_after_the_request_was_taken(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(new_seconds=60)
    jdp.fault(fault="drop_after_commit", method="POST", path="/download_files/")
    with pytest.raises(httpx.RemoteProtocolError):
        jdp.ask(jdp.ids[:3])
    (accepted,) = jdp.journal("restore_accepted")
    assert accepted["ids"] == jdp.ids[:3]
    jdp.ask(jdp.ids[2:5])
    assert jdp.journal("restore_accepted")[1]["in_open_requests"] == jdp.ids[2:3]
    jdp.ask(jdp.ids[:3])
    assert jdp.journal("restore_accepted")[2]["asked_before"] == 1
    assert jdp.control("GET", "/counters")["ids_asked_twice"] == 4


def test_an_outage_answers_503_to_everything(jdp: Jdp) -> None:
    jdp.fault(fault="outage", path="/search/", seconds=2 * HOUR)
    assert jdp.anonymous.get("/search/", params={"q": "x"}).status_code == 503
    assert jdp.ask(jdp.ids[:1]).status_code == 503
    jdp.advance(2 * HOUR)
    assert jdp.ask(jdp.ids[:1]).status_code == 200


def test_a_request_can_stick_in_pending_until_it_is_released(jdp: Jdp) -> None:
    jdp.fault(fault="stuck_pending", method="POST", path="/download_files/")
    request_id = jdp.restore(jdp.ids[:3])
    jdp.advance(96 * HOUR)
    assert jdp.status(request_id)["status"] == "pending"
    jdp.control("POST", f"/requests/{request_id}/release")
    assert jdp.status(request_id)["status"] == "ready"


def test_a_control_holds_a_request_for_a_time(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(new_seconds=60)
    request_id = jdp.restore(jdp.ids[:3])
    jdp.control("POST", f"/requests/{request_id}/hold", json={"seconds": 96 * HOUR})
    jdp.advance(95 * HOUR)
    assert jdp.status(request_id)["status"] == "pending"
    jdp.advance(2 * HOUR)
    assert jdp.status(request_id)["status"] == "ready"


def test_ready_but_empty(jdp: Jdp) -> None:
    jdp.fault(fault="ready_but_empty", method="POST")
    request_id = jdp.ready(jdp.ids[:3])
    assert {row["file_status"] for row in jdp.by_ids(jdp.ids[:3]).values()} == {"PURGED"}
    assert jdp.placed(request_id) == {}
    assert jdp.ready(jdp.ids[:3]) != request_id
    assert {row["file_status"] for row in jdp.by_ids(jdp.ids[:3]).values()} == {"RESTORED"}


def test_a_manifest_can_be_missing_lack_rows_or_name_a_path_outside(jdp: Jdp) -> None:
    jdp.fault(fault="no_manifest", method="POST")
    assert len(jdp.placed(jdp.ready(jdp.ids[:3]))) == 3
    jdp.fault(fault="manifest_rows_missing", method="POST", options={"files": 2})
    request_id = jdp.ready(jdp.ids[:3])
    assert (len(jdp.manifest(request_id)[1]), len(jdp.placed(request_id))) == (1, 4)
    jdp.fault(fault="manifest_path_leaves", method="POST")
    paths = [row["directory/path"] for row in jdp.manifest(jdp.ready(jdp.ids[:3]))[1]]
    assert [path.startswith("../") for path in paths] == [True, False, False]


@pytest.mark.parametrize("how", ["page", "flip", "short", "missing"])
def test_a_restored_copy_can_be_bad(jdp: Jdp, how: str) -> None:
    largest = max(jdp.files, key=lambda file: file.size)
    jdp.fault(fault="spoil_restored", method="POST", options={"how": how})
    request_id = jdp.ready([largest.id, *(each for each in jdp.ids[:3] if each != largest.id)])
    entry = jdp.placed(request_id).get(f"{largest.directory}/{largest.name}")
    named = [row["md5 checksum"] for row in jdp.manifest(request_id)[1] if row["file_id"] == largest.id]
    assert named == [largest.md5]
    if how == "missing":
        assert entry is None
    else:
        assert entry is not None
        assert entry.md5 != largest.md5
        assert (entry.size == largest.size) == (how == "flip")
    assert jdp.journal("restored_file_spoilt")[0]["how"] == how


def test_some_files_of_a_request_can_be_purged_early(jdp: Jdp) -> None:
    jdp.fault(fault="partial_purge", method="POST", seconds=HOUR, options={"files": 2})
    request_id = jdp.ready(jdp.ids[:5])
    assert len(jdp.placed(request_id)) == 6
    jdp.advance(HOUR)
    assert len(jdp.placed(request_id)) == 4
    assert jdp.status(request_id)["status"] == "ready"


def test_an_answer_can_show_another_status(jdp: Jdp) -> None:
    request_id = jdp.ready(jdp.ids[:1])
    jdp.fault(fault="show_status", method="GET", path="/requests/", options={"status": "copying"})
    assert [jdp.status(request_id)["status"] for _ in range(2)] == ["copying", "ready"]


# -- the window


def test_the_window_can_refuse(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(large(12), window="refuse", window_status=429)
    jdp.restore(jdp.ids[:6])
    jdp.advance(HOUR)
    jdp.restore(jdp.ids[6:10])
    refused = jdp.ask(jdp.ids[10:11])
    assert refused.status_code == 429
    jdp.advance(23 * HOUR - 1)
    assert jdp.ask(jdp.ids[10:11]).status_code == 429
    jdp.advance(1)
    assert jdp.ask(jdp.ids[10:11]).status_code == 200
    assert jdp.control("GET", "/window") == {"bytes": 10 * TERABYTE, "at": START + HOUR, "exceeded": 0}
    assert len(jdp.journal("restore_refused")) == 2


def test_the_window_can_take_and_hold_back(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(large(12), window="hold", stream_bytes_per_second=1e12)
    first, second, third = (jdp.restore(jdp.ids[at : at + 4]) for at in (0, 4, 8))
    jdp.advance(HOUR)
    assert [jdp.status(each)["status"] for each in (first, second, third)] == ["ready", "ready", "new"]
    jdp.advance(23 * HOUR - 1)
    assert jdp.status(third)["status"] == "new"
    jdp.advance(HOUR)
    assert jdp.status(third)["status"] == "ready"
    assert jdp.control("GET", "/window")["exceeded"] == 1  # what was accepted, not what was begun
    assert jdp.control("GET", "/window", params={"limit": 12 * TERABYTE})["exceeded"] == 0


def test_switched_off_the_window_takes_all_and_the_journal_tells(rehearse_jdp: Callable[..., Jdp]) -> None:
    jdp = rehearse_jdp(large(11))
    for each in jdp.ids:
        jdp.restore([each])
    reading = jdp.control("GET", "/window", params={"user": "wrangler"})
    assert (reading["bytes"], reading["exceeded"]) == (11 * TERABYTE, 1)
    assert jdp.control("GET", "/window", params={"user": "another"}) == {"bytes": 0, "at": None, "exceeded": 0}


points = st.lists(st.tuples(st.integers(0, 100), st.integers(1, 20)), max_size=12)


@given(points, st.integers(1, 40), st.integers(1, 60))
def test_the_fullest_window_is_the_fullest_of_all(accepted: list[tuple[int, int]], seconds: int, limit: int) -> None:
    sums = [used_bytes(accepted, at, seconds) for at, _ in accepted]
    peak = sliding_peak(accepted, seconds, limit)
    assert peak.bytes == max(sums, default=0)
    assert (peak.exceeded > 0) == any(each > limit for each in sums)


@given(points, st.integers(1, 20), st.integers(1, 40), st.integers(1, 60))
def test_the_first_instant_that_fits_fits_and_none_before_it_does(
    accepted: list[tuple[int, int]], size: int, seconds: int, limit: int
) -> None:
    at = fits_at(accepted, size, 100, seconds, limit)
    fitting = [each for each in range(100, 201) if used_bytes(accepted, each, seconds) + size <= limit]
    assert at == (fitting[0] if fitting else None)


# -- tape and time


def hours_for(files: int, requests: int, **settings: Any) -> float:
    """How long the robot takes for so many files of 10 MB in so many requests."""
    clock = Clock(epoch=START, speed=0)
    agenda, ended = Agenda(clock), []
    catalog = large(files, 10**7)
    robot = TapeRobot(agenda, JdpSettings(**settings), Journal(lambda: agenda.time))
    archived = list(catalog.files.values())
    for number in range(requests):
        robot.read(number, archived[number::requests], lambda read: None, lambda: ended.append(agenda.time))
    clock.advance(1000 * DAY)
    agenda.run_due()
    assert len(ended) == requests
    return (max(ended) - START) / HOUR


def test_one_large_request_beats_many_small_ones() -> None:
    assert hours_for(600, 1) * 10 < hours_for(600, 100)
    assert hours_for(600, 1, drives=1) > hours_for(600, 1, drives=4)


def test_waits_have_a_long_tail_and_depend_on_the_ids_only() -> None:
    settings = JdpSettings()
    waits = sorted(draw_restore(1, [str(each)], 1, settings).wait_seconds for each in range(1000))
    median = waits[500]
    assert 0.7 < median / settings.wait_median_seconds < 1.4
    assert waits[990] > 6 * median
    assert waits[-1] <= settings.wait_max_seconds
    assert draw_restore(1, ["a", "b"], 1, settings) == draw_restore(1, ["b", "a"], 1, settings)
    assert draw_restore(1, ["a"], 1, settings) != draw_restore(1, ["a"], 2, settings)
    slow = draw_restore(1, ["a"], 1, JdpSettings(slow_rate=1.0))
    assert (slow.slow, slow.wait_seconds) == (True, 96 * HOUR)


def test_two_worlds_of_one_seed_have_one_history(rehearse_jdp: Callable[..., Jdp]) -> None:
    def history() -> list[dict[str, Any]]:
        jdp = rehearse_jdp(wait_median_seconds=HOUR, mount_seconds=60.0)
        for at in range(0, 30, 10):
            jdp.restore(jdp.ids[at : at + 10])
            jdp.advance(600)
        jdp.run_until_idle()
        return jdp.journal("restore_status") + jdp.journal("tape_read")

    assert history() == history()


# -- the services


def test_gold_and_jdp_of_one_run_share_their_catalog_and_collections(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    setups = [Setup(Clock(speed=speed), 5, "sop", shared) for speed in (1, 1440)]
    gold, jdp = gold_service(setups[0]), jdp_service(setups[1])
    assert gold.simulator.catalog is jdp.simulator.catalog is catalog_of(setups[1])
    assert jdp.simulator.collections is collections_of(setups[0])
    assert jdp.simulator.clock.speed == 1440
    assert len(jdp.simulator.catalog.proposals) == 3


def test_a_project_can_be_added_while_jdp_runs(jdp: Jdp) -> None:
    more = {"proposal_id": 7, "name": "late", "total_bytes": 10**13, "biosamples": 2, "on_disk_rate": 0.5}
    made = jdp.control("POST", "/projects", json=more)
    assert (made["files"], made["bytes"]) == (160, 10**13)
    files = jdp.control("GET", "/files", params={"proposal": 7})
    assert len(files) == 160
    assert all(file["dt_to_purge"] for file in files if file["on_disk"])
    assert {file["on_disk"] for file in files} == {True, False}


def test_a_served_jdp_purges_while_nobody_asks_it(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(Clock(epoch=START, speed=0), 5, "sop", Shared(tmp_path))
        service, collections = jdp_service(setup), collections_of(setup)
        assert isinstance(service, AwakeService)
        engine = service.simulator.engine
        await service.start()
        try:
            request = engine.accept("wrangler", "", list(catalog_of(setup).files.values())[:3])
            async with asyncio.timeout(60):
                for status, days in (("ready", 6), ("expired", 15)):
                    setup.clock.advance(days * DAY)
                    while request.status != status:
                        await asyncio.sleep(0.005)
                    assert collections.is_folder(JGI_COLLECTION, engine.folder(request)) == (status == "ready")
        finally:
            await service.stop()

    asyncio.run(main())
