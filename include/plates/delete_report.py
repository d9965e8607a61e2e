"""What a deletion is found to have done: every key's outcome, and the plate as it is listed afterwards.

Invariant: a deletion is complete only when every target is deleted or was gone, and none of them is current again, whatever
brought it back; what is there and was not archived is named and kept.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from include.core.packed import Packed
from include.plates.compare import list_plate
from include.plates.delete_preview import by_key
from include.plates.models import Frozen, ManifestMember, Phase, Retention, Verdict
from include.s3.bucket import Bucket, ListedObject
from include.s3.guarded_delete import Batches, KeyOutcome, Result


class DeleteReport(Frozen):
    """What was deleted and what was left. `complete` only when every target is deleted or was gone, and none came back.

    `deleted_bytes` is the size of the archived objects that no user sees any more, `freed_bytes` what the store holds less
    (a marker frees nothing). `current_again` are deleted keys that a listing shows with old content. `left_behind` could not
    be removed: the object of a trial, or a marker without a version.

    `inferred` names those of the deleted that were found gone, or marked, after a lost answer or a crash.
    """

    tag: str
    phase: Phase
    guard: str
    retention: Retention
    targets: int
    deleted: int
    absent: int
    deleted_bytes: int
    freed_bytes: int = 0
    older_versions: int = 0
    older_deleted: int = 0
    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()
    current_again: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    shared_parts: tuple[str, ...] = ()
    batches: int
    resumed_batches: int
    proof_age_days: float | None = None
    outcomes_key: str
    outcomes_sha256: str

    @property
    def complete(self) -> bool:
        return not self.changed and not self.failed and not self.current_again


@dataclass
class Tally:
    """The outcomes of all batches, counted; `lines` is the document that holds each of them."""

    lines: io.BytesIO = field(default_factory=io.BytesIO)
    deleted: int = 0
    absent: int = 0
    older_deleted: int = 0
    deleted_bytes: int = 0
    freed_bytes: int = 0
    named: dict[str, dict[str, None]] = field(default_factory=lambda: {"changed": {}, "failed": {}, "inferred": {}})

    def add(self, outcomes: Iterable[KeyOutcome], sizes: dict[tuple[str, str | None], int], *, marking: bool) -> None:
        for one in outcomes:
            self.lines.write(json.dumps(one.to_dict(), ensure_ascii=False).encode() + b"\n")
            size = sizes.get(one.identity, 0)
            gone = one.result is Result.DELETED
            self.deleted += gone and not one.older
            self.older_deleted += gone and one.older
            self.absent += one.result is Result.ABSENT
            self.deleted_bytes += size if gone and not one.older else 0
            self.freed_bytes += size if gone and one.freed and not marking else 0
            if one.result in (Result.CHANGED, Result.FAILED):
                self.named[one.result.value][one.key] = None
            if one.inferred:
                self.named["inferred"][one.key] = None

    def keys(self, what: str) -> tuple[str, ...]:
        return tuple(self.named[what])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.lines.getbuffer()).hexdigest()


def tally(batches: Batches, outcomes: dict[int, Packed[KeyOutcome]], *, marking: bool) -> Tally:
    found = Tally()
    for number in sorted(outcomes):
        targets = batches[number - 1].targets if number <= len(batches) else ()
        found.add(outcomes[number], {target.identity: target.size for target in targets}, marking=marking)
    return found


async def looked_after(
    verdict: Verdict,
    source: Bucket,
    outcomes: Iterable[Packed[KeyOutcome]],
    members: Packed[ManifestMember],
    is_older: Callable[[ListedObject], bool],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is current after the deletion: deleted keys that came back, and objects that were never archived."""
    known = by_key(members)
    ended = bytearray(len(members))
    for one in (one for some in outcomes for one in some):
        number = known.find(one.key)
        if number is not None and one.result in (Result.DELETED, Result.ABSENT) and not one.older:
            ended[number] = 1
    back: set[str] = set()
    new: set[str] = set()

    def note(one: ListedObject, number: int | None) -> None:
        if number is None:
            new.add(one.key)
        elif ended[number]:
            (back if is_older(one) or is_not_newer(one, members[number]) else new).add(one.key)

    listing = await list_plate(verdict.plate, verdict.layout, source, known, note)
    # A key that only the other listing shows is current too: nobody may call it gone.
    hidden = (number for number in map(known.find, listing.only_in_one) if number is not None)
    back |= {known.key_of(number) for number in hidden if ended[number] and not listing.shows(number)}
    return tuple(sorted(back)), tuple(sorted(new))


def is_not_newer(one: ListedObject, archived: ManifestMember) -> bool:
    """The archived object itself, or one of before it.

    Times have seconds only. A version of the same second may lie below the archived one: it counts as of before, since a key
    that comes back unsaid is worse than a new object that a person is asked to look at.
    """
    if one.version_id is not None:
        return one.version_id == archived.version_id or one.modified <= archived.modified
    same = (one.etag, one.size) == (archived.etag, archived.size) and one.modified == archived.modified
    return same or one.modified < archived.modified
