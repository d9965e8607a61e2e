"""Many things at once: one behaviour on the first error, and nothing outlives the call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.virtual_time import run_virtual
from include.core.concurrency import map_by_key, map_concurrently
from include.core.errors import NotFound


def test_on_the_first_error_nothing_more_begins_and_what_has_begun_comes_to_its_end():
    begun, ended = list[int](), list[int]()

    async def one(item: int) -> int:
        begun.append(item)
        await asyncio.sleep(item)
        if item == 1:
            raise NotFound("one")
        ended.append(item)
        return item

    async def main(_loop: Any) -> None:
        with pytest.raises(NotFound, match="one"):
            await map_concurrently([1, 5, 2, 3], one, 2)
        assert (begun, ended) == ([1, 5], [5])
        begun.clear()
        with pytest.raises(NotFound, match="one"):
            await map_by_key([1, 4, 2], one, at_once=2)
        assert begun == [1, 4]
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main)


def test_a_caller_that_is_cancelled_takes_all_with_it():
    ended = list[int]()

    async def one(item: int) -> None:
        await asyncio.sleep(10)
        ended.append(item)

    async def main(_loop: Any) -> None:
        call = asyncio.create_task(map_concurrently([1, 2, 3], one, 2))
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (ended, len(asyncio.all_tasks())) == ([], 1)

    run_virtual(main)


def test_results_come_in_the_items_order_and_are_counted_as_they_come():
    counts = list[int]()

    async def one(item: int) -> int:
        await asyncio.sleep(10 - item)
        return item * 10

    async def main(_loop: Any) -> None:
        assert await map_concurrently([1, 2, 3], one, 3, counts.append) == [10, 20, 30]
        assert counts == [1, 2, 3]

    run_virtual(main)
