"""The scenarios of the conformance kit: what happens in each, and what a remote's code that does not withstand it gets wrong.

Invariant: each judges by its trial's journal, and names the lie.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus

from harness.core.trial import (
    ACCESSES,
    READS,
    STEPS,
    EndsRed,
    NotConforming,
    Process,
    Remote,
    Trial,
    open_ledger,
    trial,
    words,
)
from include.core.errors import TransientError
from include.core.ledger import State, Submission


@dataclass(frozen=True)
class Scenario:
    """`lie`: what is not true of a remote that does not withstand it. `faults`: the rows of docs/faults.md that it plays."""

    name: str
    lie: str
    faults: str
    play: Callable[[Remote, str], Awaitable[None]]
    applies: Callable[[Remote], bool] = lambda _remote: True


# -- undisturbed ----------------------------------------------------------------------------------------------------------


async def _undisturbed(remote: Remote, lie: str) -> None:
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


def _dies_at(step: str) -> Callable[[Remote, str], Awaitable[None]]:
    async def play(remote: Remote, lie: str) -> None:
        for heir in ("run-1", "run-2"):  # the task's retry; another run that asks for the same
            with trial(remote) as one:
                if not await one.die(_mortal(one, step)):
                    raise NotConforming(f"it never came to the step {step}")
                await one.live(one.process(run_id=heir))
                one.judge(lie)

    return play


def _mortal(one: Trial, step: str, **more: Any) -> Process:
    """A process that dies at a step."""

    def on_step(name: str, _row: Submission) -> None:
        if name == step:
            process.ledger.kill()

    process = one.process(on_step=on_step, **more)
    return process


async def _dies_anywhere(remote: Remote, lie: str) -> None:
    """At its first access to the ledger, at its second, and so on, until it comes to its end."""
    await _at_each_access(remote, lie, lambda _one, process: process.ledger.kill())


async def _overtaken_anywhere(remote: Remote, lie: str) -> None:
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


async def _stopped_before_its_write(remote: Remote, lie: str) -> None:
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


async def _two_at_once(remote: Remote, lie: str) -> None:
    for other in ("run-1", "run-2"):
        with trial(remote) as one:
            both = (one.live(one.process()), one.live(one.process(run_id=other)))
            for failure in await asyncio.gather(*both, return_exceptions=True):  # neither outlives its world
                if failure is not None:
                    raise failure
            one.judge(lie)


async def _clocks_are_wrong(remote: Remote, lie: str) -> None:
    """Hosts whose clocks are an hour off, either way, one after the other."""
    for step in ("sending", "answered"):
        for first, then in ((3_600.0, 0.0), (-3_600.0, 0.0), (0.0, 3_600.0), (0.0, -3_600.0), (600.0, -600.0)):
            with trial(remote) as one:
                await one.die(_mortal(one, step, skew=first))
                await one.live(one.process(skew=then))
                one.judge(lie)


async def _clock_changes(remote: Remote, lie: str) -> None:
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
                    await one.die(_mortal(one, "answered"))
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


async def _answer_is_lost(remote: Remote, lie: str) -> None:
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


async def _refused_for_now(remote: Remote, lie: str) -> None:
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


async def _request_is_late(remote: Remote, lie: str) -> None:
    """The client has given up, and the request arrives at the last instant at which it may."""
    for then in ("", "sending"):
        with trial(remote) as one:
            one.fault(**remote.write, fault="commit_delayed", seconds=remote.late_seconds)
            await one.die(_mortal(one, then))
            await one.live(one.process())
            one.judge(lie)


async def _job_is_hidden(remote: Remote, lie: str) -> None:
    """Accepted, its answer lost, and in no list for as long as that may be; also where the request was late before."""
    hidden = {**remote.write, "fault": remote.hide, "seconds": remote.hidden_seconds}
    for step in ("answered", ""):
        with trial(remote) as one:
            one.fault(**hidden)
            if not step:
                one.fault(**remote.write, fault="drop_after_commit")
            await one.die(_mortal(one, step))
            await one.live(one.process())
            one.judge(lie)
    if remote.late_seconds:
        with trial(remote) as one:
            one.fault(**hidden)
            one.fault(**remote.write, fault="commit_delayed", seconds=remote.late_seconds)
            await one.live(one.process())
            one.judge(lie)


# -- the search -----------------------------------------------------------------------------------------------------------


async def _others_have_jobs_alike(remote: Remote, lie: str) -> None:
    for rule in ({"fault": "drop_before_commit"}, {"fault": "drop_after_commit"}):
        with trial(remote) as one:
            alike = set(remote.add_alike(one.simulator))
            one.fault(**remote.write, **rule)
            try:
                await one.live(one.process())
            except EndsRed as error:  # it takes several for ours
                raise NotConforming(f"{lie}: {error}") from error
            taken = {row.external_id for row in one.rows()} & alike
            if taken:
                raise NotConforming(
                    f"{lie}: it took {', '.join(map(str, sorted(taken, key=str)))}, a job of somebody else"
                )
            one.judge(lie)


async def _two_match(remote: Remote, lie: str) -> None:
    """Whoever sees both either keeps both in the ledger, or asks a person and names both. A third is never sent."""
    with trial(remote) as one:
        await one.die(_mortal(one, "answered"))
        remote.add_twin(one.simulator)
        red = ""
        try:
            await one.live(one.process())
        except EndsRed as error:
            red = str(error)
        effects = list(remote.effects(one.simulator))
        if len(effects) > 2:
            raise NotConforming(f"{lie}: two match, and it has sent another: {', '.join(effects)}")
        with open_ledger(one.url) as ledger:
            known = {job for row in one.rows() for job in ledger.known(row.system, row.kind, effects)}
        overlooked = [job for job in effects if job not in known and job not in red]
        if overlooked:
            raise NotConforming(f"{lie}: {', '.join(overlooked)} is in the journal, and nobody is told")


async def _list_is_long(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        remote.add_crowd(one.simulator)
        await one.die(_mortal(one, "answered"))
        remote.add_crowd(one.simulator)
        await one.live(one.process())
        one.judge(lie)


async def _page_fails(remote: Remote, lie: str) -> None:
    """Our job is on a page that cannot be read for a day; then it can."""
    for rule in ({"fault": "status", "code": 500}, {"fault": "non_json"}, {"fault": "drop_before_commit"}):
        with trial(remote) as one:
            remote.add_crowd(one.simulator)
            await one.die(_mortal(one, "answered"))
            remote.add_crowd(one.simulator)
            one.fault(**(remote.later_page or {}), **rule, times=None)
            async with remote.worker(one.process()) as worker:
                for _ in range(12):
                    with suppress(TransientError):
                        await one.turn(worker)
                    await one.pass_time(7_200.0)
            one.simulator.faults.clear()
            await one.live(one.process())
            one.judge(lie)


# -- ends -----------------------------------------------------------------------------------------------------------------


async def _ends_badly(remote: Remote, lie: str) -> None:
    """It may send again, or end with an error; a later run likewise. What it may not is say that all is there."""
    for what, arrange in remote.bad_ends().items():
        with trial(remote) as one:
            arrange(one.simulator)
            for run in ("run-1", "run-2"):
                try:
                    await one.live(one.process(run_id=run))
                except EndsRed:
                    continue
                except NotConforming as error:
                    raise NotConforming(f"{error} ({what})") from error
            harm = remote.harm(one.simulator)
            if harm:
                raise NotConforming(f"{lie}: {'; '.join(harm)} ({what})")


# -- looks, cancellations, secrets ----------------------------------------------------------------------------------------


async def _watch_writes(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        await one.die(_mortal(one, "recorded"))
        process = one.process()
        async with remote.worker(process) as worker:
            before, head = len(one.simulator.journal), process.ledger.head()
            for _ in range(3):
                await worker.watch()
                await one.pass_time(30.0)
            writes = one.writes(before)
            if writes:
                raise NotConforming(f"{lie}: looking has sent {', '.join(writes)}")
            if process.ledger.head() != head:
                raise NotConforming(f"{lie}: looking has changed the ledger")


async def _cancel_is_exact(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        remote.add_namesake(one.simulator)
        await one.die(_mortal(one, "recorded"))
        remote.add_namesake(one.simulator)
        (row,) = one.rows()
        async with remote.worker(one.process()) as worker:
            await worker.cancel(row)
        ended = list(remote.cancelled(one.simulator))
        if ended != [row.external_id]:
            raise NotConforming(f"{lie}: job {row.external_id} was to end, and the journal has {ended}")


class _Kept(logging.Handler):
    """Every log record of a scenario, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


