"""GOLD's client against its simulator over a real socket."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from include.core.errors import AuthError, Forbidden, RemoteError, WaybillError
from include.jgi.gold import KINDS, GoldClient, OfflineToken
from simulators.jgi import DEFAULT_OFFLINE_TOKEN, GoldSimulator, add_published
from tests.include.jgi.conftest import GROW, QUICK, in_a_loop, no_sleep
from tests.simulators.jgi_rehearsal import Gold


@asynccontextmanager
async def client(gold: Gold, token: str = DEFAULT_OFFLINE_TOKEN) -> AsyncIterator[GoldClient]:
    async with GoldClient(
        gold.server.url, OfflineToken(token), name="waybill_gold", policy=QUICK, sleep=no_sleep
    ) as one:
        yield one


def fill(gold: Gold, biosamples: int = 2) -> list[str]:
    gold.server.call(lambda: add_published(gold.sim.catalog, GROW, "grow", biosamples=biosamples, scale=1e-6))
    return sorted(gold.sim.catalog.biosamples)


def asked(gold: Gold, path: str) -> int:
    entries = gold.server.call(lambda: gold.sim.journal.entries("request"))
    return sum(entry.details["path"] == path for entry in entries)


@in_a_loop
async def test_biosamples_of_a_proposal_and_their_analyses(gold: Gold) -> None:
    samples = fill(gold)
    async with client(gold) as one:
        assert await one.biosamples(GROW) == samples
        found = [each for sample in samples for each in await one.analyses(sample)]
    known = [each for each in gold.sim.catalog.analyses.values() if each.type in KINDS]
    assert {(each.ap_gold_id, each.its_ap_id, each.biosample) for each in found} == {
        (each.gold_id, each.its_ap_id, each.biosample) for each in known
    }


@in_a_loop
async def test_a_token_that_has_run_out_is_fetched_anew_once(gold: Gold) -> None:
    samples = fill(gold)
    before = asked(gold, "/exchange")
    async with client(gold) as one:
        await one.biosamples(GROW)
        await one.analyses(samples[0])
        assert asked(gold, "/exchange") == before + 1, "no look-up has a login of its own"
        gold.server.call(lambda: gold.sim.clock.advance(13 * 3600.0))
        assert await one.biosamples(GROW) == samples
        assert asked(gold, "/exchange") == before + 2


@in_a_loop
async def test_no_such_thing_is_an_empty_list_and_forbidden_is_an_error(gold: Gold) -> None:
    samples = fill(gold)
    gold.server.call(lambda: gold.sim.change_settings(forbidden=[samples[0]]))
    gold.server.call(lambda: gold.sim.faults.add(path="/biosamples", query="999", fault="status", code=404))
    async with client(gold) as one:
        assert await one.biosamples(999) == []
        assert await one.analyses("Gb1") == []
        with pytest.raises(Forbidden):
            await one.analyses(samples[0])


@pytest.mark.parametrize("body", ['{"rows": []}', '["x"]', "<html></html>"])
@in_a_loop
async def test_an_answer_of_another_shape_is_no_empty_list(gold: Gold, body: str) -> None:
    rule = {"path": "/biosamples", "fault": "status", "code": 200, "body": body, "times": None}
    gold.server.call(lambda: gold.sim.faults.add(**rule))
    async with client(gold) as one:
        with pytest.raises(WaybillError, match="biosamples of proposal 1"):
            await one.biosamples(1)


@in_a_loop
async def test_a_wrong_offline_token_names_the_connection_and_the_remedy(gold: Gold) -> None:
    async with client(gold, "a-wrong-offline-token") as one:
        with pytest.raises(AuthError, match=r"waybill_gold.*get a new one at gold-ws\.jgi\.doe\.gov") as caught:
            await one.biosamples(GROW)
    assert "a-wrong-offline-token" not in str(caught.value)


TROUBLES: list[dict[str, Any]] = [
    {"fault": "status", "code": 500, "body": DEFAULT_OFFLINE_TOKEN},
    {"fault": "status", "code": 403, "body": DEFAULT_OFFLINE_TOKEN},
    {"fault": "drop_before_commit"},
    {"fault": "non_json"},
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda rule: str(rule.get("code") or rule["fault"]))
@in_a_loop
async def test_the_offline_token_is_in_no_log_and_no_error(
    gold: Gold, trouble: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It travels in a URL, which libraries like to log."""
    gold.server.call(lambda: gold.sim.faults.add(path="/exchange", times=None, **trouble))
    told = ""
    with caplog.at_level(logging.DEBUG):
        for name in ("httpx", "httpcore", "asyncio"):
            caplog.set_level(logging.DEBUG if name == "asyncio" else logging.getLogger(name).level, logger=name)
        async with client(gold) as one:
            try:
                await one.biosamples(GROW)
            except (AuthError, RemoteError, WaybillError) as error:
                told = f"{error!r} {error.__cause__!r} {error.__context__!r}"
    assert told, "it must not pass"
    assert DEFAULT_OFFLINE_TOKEN not in told + caplog.text


@in_a_loop
async def test_no_token_is_in_any_log_of_what_goes_well(gold: Gold, caplog: pytest.LogCaptureFixture) -> None:
    samples = fill(gold)
    with caplog.at_level(logging.DEBUG):
        async with client(gold) as one:
            await one.analyses(samples[0])
            access = str(one._credential.secrets[1]) if one._credential else ""
    assert access and access not in caplog.text and DEFAULT_OFFLINE_TOKEN not in caplog.text
    assert DEFAULT_OFFLINE_TOKEN not in repr(OfflineToken(DEFAULT_OFFLINE_TOKEN))
    assert isinstance(gold.sim, GoldSimulator)
