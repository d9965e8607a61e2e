"""What is ICA's own in the rules of a copy, as pure functions over ledger rows; `core.effects` has what any remote needs.

Invariant: a job of ICA cannot be ended, so a superseded one counts as writing until it is seen to have ended, or is shown
not to exist; and none for longer than jobs take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from include.core import effects
from include.core.effects import Standing
from include.core.ledger import Owner, State, Submission
from include.core.ledger.rows import sha256_of
from include.core.ledger.states import CLOSED
from include.core.text import pluralize, printable
from include.icav2.models import CopyRequest, Destination, Item
from include.icav2.verify import Made

SYSTEM, KIND = "icav2", "copy_batch"
CopyStanding = Standing[Destination]
# A job that ICA shows as running for longer is taken for dead: else one that is never ended there closes its folder for ever.
LONGEST_JOB_SECONDS = 7 * 86_400.0
LATELY_SECONDS = 600.0  # a listing that lags behind for longer is not reckoned with
LONGER_THAN_SEEN = 10.0  # so many times what was seen of jobs, for its size, may one last that nobody sees
MESSAGE_LIMIT, MESSAGES_LIMIT = 300, 20  # of ICA's own words: characters of one, and how many different ones of a job


@dataclass(frozen=True)
class CopySettings:
    """The options of a run in the engine's terms. Seconds."""

    max_resubmissions: int = 5
    max_in_flight: int = 200
    job_timeout_seconds: float = 7200.0
    use_etag: bool = True
    stream_small_files: bool = False
    # No maximum is documented (docs/protocols/icav2.md 4.2); larger destinations are copied chunk after chunk.
    items_per_job: int = 1000
    visibility_window_seconds: float = 60.0  # how long ICA may hide a job that it accepted
    request_timeout_seconds: float = 60.0
    listing_lag_seconds: float = 5.0  # how long a listing may lag behind a job

    @property
    def doubt_seconds(self) -> float:
        """For so long after a request ICA may accept it, and then hide its job."""
        return self.visibility_window_seconds + self.request_timeout_seconds

    @classmethod
    def of(cls, request: CopyRequest) -> CopySettings:
        return cls(
            max_resubmissions=request.max_resubmissions,
            max_in_flight=request.max_in_flight,
            job_timeout_seconds=request.job_timeout_minutes * 60,
            use_etag=request.verify == "size_and_etag",
            stream_small_files=request.small_files == "stream",
        )


def covers(*items: Item) -> Callable[[Submission], bool]:
    """Whether a submission had one of these items."""
    ids = {item.data_id for item in items}
    return lambda row: not ids.isdisjoint(row.detail.get("data_ids", []))


def may_send(rows: Sequence[Submission], owner: Owner, items: Sequence[Item], settings: CopySettings) -> list[Item]:
    """Those of these items that have attempts left, and that ICA has not refused twice for the same reason."""
    left = [item for item in items if effects.resubmissions(rows, owner, covers(item)) <= settings.max_resubmissions]
    return [item for item in left if lasting_reason(rows, owner, item) is None]


def seen_generation(rows: Sequence[Submission]) -> int:
    """The generation of which a look that is made now sees what has become of it (0: of none). What is still open may yet be
    sent, and have its effect, after the look."""
    return max((row.generation for row in rows if row.state in CLOSED), default=0)


# -- ICA's own words about an item ------------------------------------------------------------------------------------


def item_reasons(data_ids: Sequence[str], messages: Mapping[str, str], job_message: str) -> dict[str, list[int]]:
    """What a job says of the items that it did not copy (`messages` by data id): the items by message, each as its place in
    `data_ids`. Words that are those of the job as a whole say nothing of the item."""
    reasons: dict[str, list[int]] = {}
    for place, data_id in enumerate(data_ids):
        message = messages.get(data_id, "").strip()
        if message and message != job_message.strip():
            reasons.setdefault(message[:MESSAGE_LIMIT], []).append(place)
    return dict(list(reasons.items())[:MESSAGES_LIMIT])


def reasons_of(rows: Sequence[Submission], owner: Owner, item: Item) -> list[str]:
    """ICA's words about an item, one for each submission of this run that failed with it, oldest first."""
    found = []
    for row in effects.of_owner(rows, owner):
        if row.state in effects.ENDED_BADLY and item.data_id in row.detail.get("data_ids", []):
            place = row.detail["data_ids"].index(item.data_id)
            found += [message for message, places in row.detail.get("item_reasons", {}).items() if place in places]
    return found


