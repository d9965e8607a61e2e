"""`submit_once`: the one way in which Waybill changes a remote system.

Invariant: between the committed SENDING and the recorded answer, and only there, it is not known whether the remote acted;
nothing in here sleeps or sends twice to find out. The remote is searched, and where the search does not decide it yet, the
caller is said when to come back.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from include.core.errors import (
    Cancelled,
    ConflictingRequest,
    Held,
    LedgerError,
    NotFound,
    QuotaExceeded,
    RemoteError,
    RequestError,
    TransientError,
    WaybillError,
)
from include.core.ledger.clock import PACE
from include.core.ledger.migrations import detail_value
from include.core.ledger.odd_values import storable, storable_id
from include.core.ledger.rows import Intent, Quota, Submission
from include.core.ledger.states import State
from include.core.ledger.store import Ledger, OnHold
from include.core.text import printable

MAX_ATTEMPTS = 2  # in one call: a lost answer is sent again under the same client key at once, but not on and on
RESEND_SECONDS = 30.0
MAX_TURNS = 20  # other workers may win every compare-and-set for a while, but not for ever


class AttemptLost(TransientError):
    """Another worker took this attempt over, or it took too long: nothing was sent, and nothing may be."""

    def __init__(self, message: str):
        super().__init__(message, retry_after=1.0, no_effect=True)


class InDoubt(TransientError):
    """It is not known yet whether the remote acted. `retry_after`: seconds until asking again can decide it."""

    longest_wait_seconds = float("inf")  # the number is ours


@dataclass(frozen=True)
class RemoteSearch:
    """One search of the remote: the ids of jobs that are exactly what was asked, and whether it came to its end.

    `complete`: everything that can be searched was searched; a page that failed or moved makes it False, and the search is
    made again. `remote_now` is the remote's own clock (epoch seconds) when the search began.
    """

    candidates: tuple[str, ...]
    complete: bool
    remote_now: float


@dataclass(frozen=True)
class DuplicateSafe:
    """Declares that a second job of this kind does no harm, and why. `verified` looks at the effect itself.

    A row that stays in doubt becomes SUPERSEDED once `verified` has looked (True: the effect is there; False: it is
    not), and the caller may open a new generation.
    """

    reason: str
    verified: Callable[[Submission], Awaitable[bool]]


@dataclass(frozen=True)
class Probe:
    """How a system is searched for a job whose answer was lost.

    `visibility_window_seconds`: how long an accepted job may stay invisible to `search`, on the remote's clock.
    `proves_absence`: two complete empty searches that far apart prove that there is none (else it can only find).
    """

    search: Callable[[Submission], Awaitable[RemoteSearch]]
    visibility_window_seconds: float
    request_timeout_seconds: float
    proves_absence: bool
    harmless: DuplicateSafe | None = None
    client_key: ClientKey | None = None


@dataclass
class SendFence:
    """Held by whoever works for one RESERVED row. Called immediately before each remote write; raises AttemptLost.

    While the ground is cleared (`window_seconds` None) it checks that the row is still this worker's. In `send` its first
    call makes the row SENDING, committed: not before, since whoever finds a row SENDING cannot know whether its bytes have
    left. A later call (the same request with a new credential) checks that the attempt is still this worker's, and young.
    """

    ledger: Ledger
    row: Submission
    window_seconds: float | None
    quota: Quota | None = None
    attempt: Submission | None = None
    send_before: float = math.inf  # of the ledger's `monotonic`
    lost: bool = False  # to another worker

    def __call__(self) -> None:
        try:
            if self.window_seconds is not None and self.attempt is None:
                self._begin(self.window_seconds)
            else:
                self._check(self.attempt or self.row)
        except (AttemptLost, OnHold, QuotaExceeded):
            raise
        except WaybillError as error:
            raise AttemptLost(f"{self.row}: not sent, since {error}") from None

    def _begin(self, window: float) -> None:
        self.send_before = self.ledger.monotonic() + window
        self.attempt = self.ledger.begin(self.row, response_deadline=2 * window, quota=self.quota)
        if self.attempt is None:
            raise self._taken_over()
        self.ledger.on_step("sending", self.attempt)
        self._check_pause()

    def _check(self, mine: Submission) -> None:
        self._check_pause()
        now = self.ledger.get(mine.id)
        if now.state != mine.state or now.fencing_token != mine.fencing_token:
            raise self._taken_over()

    def _check_pause(self) -> None:
        if self.ledger.monotonic() > self.send_before:
            raise AttemptLost(f"{self.row}: this worker was paused too long to send safely")

    def _taken_over(self) -> AttemptLost:
        self.lost = True
        return AttemptLost(f"{self.row}: another worker has taken it over")


@dataclass(frozen=True)
class Sent:
    """An answer with facts worth keeping beside the id. They are written down together: one commit, nothing in between."""

    external_id: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Accepted:
    """A yes that names nothing. The row waits for its id, which `probe.search` finds; it is never sent again.

    `named_within_seconds`: by when the remote shows the job. After that only a person can tell what became of it.
    """

    detail: Mapping[str, Any] = field(default_factory=dict)
    named_within_seconds: float = 600.0


@dataclass(frozen=True)
class ClientKey:
    """For a remote that takes a key of ours with each request, and drops a second request with the same key.

    `get` gives the key of a row; it is asked once, and the key is committed before the first request: `row.client_key`. A
    request without an answer may be sent again under it for `valid_seconds` after the first.
    """

    get: Callable[[Submission], Awaitable[str]]
    valid_seconds: float


Send = Callable[[Submission, SendFence], Awaitable[str | Sent | Accepted]]
Prepare = Callable[[Submission, SendFence], Awaitable[None]]


async def submit_once(
    ledger: Ledger,
    intent: Intent,
    *,
    send: Send,
    probe: Probe,
    prepare: Prepare | None = None,
    seen_absent: int | None = None,
    quota: Quota | None = None,
) -> Submission:
    """Makes sure that the remote has one effective job for this intent, and returns its row.

    The row is SENT (re-attached or new; with `cancel_requested_at` set, the caller cancels that job first), or DONE where
    an earlier generation's effect is still there, or SUPERSEDED where a row of a duplicate-safe kind stayed in doubt and
    its effect was verified (True in detail `is_effective`).

    `send(row, fence)` calls `fence()` right before its one POST and returns the remote's id, or a `Sent` with facts to
    keep; it does nothing else after the POST. `prepare` may clear the ground first; whatever it raises proves that nothing
    was sent. `seen_absent` is the newest generation that the caller knew of when it looked at the effect and saw it absent
    or incomplete (0: none); without it, an effect in place is returned as it is, and with another payload it is a conflict.

    Raises LookAgain (a newer generation has ended since the caller looked), Cancelled, ConflictingRequest (another payload
    is open), QuotaExceeded, InDoubt or another TransientError (come back after `retry_after`), Held (HELD: a person must
    resolve it), AuthError, RequestError, RemoteError.
    """
    row, attempts = _open(ledger, intent, quota, seen_absent), 0
    for _ in range(MAX_TURNS):
        match row.state:
            case State.SENT:
                return row
            case State.DONE | State.SUPERSEDED if row.is_effective:
                return row
            case State.RESERVED if attempts == MAX_ATTEMPTS:
                raise InDoubt(f"{row}: no answer {attempts} times; sent again later", retry_after=RESEND_SECONDS)
            case State.RESERVED:
                attempts += 1
                row = await _attempt(ledger, row, send=send, probe=probe, prepare=prepare, quota=quota)
            case State.SENDING:
                row = ledger.move(row, State.IN_DOUBT, why="found sending, without its sender")
            case State.IN_DOUBT | State.ACCEPTED:
                row = await resolve(ledger, row, probe)
            case State.HELD | State.REJECTED | State.CANCELLED:
                _raise_if_final(row)
                row = _open(ledger, intent, quota, seen_absent)
            case _:
                row = _open(ledger, intent, quota, seen_absent)
    raise ConflictingRequest(f"{row}: other workers keep changing it; let them finish, then clear this task")


def _open(ledger: Ledger, intent: Intent, quota: Quota | None, seen_absent: int | None) -> Submission:
    """The row to go on with; a new generation where there is none, or the caller has seen that its effect is gone."""
    row = ledger.open(intent, quota=quota, seen_absent=seen_absent)
    if row.is_effective and row.payload_sha256 != intent.payload_sha256:
        raise ConflictingRequest(
            f"{row} is in effect with payload {row.payload_sha256[:12]}, and run "
            f"{intent.owner.dag_id}/{intent.owner.run_id} asks for payload {intent.payload_sha256[:12]}: "
            "see that its effect is gone, or ask under another key"
        )
    return row


def _raise_if_final(row: Submission) -> None:
    """Raises where nobody but a person can go on. Only what another worker withdrew unsent may be asked for anew."""
    if row.state == State.HELD:
        raise Held(held_message(row))
    if row.state == State.REJECTED:
        raise RemoteError(f"{row} was refused: {row.detail.get('refusal', 'no reason kept')}", no_effect=True)
    if row.cancel_requested_at is not None:
        raise Cancelled(f"{row} was cancelled by a person before it was sent; a new run may ask for it again")


async def _attempt(
    ledger: Ledger,
    reserved: Submission,
    *,
    send: Send,
    probe: Probe,
    prepare: Prepare | None,
    quota: Quota | None,
) -> Submission:
    """One attempt: compare-and-set, prepare, send, record. Returns the row as it then is."""
    ledger.on_step("intent", reserved)
    reserved = await _prepared(ledger, reserved, probe, prepare)
    if reserved.state != State.RESERVED:
        return reserved
    fence = SendFence(ledger, reserved, probe.request_timeout_seconds, quota)
    try:
        answer = await send(reserved, fence)
    except BaseException as error:
        if fence.attempt is None:  # nothing has left, and the row still says so
            if prepare is not None:
                with suppress(WaybillError):
                    ledger.release(reserved)
            if fence.lost and (now := ledger.get(reserved.id)).state != State.SENDING:
                return now
            raise
        if isinstance(error, WaybillError):
            return _after_error(ledger, fence.attempt, error)
        with suppress(WaybillError):  # SENDING without its sender says the same
            ledger.move(fence.attempt, State.IN_DOUBT, why=f"no answer: {type(error).__name__}")
        raise
    attempt = fence.attempt or ledger.begin(reserved, response_deadline=0.0)
    if attempt is None:
        raise LedgerError(f"{reserved}: sent without its fence, while another worker held it; the answer is {answer}")
    ledger.on_step("answered", attempt)
    recorded = _recorded(ledger, attempt, answer)
    ledger.on_step("recorded", recorded)
    return recorded


async def _prepared(ledger: Ledger, row: Submission, probe: Probe, prepare: Prepare | None) -> Submission:
    """The row with the ground cleared for it, and with its client key; or as it now is, where another worker has it.

    Raises InDoubt while another worker clears the ground; one that died is replaced after its time.
    """
    until = float(row.detail.get("claimed_until", 0.0))
    left = until - ledger.now() if until else 0.0
    if left > 0:
        raise InDoubt(f"{row}: a worker of run {row.owner.run_id} is clearing the ground for it", retry_after=left)
    if prepare is not None:
        claimed = ledger.claim(row, seconds=2 * probe.request_timeout_seconds)
        if claimed is None:
            return ledger.get(row.id)
        row = claimed
        try:
            await prepare(row, SendFence(ledger, row, None))
        except BaseException:
            with suppress(WaybillError):  # its time runs out by itself
                ledger.release(row)
            raise
    if probe.client_key is not None and row.client_key is None:
        row = ledger.keep_client_key(row, await probe.client_key.get(row))
    return row


def _proved(ledger: Ledger, attempt: Submission, state: State, *, why: str, **facts: Any) -> None:
    """RESERVED or REJECTED by the only one who can prove it: the holder of the token, who knows what left and came back.

    Never hides the error that brought it here: where the ledger cannot be written, SENDING stays, and is in doubt later.
    """
    with suppress(WaybillError):
        now = ledger.get(attempt.id)
        if now.fencing_token == attempt.fencing_token and now.state in (State.SENDING, State.IN_DOUBT):
            ledger.move(now, state, why=why, **facts)


def _after_error(ledger: Ledger, attempt: Submission, error: WaybillError) -> Submission:
    """SENDING after an answer that is not a success. Raises it, unless the row is in doubt: then it is searched for at once."""
    # A ledger that fails inside `send` says nothing about the remote.
    if not error.no_effect or isinstance(error, LedgerError):
        return ledger.move(attempt, State.IN_DOUBT, why=f"no answer: {error}")
    if isinstance(error, RemoteError | NotFound | RequestError):
        _proved(ledger, attempt, State.REJECTED, why=str(error), detail={"refusal": str(error)})
    else:
        _proved(ledger, attempt, State.RESERVED, why=f"proof of no effect: {error}")
    raise error


def _recorded(ledger: Ledger, attempt: Submission, answer: Any) -> Submission:
    """The answer into the ledger, whatever it is: `send` came back, so the remote said yes. One whose id names nothing waits
    for its id like one that was not to name any."""
    if not isinstance(answer, Accepted):
        answer = answer if isinstance(answer, Sent) else Sent(answer)
        if storable_id(answer.external_id) is not None:
            return _record(ledger, attempt, answer)
        odd = {"answer_without_id": answer.external_id}
        answer = Accepted({**storable(answer.detail), **storable(odd)})
    return ledger.record_accepted(attempt, answer.detail, named_within=answer.named_within_seconds)


def _record(ledger: Ledger, attempt: Submission, answer: Sent) -> Submission:
    """The remote's id into the ledger. Where that fails the message carries it, so that at least the log has it."""
    try:
        return ledger.record_sent(attempt, answer.external_id, why="answer", detail=answer.detail)
    except TransientError as error:
        raise TransientError(
            f"{attempt}: the remote took it as {printable(answer.external_id, quotes=False)}, but {error}"
        ) from None
    except LedgerError:
        now = ledger.get(attempt.id)
        if now.fencing_token != attempt.fencing_token or now.state not in (State.SENDING, State.IN_DOUBT):
            raise
    # Another row has the id: the remote gave one job for two requests, or uses its numbers again.
    named = str(storable_id(answer.external_id))
    why = f"the answer {named} belongs to another submission"
    if now.state == State.SENDING:
        now = ledger.move(now, State.IN_DOUBT, why=why)
    return _held(ledger, now, why=why, detail={"candidates": [named]})


