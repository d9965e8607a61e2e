"""JDP's client against its simulator over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.core.errors import AuthError, RemoteError, TransientError, WaybillError
from include.jgi import jdp as module
from include.jgi.jdp import JdpClient, SessionToken, instant_of
from simulators.jgi import DEFAULT_SESSION, add_published, add_random
from tests.include.jgi.conftest import GROW, QUICK, in_a_loop, no_sleep
from tests.simulators.jgi_rehearsal import Jdp

BARE = DEFAULT_SESSION.rpartition(" ")[2]


@asynccontextmanager
async def client(jdp: Jdp, token: str = DEFAULT_SESSION) -> AsyncIterator[JdpClient]:
    async with JdpClient(jdp.server.url, SessionToken(token), name="waybill_jdp", policy=QUICK, sleep=no_sleep) as one:
        yield one


def fill(jdp: Jdp, **options: object) -> int:
    """A project of published shape; the number of one analysis."""
    given = {"biosamples": 1, "scale": 1e-6, **options}
    jdp.server.call(lambda: add_published(jdp.catalog, GROW, "grow", **given))  # type: ignore[arg-type]
    return next(iter(jdp.catalog.analyses.values())).its_ap_id


def pages(jdp: Jdp) -> int:
    return sum(entry["path"] == "/search/" for entry in jdp.journal("request"))


@in_a_loop
async def test_each_file_of_an_analysis_is_found_once_whatever_its_record_is_like(jdp: Jdp) -> None:
    number = fill(jdp, trap_rate=1.0)
    async with client(jdp) as one:
        found = {each.jdp_file_id: each for each in await one.search(number)}
    known = {each.id: each for each in jdp.catalog.files.values() if number in each.analyses}
    assert {name: (each.file_name, each.size_bytes) for name, each in found.items()} == {
        name: (each.name, each.size) for name, each in known.items()
    }
    assert {each.md5 for each in found.values()} == {None}
    assert all(isinstance(each.seq_units, tuple) and number in each.analysis_ids for each in found.values())


@in_a_loop
async def test_all_pages_are_read_and_a_file_of_two_groups_counts_once(
    jdp: Jdp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_GROUPS", 1)
    number = fill(jdp, groups=3, shared=2)
    async with client(jdp) as one:
        found = await one.search(number)
    assert pages(jdp) == 3
    assert len({each.jdp_file_id for each in found}) == len(found) == 85


@in_a_loop
async def test_private_files_of_ours_are_found(jdp: Jdp) -> None:
    number = fill(jdp, private_rate=1.0)
    async with client(jdp) as one:
        assert len(await one.search(number)) == 85


@in_a_loop
async def test_fewer_files_than_jdp_says_are_no_result(jdp: Jdp) -> None:
    page = '{"file_total": 2, "next_page": false, "organisms": []}'
    jdp.fault(path="/search/", fault="status", code=200, body=page, times=None)
    async with client(jdp) as one:
        with pytest.raises(TransientError, match="JDP says 2 files and shows 0"):
            await one.search(1)


@pytest.mark.parametrize("body", ["{}", "[]", "<html>", '{"file_total": 1, "organisms": [{"files": [{"_id": "x"}]}]}'])
@in_a_loop
async def test_an_answer_of_another_shape_is_an_error(jdp: Jdp, body: str) -> None:
    jdp.fault(path="/search/", fault="status", code=200, body=body, times=None)
    async with client(jdp) as one:
        with pytest.raises(WaybillError, match="search of analysis project 1"):
            await one.search(1)


@in_a_loop
async def test_files_by_id_come_in_parts_and_without_those_that_jdp_does_not_list(jdp: Jdp) -> None:
    jdp.server.call(
        lambda: add_random(jdp.catalog, GROW, "grow", total_bytes=10_000, biosamples=1, files_each=120, trap_rate=0.0)
    )
    ids = jdp.ids
    jdp.server.call(lambda: jdp.sim.withdraw(ids[0]))
    async with client(jdp) as one:
        found = await one.by_ids([*ids, "0" * 24])
    assert set(found) == set(ids[1:])
    asked = [entry for entry in jdp.journal("request") if entry["path"] == "/search/by_file_ids/"]
    assert len(asked) == 3


@pytest.mark.parametrize("token", [BARE, f"Bearer {BARE}", f"  Bearer {BARE}\n", f"bearer {BARE}"])
@in_a_loop
async def test_a_token_is_taken_as_it_was_copied(jdp: Jdp, token: str) -> None:
    fill(jdp)
    async with client(jdp, token) as one:
        accepted = await one.request_restore(jdp.ids[:2], globus_user="a@b", mail_to="c@d", fence=lambda: None)  # type: ignore[arg-type]
    (entry,) = jdp.journal("restore_accepted")
    assert (accepted.request_id, accepted.restored_count) == (entry["request_id"], 2)


@in_a_loop
async def test_the_form_of_a_partner_keeps_its_scheme(jdp: Jdp) -> None:
    async with client(jdp) as one:
        credential = await SessionToken("Token 0000-0001_secret").credential(one, refresh=False)
    assert credential.headers == {"Authorization": "Token 0000-0001_secret"}
    assert credential.secrets == ("0000-0001_secret",)
    assert "secret" not in repr(SessionToken("Token 0000-0001_secret"))


@pytest.mark.parametrize("token", ["", "  \n", "two\nlines"])
@in_a_loop
async def test_a_token_that_is_none_is_refused_by_name(jdp: Jdp, token: str) -> None:
    async with client(jdp, token) as one:
        with pytest.raises(AuthError, match="waybill_jdp"):
            await one.status(1)


@in_a_loop
async def test_a_request_s_status_has_its_files_and_its_end(jdp: Jdp) -> None:
    fill(jdp)
    number = jdp.restore(jdp.ids[:3])
    async with client(jdp) as one:
        status = await one.status(number)
        assert status is not None
        assert (status.request_id, set(status.file_ids)) == (number, set(jdp.ids[:3]))
        assert status.expires_at is not None and status.expires_at.tzinfo is not None
        assert await one.status(number - 1) is None
        assert abs(await one.now() - jdp.sim.clock.now()) < 2


@in_a_loop
async def test_a_file_on_tape_is_no_download_and_one_on_disk_is(jdp: Jdp, tmp_path: Path) -> None:
    number = fill(jdp, trap_rate=0.0)
    async with client(jdp) as one:
        file = min(await one.search(number), key=lambda each: each.size_bytes)
        with pytest.raises(RemoteError, match="409"):
            await one.download_file(file, tmp_path / "x")
        jdp.ready([file.jdp_file_id])
        await one.download_file(file, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == jdp.catalog.files[file.jdp_file_id].content


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-03-15T00:00:00", datetime(2026, 3, 15, tzinfo=UTC)),  # `dt_to_purge` has no offset
        ("2023-05-18T14:55:41.475890-07:00", datetime(2023, 5, 18, 21, 55, 41, 475890, tzinfo=UTC)),
        ("soon", None),
        (None, None),
        ("", None),
    ],
)
def test_dates_are_instants_or_none(text: object, instant: datetime | None) -> None:
    assert instant_of(text) == instant
