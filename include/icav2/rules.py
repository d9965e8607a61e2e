"""The rules of a copy as pure functions over ledger rows: what counts as an attempt, what may be sent again, what is over.

The thing to know before changing it: the ledger is the only memory. Every leg, retry, clear and later run derives what to
do from the rows of a destination, so a rule that needs more memory than a row holds is the wrong rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from include.core.ledger import State, Submission
from include.core.ledger.rows import sha256_of
from include.icav2.models import CopyRequest, Destination, Item
from include.icav2.verify import Made

SYSTEM, KIND = "icav2", "copy_batch"
STORM_SECONDS = 60.0


@dataclass(frozen=True)
class CopySettings:
    """The options of a run in the engine's terms. Seconds."""

    max_resubmissions: int = 5
    max_in_flight: int = 200
    job_timeout_seconds: float = 7200.0
    use_etag: bool = True
    items_per_job: int = (
        1000  # no maximum is documented (docs/protocols/icav2.md 4.2); larger destinations go chunk after chunk
    )
    visibility_window_seconds: float = 60.0  # how long ICA may hide a job that it accepted
    request_timeout_seconds: float = 60.0
    settle_seconds: float = 5.0  # how long a listing may lag behind a job

    @classmethod
    def of(cls, request: CopyRequest) -> CopySettings:
        return cls(
            max_resubmissions=request.max_resubmissions,
            max_in_flight=request.max_in_flight,
            job_timeout_seconds=request.job_timeout_minutes * 60,
            use_etag=request.verify == "size_and_etag",
        )


class Phase(StrEnum):
    """Where one destination stands in this run."""

    PASSED = "passed"  # every file is there and proved
    RUNNING = "running"  # a job is at work, ours or adopted
    WAITING = "waiting"  # for a free slot, or until a doubt can be settled
    FAILED = "failed"  # nothing more will be tried in this run
    HELD = "held"  # a person must say whether a job exists


FINAL = frozenset({Phase.PASSED, Phase.FAILED, Phase.HELD})


@dataclass(frozen=True)
class Standing:
    """One destination now. `look_again_at`: ledger time at which a worker can do something (stuck job, doubt)."""

    destination: Destination
    phase: Phase
    why: str = ""
    job_id: str | None = None
    look_again_at: float | None = None


def covers(row: Submission, item: Item) -> bool:
    return item.data_id in row.detail.get("data_ids", [])


def of_run(rows: Sequence[Submission], run_id: str) -> list[Submission]:
    """The rows that this run submitted or adopted."""
    return [row for row in rows if run_id in row.runs]


def failed_jobs(rows: Sequence[Submission], run_id: str, destination: Destination) -> list[str]:
    """Ids of this run's jobs that ended badly or were superseded, in order: the SOP's `failed_jobs_list`."""
    bad = [row for row in of_run(rows, run_id) if row.state in (State.FAILED, State.SUPERSEDED)]
    return [row.external_id for row in bad if row.external_id and any(covers(row, item) for item in destination.items)]


def resubmissions(rows: Sequence[Submission], run_id: str, item: Item) -> int:
    """How many submissions with this item have failed in this run. The first launch and an adopted job count alike."""
    bad = (State.FAILED, State.SUPERSEDED)
    return sum(1 for row in of_run(rows, run_id) if row.state in bad and covers(row, item))


def may_send(rows: Sequence[Submission], run_id: str, items: Sequence[Item], settings: CopySettings) -> list[Item]:
    """Those of these items that have attempts left."""
    return [item for item in items if resubmissions(rows, run_id, item) <= settings.max_resubmissions]


def digest_of(destination: Destination) -> str:
    """Names exactly this set of items: `complete_for` of a row says that all of them were proved when its job had ended."""
    return sha256_of(sorted(item.data_id for item in destination.items))


def complete_before(rows: Sequence[Submission], run_id: str, destination: Destination) -> bool:
    """The last job of this run was looked at, and all items of the destination were proved then."""
    last = rows[-1] if rows else None
    if last is None or last.state not in (State.DONE, State.FAILED) or run_id not in last.runs:
        return False
    return last.detail.get("complete_for") == digest_of(destination)


