"""What an S3 store can answer beyond the core's errors; each class is one decision a caller has to take."""

from __future__ import annotations

from include.core.errors import AuthError, ConflictingRequest, Forbidden, NotFound, RemoteError, VerificationError


class SourceChanged(VerificationError):
    """The object is not the one that was listed (other ETag, size, version, or gone). List it again."""


class ObjectVanished(SourceChanged):
    """The object was listed, or looked at, and is gone. Find out who deletes there, then list again."""


class BucketMissing(NotFound):
    """There is no such bucket. Check its name, and the endpoint."""


class ExpiredCredential(AuthError):
    """The session of the credential is over. Log in again, then run again: it goes on where it stopped."""


class ClockWrong(AuthError):
    """This machine's clock is too far from the store's, which therefore takes no signature. Set the clock."""


class RequesterPays(Forbidden):
    """The bucket is read only by those who agree to pay for it: `--request-payer`, or the connection's extra."""


class OtherRegion(RemoteError):
    """The bucket lies in another region than the one asked. `region` is its own, None where the store does not say."""

    def __init__(self, message: str, region: str | None = None):
        super().__init__(message, no_effect=True)
        self.region = region


class ObjectExists(ConflictingRequest):
    """Something else already lies under the key. Nothing was overwritten."""


class ConcurrentWriter(ConflictingRequest):
    """Another writer completed, or is completing, the same object. Find out who before running again."""


class Unsupported(RemoteError):
    """The store does not have this operation. The caller falls back or says so."""


class UploadLost(RemoteError):
    """The multipart upload no longer exists (aborted or expired)."""


class PreconditionFailed(RemoteError):
    """412 or 409: the condition sent with the request did not hold."""

    def __init__(self, message: str):
        super().__init__(message, no_effect=True)


class ColdObject(RemoteError):
    """The object lies in an archived storage class and must be restored before it can be read."""


class ConditionConflict(PreconditionFailed):
    """409: another request was at the object at that moment. Whether the condition was looked at is not said."""
