"""The errors that Waybill raises, and the one table that maps HTTP answers and the ends of SSH commands to them.

Every class says two things a caller needs: may the same call be tried again (`retryable`), and is it *proved* that the
remote did nothing (`no_effect`). The ledger trusts `no_effect`: set it only where the remote cannot have acted.

Invariant: a message says what happened, to what, and what to do next; it never holds a secret or the content of a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar

from include.core.text import sentences

LONGEST_WAIT_SECONDS = 3600.0  # a remote that asks for more is asked again after so long: the number may be wrong


class WaybillError(Exception):
    """Base of all. `retryable`: the same call may succeed later. `no_effect`: the remote certainly did nothing."""

    retryable = False
    no_effect = False


class TransientError(WaybillError):
    """The remote was out of reach or busy. `retry_after` is in seconds, None where the remote named none.

    `status`: of the HTTP answer, where there was one.
    """

    retryable = True
    longest_wait_seconds: ClassVar[float] = LONGEST_WAIT_SECONDS

    def __init__(
        self, message: str, *, retry_after: float | None = None, no_effect: bool = False, status: int | None = None
    ):
        super().__init__(message)
        self.retry_after = None if retry_after is None else min(retry_after, self.longest_wait_seconds)
        self.no_effect = no_effect
        self.status = status


class QuotaExceeded(WaybillError):
    """A quota window is full. `available_at` (epoch seconds) is when enough will be free again, in `retry_after` seconds."""

    retryable = True
    no_effect = True

    def __init__(self, message: str, *, available_at: float, retry_after: float | None = None):
        super().__init__(message)
        self.available_at = available_at
        self.retry_after = retry_after


class AuthError(WaybillError):
    """The credential is wrong or expired (401), or the remote is not the one that the connection describes (an SSH host
    key). Names the connection, never the secret."""

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


class DeadlinePassed(WaybillError):
    """The time that a run, or one of its waits, was given is over. Names what is open and what to do about it."""


class Held(WaybillError):
    """It is not known whether the remote acted, and nothing but a person can find out (state HELD)."""


class Stopped(WaybillError):
    """A person has decided that it shall not go on. Says who, and about what."""

    no_effect = True


class Unanswered(WaybillError):
    """Nobody has answered a question in its time. Says who can, and where."""

    no_effect = True


class Cancelled(WaybillError):
    """A person cancelled it before it was sent. The task that had asked for it does not ask again; a new run may."""

    no_effect = True


class LedgerError(WaybillError):
    """The ledger is missing, unreadable, of another schema, or its chain is broken. Nothing remote was done."""

    no_effect = True


class CommandFailed(TransientError):
    """A command over SSH ended with an exit status that is no answer: what it did is not known.

    Whoever knows the command may read a refusal from `stdout` and `stderr`; both may hold anything, so that neither goes
    into a message whole. `exit_status` is None where a signal ended the command.
    """

    def __init__(self, message: str, *, exit_status: int | None = None, stdout: str = "", stderr: str = ""):
        super().__init__(message)
        self.exit_status = exit_status
        self.stdout = stdout
        self.stderr = stderr


# -- the table --------------------------------------------------------------------------------------------------------


def error_for_status(
    status: int,
    what: str,
    *,
    detail: str = "",
    retry_after: float | None = None,
    where: str = "the connection",
    location: str | None = None,
) -> WaybillError:
    """The error for an HTTP answer.

    `what` is the sentence's subject ("POST …/dataCopyBatch for icav2://…"), `detail` the remote's own words, already
    shortened, `where` the connection and its host, `location` what a 3xx points to (None: a redirect means something else
    at this remote). 429 proves that nothing was done; a 5xx proves nothing (a gateway may answer after the commit).
    """
    said = f"{what} answered {status}" + (f": {detail}" if detail else "")
    if status in _TRANSIENT or status >= 500:
        remedy, no_effect = _TRANSIENT.get(status, _IN_TROUBLE)
        message = sentences(said, remedy.format(where=where))
        return TransientError(message, retry_after=retry_after, no_effect=no_effect, status=status)
    if status == 401:
        return AuthError(sentences(said, f"Check the credential of {where}."))
    if status == 403:
        return Forbidden(sentences(said, f"Give the user of {where} the right to it."))
    if status == 404:
        return NotFound(sentences(said))
    if 300 <= status < 400 and location is not None:
        return TransientError(
            f"{said.rstrip('.')} to {location or 'nowhere'}: a login page or proxy stands before the remote; check {where}.",
            status=status,
        )
    if 400 <= status < 500:
        return RemoteError(sentences(said, "The remote refuses this request as it is."), no_effect=True)
    return RemoteError(f"{said.rstrip('.')}, which Waybill does not expect.")


_IN_TROUBLE = ("The remote is in trouble.", False)
# Statuses below 500 that pass: the remedy, and whether it is proved that nothing was done.
_TRANSIENT = {
    407: ("The proxy before {where} wants a login of its own; check the worker's proxy settings.", True),
    408: _IN_TROUBLE,
    425: _IN_TROUBLE,
    429: ("The remote asks to slow down.", True),
}


class SshTrouble(StrEnum):
    """How a command over SSH ends otherwise than with an exit status that is an answer."""

    HOST_KEY = "the host's key is not the one that {where} names"
    LOGIN = "{where} is refused"
    NOT_CONNECTED = "{where} cannot be reached"
    NO_SESSION = "{where} opens no session now"
    LOST = "{where} was lost after the command had left"
    TIMEOUT = "{where} has not ended the command in time"
    OUTPUT = "the command writes more than is taken from {where}"
    STATUS = "the command failed on {where}"


def error_for_ssh(trouble: SshTrouble, what: str, *, where: str, detail: str = "") -> WaybillError:
    """The error for the end of a command over SSH; arguments as for `error_for_status`.

    Only what happens before the command leaves proves that nothing was done. An exit status other than 0 proves nothing:
    `sbatch` ends with 1 also where its controller takes the job later.
    """
    said = f"{what}: {trouble.value.format(where=where)}" + (f" ({detail})" if detail else "")
    if trouble is SshTrouble.HOST_KEY:
        return AuthError(
            sentences(
                said,
                "Ask the host's administrator for its key, by another way than this network, and compare it with the extra "
                "host_key",
            )
        )
    if trouble is SshTrouble.LOGIN:
        return AuthError(sentences(said, "Check its login, and its private key or password."))
    if trouble in (SshTrouble.NOT_CONNECTED, SshTrouble.NO_SESSION):
        return TransientError(sentences(said, "The command was not sent."), no_effect=True)
    if trouble is SshTrouble.LOST:
        return TransientError(sentences(said, "What it did is not known."))
    if trouble is SshTrouble.TIMEOUT:
        return TransientError(sentences(said, "The remote process may still run, and do its work later."))
    if trouble is SshTrouble.OUTPUT:
        return RemoteError(sentences(said, "It may have done its work."))
    return CommandFailed(sentences(said, "What it did is not known."))