def at_ica(rows: Sequence[Submission]) -> bool:
    """Whether a job may be at work there for the newest submission: it takes one of the slots."""
    return bool(rows) and rows[-1].state in (State.SENDING, State.SENT, State.IN_DOUBT)


def not_seen_to_end(row: Submission) -> bool:
    """Superseded, its job known, and not seen to have ended."""
    return row.state == State.SUPERSEDED and bool(row.external_id) and "job_finished" not in row.detail


def still_writing(rows: Sequence[Submission], now: float, settings: CopySettings) -> list[Submission]:
    """Superseded submissions whose job may still write: one that is not seen to have ended, or that was never found. The
    latter counts until a job would have timed out."""
    return [
        row
        for row in rows
        if not_seen_to_end(row)
        or (row.state == State.SUPERSEDED and not row.external_id and now <= lost_until(row, now, settings))
    ]


def lost_until(row: Submission, now: float, settings: CopySettings) -> float:
    """Until when a job that was never found may write (ledger time)."""
    return (row.closed_at or now) + settings.job_timeout_seconds


def gave_up_waiting(rows: Sequence[Submission], run_id: str) -> bool:
    """Whether this run has superseded a stuck job at this destination already."""
    return any(row.state == State.SUPERSEDED and row.detail.get("stuck") for row in of_run(rows, run_id))


def sent_after(rows: Sequence[Submission], run_id: str, row: Submission) -> bool:
    """Whether this run has really sent, or adopted, another generation after `row`."""
    later = [r for r in of_run(rows, run_id) if r.generation > row.generation]
    return any(was_sent(r) for r in later)


def was_sent(row: Submission) -> bool:
    """Whether ICA may have seen it."""
    return bool(row.external_id) or row.state not in (State.RESERVED, State.CANCELLED, State.REJECTED)


def asked_to_wait(rows: Sequence[Submission], now: float) -> float | None:
    """Until when ICA has asked not to send this submission (ledger time), None where it has not, or that is past."""
    last = rows[-1] if rows else None
    wish = float(last.detail.get("not_before", 0.0)) if last is not None and last.state == State.RESERVED else 0.0
    return wish if wish > now else None


def storm_until(rows: Iterable[Submission], now: float) -> float | None:
    """Until when nothing is sent because nearly all jobs fail just now, None where they do not.

    ICA's failures are not independent (docs/protocols/icav2.md 5.5): in an outage of its storage all jobs fail
    within seconds, and six submissions sent
    at once would be used up before it ends.
    """
    ended = [row for row in rows if row.closed_at is not None and now - row.closed_at < STORM_SECONDS]
    failed = [float(row.closed_at or now) for row in ended if row.state == State.FAILED]
    return max(failed) + STORM_SECONDS if len(ended) >= 5 and len(failed) >= 0.8 * len(ended) else None


def refused(rows: Sequence[Submission], run_id: str) -> str | None:
    """Why ICA refused this run's last submission for good, None where it did not."""
    last = rows[-1] if rows else None
    if last is not None and last.state == State.REJECTED and last.owner.run_id == run_id:
        return str(last.detail.get("refusal", "ICA refused the copy"))
    return None


def made_by_us(rows: Sequence[Submission]) -> list[Made]:
    """Our jobs here that have ended, as far as it is known when they ran."""
    return [
        Made(
            data_ids=frozenset(row.detail.get("data_ids", [])),
            since=float(row.detail["job_created"]),
            until=float(row.detail["job_finished"]),
            created_ids=frozenset(row.detail.get("created_ids", [])),
        )
        for row in rows
        if "job_created" in row.detail and "job_finished" in row.detail
    ]


def placed_names(rows: Collection[Submission]) -> set[str]:
    """Names that this ledger may have placed at a destination: they are no strangers there."""
    return {name for row in rows if was_sent(row) for name in row.detail.get("names", [])}
