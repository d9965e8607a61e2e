"""Deletes listed objects, each under a condition: targets, batches, outcomes per key, and the guards.

Invariant: a key is deleted only while it is the object that the target names; which condition a store honours is tried on
an object made for it, and never assumed (docs/protocols/s3.md 4.3).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from include.core.concurrency import map_concurrently
from include.core.errors import NotFound, TransientError, WaybillError
from include.s3.bucket import Bucket, Head
from include.s3.errors import PreconditionFailed, Unsupported

_CONCURRENCY = 8


_TRIES = 3


class DeleteGuard(StrEnum):
    """What makes sure that the object deleted is the one that the target names."""

    VERSION = "by version id: exactly the archived version is deleted"
    BATCH_ETAG = "by ETag per key in DeleteObjects, which this store was seen to honour"
    SINGLE_ETAG = "by If-Match on each DELETE, which this store was seen to honour"
    HEAD = "by HEAD immediately before each DELETE: this store ignores conditions"
    MARKER = "by HEAD immediately before each delete marker; the archived version stays until the purge"
    PURGE = "by version id, and only where a delete marker still hid it immediately before"


class Result(StrEnum):
    DELETED = "deleted"
    ABSENT = "absent"  # gone already, and not by us
    CHANGED = "changed"  # another object by now: left alone
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Target:
    """One object to delete, as it was when it was listed."""

    key: str
    etag: str
    size: int
    version_id: str | None
    marker: str | None = None

    @property
    def by_version(self) -> bool:
        return self.version_id is not None and self.version_id != "null"


@dataclass(frozen=True, slots=True)
class KeyOutcome:
    """What happened to one key: the line that every deletion has. `marker` is the delete marker's version id.

    `inferred`: no answer says so; it was found gone, or marked, after the intent to delete it was journaled. Somebody
    else may have done it at that very time.
    """

    key: str
    version_id: str | None
    result: Result
    detail: str = ""
    marker: str | None = None
    inferred: bool = False


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


def batches_of(targets: Sequence[Target], size: int, name: str) -> list[DeleteBatch]:
    """The targets in fixed batches: the same list gives the same batches after a crash."""
    ordered = sorted(targets, key=lambda target: target.key.encode())
    chunks = [tuple(ordered[at : at + size]) for at in range(0, len(ordered), size)]
    return [
        DeleteBatch(number, len(chunks), f"{name}/{number}", digest_of(chunk), chunk, resumed=False)
        for number, chunk in enumerate(chunks, start=1)
    ]


def digest_of(targets: Sequence[Target]) -> str:
    lines = [json.dumps([t.key, t.etag, t.size, t.version_id, t.marker], ensure_ascii=False) for t in targets]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


async def detect_conditional_delete(source: Bucket, probe_key: str, probe: bytes) -> DeleteGuard:
    """Which conditional deletion an unversioned bucket honours, tried on an object made for it."""
    etag, _ = await source.put_new(probe_key, probe)
    wrong = "0" * 32 if etag != "0" * 32 else "f" * 32
    try:
        if await _refuses(source, probe_key, lambda: source.delete_many([{"Key": probe_key, "ETag": f'"{wrong}"'}])):
            return DeleteGuard.BATCH_ETAG
        await source.put_new(probe_key, probe)
        if await _refuses(source, probe_key, lambda: source.delete_one(probe_key, etag=wrong)):
            return DeleteGuard.SINGLE_ETAG
        return DeleteGuard.HEAD
    finally:
        await source.delete_one(probe_key)


async def _refuses(source: Bucket, key: str, attempt: Callable[[], Awaitable[dict[str, Any]]]) -> bool:
    try:
        await attempt()
    except (PreconditionFailed, Unsupported):
        pass
    return await source.head(key) is not None


class Deleter:
    """Deletes one batch under a guard."""

    def __init__(self, source: Bucket, guard: DeleteGuard):
        self._source = source
        self._guard = guard

    async def send(self, batch: DeleteBatch) -> Outcomes:
        """Every target that is not settled once; transient failures of single keys are tried again here."""
        outcomes = {one.key: one for one in batch.settled if one.result is not Result.FAILED}
        left = [target for target in batch.targets if target.key not in outcomes]
        for attempt in range(_TRIES):
            for outcome in await self._once(left, resumed=batch.resumed or attempt > 0):
                outcomes[outcome.key] = outcome
            left = [target for target in left if outcomes[target.key].result is Result.FAILED]
            if not left:
                break
            await asyncio.sleep(0.2 * attempt)
        return tuple(outcomes[target.key] for target in batch.targets)

    async def _once(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        if self._guard is DeleteGuard.VERSION:
            return await self._many(targets, resumed=resumed, versions=True)
        if self._guard is DeleteGuard.PURGE:
            return await self._purge(targets, resumed=resumed)
        if self._guard is DeleteGuard.BATCH_ETAG:
            return await self._many(targets, resumed=resumed, versions=False)
        one = self._mark if self._guard is DeleteGuard.MARKER else self._one
        return await map_concurrently(targets, lambda target: one(target, resumed=resumed), _CONCURRENCY)

    async def _many(self, targets: Sequence[Target], *, resumed: bool, versions: bool) -> list[KeyOutcome]:
        rows: list[Mapping[str, str]] = []
        for target in targets:
            guard = {"VersionId": target.version_id or ""} if versions else {"ETag": f'"{target.etag}"'}
            rows.append({"Key": target.key, **guard})
        answer = await self._source.delete_many(rows)
        deleted = {row["Key"] for row in answer.get("Deleted", [])}
        errors = {row["Key"]: str(row.get("Code", "?")) for row in answer.get("Errors", [])}
        outcomes = []
        for target in targets:
            code = errors.get(target.key)
            if code is None and target.key in deleted:
                outcomes.append(KeyOutcome(target.key, target.version_id, Result.DELETED))
            else:
                outcomes.append(_by_code(target, code or "the store's answer does not mention this key", resumed))
        return outcomes

    async def _one(self, target: Target, *, resumed: bool) -> KeyOutcome:
        try:
            if self._guard is not DeleteGuard.SINGLE_ETAG:
                refused = _refused(target, await self._source.head(target.key), resumed)
                if refused is not None:
                    return refused
            # Under suspended versioning, versions and plain objects are mixed: what has a version id is ended by it.
            version = target.version_id if target.by_version else None
            await self._source.delete_one(target.key, version_id=version, etag=None if version else target.etag)
        except PreconditionFailed:
            return _by_code(target, "PreconditionFailed", resumed)
        except NotFound:
            return _by_code(target, "NoSuchKey", resumed)
        except TransientError:
            raise
        except WaybillError as error:
            return KeyOutcome(target.key, target.version_id, Result.FAILED, str(error))
        return KeyOutcome(target.key, target.version_id, Result.DELETED)

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
                return KeyOutcome(target.key, target.version_id, Result.FAILED, str(error))
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
        return KeyOutcome(target.key, target.version_id, Result.DELETED, marker=marker)

    async def _found_marked(self, target: Target) -> KeyOutcome:
        """A worker that died after the marker was set could not write its id down: it is found among the versions."""
        past = await self._source.past(target.key)
        if past.marker is None:
            return KeyOutcome(target.key, target.version_id, Result.ABSENT, "was gone already")
        if past.newest != target.version_id:
            return _by_code(target, "PreconditionFailed", resumed=True)
        detail = "found marked; the intent to mark it was journaled before, so this marker is taken for ours"
        return KeyOutcome(target.key, target.version_id, Result.DELETED, detail, past.marker, inferred=True)

    async def _purge(self, targets: Sequence[Target], *, resumed: bool) -> list[KeyOutcome]:
        """Ends the versions that a marker still hides. S3 has no condition for it (docs/protocols/s3.md 4.5): we look before."""
        looked = await map_concurrently(targets, lambda target: self._kept(target, resumed=resumed), _CONCURRENCY)
        hidden = [target for target, kept in zip(targets, looked, strict=True) if kept is None]
        purged = await self._many(hidden, resumed=resumed, versions=True) if hidden else []
        return [*purged, *(kept for kept in looked if kept is not None)]

    async def _kept(self, target: Target, *, resumed: bool) -> KeyOutcome | None:
        """Why a version is not purged; None if a delete marker lies right over it."""
        past = await self._source.past(target.key)
        if past.newest != target.version_id:
            if past.newest is None or await self._source.head(target.key, target.version_id) is None:
                return _by_code(target, "NoSuchVersion", resumed)
            detail = "a newer object lies over it; it was kept"
        elif past.marker is None:
            detail = "brought back: its delete marker was removed; it was kept"
        else:
            return None
        return KeyOutcome(target.key, target.version_id, Result.CHANGED, detail)


def _refused(target: Target, there: Head | None, resumed: bool) -> KeyOutcome | None:
    """By HEAD, why an object may not be deleted; None if it is the one that the target names."""
    if there is None:
        return _by_code(target, "NoSuchKey", resumed)
    same_version = not target.by_version or there.version_id == target.version_id
    if (there.etag, there.size) != (target.etag, target.size) or not same_version:
        return _by_code(target, "PreconditionFailed", resumed)
    return None


def _by_code(target: Target, code: str, resumed: bool) -> KeyOutcome:
    if code == "PreconditionFailed":
        detail = "another object lies there by now; it was kept"
        return KeyOutcome(target.key, target.version_id, Result.CHANGED, detail)
    if code in ("NoSuchKey", "NoSuchVersion", "404"):
        if resumed:
            detail = "found gone; the intent to delete it was journaled before the crash"
            return KeyOutcome(target.key, target.version_id, Result.DELETED, detail, inferred=True)
        return KeyOutcome(target.key, target.version_id, Result.ABSENT, "was gone already")
    return KeyOutcome(target.key, target.version_id, Result.FAILED, code)