async def _secrets_are_told(remote: Remote, lie: str) -> None:
    """The remote quotes the credential in a refusal, in an error page, in an error of its own; connections break."""
    for rule in (
        remote.refusal,
        {**remote.refusal, "code": 400},
        {**remote.refusal, "code": 403},
        {**remote.refusal, "code": 500},
        {"fault": "non_json", "code": 503, "body": "<html>…</html>"},
        {"fault": "drop_before_commit"},
    ):
        with trial(remote) as one, _logs() as kept:
            secrets: list[str] = []

            def on_step(
                step: str, _row: Submission, one: Trial = one, secrets: list[str] = secrets, rule: Any = rule
            ) -> None:
                if step == "intent" and not secrets:  # the credential is in use by now
                    secrets += remote.secrets(one.simulator)
                    one.fault(**remote.write, **_quoting(rule, " ".join(secrets)))

            with suppress(NotConforming):  # a refusal may end it
                await one.live(one.process(on_step=on_step))
            with open_ledger(one.url) as ledger:
                bodies = [str(body) for row in ledger.in_states(*State) for body in ledger.event_bodies(row.id)]
            places = {"an error": one.troubles, "a log": kept.lines, "the ledger": bodies}
            for place, texts in places.items():
                written = [form for secret in secrets for form in _forms(secret)]
                if any(form in text for form in written for text in texts):
                    raise NotConforming(f"{lie}: after {rule['fault']}, {place} holds the credential")
            if not secrets:
                raise NotConforming("no credential was in use, so that nothing is proved: declare `secrets`")


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may be written: as it is, in a URL, in hexadecimal, and in base64 wherever it may begin in a longer text."""
    data = secret.encode()
    yield from {secret, quote(secret, safe=""), quote_plus(secret), data.hex(), data.hex().upper()}
    for before, shared in ((0, 0), (1, 2), (2, 3)):  # so many characters hold bits of what stands before, too
        whole = bytes(before) + data
        whole = whole[: len(whole) // 3 * 3]  # and what stands behind may change the rest
        for alphabet in (b"+/", b"-_"):
            text = base64.b64encode(whole, alphabet).decode()[shared:]
            if len(text) >= 8:
                yield text


def _quoting(rule: Any, secret: str) -> dict[str, Any]:
    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("…", secret)
        return {name: filled(each) for name, each in value.items()} if isinstance(value, Mapping) else value

    return {name: filled(value) for name, value in rule.items()}


@contextmanager
def _logs() -> Any:
    kept, root = _Kept(), logging.getLogger()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    try:
        yield kept
    finally:
        root.removeHandler(kept)
        root.setLevel(level)


# -- all of them ----------------------------------------------------------------------------------------------------------

SCENARIOS = (
    Scenario("undisturbed", "not one effect", "", _undisturbed),
    *(Scenario(f"killed at the step {step}", "sent twice after a death", "F1 to F4", _dies_at(step)) for step in STEPS),
    Scenario("killed anywhere", "sent twice after a death", "F1 to F4", _dies_anywhere),
    Scenario("two workers", "two workers have both sent", "F7", _two_at_once),
    Scenario(
        "a paused sender", "a paused sender has sent after another had taken over", "F7", _stopped_before_its_write
    ),
    Scenario("a stale look", "a stale look: it sent what was there already", "F7, F8", _overtaken_anywhere),
    Scenario("wrong clocks", "absence claimed too early: by the host's clock", "F12, F27", _clocks_are_wrong),
    Scenario(
        "a clock that changes",
        "absence claimed too early: by the host's clock",
        "F12, F27",
        _clock_changes,
        lambda remote: remote.late_seconds > 0 or remote.hidden_seconds > 0,
    ),
    Scenario("a lost answer", "a lost answer was not looked for", "F9", _answer_is_lost),
    Scenario("refused for now", "what was not done counts as done, or never comes", "F11, F12, F30", _refused_for_now),
    Scenario(
        "a late commit",
        "absence claimed too early",
        "F9, F30",
        _request_is_late,
        lambda remote: remote.late_seconds > 0,
    ),
    Scenario(
        "a hidden job", "absence claimed too early", "F9, F22", _job_is_hidden, lambda remote: remote.hidden_seconds > 0
    ),
    Scenario(
        "jobs of others",
        "its probe matches loosely",
        "",
        _others_have_jobs_alike,
        lambda remote: type(remote).add_alike is not Remote.add_alike,
    ),
    Scenario(
        "two that match",
        "it takes one of two that match, and hides the other",
        "",
        _two_match,
        lambda remote: type(remote).add_twin is not Remote.add_twin,
    ),
    Scenario(
        "a long list",
        "it looked at a part of the list, or relied on what a dead process remembered",
        "F1 to F4",
        _list_is_long,
        lambda remote: remote.later_page is not None,
    ),
    Scenario(
        "a page that fails",
        "a walk that swallows a page error: it took the part for the whole",
        "F11",
        _page_fails,
        lambda remote: remote.later_page is not None,
    ),
    Scenario(
        "a bad end",
        "green that is not there",
        "F10",
        _ends_badly,
        lambda remote: type(remote).bad_ends is not Remote.bad_ends,
    ),
    Scenario("a watch", "a watch that writes", "F10", _watch_writes, lambda remote: remote.can_watch),
    Scenario(
        "a cancellation", "a cancel by name instead of id", "F8", _cancel_is_exact, lambda remote: remote.can_cancel
    ),
    Scenario(
        "secrets",
        "a secret in an error",
        "F12",
        _secrets_are_told,
        lambda remote: type(remote).secrets is not Remote.secrets,
    ),
)
