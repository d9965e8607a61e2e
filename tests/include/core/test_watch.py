"""Waiting: how often it looks, what ends it, and what a person reads meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from harness.virtual_time import run_virtual
from include.core.errors import AuthError, Forbidden, RemoteError, TransientError
from include.core.watch import BulkWatch, Item, Observation, Opened, Wake, WatchEnd, WatchPolicy, watch

EXACT = WatchPolicy(quiet_seconds=0.0, jitter=0.0)


def watching(
    look: Callable[[float], Observation], seconds: float = 1e5, policy: WatchPolicy = EXACT, **more: Any
) -> tuple[WatchEnd, list[float], list[str]]:
    """The end, the instants of the looks, and the lines said."""
    looks: list[float] = []
    lines: list[str] = []

    async def main(loop: Any) -> WatchEnd:
        async def observe() -> Observation:
            looks.append(loop.time())
            return look(loop.time())

        return await watch(
            observe, deadline=seconds, policy=policy, now=loop.time, rng=random.Random(1), say=lines.append, **more
        )

    return run_virtual(main), looks, lines


def quiet(_now: float) -> Observation:
    return Observation({"running": 2})


def test_it_ends_with_the_reason_to_wake_and_the_counts():
    end, looks, _ = watching(lambda now: Observation({"running": 1}, "one has ended" if now > 10 else None))
    assert end == WatchEnd("wake", "one has ended", {"running": 1})
    assert looks[-1] > 10 >= looks[-2]


def test_it_looks_often_at_first_and_seldom_later_but_never_less_than_asked():
    _, looks, _ = watching(quiet, 4000)
    pauses = [b - a for a, b in pairwise(looks)]
    assert pauses[0] == 1.0
    assert pauses[-1] == 30.0
    assert all(b >= a - 1e-6 for a, b in pairwise(pauses))
    assert max(pauses) == pytest.approx(30.0)


def test_a_wait_that_goes_on_elsewhere_keeps_its_age():
    _, looks, _ = watching(quiet, 100, since=-1000.0)
    assert looks[1] - looks[0] == 30.0


def test_pauses_are_spread_by_the_jitter():
    _, looks, _ = watching(quiet, 4000, WatchPolicy(quiet_seconds=0.0, jitter=0.2))
    late = [b - a for a, b in pairwise(looks)][-20:]
    assert min(late) >= 27.0
    assert max(late) <= 33.0
    assert len(set(late)) > 10


def test_it_is_silent_at_the_start():
    end, looks, _ = watching(lambda _now: Observation({}, "at once"), policy=WatchPolicy())
    assert looks == [3.0]
    assert end.kind == "wake"


def test_the_deadline_ends_it_to_the_second():
    end, looks, _ = watching(quiet, 50)
    assert end.kind == "deadline"
    assert end.counts == {"running": 2}
    assert looks[-1] < 50
    past, none, _ = watching(quiet, -5)
    assert (past.kind, none) == ("deadline", [])


def trouble(error: Exception, until: float = 1e9) -> Callable[[float], Observation]:
    def look(now: float) -> Observation:
        if now < until:
            raise error
        return Observation({"running": 0}, "all have ended")

    return look


@pytest.mark.parametrize("error", [TransientError("busy"), AuthError("expired")])
def test_a_trouble_that_passes_is_waited_out(error):
    end, looks, lines = watching(trouble(error, 7200.0))
    assert end.kind == "wake"
    assert 7200 <= looks[-1] < 7600
    assert len(looks) < 60
    assert "look 1 of at most 60 failed" in lines[0]


def test_a_trouble_that_does_not_pass_uses_up_the_budget():
    end, looks, _ = watching(trouble(TransientError("busy")), policy=WatchPolicy(error_budget=5, jitter=0.0))
    assert (end.kind, len(looks)) == ("lost", 5)
    assert "the last: busy" in end.why


def test_only_a_full_success_restores_the_budget():
    def look(now: float) -> Observation:
        if int(now) % 50 < 40:
            raise TransientError("busy")
        return Observation({"running": 1})

    end, _, _ = watching(look, 3000, WatchPolicy(quiet_seconds=0.0, error_budget=12, error_poll_seconds=8.0))
    assert end.kind == "deadline"


def test_a_remote_that_asks_for_three_centuries_is_looked_at_again_after_an_hour():
    _, looks, _ = watching(trouble(TransientError("busy", retry_after=9999999999.0), 80.0))
    longest = max(after - before for before, after in pairwise(looks))
    assert 3600.0 <= longest < 3700.0


def test_retry_after_is_kept_to_but_not_beyond_the_deadline():
    _, looks, _ = watching(trouble(TransientError("busy", retry_after=90.0), 80.0))
    assert looks == [0.0, 90.0]
    end, looks, _ = watching(trouble(TransientError("busy", retry_after=1e6)), 100)
    assert (end.kind, looks) == ("deadline", [0.0])


@pytest.mark.parametrize("error", [OSError("no route"), KeyError("state"), EOFError()])
def test_an_error_that_nobody_foresaw_is_a_failed_look_like_any_other(error):
    end, looks, _ = watching(trouble(error, 7200.0))
    assert end.kind == "wake"
    assert looks[-1] >= 7200


def test_a_look_that_never_answers_has_failed():
    async def main(loop: Any) -> WatchEnd:
        async def observe() -> Observation:
            await asyncio.sleep(1e6)
            raise NotImplementedError

        policy = WatchPolicy(look_seconds=60.0, error_budget=3)
        return await watch(observe, deadline=1e5, policy=policy, now=loop.time, rng=random.Random(1))

    end = run_virtual(main)
    assert end.kind == "lost"
    assert "TimeoutError" in end.why


def test_a_right_that_is_lacking_is_not_waited_for():
    end, looks, _ = watching(trouble(Forbidden("403")))
    assert (end.kind, len(looks)) == ("lost", 1)


def test_a_refused_look_ends_the_watch_so_that_a_worker_can_say_what_to_do():
    end, looks, _ = watching(trouble(RemoteError("no such list")))
    assert (end.kind, len(looks)) == ("lost", 1)
    assert "no such list" in end.why


def test_a_person_reads_one_line_a_minute_and_each_change():
    def look(now: float) -> Observation:
        return Observation({"passed": int(now >= 200), "running": 1})

    _, _, lines = watching(look, 400)
    assert "0 passed, 1 running; next look in 1 s, deadline in 7 min" in lines[0]
    assert 6 <= len(lines) <= 9
    assert sum("1 passed" in line for line in lines) >= 3


def test_warnings_are_logged(caplog):
    seen = iter([("odd",), (), ()])
    watching(lambda now: Observation({}, "enough" if now > 3 else None, next(seen, ())))
    assert [record.message for record in caplog.records] == ["odd"]


# -- many items by one look -------------------------------------------------------------------------------------------

RUNS, GOOD, BAD = Item("RUNNING"), Item("DONE", ended=True, good=True), Item("FAILED", ended=True)


class Remote:
    """What each id is said to be, look by look; and which ids were asked about."""

    def __init__(self, *answers: dict[str, Item]):
        self.answers = list(answers)
        self.asked: list[set[str]] = []

    async def look(self, ids: Collection[str]) -> dict[str, Item]:
        self.asked.append(set(ids))
        return self.answers.pop(0)


def seen(remote: Remote, wake: Wake = Wake.NOTHING, ids: str = "ab", **words: Any) -> list[Observation]:
    bulk = BulkWatch(list(ids), remote.look, wake, **words)

    async def main() -> list[Observation]:
        return [await bulk.observe() for _ in range(len(remote.answers))]

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "wakes"),
    [
        ({"a": RUNS, "b": RUNS}, set()),
        ({"a": GOOD, "b": RUNS}, {Wake.END}),
        ({"a": BAD, "b": RUNS}, {Wake.END, Wake.FAILURE}),
        ({"a": GOOD, "b": BAD}, set(Wake)),
        ({"a": GOOD, "b": GOOD}, set(Wake)),
        ({"a": GOOD}, {Wake.END}),  # what an answer leaves out runs on
        ({}, set()),
    ],
)
def test_what_a_worker_is_wanted_for(answer: dict[str, Item], wakes: set[Wake]):
    assert {wake for wake in Wake if seen(Remote(answer), wake)[0].wake} == wakes


def test_without_ids_it_waits_for_a_time():
    assert [seen(Remote({}), wake, ids="")[0].wake for wake in Wake] == [None] * len(Wake)


def test_once_ended_is_ended_and_not_asked_about_again():
    remote = Remote({"a": BAD, "b": RUNS}, {"a": GOOD, "b": RUNS}, {"a": RUNS, "b": GOOD})
    last = seen(remote)[-1]
    assert remote.asked == [{"a", "b"}, {"b"}, {"b"}]
    assert last.counts == {"jobs passed": 1, "running": 0, "failed": 1}
    assert last.wake == "no jobs are running any more"


def test_an_unknown_state_runs_on_and_is_warned_of_once():
    odd = Item("PAUSED_BY_MOON", known=False)
    looks = seen(Remote({"a": odd, "b": RUNS}, {"a": odd, "b": odd}))
    assert [len(look.warnings) for look in looks] == [1, 0]
    assert "a is PAUSED_BY_MOON, a status that Waybill does not know" in looks[0].warnings[0]
    assert [look.wake for look in looks] == [None, None]


def test_its_counts_are_in_the_words_of_the_system():
    words = {"noun": "tarballs", "words": ("ready", "cold", "missing")}
    assert seen(Remote({"a": GOOD, "b": RUNS}), **words)[0].counts == {"tarballs ready": 1, "cold": 1, "missing": 0}


def test_what_was_open_for_a_look_that_failed_is_closed_and_opened_anew():
    story: list[str] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[Callable[[], Any]]:
        story.append("open")

        async def look() -> Observation:
            story.append("look")
            if story.count("look") == 2:
                raise OSError
            return Observation({})

        try:
            yield look
        finally:
            story.append("close")

    async def main() -> None:
        async with Opened(opening) as opened:
            for _ in range(3):
                try:
                    await opened.observe()
                except OSError:
                    story.append("failed")

    asyncio.run(main())
    assert story == ["open", "look", "look", "close", "failed", "open", "look", "close"]


def test_a_job_that_another_worker_closed_before_the_watch_began_wakes_at_once():
    async def look(_ids: Collection[str]) -> dict[str, Item]:
        return {}

    seen = asyncio.run(BulkWatch([], look, Wake.END, expected=1).observe())
    assert seen.wake == "1 jobs were closed by another worker meanwhile"
    assert asyncio.run(BulkWatch([], look, Wake.END).observe()).wake is None
    assert asyncio.run(BulkWatch(["job-1"], look, Wake.END, expected=1).observe()).wake is None
