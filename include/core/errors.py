"""The errors that Waybill raises, and the one table that maps HTTP answers to them.

Every class says two things a caller needs: may the same call be tried again (`retryable`), and is it *proved* that the
remote did nothing (`no_effect`). The ledger trusts `no_effect`: set it only where the remote cannot have acted.
A message says what happened, to what, and what to do next; it never holds a secret or the content of a file.
"""

from __future__ import annotations

from collections.abc import Iterable


class WaybillError(Exception):
    """Base of all. `retryable`: the same call may succeed later. `no_effect`: the remote certainly did nothing."""

    retryable = False
    no_effect = False


class TransientError(WaybillError):
    """The remote was out of reach or busy. `retry_after` is in seconds, None where the remote named none."""

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None, no_effect: bool = False):
        super().__init__(message)
        self.retry_after = retry_after
        self.no_effect = no_effect


class QuotaExceeded(WaybillError):
    """A quota window is full. `available_at` (epoch seconds) is when enough of it will be free again."""

    retryable = True
    no_effect = True

    def __init__(self, message: str, *, available_at: float):
        super().__init__(message)
        self.available_at = available_at


class AuthError(WaybillError):
    """401: the credential is wrong or expired. Names the connection, never the secret."""

    no_effect = True


class Forbidden(AuthError):
    """403: the credential is good, but lacks the right to this one thing."""


class RequestError(WaybillError):
    """The input is wrong. `problems` lists every fault found: field, value and remedy, one sentence each."""

    no_effect = True

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("; ".join(self.problems))


class NotFound(WaybillError):
    """404: what was asked for does not exist there."""

    no_effect = True


class ConflictingRequest(WaybillError):
    """The same effect is already asked for with another payload. The message shows both."""

    no_effect = True


class RemoteError(WaybillError):
    """The remote refused or failed permanently, and trying again will not help."""

    def __init__(self, message: str, *, no_effect: bool = False):
        super().__init__(message)
        self.no_effect = no_effect


class VerificationError(WaybillError):
    """What arrived is not what was sent. Names the items."""


class Held(WaybillError):
    """It is not known whether the remote acted, and nothing but a person can find out (state HELD)."""


class Cancelled(WaybillError):
    """A person cancelled it before it was sent. The task that had asked for it does not ask again; a new run may."""

    no_effect = True


class LedgerError(WaybillError):
    """The ledger is missing, unreadable, of another schema, or its chain is broken. Nothing remote was done."""

    no_effect = True


def error_for_status(status: int, what: str, *, detail: str = "", retry_after: float | None = None) -> WaybillError:
    """The error for an HTTP answer.

    `what` is the sentence's subject ("POST …/dataCopyBatch for icav2://…"), `detail` the remote's own words, already
    shortened. 429 proves that nothing was done; a 5xx proves nothing (a gateway may answer after the commit).
    """
    said = f"{what} answered {status}" + (f": {detail}" if detail else "")
    if status == 429:
        return TransientError(f"{said}. The remote asks to slow down.", retry_after=retry_after, no_effect=True)
    if status == 401:
        return AuthError(f"{said}. Check the connection's credential.")
    if status == 403:
        return Forbidden(f"{said}. Give the credential's user the right to it.")
    if status == 404:
        return NotFound(f"{said}.")
    if status == 408 or status >= 500:
        return TransientError(f"{said}. The remote is in trouble.", retry_after=retry_after)
    if 400 <= status < 500:
        return RemoteError(f"{said}. The remote refuses this request as it is.", no_effect=True)
    return RemoteError(f"{said}, which Waybill does not expect.")
