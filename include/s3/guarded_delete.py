"""Deletes listed objects, each under a condition: targets, batches, outcomes per key, and the guards.

Invariant: a key is deleted only while it is the object that the target names. Which condition a store honours is proved by
its own refusal (include/s3/condition_probe.py), and never assumed. A store that takes no batches is served by single DELETEs.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, overload

from include.core.concurrency import map_concurrently
from include.core.errors import NotFound, RemoteError, TransientError, WaybillError
from include.core.packed import Packed, in_order
from include.s3.bucket import Bucket, Head
from include.s3.errors import PreconditionFailed

_CONCURRENCY = 8


_TRIES = 3


class DeleteGuard(StrEnum):
    """What makes sure that the object deleted is the one that the target names."""

    VERSION = "by version id: exactly the archived version is deleted"
    BATCH_ETAG = "by ETag per key in DeleteObjects, which this store was seen to honour"
    SINGLE_ETAG = "by If-Match on each DELETE, which this store was seen to honour"
    HEAD = "by HEAD immediately before each DELETE: this store was not seen to honour conditions"
    COVERED = "by version id, under a delete marker that was set first and stays over the older versions"
    MARKER = "by HEAD immediately before each delete marker; the archived version stays until the purge"
    PURGE = "by version id, and only where a delete marker still hid it immediately before"


class Result(StrEnum):
    DELETED = "deleted"
    ABSENT = "absent"  # gone already, and not by us
    CHANGED = "changed"  # another object by now: left alone
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Target:
    """One object to delete, as it was when it was listed. `older`: no current object, but a version below an archived one."""

    key: str
    etag: str
    size: int
    version_id: str | None
    marker: str | None = None
    older: bool = False

    @property
    def by_version(self) -> bool:
        """Whether its version id names it and nothing else: `null` is whatever was written without a version last."""
        return self.version_id is not None and self.version_id != "null"

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.key, self.version_id


@dataclass(frozen=True, slots=True)
class KeyOutcome:
    """What happened to one version: the line that every deletion has. `marker` is the version id of the delete marker that
    hides the key now; `freed`: its bytes are gone from the store, and not only hidden.

    `inferred`: no answer says so; it was found gone, or marked, after the intent to delete it was journaled. Somebody
    else may have done it at that very time.
    """

    key: str
    version_id: str | None
    result: Result
    detail: str = ""
    marker: str | None = None
    inferred: bool = False
    older: bool = False
    freed: bool = True

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.key, self.version_id

    def to_dict(self) -> dict[str, Any]:
        """As journals and documents hold it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class DeleteBatch:
    """At most 1000 targets. `business_key` names the effect in the world, `digest` its exact list.

    `resumed`: its intent was journaled before. `settled`: what an earlier try found out; its failed keys are tried again.
    """

    number: int
    of: int
    business_key: str
    digest: str
    targets: tuple[Target, ...]
    resumed: bool
    settled: tuple[KeyOutcome, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(target.size for target in self.targets)


Outcomes = tuple[KeyOutcome, ...]


SendBatch = Callable[[], Awaitable[Outcomes]]


AroundBatch = Callable[[DeleteBatch, SendBatch], Awaitable[Outcomes]]


async def just_send(_: DeleteBatch, send: SendBatch) -> Outcomes:
    """The wrapper of a caller without a ledger."""
    return await send()


class Batches(Sequence[DeleteBatch]):
    """The targets in fixed batches: the same list gives the same batches after a crash. Each is made when it is asked for.

    Older versions come first. So a key is never seen without its archived version while an older one is left to come to light.
    """

    def __init__(self, targets: Sequence[Target], size: int, name: str):
        kinds = [Packed(Target, (one for one in targets if one.older is older)) for older in (True, False)]
        self._kinds = [in_order(kind, lambda one: one.key) for kind in kinds]
        self._places = [(rows, at) for rows in self._kinds for at in range(0, len(rows), size)]
        self._size, self._name = size, name

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> DeleteBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[DeleteBatch]: ...
    def __getitem__(self, index: int | slice) -> DeleteBatch | list[DeleteBatch]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        number = range(len(self))[index] + 1
        rows, at = self._places[number - 1]
        targets = tuple(rows[at : at + self._size])
        return DeleteBatch(number, len(self), f"{self._name}/{number}", digest_of(targets), targets, resumed=False)

    @property
    def archived(self) -> Packed[Target]:
        """Those that are no older versions."""
        return self._kinds[1]

    def targets(self) -> Iterator[Target]:
        return itertools.chain.from_iterable(self._kinds)

    @property
    def targets_in_all(self) -> int:
        """How many."""
        return sum(map(len, self._kinds))

    @property
    def size_bytes(self) -> int:
        return sum(target.size for target in self.targets())


def digest_of(targets: Sequence[Target]) -> str:
    rows = [[t.key, t.etag, t.size, t.version_id, t.marker, *(["older"] if t.older else [])] for t in targets]
    return hashlib.sha256("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()).hexdigest()


class Deleter:
    """Deletes one batch under a guard. `versioned`: the bucket keeps versions, so what has no version id is its version `null`,
    and a DELETE without one would only set a marker. `covered`: keys whose older versions stay, under a marker."""

    def __init__(
        self, source: Bucket, guard: DeleteGuard, *, versioned: bool = False, covered: Container[str] = frozenset()
    ):
        self._source = source
        self._guard = guard
        self._versioned = versioned
        self._covered = covered
        self._held: set[str] = set()
        self._takes_batches = True

    async def send(self, batch: DeleteBatch) -> Outcomes:
        """Every target that is not settled once; transient failures of single keys are tried again here."""
        outcomes = {one.identity: one for one in batch.settled if one.result is not Result.FAILED}
        left = [target for target in batch.targets if target.identity not in outcomes]
        for attempt in range(_TRIES):
            for outcome in await self._once(left, resumed=batch.resumed or attempt > 0):
                outcomes[outcome.identity] = outcome
            left = [target for target in left if outcomes[target.identity].result is Result.FAILED]
            if not left:
                break
            await asyncio.sleep(0.2 * attempt)
        self._held |= {one.key for one in outcomes.values() if one.older and one.result is Result.FAILED}
        return tuple(outcomes[target.identity] for target in batch.targets)

    async def _once(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        older = [target for target in targets if target.older]
        held = [target for target in targets if not target.older and target.key in self._held]
        rest = [target for target in targets if not target.older and target.key not in self._held]
        why = "kept, since an older version of it could not be deleted and would come to light"
        return [
            *(await self._older(older, resumed=resumed) if older else []),
            *(_outcome(target, Result.FAILED, why) for target in held),
            *(await self._archived(rest, resumed=resumed) if rest else []),
        ]

    async def _archived(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        if self._guard is DeleteGuard.PURGE:
            return await self._purge(targets, resumed=resumed)
        if self._guard is DeleteGuard.COVERED:
            return await self._cover(targets, resumed=resumed)
        if self._guard in (DeleteGuard.VERSION, DeleteGuard.BATCH_ETAG):
            return await self._many(targets, resumed=resumed)
        one = self._mark if self._guard is DeleteGuard.MARKER else self._one
        return await map_concurrently(targets, lambda target: one(target, resumed=resumed), _CONCURRENCY)

    # By batches, and one by one where a store takes none

    async def _many(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        """DeleteObjects, each row with its version id, or else its ETag."""
        if self._takes_batches:
            rows = [{"Key": t.key, **self._named(t)} for t in targets]
            try:
                return _by_answer(targets, await self._source.delete_many(rows), resumed)
            except RemoteError as error:  # 501, or a 400 to ETags or for want of Content-MD5 (docs/protocols/s3.md 4.2)
                if not error.no_effect:
                    raise
                self._takes_batches = False
        return await map_concurrently(targets, lambda target: self._one(target, resumed=resumed), _CONCURRENCY)

    def _named(self, target: Target) -> dict[str, str]:
        version = self._version_of(target)
        return {"VersionId": version} if version else {"ETag": f'"{target.etag}"'}

    def _version_of(self, target: Target) -> str | None:
        return target.version_id or ("null" if self._versioned else None)

    async def _one(self, target: Target, *, resumed: bool) -> KeyOutcome:
        """One DELETE. Where neither its version id nor an honoured condition names the object, HEAD looks before."""
        version = self._version_of(target)
        by_itself = self._guard is DeleteGuard.SINGLE_ETAG or (
            target.by_version and self._guard is not DeleteGuard.HEAD
        )
        try:
            if not by_itself:
                # Below a marker, or below the current object, a version is looked at by its own id.
                below = target.older or self._guard in (DeleteGuard.PURGE, DeleteGuard.COVERED)
                refused = _refused(target, await self._source.head(target.key, version if below else None), resumed)
                if refused is not None:
                    return refused
            answer = await self._source.delete_one(
                target.key, version_id=version, etag=None if version else target.etag
            )
        except PreconditionFailed:
            return _by_code(target, "PreconditionFailed", resumed)
        except NotFound:
            return _by_code(target, "NoSuchKey", resumed)
        except TransientError:
            raise
        except WaybillError as error:
            return _outcome(target, Result.FAILED, str(error))
        marker = answer.get("VersionId") if answer.get("DeleteMarker") and not version else None
        return _deleted(target, marker)

    async def _older(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        """Versions below the archived one. In the second phase only where the archived one is still under its marker."""
        looked: list[KeyOutcome | None] = [None] * len(targets)
        if self._guard is DeleteGuard.PURGE:
            looked = await map_concurrently(targets, self._not_below_a_marker, _CONCURRENCY)
        free = [target for target, kept in zip(targets, looked, strict=True) if kept is None]
        ended = await self._by_version(free, resumed=resumed)
        if self._guard is DeleteGuard.PURGE:
            ended = await self._seen_gone(ended)
        return [*(kept for kept in looked if kept is not None), *ended]

    async def _seen_gone(self, ended: Sequence[KeyOutcome]) -> list[KeyOutcome]:
        """Looks for each version that the store calls deleted: below a marker no listing of current keys would show it."""

        async def look(one: KeyOutcome) -> KeyOutcome:
            if one.result is not Result.DELETED or not await self._source.head(one.key, one.version_id or "null"):
                return one
            why = "the store answered that it is deleted, and it is still there"
            return replace(one, result=Result.FAILED, detail=why, inferred=False, freed=False)

        return await map_concurrently(ended, look, _CONCURRENCY)

    async def _by_version(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        exact = [target for target in targets if target.by_version]
        by_look = [target for target in targets if not target.by_version]  # `null` may be another object by now
        return [
            *(await self._many(exact, resumed=resumed) if exact else []),
            *await map_concurrently(by_look, lambda target: self._one(target, resumed=resumed), _CONCURRENCY),
        ]

    async def _not_below_a_marker(self, target: Target) -> KeyOutcome | None:
        past = await self._source.past(target.key)
        if past.marker is not None or past.newest is None:
            return None
        return _outcome(target, Result.CHANGED, "the object over it is current again; it was kept")

    # Two phases: a marker first, and the version under it later

    async def _mark(self, target: Target, *, resumed: bool) -> KeyOutcome:
        """One delete marker. Each request is sent once: after a lost answer the marker is looked for, not set again."""
        for attempt in range(_TRIES):
            try:
                return await self._mark_once(target, resumed=resumed or attempt > 0)
            except TransientError:
                if attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
            except WaybillError as error:
                return _outcome(target, Result.FAILED, str(error))
        raise TransientError(f"{target.key} was not marked")  # not reached: the last attempt returns or raises

    async def _mark_once(self, target: Target, *, resumed: bool) -> KeyOutcome:
        there = await self._source.head(target.key)
        if there is None and resumed:
            return await self._found_marked(target)
        refused = _refused(target, there, resumed)
        if refused is not None:
            return refused
        answer = await self._source.delete_one(target.key, once=True)
        marker = answer.get("VersionId") if answer.get("DeleteMarker") else None
        return _deleted(target, marker, freed=False)

    async def _found_marked(self, target: Target) -> KeyOutcome:
        """A worker that died after the marker was set could not write its id down: it is found among the versions."""
        past = await self._source.past(target.key)
        if past.marker is None:
            return _outcome(target, Result.ABSENT, "was gone already")
        if past.newest != self._version_of(target):
            return _by_code(target, "PreconditionFailed", resumed=True)
        detail = "found marked; the intent to mark it was journaled before, so this marker is taken for ours"
        return replace(_deleted(target, past.marker, freed=False), detail=detail, inferred=True)

    async def _cover(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        """A marker first, then the version under it: so an older version is current at no moment, and stays hidden."""
        bare = [target for target in targets if target.key not in self._covered]
        over = [target for target in targets if target.key in self._covered]
        covered = await map_concurrently(over, lambda target: self._cover_one(target, resumed=resumed), _CONCURRENCY)
        marked = {one.identity: one for one in covered if one.result is Result.DELETED and not one.freed}
        hidden = [target for target in over if target.identity in marked]
        # The intent to end these versions is journaled, and they were seen under their markers: gone means by us.
        ended = await self._seen_gone(await self._by_version(hidden, resumed=True))
        return [
            *await self._by_version(bare, resumed=resumed),
            *(one for one in covered if one.identity not in marked),
            *(replace(one, marker=marked[one.identity].marker) for one in ended),
        ]

    async def _cover_one(self, target: Target, *, resumed: bool) -> KeyOutcome:
        version = self._version_of(target)
        past = await self._source.past(target.key)
        if resumed and past.newest != version and past.marker and not await self._source.head(target.key, version):
            detail = "found ended under a delete marker; the intent was journaled before the crash"
            return replace(_deleted(target, past.marker), detail=detail, inferred=True)
        marked = await self._mark(target, resumed=resumed)
        if marked.result is not Result.DELETED:
            return marked
        past = await self._source.past(target.key)
        if past.newest == version and past.marker is not None:
            return marked
        # Another object was written between the look and the marker: it is given back to those who wrote it.
        if past.newest != version and past.marker is not None and past.marker == marked.marker:
            await self._source.delete_one(target.key, version_id=past.marker)
        return _by_code(target, "PreconditionFailed", resumed)

    async def _purge(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        """Ends the versions that a marker still hides. S3 has no condition for it (docs/protocols/s3.md 4.5): we look before."""
        looked = await map_concurrently(targets, lambda target: self._kept(target, resumed=resumed), _CONCURRENCY)
        hidden = [target for target, kept in zip(targets, looked, strict=True) if kept is None]
        purged = await self._seen_gone(await self._by_version(hidden, resumed=resumed))
        return [*purged, *(kept for kept in looked if kept is not None)]

    async def _kept(self, target: Target, *, resumed: bool) -> KeyOutcome | None:
        """Why a version is not purged; None if a delete marker lies right over it."""
        past = await self._source.past(target.key)
        version = self._version_of(target)
        if past.newest != version:
            if past.newest is None or await self._source.head(target.key, version) is None:
                return _by_code(target, "NoSuchVersion", resumed)
            detail = "a newer object lies over it; it was kept"
        elif past.marker is None:
            detail = "brought back: its delete marker was removed; it was kept"
        else:
            return None
        return _outcome(target, Result.CHANGED, detail)

    async def remove_markers(self, targets: Sequence[Target], outcomes: Outcomes) -> tuple[str, ...]:
        """Removes the markers of the first phase, by their own version ids, where no version is left under them: there they
        hide nothing. Gives the keys whose marker stays although it should not."""
        ended = {one.identity for one in outcomes if one.result in (Result.DELETED, Result.ABSENT)}
        marked = [one for one in targets if one.marker and not one.older and one.identity in ended]
        # Without the marker over it an older version would be current again.
        states = await map_concurrently(marked, lambda one: self._source.past(one.key), _CONCURRENCY)
        bare = [one for one, past in zip(marked, states, strict=True) if not past.versions]
        over = [Target(one.key, "", 0, one.marker) for one in bare]
        removed = await self._many(over, resumed=True) if over else []
        now = await map_concurrently(over, lambda one: self._source.past(one.key), _CONCURRENCY)
        still = {one.key for one, past in zip(over, now, strict=True) if past.marker == one.version_id}
        return tuple(one.key for one in removed if one.result is Result.FAILED or one.key in still)


def _by_answer(targets: Sequence[Target], answer: Mapping[str, Any], resumed: bool) -> list[KeyOutcome]:
    """The outcome of each row of a batch. A store that leaves out version ids can be understood where a key is there once."""
    named = Counter(target.key for target in targets)

    def of(target: Target, rows: Mapping[tuple[str, str | None], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        asked = target.version_id or "null"
        alone = rows.get((target.key, None)) if named[target.key] == 1 else None
        return rows.get((target.key, asked)) or alone

    deleted = {(row["Key"], row.get("VersionId")): row for row in answer.get("Deleted", [])}
    errors = {(row["Key"], row.get("VersionId")): row for row in answer.get("Errors", [])}
    outcomes = []
    for target in targets:
        error, row = of(target, errors), of(target, deleted)
        if error is None and row is not None:
            set_now = row.get("DeleteMarker") and not row.get("VersionId")
            outcomes.append(_deleted(target, row.get("DeleteMarkerVersionId") if set_now else None))
        else:
            code = "the store's answer does not mention this key" if error is None else str(error.get("Code", "?"))
            outcomes.append(_by_code(target, code, resumed))
    return outcomes


def _deleted(target: Target, marker: str | None = None, *, freed: bool | None = None) -> KeyOutcome:
    """A marker that was set, and no version ended, frees nothing."""
    ended = marker is None if freed is None else freed
    return replace(_outcome(target, Result.DELETED), marker=marker, freed=ended)


def _outcome(target: Target, result: Result, detail: str = "") -> KeyOutcome:
    freed = result is Result.DELETED
    return KeyOutcome(target.key, target.version_id, result, detail, older=target.older, freed=freed)


def _refused(target: Target, there: Head | None, resumed: bool) -> KeyOutcome | None:
    """By HEAD, why an object may not be deleted; None if it is the one that the target names."""
    if there is None:
        return _by_code(target, "NoSuchKey", resumed)
    same_version = (there.version_id or target.version_id or "null") == (target.version_id or "null")
    if (there.etag, there.size) != (target.etag, target.size) or not same_version:
        return _by_code(target, "PreconditionFailed", resumed)
    return None


def _by_code(target: Target, code: str, resumed: bool) -> KeyOutcome:
    if code in ("PreconditionFailed", "412"):
        detail = "another object lies there by now; it was kept"
        return _outcome(target, Result.CHANGED, detail)
    if code in ("NoSuchKey", "NoSuchVersion", "404"):
        if resumed:
            detail = "found gone; the intent to delete it was journaled before the crash"
            return replace(_outcome(target, Result.DELETED, detail), inferred=True)
        return _outcome(target, Result.ABSENT, "was gone already")
    return _outcome(target, Result.FAILED, code)
