"""What the conformance kit plays about looking: the search, ends, a watch, a cancellation, and secrets.

Invariant: each judges by its trial's journal, and names the lie.
"""

import base64
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, quote_plus

from harness.core.sending_scenarios import mortal
from harness.core.trial import (
    EndsRed,
    NotConforming,
    Remote,
    Trial,
    open_ledger,
    trial,
)
from include.core.errors import TransientError
from include.core.ledger import State, Submission

# -- the search -----------------------------------------------------------------------------------------------------------


async def others_have_jobs_alike(remote: Remote, lie: str) -> None:
    for rule in ({"fault": "drop_before_commit"}, {"fault": "drop_after_commit"}):
        with trial(remote) as one:
            alike = set(remote.add_alike(one.simulator))
            one.fault(**remote.write, **rule)
            try:
                await one.live(one.process())
            except NotConforming as error:  # it takes several for ours, or waits for the end of another's
                raise NotConforming(f"{lie}: {error}") from error
            taken = {row.external_id for row in one.rows()} & alike
            if taken:
                raise NotConforming(
                    f"{lie}: it took {', '.join(map(str, sorted(taken, key=str)))}, a job of somebody else"
                )
            one.judge(lie)


async def two_match(remote: Remote, lie: str) -> None:
    """Whoever sees both either keeps both in the ledger, or asks a person and names both. A third is never sent."""
    with trial(remote) as one:
        await one.die(mortal(one, "answered"))
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


async def list_is_long(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        remote.add_crowd(one.simulator)
        await one.die(mortal(one, "answered"))
        remote.add_crowd(one.simulator)
        await one.live(one.process())
        one.judge(lie)


async def page_fails(remote: Remote, lie: str) -> None:
    """Our job is on a page that cannot be read for a day; then it can."""
    for rule in ({"fault": "status", "code": 500}, {"fault": "non_json"}, {"fault": "drop_before_commit"}):
        with trial(remote) as one:
            remote.add_crowd(one.simulator)
            await one.die(mortal(one, "answered"))
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


async def ends_badly(remote: Remote, lie: str) -> None:
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


async def watch_writes(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        await one.die(mortal(one, "recorded"))
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


async def cancel_is_exact(remote: Remote, lie: str) -> None:
    with trial(remote) as one:
        remote.add_namesake(one.simulator)
        await one.die(mortal(one, "recorded"))
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


async def secrets_are_told(remote: Remote, lie: str) -> None:
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