def lasting_reason(rows: Sequence[Submission], owner: Owner, item: Item) -> str | None:
    """The words that ICA has given twice for an item in this run: sending it a third time would not help."""
    counted = Counter(reasons_of(rows, owner, item))
    return next((message for message, times in counted.items() if times > 1), None)


def given_up(rows: Sequence[Submission], owner: Owner, items: Sequence[Item], settings: CopySettings) -> str:
    """Why nothing more is sent of these items in this run."""
    stopped = {item.data_id: reason for item in items if (reason := lasting_reason(rows, owner, item)) is not None}
    spent = len(items) - len(stopped)
    parts = (
        [f"{pluralize(spent, 'item')} not copied after {settings.max_resubmissions + 1} submissions"] if spent else []
    )
    if stopped:
        said = ", ".join(printable(message) for message in dict.fromkeys(stopped.values()))
        parts.append(f"{pluralize(len(stopped), 'item')} not copied: ICA gave the same reason twice: {said}")
    return "; ".join(parts)


def digest_of(destination: Destination) -> str:
    """Names exactly this set of items: `complete_for` of a row says that all of them were proved when its job had ended."""
    return sha256_of(sorted(item.data_id for item in destination.items))


def complete_before(rows: Sequence[Submission], owner: Owner, destination: Destination) -> bool:
    """The last job of this task was looked at, and all items of the destination were proved then."""
    last = rows[-1] if rows else None
    if last is None or last.state not in (State.DONE, State.FAILED) or not last.belongs_to(owner):
        return False
    return last.detail.get("complete_for") == digest_of(destination)


# -- superseded jobs, which nobody can end ----------------------------------------------------------------------------

Seen = tuple[int, float]  # a job that was seen to its end: bytes, seconds


def seen_jobs(rows: Iterable[Submission]) -> list[Seen]:
    """How long jobs of ours have taken, as far as it was seen."""
    known = [row for row in rows if "job_created" in row.detail and "job_finished" in row.detail]
    known = [row for row in known if "taken_to_have_ended" not in row.detail]
    return [(row.size_bytes, float(row.detail["job_finished"]) - float(row.detail["job_created"])) for row in known]


def not_seen_to_end(row: Submission) -> bool:
    """Superseded, its job known, and not seen to have ended."""
    return row.state == State.SUPERSEDED and bool(row.external_id) and "job_finished" not in row.detail


def lost(rows: Sequence[Submission]) -> list[Submission]:
    """Superseded submissions of which it is not known whether a job exists; oldest first."""
    return [row for row in rows if row.state == State.SUPERSEDED and not row.external_id]


def still_writing(
    rows: Sequence[Submission], now: float, settings: CopySettings, seen: Sequence[Seen] = ()
) -> list[Submission]:
    """Superseded submissions whose job may still write: one that is not seen to have ended, or that was never found."""
    waited_for = [row for row in lost(rows) if "absent" not in row.detail]
    alive = [row for row in rows if not_seen_to_end(row) or row in waited_for]
    return [row for row in alive if now <= may_write_until(row, now, settings, seen)]


def may_write_until(row: Submission, now: float, settings: CopySettings, seen: Sequence[Seen] = ()) -> float:
    """Until when a superseded job is taken to write (ledger time), where nothing shows that it does not."""
    if row.external_id:
        return (row.sending_at or row.reserved_at) + max(LONGEST_JOB_SECONDS, settings.job_timeout_seconds)
    return (row.closed_at or now) + _longest_of(row.size_bytes, settings, seen)


def _longest_of(size_bytes: int, settings: CopySettings, seen: Sequence[Seen]) -> float:
    """How long a job of this size may last: what was seen, with a wide margin, and never more than `job_timeout`."""
    taken = max((seconds * max(1.0, size_bytes / max(1, size)) for size, seconds in seen), default=None)
    if taken is None:
        return settings.job_timeout_seconds
    return min(settings.job_timeout_seconds, max(settings.doubt_seconds, LONGER_THAN_SEEN * taken))


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


def clock(at: float) -> str:
    """A time as people read it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def rate_limited(until: float) -> str:
    return f"rate limited by ICA until {clock(until)}"


def lately_made(rows: Sequence[Submission], now: float) -> set[str]:
    """The ids of what our jobs that ended a short while ago made: a listing may not show it yet."""
    ended = [row for row in rows if row.closed_at is not None and now - row.closed_at < LATELY_SECONDS]
    return {data_id for row in ended for data_id in row.detail.get("created_ids", [])}


def names_we_created(rows: Collection[Submission]) -> set[str]:
    """Names that this ledger may have placed at a destination: there they are not unmanaged."""
    return {name for row in rows if effects.was_sent(row) for name in row.detail.get("names", [])}
