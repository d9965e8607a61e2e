"""The exit statuses of the command line: one table, from what went wrong to the number that a script decides by.

Invariant: 0 promises that all is proved; an error that the table does not know is never 0 (the store failed: 4).
"""

from __future__ import annotations

from include.core.errors import (
    AuthError,
    ConflictingRequest,
    Forbidden,
    NotFound,
    RequestError,
    VerificationError,
)
from include.plates.models import Outcome
from include.s3.errors import (
    BucketMissing,
    ClockWrong,
    ColdObject,
    ExpiredCredential,
    ObjectVanished,
    OtherRegion,
    RequesterPays,
)

PROVED, PROBLEM, BAD_INPUT, NOT_YET, STORE_FAILED = 0, 1, 2, 3, 4
OF_OUTCOME = {Outcome.VERIFIED: PROVED, Outcome.MISMATCH: PROBLEM, Outcome.UNVERIFIABLE: NOT_YET}
# The first that fits counts: subclasses stand before their bases.
_OF_ERROR: tuple[tuple[type[Exception], int], ...] = (
    (ExpiredCredential, 5),
    (ClockWrong, 6),
    (RequesterPays, 7),
    (BucketMissing, 8),
    (ObjectVanished, 9),
    (OtherRegion, 10),
    (Forbidden, 11),
    (AuthError, 12),
    (RequestError, BAD_INPUT),
    (ColdObject, NOT_YET),
    (VerificationError, PROBLEM),
    (ConflictingRequest, PROBLEM),
    (NotFound, PROBLEM),
)
# What a verification that could not be finished was stopped by, where it was the store and not the archive.
_STOPPED = {kind.__name__: status for kind, status in _OF_ERROR if status > STORE_FAILED} | {
    "TransientError": STORE_FAILED
}


def status_of(error: Exception) -> int:
    """The status of a command that an error ended."""
    return next((status for kind, status in _OF_ERROR if isinstance(error, kind)), STORE_FAILED)


def status_of_outcome(outcome: Outcome, stopped_by: str) -> int:
    """The status of a verification; `stopped_by` is the name of the error's class that ended it early, if one did."""
    unverifiable = outcome is Outcome.UNVERIFIABLE
    return _STOPPED.get(stopped_by, OF_OUTCOME[outcome]) if unverifiable else OF_OUTCOME[outcome]