async def resolve(ledger: Ledger, row: Submission, probe: Probe) -> Submission:
    """Looks for the job of an IN_DOUBT or ACCEPTED row once, and moves the row as far as that decides it.

    Raises InDoubt while more time must pass on the remote's clock, Held when only a person can tell.
    """
    found = await probe.search(row)
    fresh = sorted(set(found.candidates) - ledger.known(row.system, row.kind, found.candidates))
    if len(fresh) == 1:
        try:
            return ledger.record_found(row, fresh[0])
        except LedgerError:  # another worker found it at the same time
            return ledger.get(row.id)
    if len(fresh) > 1:
        return _held(ledger, row, why="several jobs match", detail={"candidates": fresh})
    if row.state == State.ACCEPTED:
        return _wait_for_a_name(ledger, row, probe)
    if probe.client_key is not None and row.client_key is not None:
        # The ledger's time may be that much slower than the remote's while its clock is put right.
        young = PACE * probe.client_key.valid_seconds - probe.request_timeout_seconds
        if ledger.first_sent_within(row, young, clock_error=probe.request_timeout_seconds):
            return ledger.move(
                row, State.RESERVED, why="sent again under the same client key: the remote drops a second"
            )
    if not found.complete:
        wait = max(1.0, probe.visibility_window_seconds / 4)
        raise InDoubt(f"{row}: the search of the remote was not complete", retry_after=wait)
    return await _conclude_absence(ledger, row, probe, found)


