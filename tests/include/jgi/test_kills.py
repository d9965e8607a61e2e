"""A run that dies between any two of its writes: the next one brings all to its end, and JDP was asked once.

Deaths at the ledger are played by the conformance kit (test_conformance.py); here they are at MongoDB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from harness.core.mortal_ledger import Killed
from harness.core.trial import Trial, trial
from harness.jgi.conformance import JdpRestores, RestoreWorker, _World
from include.core.ledger import State
from include.jgi.models import FileState, RequestState
from include.jgi.restoring import KIND, SYSTEM
from include.jgi.tracking import Tracking

WRITES = 40  # of one process, at most


class MortalTracking(Tracking):
    """Dies right before, or right after, its n-th write."""

    left = 0
    after = False

    def _move(self, *args: Any, **kwargs: Any) -> int:
        return self._dying(lambda: super(MortalTracking, self)._move(*args, **kwargs))

    def _write_again(self, *args: Any, **kwargs: Any) -> None:
        self._dying(lambda: super(MortalTracking, self)._write_again(*args, **kwargs))

    def _dying(self, write: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise Killed
        done = write()
        if self.left == 0:
            raise Killed
        return done


def _world(one: Trial) -> _World:
    assert isinstance(one.simulator, _World)
    return one.simulator


async def dies_at(one: Trial, number: int, *, after: bool) -> bool:
    """Whether a process came to its n-th write, and died there."""
    world = _world(one)
    whole = world.tracking
    mortal = MortalTracking(whole._database)
    mortal.left, mortal.after = number, after
    world.tracking = mortal
    try:
        return await one.die(one.process())
    finally:
        world.tracking = whole


def end_is_right(one: Trial, where: str) -> None:
    one.judge(where)
    files = list(_world(one).tracking.files())
    assert {one.state for one in files} == {FileState.ON_DISK}, where
    assert len({one.claim for one in files}) == 1, where
    (request,) = [one for one in _world(one).tracking.requests() if one.state != RequestState.ABORTED]
    assert request.state == RequestState.READY, where


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_death_at_any_write_to_mongodb_loses_nothing_and_doubles_nothing(mongo_uri: str, after: bool) -> None:
    async def main() -> int:
        for number in range(1, WRITES):
            with trial(JdpRestores(mongo_uri)) as one:
                if not await dies_at(one, number, after=after):
                    return number
                await one.live(one.process(run_id="run-2"))
                end_is_right(one, f"death at write {number}")
        raise AssertionError("it never comes to its end")

    assert asyncio.run(main()) > 5, "so few writes cannot be"


@pytest.mark.parametrize("fault", ["ready_but_empty", "manifest_rows_missing"])
def test_a_death_while_files_are_planned_anew(mongo_uri: str, fault: str) -> None:
    """They may be asked for once more than needed, and never less; the attempts end."""

    async def main() -> None:
        for number in range(5, WRITES, 2):
            with trial(JdpRestores(mongo_uri)) as one:
                one.fault(**JdpRestores.write, fault=fault)
                died = await dies_at(one, number, after=False)
                await one.live(one.process(run_id="run-2"))
                files = list(_world(one).tracking.files())
                assert {each.state for each in files} == {FileState.ON_DISK}, number
                assert 1 < len(JdpRestores(mongo_uri).effects(one.simulator)) <= 3, number
                assert one.simulator.counters()["ids_asked_twice"] == 0, number
                if not died:
                    return
        raise AssertionError("it never comes to its end")

    asyncio.run(main())


# -- MongoDB restored from an older copy ------------------------------------------------------------------------------


def copy_of(world: _World) -> dict[str, list[dict[str, Any]]]:
    database = world.tracking._database
    return {name: list(database[name].find({})) for name in database.list_collection_names()}


def bring_back(world: _World, copy: dict[str, list[dict[str, Any]]]) -> None:
    database = world.tracking._database
    for name in database.list_collection_names():
        database[name].delete_many({})
    for name, documents in copy.items():
        if documents:
            database[name].insert_many(documents)


async def one_turn(one: Trial, run_id: str) -> RestoreWorker:
    async with one.remote.worker(one.process(run_id=run_id)) as worker:
        await worker.ask()
        assert isinstance(worker, RestoreWorker)
        return worker


def test_an_open_request_survives_an_older_copy_of_mongodb(mongo_uri: str) -> None:
    async def main() -> None:
        with trial(JdpRestores(mongo_uri)) as one:
            copy = copy_of(_world(one))
            one.fault(**JdpRestores.write, fault="stuck_pending", seconds=3600.0)
            await one_turn(one, "run-1")
            bring_back(_world(one), copy)
            await one.live(one.process(run_id="run-2"))
            end_is_right(one, "an older copy")

    asyncio.run(main())


def test_what_was_ready_is_found_again_after_an_older_copy_of_mongodb(mongo_uri: str) -> None:
    """The copy was made while the request was being sent: its files are claimed, and the ledger says that it is done."""

    async def main() -> None:
        with trial(JdpRestores(mongo_uri)) as one:
            await dies_at(one, 2, after=True)
            copy = copy_of(_world(one))
            await one.live(one.process(run_id="run-2"))
            done = one.rows()
            bring_back(_world(one), copy)
            assert {each.state for each in _world(one).tracking.files()} == {FileState.REQUESTING}
            await one.live(one.process(run_id="run-3"))
            end_is_right(one, "an older copy")
            assert [row.state for row in one.rows()] == [row.state for row in done]

    asyncio.run(main())


def test_a_request_that_the_ledger_does_not_know_is_given_up(mongo_uri: str) -> None:
    async def main() -> None:
        with trial(JdpRestores(mongo_uri)) as one:
            tracking = _world(one).tracking
            ids = [each.jdp_file_id for each in tracking.files()]
            tracking.claim(ids, "restore-of-another-ledger")
            await one.live(one.process())
            end_is_right(one, "an unknown claim")
            assert {row.business_key for row in one.rows()} != {"restore-of-another-ledger"}

    asyncio.run(main())


def test_what_a_person_held_and_cancelled_is_planned_anew(mongo_uri: str) -> None:
    async def main() -> None:
        with trial(JdpRestores(mongo_uri)) as one:
            one.fault(**JdpRestores.write, fault="drop_before_commit")
            await one.once(one.process())
            process = one.process(run_id="run-2")
            (row,) = process.ledger.in_states(State.IN_DOUBT)
            held = process.ledger.move(row, State.HELD, why="not found")
            process.ledger.move(held, State.CANCELLED, why="JDP has none", who="a person")
            await one.live(process)
            end_is_right(one, "cancelled by a person")
            assert [each.state for each in process.ledger.generations(SYSTEM, KIND, row.business_key)] == [
                State.CANCELLED,
                State.DONE,
            ]

    asyncio.run(main())
