"""What is ICA's own in the rules of a copy, as pure functions over ledger rows; `core.effects` has what any remote needs.

Invariant: a job of ICA cannot be ended, so a superseded one counts as writing until it is seen to have ended, or until a
job would have timed out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from include.core import effects
from include.core.effects import Standing
from include.core.ledger import Owner, State, Submission
from include.core.ledger.rows import sha256_of
from include.icav2.models import CopyRequest, Destination, Item
from include.icav2.verify import Made

SYSTEM, KIND = "icav2", "copy_batch"
CopyStanding = Standing[Destination]


@dataclass(frozen=True)
class CopySettings:
    """The options of a run in the engine's terms. Seconds."""

    max_resubmissions: int = 5
    max_in_flight: int = 200
    job_timeout_seconds: float = 7200.0
    use_etag: bool = True
    # No maximum is documented (docs/protocols/icav2.md 4.2); larger destinations are copied chunk after chunk.
    items_per_job: int = 1000
    visibility_window_seconds: float = 60.0  # how long ICA may hide a job that it accepted
    request_timeout_seconds: float = 60.0
    listing_lag_seconds: float = 5.0  # how long a listing may lag behind a job

    @classmethod
    def of(cls, request: CopyRequest) -> CopySettings:
        return cls(
            max_resubmissions=request.max_resubmissions,
            max_in_flight=request.max_in_flight,
            job_timeout_seconds=request.job_timeout_minutes * 60,
            use_etag=request.verify == "size_and_etag",
        )


def covers(*items: Item) -> Callable[[Submission], bool]:
    """Whether a submission had one of these items."""
    ids = {item.data_id for item in items}
    return lambda row: not ids.isdisjoint(row.detail.get("data_ids", []))


def may_send(rows: Sequence[Submission], owner: Owner, items: Sequence[Item], settings: CopySettings) -> list[Item]:
    """Those of these items that have attempts left."""
    return [item for item in items if effects.resubmissions(rows, owner, covers(item)) <= settings.max_resubmissions]


def digest_of(destination: Destination) -> str:
    """Names exactly this set of items: `complete_for` of a row says that all of them were proved when its job had ended."""
    return sha256_of(sorted(item.data_id for item in destination.items))


def complete_before(rows: Sequence[Submission], owner: Owner, destination: Destination) -> bool:
    """The last job of this task was looked at, and all items of the destination were proved then."""
    last = rows[-1] if rows else None
    if last is None or last.state not in (State.DONE, State.FAILED) or not last.belongs_to(owner):
        return False
    return last.detail.get("complete_for") == digest_of(destination)


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


def gave_up_waiting(rows: Sequence[Submission], owner: Owner) -> bool:
    """Whether this task has superseded a stuck job at this destination already."""
    return any(row.state == State.SUPERSEDED and row.detail.get("stuck") for row in effects.of_owner(rows, owner))


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


def names_we_created(rows: Collection[Submission]) -> set[str]:
    """Names that this ledger may have placed at a destination: there they are not unmanaged."""
    return {name for row in rows if effects.was_sent(row) for name in row.detail.get("names", [])}
