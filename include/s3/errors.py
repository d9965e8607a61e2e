"""What an S3 store can answer beyond the core's errors; each class is one decision a caller has to take."""

from __future__ import annotations

from include.core.errors import ConflictingRequest, RemoteError, VerificationError


class SourceChanged(VerificationError):
    """A source object is not the one that was listed (other ETag, size, version, or gone). Plan the plate again."""


class ArchiveExists(ConflictingRequest):
    """Something else already lies under a name that the archive needs. Nothing was overwritten."""


class ConcurrentWriter(ConflictingRequest):
    """Another writer completed, or is completing, the same tarball. Find out who before running again."""


class Unsupported(RemoteError):
    """The store does not have this operation. The caller falls back or says so."""


class UploadLost(RemoteError):
    """The multipart upload no longer exists (aborted or expired)."""


class PreconditionFailed(RemoteError):
    """412 or 409: the condition sent with the request did not hold. `concurrent` for 409."""

    def __init__(self, message: str, *, concurrent: bool = False):
        super().__init__(message, no_effect=True)
        self.concurrent = concurrent


class ColdObject(RemoteError):
    """The object lies in an archived storage class and must be restored before it can be read."""
