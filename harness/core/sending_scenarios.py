"""What the conformance kit plays about sending: undisturbed, processes that die or meet, answers and requests that are lost.

Invariant: each judges by its trial's journal, and names the lie.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from harness.core.trial import (
    ACCESSES,
    READS,
    STEPS,
    NotConforming,
    Process,
    Remote,
    Trial,
    trial,
    words,
)
from include.core.ledger import Submission

# -- undisturbed ----------------------------------------------------------------------------------------------------------


async def undisturbed(remote: Remote, lie: str) -> None:
    """One write, its id recorded at once: between the answer and the ledger nothing else is done."""
    with trial(remote) as one:
        places: dict[str, int] = {}
        recorded: list[str] = []

        def on_step(step: str, row: Submission) -> None:
            places.setdefault(step, len(one.simulator.journal))
            if step == "recorded":
                recorded.append(str(row.external_id))

        await one.live(one.process(on_step=on_step))
        if not set(STEPS) <= set(places):
            raise NotConforming(f"it does not go through submit_once: its steps were {list(places)}")
        asked = one.requests(places["sending"], places["answered"])
        writes = [request for request in asked if request["method"] not in READS]
        if len(writes) > 1 and not remote.repeats_do_no_harm:
            raise NotConforming(f"a second POST in `send`: it sent {', '.join(words(writes))}")
        if writes and asked[-1] is not writes[-1]:
            raise NotConforming(f"id recorded late: after its write, `send` went on with {words(asked)[-1]}")
        if remote.names_jobs and recorded[0] not in remote.effects(one.simulator):
            jobs = ", ".join(remote.effects(one.simulator))
            raise NotConforming(f"id recorded late: the ledger was given {recorded[0]}, and the journal has {jobs}")
        one.judge(lie)


# -- processes that die, stop, or meet ------------------------------------------------------------------------------------


def dies_at(step: str) -> Callable[[Remote, str], Awaitable[None]]:
    async def play(remote: Remote, lie: str) -> None:
        for heir in ("run-1", "run-2"):  # the task's retry; another run that asks for the same
            with trial(remote) as one:
                if not await one.die(mortal(one, step)):
                    raise NotConforming(f"it never came to the step {step}")
                await one.live(one.process(run_id=heir))
                one.judge(lie)

    return play


def mortal(one: Trial, step: str, **more: Any) -> Process:
    """A process that dies at a step."""

    def on_step(name: str, _row: Submission) -> None:
        if name == step:
            process.ledger.kill()

    process = one.process(on_step=on_step, **more)
    return process


async def dies_anywhere(remote: Remote, lie: str) -> None:
    """At its first access to the ledger, at its second, and so on, until it comes to its end."""
    await _at_each_access(remote, lie, lambda _one, process: process.ledger.kill())


async def overtaken_anywhere(remote: Remote, lie: str) -> None:
    """It stands still at each access to the ledger in turn, while another does everything: what it has seen before is old."""
    await _at_each_access(remote, lie, lambda one, _process: one.beside())


async def _at_each_access(remote: Remote, lie: str, act: Callable[[Trial, Process], None]) -> None:
    for number in range(1, ACCESSES):
        with trial(remote) as one:
            process, left = one.process(), [number]

            def reached(one: Trial = one, process: Process = process, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    act(one, process)

            process.ledger.before_access = reached
            await one.die(process)
            await one.live(one.process())
            one.judge(f"{lie} (at access {number} to the ledger)")
        if left[0] > 0:
            return


async def stopped_before_its_write(remote: Remote, lie: str) -> None:
    """A sender stands still after its last look; another finds it silent and takes over; then it goes on."""
    with trial(remote) as one:
        stopped: list[str] = []

        def on_step(step: str, _row: Submission) -> None:
            if step in ("intent", "sending") and step not in stopped:
                stopped.append(step)
                one.beside("run-2")

        process = one.process(on_step=on_step)
        process.ledger.monotonic = one.clock.now  # its own clock goes on: only a suspended host's stands still
        await one.live(process)
        one.judge(lie)


async def two_at_once(remote: Remote, lie: str) -> None:
    for other in ("run-1", "run-2"):
        with trial(remote) as one:
            both = (one.live(one.process()), one.live(one.process(run_id=other)))
            for failure in await asyncio.gather(*both, return_exceptions=True):  # neither outlives its world
                if failure is not None:
                    raise failure
            one.judge(lie)


async def clocks_are_wrong(remote: Remote, lie: str) -> None:
    """Hosts whose clocks are an hour off, either way, one after the other."""
    for step in ("sending", "answered"):
        for first, then in ((3_600.0, 0.0), (-3_600.0, 0.0), (0.0, 3_600.0), (0.0, -3_600.0), (600.0, -600.0)):
            with trial(remote) as one:
                await one.die(mortal(one, step, skew=first))
                await one.live(one.process(skew=then))
                one.judge(lie)


async def clock_changes(remote: Remote, lie: str) -> None:
    """Between two searches for what cannot be seen yet: the next host's clock is an hour ahead, or this one's is put right."""
    late = {"fault": "commit_delayed", "seconds": remote.late_seconds}
    hidden = {"fault": remote.hide, "seconds": remote.hidden_seconds}
    for rule in ([late] if remote.late_seconds else []) + ([hidden] if remote.hidden_seconds else []):
        for first, then in ((0.0, 3_600.0), (-3_600.0, 0.0)):
            with trial(remote) as one:
                one.fault(**remote.write, **rule)
                if rule is late:
                    await one.once(one.process(skew=first))
                else:
                    await one.die(mortal(one, "answered"))
                searching = one.process(skew=first)
                await one.once(searching)
                searching.skew = then
                await one.live(one.process(skew=then) if then else searching)
                one.judge(lie)


# -- answers and requests that are lost or late ---------------------------------------------------------------------------

NO_ANSWER = (
    {"fault": "drop_before_commit"},
    {"fault": "drop_after_commit"},
    {"fault": "error_after_commit", "code": 500},
    {"fault": "error_after_commit", "code": 504},
    {"fault": "status", "code": 502},
    {"fault": "status", "code": 503, "retry_after": 5},
    {"fault": "non_json"},
)


async def answer_is_lost(remote: Remote, lie: str) -> None:
    for rule in NO_ANSWER:
        with trial(remote) as one:
            one.fault(**remote.write, **rule)
            places: list[int] = []

            def on_step(step: str, _row: Submission, one: Trial = one, places: list[int] = places) -> None:
                if step == "sending":
                    places.append(len(one.simulator.journal))

            await one.live(one.process(on_step=on_step))
            for begin, end in pairwise([*places, len(one.simulator.journal)]):
                writes = one.writes(begin, end)
                if len(writes) > 1 and not remote.repeats_do_no_harm:
                    told = ", ".join(writes)
                    raise NotConforming(f"a retry of a POST: after {rule['fault']}, one attempt has sent {told}")
            one.judge(lie)


async def refused_for_now(remote: Remote, lie: str) -> None:
    """Slow down, an outage, a credential that has expired: nothing was done, and it goes on by itself."""
    expired = {"fault": "status", "code": 401}
    for rule in (
        {"fault": "status", "code": 429, "retry_after": 7},
        {"fault": "outage", "seconds": 60.0},
        *([expired] if remote.logins else []),
    ):
        with trial(remote) as one:
            one.fault(**remote.write, **rule)
            await one.live(one.process())
            one.judge(lie)


async def request_is_late(remote: Remote, lie: str) -> None:
    """The client has given up, and the request arrives at the last instant at which it may."""
    for then in ("", "sending"):
        with trial(remote) as one:
            one.fault(**remote.write, fault="commit_delayed", seconds=remote.late_seconds)
            await one.die(mortal(one, then))
            await one.live(one.process())
            one.judge(lie)


async def job_is_hidden(remote: Remote, lie: str) -> None:
    """Accepted, its answer lost, and in no list for as long as that may be; also where the request was late before."""
    hidden = {**remote.write, "fault": remote.hide, "seconds": remote.hidden_seconds}
    for step in ("answered", ""):
        with trial(remote) as one:
            one.fault(**hidden)
            if not step:
                one.fault(**remote.write, fault="drop_after_commit")
            await one.die(mortal(one, step))
            await one.live(one.process())
            one.judge(lie)
    if remote.late_seconds:
        with trial(remote) as one:
            one.fault(**hidden)
            one.fault(**remote.write, fault="commit_delayed", seconds=remote.late_seconds)
            await one.live(one.process())
            one.judge(lie)
