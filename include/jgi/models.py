"""The values of JGI tape staging, and the states that MongoDB keeps of files, placements, restore requests and batches.

A *file* is one file of JDP, named by its `_id` (24 hex digits). A *placement* is one file at one destination: a file that two
analyses share has two. A *restore request* asks JDP for up to 750 files. A *batch* is one Globus task.

Invariant: a state changes only as the tables below say, each time by one compare-and-set on the state of before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class FileState(StrEnum):
    """Where a file stands with JDP."""

    DISCOVERED = "DISCOVERED"  # found by the search
    PLANNED = "PLANNED"  # is to be asked for
    REQUESTING = "REQUESTING"  # claimed by a restore request that is being sent, or whose answer is missing
    QUEUED = "QUEUED"  # a restore request has it: JDP has accepted that
    ON_DISK = "ON_DISK"  # JDP has it on disk, and its manifest says so
    EXPIRED = "EXPIRED"  # JDP took it off its disk before it was moved
    FILTERED = "FILTERED"  # left out by the project's filters
    OVERSIZE = "OVERSIZE"  # larger than the whole window
    REJECTED = "REJECTED"  # JDP refuses it
    LOST = "LOST"  # JDP does not list it any more
    HELD = "HELD"  # its attempts are used up: a person decides


class PlacementState(StrEnum):
    """Where a file stands at one destination."""

    WAITING = "WAITING"
    BATCHED = "BATCHED"  # in a batch that is being submitted
    SUBMITTED = "SUBMITTED"  # Globus has accepted the batch
    ARRIVED = "ARRIVED"  # Globus says that it moved it
    VERIFIED = "VERIFIED"
    MISMATCH = "MISMATCH"
    UNVERIFIABLE = "UNVERIFIABLE"  # nothing names a checksum


class RequestState(StrEnum):
    """Where a restore request stands. The ledger decides what was sent; this is what JDP says of it."""

    INTENT = "INTENT"
    DOUBTFUL = "DOUBTFUL"
    ABORTED = "ABORTED"
    SENT = "SENT"
    NEW = "NEW"
    PENDING = "PENDING"
    READY = "READY"
    DRAINED = "DRAINED"  # all that it brought is verified, or planned anew
    EXPIRED = "EXPIRED"


class BatchState(StrEnum):
    """Where a batch stands at Globus."""

    INTENT = "INTENT"
    SUBMITTED = "SUBMITTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    RECONCILED = "RECONCILED"  # each of its placements has been looked at


FILE_MOVES: Mapping[FileState, frozenset[FileState]] = {
    FileState.DISCOVERED: frozenset(
        {
            FileState.PLANNED,
            FileState.REQUESTING,
            FileState.FILTERED,
            FileState.OVERSIZE,
            FileState.REJECTED,
            FileState.LOST,
        }
    ),
    FileState.PLANNED: frozenset(
        {FileState.REQUESTING, FileState.DISCOVERED, FileState.FILTERED, FileState.OVERSIZE, FileState.LOST}
    ),
    FileState.REQUESTING: frozenset(
        {FileState.QUEUED, FileState.PLANNED, FileState.REJECTED, FileState.LOST, FileState.HELD}
    ),
    FileState.QUEUED: frozenset(
        {FileState.ON_DISK, FileState.PLANNED, FileState.EXPIRED, FileState.LOST, FileState.HELD}
    ),
    FileState.ON_DISK: frozenset({FileState.EXPIRED}),
    FileState.EXPIRED: frozenset(
        {FileState.PLANNED, FileState.REQUESTING, FileState.HELD, FileState.OVERSIZE, FileState.LOST}
    ),
    FileState.FILTERED: frozenset({FileState.DISCOVERED}),
    FileState.OVERSIZE: frozenset({FileState.PLANNED}),
    FileState.REJECTED: frozenset({FileState.PLANNED}),
    FileState.LOST: frozenset({FileState.DISCOVERED}),
    FileState.HELD: frozenset({FileState.PLANNED}),
}

PLACEMENT_MOVES: Mapping[PlacementState, frozenset[PlacementState]] = {
    PlacementState.WAITING: frozenset({PlacementState.BATCHED, PlacementState.VERIFIED}),
    PlacementState.BATCHED: frozenset({PlacementState.SUBMITTED, PlacementState.WAITING}),
    PlacementState.SUBMITTED: frozenset({PlacementState.ARRIVED, PlacementState.WAITING}),
    PlacementState.ARRIVED: frozenset(
        {PlacementState.VERIFIED, PlacementState.MISMATCH, PlacementState.UNVERIFIABLE, PlacementState.WAITING}
    ),
    PlacementState.MISMATCH: frozenset({PlacementState.BATCHED, PlacementState.WAITING}),
    PlacementState.UNVERIFIABLE: frozenset({PlacementState.VERIFIED, PlacementState.MISMATCH, PlacementState.WAITING}),
    PlacementState.VERIFIED: frozenset(),
}


def is_file_id(text: str) -> bool:
    """Whether a text can be the `_id` of a JDP file: 24 hex digits."""
    return re.fullmatch(r"[0-9a-f]{24}", text) is not None


def is_file_name(text: str) -> bool:
    """Whether a text can be a file's name at a destination: one step of a path, printable, at most 255 bytes."""
    return text not in ("", ".", "..") and "/" not in text and text.isprintable() and len(text.encode()) <= 255


