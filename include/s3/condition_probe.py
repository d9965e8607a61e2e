"""Which conditional deletion an unversioned bucket honours, tried on an object made for it.

Invariant: only a refusal by precondition, for this key, of an object that is then still there proves a guard. Any other
answer proves nothing: it is asked again a few times, and the weakest guard holds (docs/protocols/s3.md 4.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from include.core.errors import RemoteError, WaybillError
from include.s3.bucket import Bucket
from include.s3.errors import ConditionConflict, PreconditionFailed
from include.s3.guarded_delete import DeleteGuard

_TRIES = 3
_REFUSALS = ("PreconditionFailed", "412")


class _Answer(Enum):
    HONOURED = "the deletion was refused because of its condition, and the object is still there"
    IGNORED = "the object is gone, or the store does not take such a request"
    NOTHING = "neither was said"


@dataclass(frozen=True, slots=True)
class Probed:
    """The strongest guard that was proved, and the probe's key where its object could not be removed."""

    guard: DeleteGuard
    left: str | None = None


Attempt = Callable[[], Awaitable[dict[str, Any]]]


async def detect_conditional_delete(source: Bucket, key: str, content: bytes, *, pause: float = 0.2) -> Probed:
    """Tries a wrong ETag in DeleteObjects, then with DELETE, on an object `key` that it writes and removes again."""
    wrong = "0" * 32
    attempts: tuple[tuple[DeleteGuard, Attempt], ...] = (
        (DeleteGuard.BATCH_ETAG, lambda: source.delete_many([{"Key": key, "ETag": f'"{wrong}"'}])),
        (DeleteGuard.SINGLE_ETAG, lambda: source.delete_one(key, etag=wrong)),
    )
    proved = DeleteGuard.HEAD
    for guard, attempt in attempts:
        if await _is_honoured(source, key, content, attempt, pause):
            proved = guard
            break
    return Probed(proved, None if await removed(source, key) else key)


async def removed(source: Bucket, key: str) -> bool:
    """Removes a probe's object; whether it is gone."""
    try:
        await source.delete_one(key)
        return await source.head(key) is None
    except WaybillError:
        return False


async def _is_honoured(source: Bucket, key: str, content: bytes, attempt: Attempt, pause: float) -> bool:
    for again in range(_TRIES):
        answer = await _asked(source, key, content, attempt)
        if answer is not _Answer.NOTHING:
            return answer is _Answer.HONOURED
        await asyncio.sleep(pause * 2**again)
    return False


async def _asked(source: Bucket, key: str, content: bytes, attempt: Attempt) -> _Answer:
    try:
        await source.put_new(key, content)
        refused = await _refused(key, attempt)
        if await source.head(key) is None:
            return _Answer.IGNORED
    except RemoteError as error:
        # 501, or a 400 to an ETag where it knows none: no guard by this way. Anything else may pass.
        return _Answer.IGNORED if error.no_effect and not isinstance(error, ConditionConflict) else _Answer.NOTHING
    except WaybillError:
        return _Answer.NOTHING
    return _Answer.HONOURED if refused else _Answer.NOTHING


async def _refused(key: str, attempt: Attempt) -> bool:
    try:
        answer = await attempt()
    except ConditionConflict:
        return False
    except PreconditionFailed:
        return True
    errors = [row for row in answer.get("Errors", []) if row.get("Key") == key]
    return any(str(row.get("Code")) in _REFUSALS for row in errors)
