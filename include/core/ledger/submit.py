"""`submit_once`: the one way in which Waybill changes a remote system.

The thing to know before changing it: between the committed SENDING and the recorded answer lies the only doubt there is.
Nothing in here sleeps or sends twice to get out of it: the remote is searched, and where the search does not settle it
yet, the caller is told when to come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from include.core.errors import (
    ConflictingRequest,
    Doubtful,
    LedgerError,
    NotFound,
    RemoteError,
    RequestError,
    TransientError,
    WaybillError,
)
from include.core.ledger.states import State
from include.core.ledger.store import Intent, Ledger, Quota, Submission

MAX_TURNS = 20  # other workers may win every compare-and-set for a while, but not for ever


class AttemptLost(TransientError):
    """Another worker took this attempt over, or it took too long: nothing was sent, and nothing may be."""

    def __init__(self, message: str):
        super().__init__(message, retry_after=1.0, no_effect=True)


class DoubtPending(TransientError):
    """It is not known yet whether the remote acted. `retry_after`: seconds until asking again can settle it."""


@dataclass(frozen=True)
class Walk:
    """One search of the remote: the ids of jobs that are exactly what was asked, and whether the search saw everything.

    `remote_now` is the remote's own clock (epoch seconds) when the walk began.
    """

    candidates: tuple[str, ...]
    complete: bool
    remote_now: float


@dataclass(frozen=True)
class HarmlessTwin:
    """Declares that a second job of this kind does no harm, and why. `verified` looks at the effect itself.

    After an unresolved doubt the row becomes SUPERSEDED once `verified` has looked (True: the effect is there; False:
    it is not), and the caller may open a new generation.
    """

    reason: str
    verified: Callable[[Submission], Awaitable[bool]]


@dataclass(frozen=True)
class Probe:
    """How a system is searched for a job whose answer was lost.

    `horizon_seconds`: how long an accepted job may stay invisible to `walk`, on the remote's clock.
    `proves_absence`: two complete empty walks that far apart prove that there is none (else it `finds only`).
    """

    walk: Callable[[Submission], Awaitable[Walk]]
    horizon_seconds: float
    request_timeout_seconds: float
    proves_absence: bool
    harmless: HarmlessTwin | None = None


@dataclass(frozen=True)
class Guard:
    """Held by the sender of one attempt. Call it immediately before each remote write: it raises AttemptLost."""

    ledger: Ledger
    attempt: Submission
    send_before: float  # of the ledger's `monotonic`

    def __call__(self) -> None:
        if self.ledger.monotonic() > self.send_before:
            raise AttemptLost(f"{self.attempt}: this worker was paused too long to send safely")
        now = self.ledger.get(self.attempt.id)
        if now.state != State.SENDING or now.attempt_token != self.attempt.attempt_token:
            raise AttemptLost(f"{self.attempt}: another worker has taken it over (now {now.state})")


Send = Callable[[Submission, Guard], Awaitable[str]]


async def submit_once(
    ledger: Ledger,
    intent: Intent,
    *,
    send: Send,
    probe: Probe,
    prepare: Callable[[Submission, Guard], Awaitable[None]] | None = None,
    effect_present: Callable[[], Awaitable[bool]] | None = None,
    quota: Quota | None = None,
) -> Submission:
    """Makes sure that the remote has one effective job for this intent, and returns its row.

    The row is SENT (re-attached or new), or DONE where an earlier generation's effect is still there, or SUPERSEDED
    where an unresolved doubt of a harmless kind ended with the effect verified (True in detail `effect_present`).

    `send(row, guard)` calls `guard()` right before its one POST and returns the remote's id. `prepare` may clear the
    ground first; whatever it raises proves that nothing was sent. `effect_present` is asked before a DONE effect is
    made again.

    Raises ConflictingRequest (another payload is open), QuotaExceeded, DoubtPending or another TransientError (come
    back after `retry_after`), Doubtful (HELD: a person must settle), AuthError, RequestError, RemoteError.
    """
    row = ledger.open(intent, quota=quota)
    if row.state == State.DONE and effect_present is not None and not await effect_present():
        row = ledger.open(intent, quota=quota, effect_absent=True)
    for _ in range(MAX_TURNS):
        match row.state:
            case State.SENT | State.DONE:
                return row
            case State.RESERVED:
                row = await _attempt(ledger, row, send=send, probe=probe, prepare=prepare)
            case State.SENDING:
                row = ledger.move(row, State.DOUBTFUL, why="found sending, without its sender")
            case State.DOUBTFUL:
                row = await resolve(ledger, row, probe)
            case State.HELD:
                raise Doubtful(held_message(row))
            case State.SUPERSEDED if row.detail.get("effect_present"):
                return row
            case State.REJECTED:
                raise RemoteError(f"{row} was refused: {row.detail.get('refusal', 'no reason kept')}", no_effect=True)
            case _:
                row = ledger.open(intent, quota=quota)
    raise ConflictingRequest(f"{row}: other workers keep changing it; let them finish, then clear this task")


async def _attempt(
    ledger: Ledger,
    reserved: Submission,
    *,
    send: Send,
    probe: Probe,
    prepare: Callable[[Submission, Guard], Awaitable[None]] | None,
) -> Submission:
    """One attempt: compare-and-set, prepare, send, record. Returns the row as it then is."""
    ledger.on_step("intent", reserved)
    window = probe.request_timeout_seconds
    attempt = ledger.begin(reserved, answer_within=2 * window)
    if attempt is None:
        return ledger.get(reserved.id)
    guard = Guard(ledger, attempt, ledger.monotonic() + window)
    ledger.on_step("sending", attempt)
    try:
        if prepare is not None:
            await prepare(attempt, guard)
        guard()
    except BaseException:  # also a cancelled task: nothing has left, and the row says so
        _not_sent(ledger, attempt, why="stopped before sending")
        raise
    try:
        external_id = await send(attempt, guard)
    except WaybillError as error:
        return _after_error(ledger, attempt, error)
    except BaseException as error:
        ledger.move(attempt, State.DOUBTFUL, why=f"no answer: {type(error).__name__}")
        raise
    ledger.on_step("answered", attempt)
    sent = ledger.record_sent(attempt, external_id, why="answer")
    ledger.on_step("recorded", sent)
    return sent


def _not_sent(ledger: Ledger, attempt: Submission, *, why: str) -> None:
    """Back to RESERVED by the only one who can prove it: the holder of the token, who knows that nothing left."""
    now = ledger.get(attempt.id)
    if now.attempt_token == attempt.attempt_token and now.state in (State.SENDING, State.DOUBTFUL):
        ledger.move(now, State.RESERVED, why=why)


def _after_error(ledger: Ledger, attempt: Submission, error: WaybillError) -> Submission:
    """SENDING after an answer that is not a success. Raises it, unless the answer is a doubt to look into at once."""
    if not error.no_effect:
        return ledger.move(attempt, State.DOUBTFUL, why=f"no answer: {error}")
    if isinstance(error, RemoteError | NotFound | RequestError):
        ledger.move(attempt, State.REJECTED, why=str(error), detail={"refusal": str(error)})
    else:
        _not_sent(ledger, attempt, why=f"proof of no effect: {error}")
    raise error


async def resolve(ledger: Ledger, row: Submission, probe: Probe) -> Submission:
    """Looks for the job of a DOUBTFUL row once, and moves the row as far as that settles it.

    Raises DoubtPending while more time must pass on the remote's clock, Doubtful when only a person can tell.
    """
    walk = await probe.walk(row)
    fresh = sorted(set(walk.candidates) - ledger.known(row.system, row.kind, walk.candidates))
    if len(fresh) == 1:
        try:
            return ledger.record_sent(row, fresh[0], why="found by probe")
        except LedgerError:  # another worker found it at the same time
            return ledger.get(row.id)
    if len(fresh) > 1:
        held = ledger.move(row, State.HELD, why="several jobs match", detail={"candidates": fresh})
        raise Doubtful(held_message(held))
    if not walk.complete:
        raise DoubtPending(f"{row}: the search of the remote was not complete", retry_after=probe.horizon_seconds / 4)
    return await _conclude_absence(ledger, row, probe, walk)


async def _conclude_absence(ledger: Ledger, row: Submission, probe: Probe, walk: Walk) -> Submission:
    """An empty complete walk: the first starts the horizon, a later one ends it. All on the remote's clock."""
    first = row.detail.get("first_empty_walk")
    if first is None or first["token"] != row.attempt_token:
        first = {"token": row.attempt_token, "remote_now": walk.remote_now}
        row = ledger.annotate(row, {"first_empty_walk": first}, why="not found yet")
    wait = probe.horizon_seconds + probe.request_timeout_seconds - (walk.remote_now - float(first["remote_now"]))
    if wait > 0:
        raise DoubtPending(f"{row}: not found; it may still appear, asked again in {wait:.0f} s", retry_after=wait)
    if probe.proves_absence:
        return ledger.move(row, State.RESERVED, why="absence proved by two complete walks")
    if probe.harmless is not None:
        present = await probe.harmless.verified(row)
        why = f"not found; {probe.harmless.reason}"
        return ledger.move(row, State.SUPERSEDED, why=why, detail={"effect_present": present})
    held = ledger.move(row, State.HELD, why="not found, and this remote cannot prove absence")
    raise Doubtful(held_message(held))


def held_message(row: Submission) -> str:
    """What is not known, the evidence, and the command that settles it."""
    found = row.detail.get("candidates")
    evidence = f"several jobs match: {', '.join(found)}" if found else "the remote's lists do not show it"
    return (
        f"{row} of run {row.owner.run_id} is held: whether the remote accepted it is not known ({evidence}). Look there, "
        f"then say what is true: `python -m include.core.ledger settle {row.id} --as sent --external-id ID|--as reserved|"
        "--as cancelled --who NAME --why REASON`, and clear the task"
    )