class JdpStatus(StrEnum):
    """What JDP says of a file, as far as it is known; any other word means: ask again."""

    PURGED = "PURGED"  # on tape alone
    RESTORED = "RESTORED"  # on disk until `dt_to_purge`
    UNKNOWN = "UNKNOWN"

    @classmethod
    def of(cls, word: str) -> JdpStatus:
        return cls(word) if word in cls._value2member_map_ else cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class StagedFile:
    """One file of JDP, as MongoDB keeps it. Sizes in bytes, instants with their zone."""

    jdp_file_id: str
    file_name: str
    size_bytes: int
    project: str
    state: FileState = FileState.DISCOVERED
    md5: str | None = None
    jdp_status: str = JdpStatus.UNKNOWN  # as JDP writes it
    purge_at: datetime | None = None  # `dt_to_purge` as last seen
    request_id: int | None = None  # of the last restore request that had it
    claim: str | None = None  # the business key of the restore request that holds it now
    attempts: int = 0
    priority: float = 1.0
    waiting_since: datetime | None = None
    biosample: str = ""
    analyses: tuple[str, ...] = ()  # `Ga…`: one placement each
    why: str = ""  # the reason of a state that a person reads
    history: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Placement:
    """One file at one destination. `destination` is the path at the destination collection, unique in the database."""

    jdp_file_id: str
    analysis: str
    project: str
    destination: str
    size_bytes: int
    md5: str | None = None
    state: PlacementState = PlacementState.WAITING
    batch: str | None = None  # the business key of the batch that has it
    why: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be moved for it."""
        return self.state in (PlacementState.VERIFIED, PlacementState.UNVERIFIABLE)


REMOVE_FILES = ("img_nr.last.blasttab", "domtblout")  # what NMDC leaves out


@dataclass(frozen=True, slots=True)
class Project:
    """One staging project: what the SOP writes into MongoDB by hand."""

    name: str
    proposal_id: int
    nmdc_study_id: str = ""
    priority: float = 1.0
    remove_files: tuple[str, ...] = REMOVE_FILES


@dataclass(frozen=True, slots=True)
class Limits:
    """What JDP takes: bytes per window, ids per request. The margin makes the window longer, for clocks that differ."""

    window_bytes: int = 10_000_000_000_000
    window_seconds: float = 86_400.0
    margin_seconds: float = 4_500.0
    request_ids: int = 750
    max_attempts: int = 3
    disk_life_days: float = 14.0

    @property
    def span_seconds(self) -> float:
        return self.window_seconds + self.margin_seconds
