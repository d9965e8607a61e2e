"""What any process with many remote jobs needs: where each effect stands, what counts as an attempt, when to send again.

Free of any one system: a system adds what its remote does (docs/adding_a_system.md). The ledger's rows of one effect, oldest
first, are the argument `rows`; a predicate `covers` says whether a row tried the part of the effect that is asked about.

Invariant: the ledger is the only memory. Whoever looks, in whatever process and after whatever crash, derives what to do
from the rows alone; a rule that needs more memory than a row holds is the wrong rule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from include.core.errors import (
    LONGEST_WAIT_SECONDS,
    AuthError,
    ConflictingRequest,
    Forbidden,
    Held,
    LedgerError,
    QuotaExceeded,
    TransientError,
    WaybillError,
)
from include.core.ledger import Ledger, Owner, State, Submission

K = TypeVar("K")
T = TypeVar("T")
Covers = Callable[[Submission], bool]

LOOK_AGAIN_SECONDS = 30.0  # after trouble with one effect for which the remote names no time
ENDED_BADLY = frozenset({State.FAILED, State.SUPERSEDED})
CIRCUIT_SECONDS = 60.0  # how far back failures are counted, and how long after the last of them nothing is sent
CIRCUIT_MIN_ENDED = 5
CIRCUIT_FAILED_SHARE = 0.8


class Phase(StrEnum):
    """Where one effect stands in this run."""

    PASSED = "passed"  # it is there and proved
    RUNNING = "running"  # a job is at work, ours or adopted
    WAITING = "waiting"  # for a free slot, or until a submission in doubt can be decided
    FAILED = "failed"  # nothing more will be tried in this run
    HELD = "held"  # a person must say whether a job exists


FINAL = frozenset({Phase.PASSED, Phase.FAILED, Phase.HELD})


@dataclass(frozen=True)
class Standing(Generic[K]):
    """One effect now. `look_again_at`: ledger time at which a worker can do something (stuck job, submission in doubt)."""

    target: K
    phase: Phase
    why: str = ""
    job_id: str | None = None
    look_again_at: float | None = None


@dataclass(frozen=True)
class Progress(Generic[K]):
    """What one pass over all effects left behind. `now`: ledger time."""

    standings: list[Standing[K]]
    now: float

    @property
    def finished(self) -> bool:
        return all(s.phase in FINAL for s in self.standings)

    @property
    def counts(self) -> dict[str, int]:
        return {str(phase): sum(1 for s in self.standings if s.phase == phase) for phase in Phase}

    @property
    def look_again_at(self) -> float | None:
        """The earliest instant (ledger time) at which a worker is needed even if no job ends."""
        return min((s.look_again_at for s in self.standings if s.look_again_at is not None), default=None)

    @property
    def running(self) -> int:
        """How many jobs are at work: a wait that finds fewer has missed an end."""
        return sum(1 for s in self.standings if s.phase == Phase.RUNNING and s.job_id is not None)

    @property
    def more_to_send(self) -> bool:
        """Whether effects wait for a free slot, so that the end of any job is a reason to wake."""
        return any(s.phase == Phase.WAITING and s.look_again_at is None for s in self.standings)

    @property
    def waiting_reasons(self) -> list[str]:
        """Why effects wait for something else than a slot or a job, each once: what a person wants to read meanwhile."""
        waits = [s for s in self.standings if s.phase == Phase.WAITING and s.look_again_at is not None]
        return list(dict.fromkeys(s.why for s in waits))


# -- attempts ---------------------------------------------------------------------------------------------------------


def of_owner(rows: Sequence[Submission], owner: Owner) -> list[Submission]:
    """The rows that this task submitted or adopted, for this request."""
    return [row for row in rows if row.belongs_to(owner)]


def was_sent(row: Submission) -> bool:
    """Whether the remote may have seen it."""
    return bool(row.external_id) or row.state not in (State.RESERVED, State.CANCELLED, State.REJECTED)


def may_be_running(rows: Sequence[Submission]) -> bool:
    """Whether a job may be at work for the newest submission: it takes one of the slots."""
    return bool(rows) and rows[-1].state in (State.SENDING, State.ACCEPTED, State.SENT, State.IN_DOUBT)


def resubmissions(rows: Sequence[Submission], owner: Owner, covers: Covers) -> int:
    """How many covering submissions have failed for this task and request. The first launch and an adopted job count alike."""
    return sum(1 for row in of_owner(rows, owner) if row.state in ENDED_BADLY and covers(row))


def failed_jobs(rows: Sequence[Submission], owner: Owner, covers: Covers) -> list[str]:
    """The remote ids of its covering jobs that failed or were superseded, in order."""
    bad = [row for row in of_owner(rows, owner) if row.state in ENDED_BADLY]
    return [row.external_id for row in bad if row.external_id and covers(row)]


def sent_after(rows: Sequence[Submission], owner: Owner, row: Submission) -> bool:
    """Whether this task has really sent, or adopted, another generation after `row`."""
    return any(was_sent(later) for later in of_owner(rows, owner) if later.generation > row.generation)


def refused(rows: Sequence[Submission], owner: Owner) -> str | None:
    """Why the remote permanently refused this task's last submission, None where it did not."""
    last = rows[-1] if rows else None
    if last is not None and last.state == State.REJECTED and last.owner.is_same(owner):
        return str(last.detail.get("refusal", "the remote refused it"))
    return None


