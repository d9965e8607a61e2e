"""Waiting for a remote that is out of reach: how long, what is said, and when it is given up."""

from __future__ import annotations

import asyncio

import pytest

from include.core.errors import NotFound, TransientError
from include.core.patience import Patience


class Clock:
    """A clock that only the waiting itself moves."""

    def __init__(self) -> None:
        self.time, self.lines = 0.0, list[str]()

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def patience(self, seconds: float) -> Patience:
        return Patience(seconds, say=self.lines.append, now=lambda: self.time, sleep=self.sleep)


def failing(times: int | None, calls: list[int]):
    async def work() -> str:
        calls.append(1)
        if times is None or len(calls) <= times:
            raise TransientError("not reached")
        return "there"

    return work


def test_an_outage_is_waited_for_with_a_line_a_minute():
    clock, calls = Clock(), list[int]()
    assert asyncio.run(clock.patience(600).call(failing(20, calls))) == "there"
    assert len(calls) == 21 and 200 < clock.time < 600
    waits = [line for line in clock.lines if "waiting" in line]
    assert clock.time / 100 - 1 <= len(waits) <= clock.time / 60 + 1
    assert (
        waits[0] == "not reached; waiting for the store, 0 of 10 minutes"
        and clock.lines[-1] == "the store answers again"
    )


def test_one_busy_answer_is_no_outage_and_is_not_told():
    clock = Clock()
    assert asyncio.run(clock.patience(600).call(failing(1, []))) == "there"
    assert clock.lines == []


def test_it_is_given_up_in_time_and_no_other_call_waits_again():
    clock, calls = Clock(), list[int]()
    patience = clock.patience(600)
    with pytest.raises(TransientError):
        asyncio.run(patience.call(failing(None, calls)))
    assert clock.time == 600
    with pytest.raises(TransientError):
        asyncio.run(patience.call(failing(None, calls)))
    assert clock.time == 600, "a second call has waited for a store that was given up"
    assert asyncio.run(patience.call(failing(0, []))) == "there"
    with pytest.raises(TransientError):
        asyncio.run(patience.call(failing(None, calls)))
    assert clock.time == 1200, "after an answer a store is waited for again"


def test_what_waiting_does_not_mend_is_raised_at_once():
    async def work() -> None:
        raise NotFound("nothing is there")

    clock = Clock()
    with pytest.raises(NotFound):
        asyncio.run(clock.patience(600).call(work))
    assert clock.time == 0 and clock.lines == []


def test_a_remote_that_hangs_is_told_of_and_nothing_is_left_running():
    lines: list[str] = []

    async def main() -> None:
        waited = asyncio.Event()

        def say(line: str) -> None:
            lines.append(line)
            waited.set()

        patience = Patience(600, say=say, say_every=0.01)
        hanging = asyncio.create_task(patience.call(asyncio.Event().wait))
        await waited.wait()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert lines[0] == "no answer yet from the store, 0 of 10 minutes"
