"""How much of a quota is used, and when the rest becomes free: asked before something is reserved, and again before it leaves.

Invariant: asked in the transaction that reserves or sends, under the write lock, so that two workers never share the last bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from include.core.errors import QuotaExceeded, RequestError
from include.core.ledger import sql
from include.core.ledger.rows import Quota, QuotaReading, Submission
from include.core.ledger.states import UNCERTAIN, State
from include.core.ledger.transaction import Write

LOOK_AGAIN_SECONDS = 3600.0  # where only a person can free what is missing


@dataclass(frozen=True)
class QuotaUser:
    """Whose bytes are counted together: one kind at a system, for one account there."""

    system: str
    kind: str
    account: str


def reading(conn: Connection, user: QuotaUser, quota: Quota, now: float, without: int | None = None) -> QuotaReading:
    """What counts now; `without` leaves the last attempt of one submission out (the one that asks)."""
    uncertain, values = sql.one_of("s.state", sorted(UNCERTAIN))
    where = (
        "s.system = :system AND s.kind = :kind AND s.account = :account "
        f"AND ({uncertain} OR s.accept_deadline > :since)"
    )
    asked = {"system": user.system, "kind": user.kind, "account": user.account}
    rows = sql.select(conn, where, {**asked, **values, "since": now - quota.span})
    frees, in_doubt = [], []
    for row in rows:
        late, own = row.late_jobs, 0 if row.id == without or _refused_or_unsent(row) else 1
        if own and row.state in UNCERTAIN and not quota.doubt_expires:
            in_doubt.append(row)
            own = 0
        free_at = (row.reserved_at if row.accept_deadline is None else row.accept_deadline) + quota.span
        if free_at > now and own + late:
            frees.append((free_at, (own + late) * row.size_bytes))
    used = sum(size for _, size in frees) + sum(row.size_bytes for row in in_doubt)
    return QuotaReading(used, max(0, quota.limit_bytes - used), tuple(sorted(frees)), tuple(in_doubt))


def _refused_or_unsent(row: Submission) -> bool:
    """Whether its own last attempt was refused, or cancelled before it left."""
    return row.state in (State.REJECTED, State.CANCELLED) and row.sending_at is None and row.external_id is None


def check(tx: Write, user: QuotaUser, size_bytes: int, quota: Quota, without: int | None = None) -> None:
    """Raises QuotaExceeded where so many bytes do not fit into the window now, RequestError where they never can."""
    what = f"{user.system}/{user.kind}" + (f" of {user.account}" if user.account else "")
    if size_bytes > quota.limit_bytes:
        raise RequestError(
            f"{what}: {size_bytes} bytes are more than the whole quota of {quota.limit_bytes} bytes per "
            f"{quota.window_seconds:.0f} s: split it"
        )
    found = reading(tx.conn, user, quota, tx.now, without)
    lacking = size_bytes - found.free_bytes
    if lacking <= 0:
        return
    full = f"{what}: {size_bytes} bytes do not fit into the quota of {quota.limit_bytes} bytes per {quota.window_seconds:.0f} s"
    lacking = found.used_bytes + size_bytes - quota.limit_bytes
    for free_at, size in found.frees:
        lacking -= size
        if lacking <= 0:
            raise _exceeded(tx, f"{full} now; they will in {free_at - tx.now:.0f} s", free_at - tx.now)
    raise _exceeded(
        tx,
        f"{full} as long as it is not known whether {_numbers(found.in_doubt)} reached the remote: see "
        "`python -m include.core.ledger in-doubt`",
        LOOK_AGAIN_SECONDS,
    )


def _exceeded(tx: Write, message: str, seconds: float) -> QuotaExceeded:
    return QuotaExceeded(message, available_at=tx.clock + seconds, retry_after=seconds)


def _numbers(rows: Sequence[Submission]) -> str:
    named = ", ".join(str(row.id) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"submission{'s' if len(rows) > 1 else ''} {named}{more}"