# -- when not to send -------------------------------------------------------------------------------------------------


def note_rate_limit(ledger: Ledger, row: Submission, seconds: float | None) -> None:
    """Writes Retry-After down beside a submission that did not leave: whoever looks next, in whatever process, keeps to it."""
    if seconds and row.state == State.RESERVED:
        seconds = min(seconds, LONGEST_WAIT_SECONDS)
        limit = {"not_before": ledger.now() + seconds}
        ledger.annotate(row, limit, why=f"rate limited by the remote for {seconds:.0f} s")


def rate_limited_until(rows: Sequence[Submission], now: float) -> float | None:
    """Until when the remote has asked not to send this submission (ledger time), None where it has not, or that is past.

    A time further away than the longest wait was written before there was one, or by another clock: it is not kept to.
    """
    last = rows[-1] if rows else None
    until = float(last.detail.get("not_before", 0.0)) if last is not None and last.state == State.RESERVED else 0.0
    return until if now < until <= now + LONGEST_WAIT_SECONDS else None


def circuit_open_until(rows: Iterable[Submission], now: float) -> float | None:
    """The circuit breaker: until when nothing is sent because nearly all jobs have just failed, None where they have not.

    Failures of a remote are not independent: in an outage of its storage all jobs fail within seconds, and all attempts
    sent at once would be used up before it ends.
    """
    ended = [row for row in rows if row.closed_at is not None and now - row.closed_at < CIRCUIT_SECONDS]
    failed = [float(row.closed_at or now) for row in ended if row.state == State.FAILED]
    open_ = len(ended) >= CIRCUIT_MIN_ENDED and len(failed) >= CIRCUIT_FAILED_SHARE * len(ended)
    return max(failed) + CIRCUIT_SECONDS if open_ else None


# -- trouble with one effect ------------------------------------------------------------------------------------------


def waits(target: K, error: WaybillError, now: float, seconds: float = LOOK_AGAIN_SECONDS) -> Standing[K]:
    """Waiting because of an error, for as long as the remote asks for, or else `seconds`."""
    wait = getattr(error, "retry_after", None) or seconds
    return Standing(target, Phase.WAITING, str(error), look_again_at=now + wait)


async def guarded(target: K, work: Awaitable[T], now: Callable[[], float]) -> T | Standing[K]:
    """The result of `work`, or where its error leaves the effect: trouble with one does not stop the others.

    Only a wrong credential (AuthError, but not Forbidden, which concerns one thing) and a bad ledger stop all.
    """
    try:
        return await work
    except (TransientError, ConflictingRequest) as error:
        return waits(target, error, now())
    except QuotaExceeded as error:
        again = error.available_at if error.retry_after is None else now() + error.retry_after
        return Standing(target, Phase.WAITING, str(error), look_again_at=again)
    except Held as error:
        return Standing(target, Phase.HELD, str(error))
    except WaybillError as error:
        if isinstance(error, AuthError | LedgerError) and not isinstance(error, Forbidden):
            raise
        return Standing(target, Phase.FAILED, str(error))