def _wait_for_a_name(ledger: Ledger, row: Submission, probe: Probe) -> Submission:
    """An accepted job that is not shown yet. Absent or not, it is never sent again."""
    named_by, now = float(row.detail["named_by"]), ledger.now()
    if now >= named_by:
        return _held(ledger, row, why="accepted, and never shown", detail={})
    wait = min(max(1.0, probe.visibility_window_seconds / 4), named_by - now)
    raise InDoubt(f"{row}: the remote has accepted it and does not show its job yet", retry_after=wait)


async def _conclude_absence(ledger: Ledger, row: Submission, probe: Probe, found: RemoteSearch) -> Submission:
    """A complete search without a result: the first opens the visibility window, a later one finds it closed. All on the
    remote's clock."""
    first = detail_value(row.detail, "first_empty_search")
    if first is None or first["token"] != row.fencing_token:
        first = {"token": row.fencing_token, "remote_now": found.remote_now}
        row = ledger.annotate(row, {"first_empty_search": first}, why="not found yet")
        if row.state != State.IN_DOUBT or row.fencing_token != first["token"]:
            return row  # its sender, or another worker, has decided it meanwhile
    wait = (
        probe.visibility_window_seconds
        + probe.request_timeout_seconds
        - (found.remote_now - float(first["remote_now"]))
    )
    if wait > 0:
        raise InDoubt(f"{row}: not found; it may still appear, asked again in {wait:.0f} s", retry_after=wait)
    if probe.proves_absence:
        return ledger.move(row, State.RESERVED, why="absence proved by two complete searches")
    if probe.harmless is not None:
        present = await probe.harmless.verified(row)
        why = f"not found; {probe.harmless.reason}"
        return ledger.move(row, State.SUPERSEDED, why=why, detail={"is_effective": present})
    return _held(ledger, row, why="not found, and this remote cannot prove absence", detail={})


def _held(ledger: Ledger, row: Submission, *, why: str, detail: Mapping[str, Any]) -> Submission:
    """HELD, unless somebody has decided it meanwhile."""
    row = ledger.move(row, State.HELD, why=why, detail=detail)
    if row.state == State.HELD:
        raise Held(held_message(row))
    return row


def held_message(row: Submission) -> str:
    """What is not known, the evidence, and the command that resolves it."""
    found = row.detail.get("candidates")
    evidence = f"jobs to look at: {', '.join(found)}" if found else "the remote's lists do not show it"
    return (
        f"{row} of run {row.owner.run_id} is held: whether the remote accepted it is not known ({evidence}). Look there, "
        f"then say what is true: `python -m include.core.ledger resolve {row.id} --as sent --external-id ID|--as reserved|"
        "--as cancelled --who NAME --why REASON`, and clear the task"
    )
