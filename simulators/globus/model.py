"""The things Globus keeps: clients, collections, tasks, the files of a task and what happened to them.

Invariant: a task's numbers are counted as things happen and never derived from its items afterwards, since the history of the
items goes earlier than the task.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import deque
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

State = Literal["queued", "running", "waiting", "over"]
"""`waiting`: all that is left is to be tried again later, so that the task takes none of the user's places."""
Side = Literal["source", "destination"]


class Ids:
    """Ids that repeat for the same seed and start, and never between two starts (a ledger may outlive a simulator)."""

    def __init__(self, seed: int, epoch: float) -> None:
        self._prefix = f"globus|{seed}|{epoch!r}|"
        self._count = 0

    def hex32(self) -> str:
        self._count += 1
        return hashlib.sha256(f"{self._prefix}{self._count}".encode()).hexdigest()[:32]

    def uuid(self) -> str:
        return str(uuid.UUID(hex=self.hex32(), version=4))


@dataclass
class Client:
    """Who calls: a confidential client, which is its own identity."""

    id: str
    secret: str


@dataclass
class Endpoint:
    """A collection as the service knows it; its files are in `Collections` under the same id.

    `ls_denied`, `read_denied`, `write_denied`: regular expressions of paths; what `ls` may not show can be transferred all
    the same. `free_bytes`: what may still arrive; None: no quota. `forbidden`: the caller has no right to it.
    `authorization_parameters`: what a session must have. `https_server`: where files are read over HTTPS, the
    service's own address and `/https/<id>`.
    """

    id: str
    display_name: str
    entity_type: str = "GCSv5_guest_collection"
    needs_data_access: bool = False
    ls_denied: list[str] = field(default_factory=list)
    read_denied: list[str] = field(default_factory=list)
    write_denied: list[str] = field(default_factory=list)
    free_bytes: int | None = None
    forbidden: bool = False
    connected: bool = True
    paused: str | None = None
    authorization_parameters: dict[str, Any] | None = None
    https_server: str | None = None

    @property
    def scope(self) -> str:
        """The consent that a mapped collection may ask for."""
        return f"https://auth.globus.org/scopes/{self.id}/data_access"


def denied(patterns: list[str], path: str) -> bool:
    """Whether one of the regular expressions is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


@dataclass(frozen=True)
class Trouble:
    """Something that happens to files of a task whose source path matches; `left` in `Task.troubles` counts down.

    The kinds are those of the fault language's table: `file_error` (with `code`, `side`), `corrupt_arrival`,
    `rot_after_check`, `lose_file`, `cut_file`.
    """

    kind: str
    path: str
    code: str = ""
    side: Side = "source"


@dataclass(eq=False)
class Item:
    """One file of a task: from where, to where, and what has happened to it so far.

    `found`: its source was there at the first look. `done`: bytes that had arrived at the task's `settled_at`; `overhead`:
    seconds still to pass before the first.
    """

    source: str
    destination: str
    external_checksum: str | None = None
    recursive: bool = False
    found: bool = False
    tries: int = 0
    size: int = 0
    done: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class Event:
    """A line of a task's event list."""

    time: float
    code: str
    is_error: bool
    description: str
    details: str


@dataclass(frozen=True)
class Moved:
    """A row of `successful_transfers`."""

    source: str
    destination: str
    size: int
    checksum: str | None


@dataclass(frozen=True)
class Skipped:
    """A row of `skipped_errors`."""

    source: str
    destination: str
    code: str
    time: float
    external_checksum: str | None


@dataclass(frozen=True)
class Options:
    """What a submission asks for beyond its files."""

    label: str | None = None
    sync_level: int | None = None
    verify_checksum: bool = False
    preserve_timestamp: bool = False
    encrypt_data: bool = False
    skip_source_errors: bool = False
    fail_on_quota_errors: bool = False


@dataclass
class Counts:
    """The numbers of a task document that only grow."""

    files: int = 0
    directories: int = 0
    files_transferred: int = 0
    files_skipped: int = 0
    bytes_transferred: int = 0
    bytes_checksummed: int = 0
    faults: int = 0
    subtasks_total: int = 0
    subtasks_succeeded: int = 0
    subtasks_failed: int = 0
    subtasks_canceled: int = 0
    subtasks_expired: int = 0
    subtasks_skipped_errors: int = 0

    @property
    def subtasks_pending(self) -> int:
        """Those that are not over; some of them are being retried."""
        over = self.subtasks_succeeded + self.subtasks_failed + self.subtasks_canceled + self.subtasks_expired
        return self.subtasks_total - over - self.subtasks_skipped_errors


@dataclass(eq=False)
class Task:
    """A transfer task.

    `ready` are items to do now, `retrying` a heap of (when, order, item); `current` is the one whose bytes flow, at `rate`
    since `settled_at`, in the plan number `plan` (older plans are void). `stalled_until`: nothing flows until then.
    """

    id: str
    submission_id: str
    owner: str
    source: Endpoint
    destination: Endpoint
    options: Options
    pairs: frozenset[tuple[str, str]]
    pairs_digest: str
    items: InitVar[list[Item]]
    requested: float
    deadline: float
    deadline_given: bool
    begun: bool = False
    state: State = "queued"
    status: Literal["ACTIVE", "INACTIVE", "SUCCEEDED", "FAILED"] = "ACTIVE"
    completed: float | None = None
    fatal: tuple[str, str] | None = None
    error: Event | None = None
    paused: str | None = None
    cancelling: bool = False
    canceled_by_admin: str | None = None
    canceled_by_admin_message: str | None = None
    ready: deque[Item] = field(default_factory=deque)
    retrying: list[tuple[float, int, Item]] = field(default_factory=list)
    current: Item | None = None
    rate: float = 0.0
    settled_at: float = 0.0
    plan: int = 0
    stalled_until: float = 0.0
    hidden_until: float = 0.0
    forgotten_from: float = float("inf")
    counts: Counts = field(default_factory=Counts)
    events: list[Event] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    troubles: dict[Trouble, float] = field(default_factory=dict)

    def __post_init__(self, items: list[Item]) -> None:
        self.ready.extend(items)

    @property
    def is_over(self) -> bool:
        return self.completed is not None

    @property
    def may_work(self) -> bool:
        """Whether nothing but its turn keeps it from working."""
        return self.status == "ACTIVE" and self.paused is None and not self.is_over
