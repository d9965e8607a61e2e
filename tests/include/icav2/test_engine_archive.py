"""Copies whose history was moved away: what Waybill placed somewhere is known for ever."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from harness.icav2.ica_world import SOURCE, TARGET, World, play
from include.core.ledger import Intent, Owner, State, verify
from include.core.ledger.archive import archive, archives_in
from include.icav2.plan import occupied
from include.icav2.small_files import names_created
from simulators.icav2 import Outcome, Override

DEST = f"icav2://{TARGET}/cache/d0000/"
CALM: dict[str, Any] = {"failure_rate": 0.0}


def phases(progress: Any) -> list[str]:
    return [str(s.phase) for s in progress.standings]


async def archived(world: World, folder: Path) -> int:
    """Nine days later everything that can be archived is. Returns how many submissions that were."""
    await asyncio.sleep(9 * 86_400)
    book = world.ledger
    row = book.begin(book.open(Intent("other", "kind", "x", {}, Owner("dag", "run", "task"))), response_deadline=60)
    assert row is not None
    book.record_sent(row, "last", why="the last event stays")
    return sum(len(made.submission_ids) for made in archive(book, folder, before=world.loop.now() - 8 * 86_400))


async def refused(world: World, what: dict[str, list[str]]) -> list[str]:
    plan = await world.plan(what)
    created = partial(names_created, world.ledger, plan)
    return await occupied(world.client, plan, created, refuse_unmanaged=True, use_etag=True)


def test_the_same_manifest_is_not_refused_after_its_history_was_archived(tmp_path: Path):
    async def scene(world: World) -> None:
        what = {f"icav2://{SOURCE}/run/{name}": [DEST] for name in ("a", "b")}
        world.seed(what)
        assert phases(await world.copy(what)) == ["passed"]
        assert await archived(world, tmp_path) == 1
        assert await refused(world, what) == []
        assert await refused(world, {f"icav2://{SOURCE}/run/a": [DEST]}) == []
        assert phases(await world.copy(what, "run2")) == ["passed"]
        assert len(world.jobs()) == 1

    play(scene, **CALM)


def test_what_an_archived_job_left_half_copied_is_cleaned_up(tmp_path: Path):
    async def scene(world: World) -> None:
        first = {f"icav2://{SOURCE}/run/a": [DEST]}
        second = {f"icav2://{SOURCE}/run/b": [DEST]}
        world.seed({**first, **second})
        assert phases(await world.copy(first, max_resubmissions=0)) == ["failed"]
        assert [node["status"] for node in world.target().values()] == ["PARTIAL"]
        assert phases(await world.copy(second, "run2")) == ["passed"]
        assert await archived(world, tmp_path) == 2
        assert await refused(world, first) == []
        assert phases(await world.copy({**first, **second}, "run3")) == ["passed"]
        assert len(world.jobs()) == 3
        assert verify(world.ledger, archived=archives_in(tmp_path)).problems == []
        assert [row.state for row in world.submissions() if row.system == "icav2"].count(State.FAILED) == 1

    partial_once = [Override(destination="/cache/", attempts=[1], outcome=Outcome("failed_partial"))]
    play(scene, **CALM, overrides=partial_once)
