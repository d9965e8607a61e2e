"""The things ICA keeps: users, projects, data, jobs, batches.

Invariant: a `Node` keeps its history, because a listing may lag behind (`listing_lag_seconds`) while a look-up by id does
not.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

from simulators.icav2.settings import Draw

Right = Literal["none", "viewer", "contributor"]
DATA_STATUSES = ("PARTIAL", "AVAILABLE", "ARCHIVING", "ARCHIVED", "UNARCHIVING", "DELETING")
ITEM_STATUSES = ("QUEUED", "COPYING", "COPIED", "PARTIALLY_COPIED", "FAILED")
JOB_STATUSES = (
    "INITIALIZED",
    "WAITING_FOR_RESOURCES",
    "RUNNING",
    "STOPPED",
    "SUCCEEDED",
    "PARTIALLY_SUCCEEDED",
    "FAILED",
)
_BLOCK_BYTES = 64 * 1024


class Ids:
    """Ids that repeat for the same seed and start, and never between two starts (a ledger may outlive a simulator)."""

    def __init__(self, seed: int, epoch: float) -> None:
        self._prefix = f"{seed}|{epoch!r}|"
        self._count = 0

    def hex32(self) -> str:
        self._count += 1
        return hashlib.sha256(f"{self._prefix}{self._count}".encode()).hexdigest()[:32]

    def uuid(self) -> str:
        return str(uuid.UUID(hex=self.hex32(), version=4))


@dataclass
class User:
    """A caller: known by API key, or by name and password."""

    name: str
    api_key: str
    password: str
    id: str
    default_right: Right = "contributor"


@dataclass
class Project:
    """A project; `rights` by user name override the users' default."""

    id: str
    name: str
    rights: dict[str, Right] = field(default_factory=dict)


class View(NamedTuple):
    """What a listing shows of a node from `since` on; status None: no longer there."""

    since: float
    status: str | None
    size_bytes: int | None
    etag: str | None


@dataclass(eq=False)
class Node:
    """A file or folder. `path` is the full path; a folder's ends with a slash. `content_key` names generated content."""

    id: str
    project_id: str
    path: str
    created: float
    seq: int
    status: str = "AVAILABLE"
    size_bytes: int | None = None
    etag: str | None = None
    content_key: str = ""
    content: bytes | None = None
    user_tags: list[str] = field(default_factory=list)
    technical_tags: list[str] = field(default_factory=list)
    modified: float = 0.0
    ready_from: float = 0.0
    gone: bool = False
    history: list[View] = field(default_factory=list)

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> str:
        return parent_of(self.path)

    def remember(self, now: float) -> None:
        """Note the present state for listings that lag."""
        self.modified = now
        status = None if self.gone else self.status
        self.history.append(View(max(now, self.ready_from), status, self.size_bytes, self.etag))

    def seen_at(self, when: float) -> View | None:
        """What a listing of the instant `when` shows; None when it shows nothing."""
        view = next((view for view in reversed(self.history) if view.since <= when), None)
        return view if view and view.status is not None else None


class Fate(StrEnum):
    """What a job does to one of its files."""

    COPY = "copy"
    TRUNCATE = "truncate"
    OMIT = "omit"
    LEAVE_PARTIAL = "leave_partial"
    FAIL = "fail"
    UNTOUCHED = "untouched"


@dataclass(eq=False)
class Work:
    """One file of a job: from which node, to which path, what happens to it, and what has happened so far."""

    source: Node
    path: str
    fate: Fate = Fate.COPY
    reason: str = ""
    state: Literal["waiting", "writing", "copied", "skipped", "failed", "partial"] = "waiting"
    node: Node | None = None
    reported_copied: bool = False


@dataclass(eq=False)
class Item:
    """One item of a batch: what was asked (a file or folder id) and its files."""

    id: str
    data_id: str
    name: str
    folder: Node | None = None
    status: str = "QUEUED"
    info: str | None = None
    works: list[Work] = field(default_factory=list)
    created: Node | None = None


@dataclass(eq=False)
class Job:
    """A batch and its job; ICA makes one job per batch (docs/protocols/icav2.md 4.1)."""

    id: str
    batch_id: str
    kind: Literal["copy", "move"]
    project_id: str
    folder_id: str | None
    path: str
    items: list[Item]
    options: dict[str, object]
    owner: User
    attempt: int
    draw: Draw
    seq: int
    created: float
    ends: float = 0.0
    started: float | None = None
    finished: float | None = None
    status: str = "INITIALIZED"
    info: str | None = None
    hidden_until: float = 0.0
    show_status: str | None = None
    final_status: str | None = None

    @property
    def works(self) -> list[Work]:
        return [work for item in self.items for work in item.works]

    @property
    def is_over(self) -> bool:
        return self.finished is not None


def parent_of(path: str) -> str:
    """The parent folder's path, with its slash: `/a/` for `/a/b` and for `/a/b/`."""
    return path.rstrip("/").rpartition("/")[0] + "/"


def generated(key: str, size_bytes: int) -> Iterator[bytes]:
    """Content of any length that depends on `key` only, in blocks: nothing allocates what a large file would hold."""
    block = hashlib.shake_128(key.encode()).digest(_BLOCK_BYTES)
    for start in range(0, size_bytes, _BLOCK_BYTES):
        yield block[: min(_BLOCK_BYTES, size_bytes - start)]
