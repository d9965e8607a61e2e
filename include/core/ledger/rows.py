"""What the ledger is asked and what it answers, as frozen values: intents, quotas, and rows as they were when read.

Invariant: digests and the chain are made over `canonical` text; another spelling would make every older digest differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from include.core.ledger.migrations import ANY, RENAMED_DETAIL_KEYS, detail_value
from include.core.ledger.states import State

# A value of `detail` that is longer as JSON is kept once, as a document: each event holds the whole row.
LONG_BYTES, FEW, DOCUMENT = 1024, 8, "waybill_document"
# What of a `detail` may decide something once its submission is archived; never kept as a document.
INLINE = ("is_effective", "effect_present", "late_answers", "late_acceptances", "attached_runs")
ARCHIVED = "waybill_archived"
# What else is known for ever: under which names it may have placed something.
PLACED = ("names",)
# The names in a `detail` to which the ledger itself gives a meaning (`names` is its system's to give): a remote's own words
# are never kept under one.
OURS = frozenset({*INLINE, *RENAMED_DETAIL_KEYS, *RENAMED_DETAIL_KEYS.values(), ARCHIVED, DOCUMENT}) | {
    "client_key",
    "first_sending_at",
    "first_sending_clock",
    "claimed_until",
    "named_by",
    "not_before",
    "candidates",
    "refusal",
    "remote_id",
}


def canonical(value: Any) -> str:
    """One spelling for equal JSON values, so that equal content has equal digests.

    Pure ASCII: file names may hold bytes that are no text (lone surrogates), which neither UTF-8 nor the databases take.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Owner:
    """Who asks: the task instance, and which request it serves. `request_sha256` tells two runs apart that had one id after
    each other (one was deleted, and another posted under its id). Written down, so that a person finds the log."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    request_sha256: str = ""

    def is_same(self, other: Owner) -> bool:
        """Whether they are one. Of what was written before schema 4, only the run is known, or the task but not its request."""
        if (self.dag_id, self.run_id) != (other.dag_id, other.run_id):
            return False
        tasks = {self.task_id, other.task_id}
        requests = {self.request_sha256, other.request_sha256}
        same_task = ANY in tasks or (len(tasks) == 1 and self.map_index == other.map_index)
        return same_task and (ANY in requests or len(requests) == 1)


@dataclass(frozen=True)
class Intent:
    """What shall come true in the world. `business_key` names the effect, never the run (unless it repeats per run).

    `payload` is what will be asked of the remote (JSON); its digest tells the same request from another one.
    `detail` is kept for people and for the probe; it holds no secret. `account`: whose quota at the remote it uses.
    """

    system: str
    kind: str
    business_key: str
    payload: Mapping[str, Any]
    owner: Owner
    size_bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    account: str = ""

    @property
    def payload_sha256(self) -> str:
        return sha256_of(dict(self.payload))


@dataclass(frozen=True)
class Quota:
    """At most `limit_bytes` of one kind and account accepted by the remote within any `window_seconds`, plus a margin.

    What is in doubt counts until it is resolved; with `doubt_expires` only one window after the last instant at which its
    request can have been accepted (then it counts no more even if it was), and what was reserved and never sent only one
    window after that. Whatever is sent passes the quota once more right before it leaves.

    The margin is how wrong the database's clock may be: a clock that was an hour slow when a job was accepted and is put
    right later would else free its bytes an hour early, by the remote's clock.
    """

    limit_bytes: int
    window_seconds: float = 86_400.0
    margin_seconds: float = 4_500.0
    doubt_expires: bool = False

    @property
    def span(self) -> float:
        return self.window_seconds + self.margin_seconds


@dataclass(frozen=True)
class QuotaReading:
    """How much of a quota is used. `frees`: (ledger time, bytes) of what becomes free by itself, soonest first; `in_doubt`:
    what becomes free only when a person, or the next run, resolves it."""

    used_bytes: int
    free_bytes: int
    frees: tuple[tuple[float, int], ...]
    in_doubt: tuple[Submission, ...]


@dataclass(frozen=True)
class Submission:
    """One row of the ledger, as it was when read. Times are epoch seconds of the ledger's clock."""

    id: int
    system: str
    kind: str
    business_key: str
    generation: int
    state: State
    fencing_token: str | None
    external_id: str | None
    payload_sha256: str
    size_bytes: int
    owner: Owner
    reserved_at: float
    sending_at: float | None
    accept_deadline: float | None
    closed_at: float | None
    cancel_requested_at: float | None
    detail: Mapping[str, Any]
    account: str = ""
    attached: tuple[Owner, ...] = ()

    @property
    def owners(self) -> tuple[Owner, ...]:
        """Who asked for it first, and who else waits for it."""
        return (self.owner, *self.attached)

    def belongs_to(self, owner: Owner) -> bool:
        """Whether this task, for this request, asked for it or waits for it."""
        return any(one.is_same(owner) for one in self.owners)

    @property
    def is_effective(self) -> bool:
        """Ended with its effect in place: asked for again, the effect is looked at before anything is sent."""
        return self.state == State.DONE or (
            self.state == State.SUPERSEDED and bool(detail_value(self.detail, "is_effective"))
        )

    @property
    def answer_missed_at(self) -> float:
        """From when on an answer is missed, or the name of what was accepted."""
        if self.state == State.ACCEPTED:
            return float(self.detail["named_by"])
        return self.reserved_at if self.accept_deadline is None else self.accept_deadline

    @property
    def client_key(self) -> str | None:
        """The key under which the remote takes this request once, however often it is sent."""
        key: str | None = self.detail.get("client_key")
        return key

    @property
    def late_jobs(self) -> int:
        """How many jobs the remote has accepted for attempts of this submission that were replaced."""
        return sum(len(self.detail.get(name, [])) for name in ("late_answers", "late_acceptances"))

    @property
    def cancelled_unsent(self) -> bool:
        """A person cancelled it before anything was sent."""
        return self.state == State.CANCELLED and self.cancel_requested_at is not None and self.sending_at is None

    def __str__(self) -> str:
        return f"{self.system}/{self.kind} {self.business_key} generation {self.generation} ({self.state})"


def long_values(detail: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A `detail` as rows and events hold it, and the documents (canonical JSON by sha256) that stand for its long values."""
    kept, documents = dict(detail), dict[str, str]()
    for name, value in detail.items():
        mistakable = isinstance(value, dict) and DOCUMENT in value  # a remote's own words are not taken for a document
        long = name not in INLINE and isinstance(value, list | dict | str) and len(value) > FEW
        if mistakable or (long and len(canonical(value)) > LONG_BYTES):
            text = canonical(value)
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            documents[sha256] = text
            kept[name] = {DOCUMENT: {"uri": f"waybill-ledger:{sha256}", "sha256": sha256, "size_bytes": len(text)}}
    return kept, documents


def documents_of(detail: Mapping[str, Any]) -> dict[str, str]:
    """The documents (sha256) that a stored `detail` names, by the name of the value that each stands for."""
    marked = {name: value[DOCUMENT] for name, value in detail.items() if isinstance(value, dict) and DOCUMENT in value}
    return {name: str(document["sha256"]) for name, document in marked.items()}
