"""The ledger, and the only ways to change it.

Invariant: every change goes through `_write`, which holds the one write lock, appends the event and updates the row in a
single short transaction without other input or output. That lock is what makes the chain gapless, the compare-and-sets
decisive and the quota sums right.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.engine import Connection

from include.core.errors import ConflictingRequest, LedgerError, RequestError, TransientError
from include.core.ledger import quota as quotas
from include.core.ledger import schema, sql
from include.core.ledger.clock import Time, must_be_noted
from include.core.ledger.intents import check_hold, check_intent, check_owner, reserved
from include.core.ledger.odd_values import facts_of, id_as_shown, storable, storable_id
from include.core.ledger.quota import QuotaUser
from include.core.ledger.reading import LedgerReader
from include.core.ledger.rows import Intent, Owner, Quota, Submission, canonical, long_values
from include.core.ledger.states import OPEN, UNCERTAIN, State
from include.core.ledger.transaction import GENESIS, Write, closes
from include.core.text import printable

T = TypeVar("T")
NAMEABLE = (State.SENDING, State.IN_DOUBT, State.ACCEPTED, State.HELD)  # a job that is found is this row's
LONGEST_NAMELESS_SECONDS = 30 * 86_400.0  # no remote takes longer to show what it has accepted
HOLD_LOOK_SECONDS = 3600.0  # a hold may be ended before its time
CANCELLED_UNSENT = "cancelled before anything was sent"


class OnHold(TransientError):
    """A person has said that nothing is sent to this system until an instant. Nothing was sent, and nothing has failed."""

    def __init__(self, hold: sql.Hold, clock: float):
        until = datetime.fromtimestamp(hold.until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        super().__init__(
            f"{hold.system} is on hold until {until} ({hold.who}: {hold.why}); nothing is sent to it",
            retry_after=min(hold.until - clock, HOLD_LOOK_SECONDS),
            no_effect=True,
        )


class LookAgain(TransientError):
    """What the caller saw is old: another worker has made the effect again meanwhile. Nothing was sent."""

    def __init__(self, row: Submission):
        super().__init__(
            f"{row}: run {row.owner.run_id} has sent it since this worker looked; looking again",
            retry_after=1.0,
            no_effect=True,
        )


class Ledger(LedgerReader):
    """A ledger that exists already, and all that may be written to it. See `LedgerReader`."""

    @contextmanager
    def _write(self, row: Submission | int | None = None, *, key: Mapping[str, str] | None = None) -> Iterator[Write]:
        """A transaction that begins with one row: by number, or the newest generation of a key."""
        row_id = row.id if isinstance(row, Submission) else row
        with schema.plain_errors("written"), self._engine.begin() as conn:
            schema.lock(conn)
            found = sql.head_and_row(conn, id=row_id, key=key)
            tx = Write(conn, self._time(found), found.number or 0, found.sha256 or GENESIS, hold=found.hold)
            tx.row = tx.took_in(found.row) if found.row is not None else None
            yield tx

    def _swap(
        self,
        row: Submission,
        values: dict[str, Any],
        *,
        why: str,
        who: str | None = None,
        later: Mapping[str, float] | None = None,
    ) -> Submission | None:
        """The short way, in two statements: `row` changed, if it still is exactly what the caller saw; None where it is not, its
        system is on hold, or the clock was set back. Then nothing was done, and the long way decides. `later`: columns that
        become the ledger's time and so many seconds."""
        try:
            later = {**(later or {}), **({"closed_at": 0.0} if closes(row, values) else {})}
        except LedgerError:  # from what the caller saw; what is there now may be further on
            return None
        detail = values.get("detail", row.detail)
        seen_detail, _ = long_values(row.detail)
        kept, new_documents = long_values(detail)
        token, job = row.fencing_token, row.external_id
        text = canonical(seen_detail)
        seen = {"id": row.id, "state": str(row.state), "fencing_token": token, "external_id": job, "detail": text}
        stored = {**values, "detail": canonical(kept)} if "detail" in values else values
        clock = None if self._clock is None else float(self._clock())
        with schema.plain_errors("written"), self._engine.begin() as conn:
            schema.lock(conn)
            found = sql.swap(conn, seen, stored, later, clock)
            if found is None or found.row is None:
                return None
            tx = Write(conn, Time(found.clock, found.clock), found.number or 0, found.sha256 or GENESIS)
            tx.keep({sha256: text for sha256, text in new_documents.items() if sha256 not in text})
            attached = sql.submission(found.row, detail).attached
            changed = {name: found.row[name] for name in sql.COLUMNS}
            return tx.record(changed, row.state, why, who, detail, attached)

    @contextmanager
    def _changing(self, row: Submission) -> Iterator[tuple[Write, Submission]]:
        """A transaction on a row that must be there, and the row as it now is."""
        with self._write(row) as tx:
            if tx.row is None:
                raise LedgerError(f"the ledger has no submission {row.id}")
            yield tx, tx.row

    @contextmanager
    def tidying(self) -> Iterator[tuple[Connection, float]]:
        """A transaction under the write lock, and the ledger's time, for what changes no submission."""
        with schema.plain_errors("written"), self._engine.begin() as conn:
            schema.lock(conn)
            yield conn, self._time(sql.head_and_row(conn)).now

    def now(self) -> float:
        """The ledger's time: the database's clock, never behind the last event (see `clock`)."""
        with self.reading() as conn:
            found = sql.head_and_row(conn)
        time = self._time(found)
        if must_be_noted(found, time):
            with self._write(found.head_submission_id) as tx:
                if tx.row is not None and tx.clock < tx.now:
                    tx.change(tx.row, {}, why="the clock of the database is behind")
        return time.now

    def first_sent_within(self, row: Submission, seconds: float, *, clock_error: float) -> bool:
        """Whether it is sure that its first request left at most so long ago: by the ledger's time, which may be slow, and by the
        clock, which may have been set back since (by more than `clock_error`: then nothing is sure)."""
        with self.reading() as conn:
            time = self._time(sql.head_and_row(conn))
        first = float(row.detail["first_sending_at"])
        first_clock = float(row.detail.get("first_sending_clock", first))
        return time.clock >= first_clock - clock_error and max(time.now - first, time.clock - first_clock) < seconds

    def hold(self, system: str, *, until: float, who: str, why: str) -> None:
        """Nothing is sent to this system until an instant, by the database's clock: a person means what a clock shows. An instant
        in the past ends a hold."""
        check_hold(system, who, why)
        with self.tidying() as (conn, _now):
            values = {"system": system, "until": until, "who": who, "why": why}
            sql.execute(conn, sql.REPLACE_HOLD, values)

    def open(self, intent: Intent, *, quota: Quota | None = None, seen_absent: int | None = None) -> Submission:
        """The open row for this intent: the one that exists with the same payload, or a new generation, RESERVED.

        `seen_absent`: the newest generation that the caller knew of when it looked at the effect and found it absent or
        incomplete (0: it knew of none). A generation whose effect is in place is returned as it is, unless the caller has
        seen that it is not. One that was cancelled before it was sent is returned to the task that had asked for it.
        Raises LookAgain where a newer generation has ended since the caller looked, ConflictingRequest when one with another
        payload is open, QuotaExceeded, RequestError, LedgerError.
        """
        check_intent(intent)
        key = {"system": intent.system, "kind": intent.kind, "business_key": intent.business_key}
        with self._write(key=key) as tx:
            last = tx.row
            if last is not None and last.state in OPEN:
                if last.payload_sha256 != intent.payload_sha256:
                    raise ConflictingRequest(_conflict(last, intent))
                return self._attach(tx, last, intent.owner)
            if last is not None:
                if last.cancelled_unsent and last.belongs_to(intent.owner):
                    return last
                # The number matters: another worker may have made the effect again since this one looked.
                if seen_absent is not None and last.generation > seen_absent:
                    raise LookAgain(last)
                if last.is_effective and seen_absent is None:
                    return last
            if quota is not None:
                user = QuotaUser(intent.system, intent.kind, intent.account)
                quotas.check(tx, user, intent.size_bytes, quota)
            return tx.insert(reserved(intent, last.generation + 1 if last else 1, tx.now), why="intent")

    def attach(self, row: Submission, owner: Owner) -> Submission:
        """Notes that another task waits for this submission too."""
        check_owner(owner, f"{row.system}/{row.kind}")
        with self._changing(row) as (tx, now):
            return self._attach(tx, now, owner)

    def _attach(self, tx: Write, row: Submission, owner: Owner) -> Submission:
        if row.belongs_to(owner):
            return row
        who = f"{owner.dag_id}/{owner.run_id}/{owner.task_id}"
        return tx.change(row, {}, why="attached", who=who, attach=owner)

    def claim(self, row: Submission, *, seconds: float) -> Submission | None:
        """Takes a RESERVED row for the caller alone while it clears the ground, for at most so long. None: somebody else was
        faster."""
        token = str(uuid.uuid4())
        until = {"claimed_until": self.now() + seconds}
        return _twice(lambda: self._take(row, token, {"detail": {**row.detail, **until}}, why="clearing the ground"))

    def keep_client_key(self, row: Submission, key: str) -> Submission:
        """Commits the key under which a row is sent, once and for ever: the one that is there wins."""
        with self._changing(row) as (tx, now):
            if now.client_key is not None or now.state != State.RESERVED:
                return now
            return tx.change(now, {"detail": {**now.detail, "client_key": key}}, why="client key")

    def release(self, row: Submission) -> None:
        """Gives a claim back before its time."""
        with self._changing(row) as (tx, now):
            if now.state == State.RESERVED and now.fencing_token == row.fencing_token:
                tx.change(now, {"detail": {**now.detail, "claimed_until": 0.0}}, why="the ground was not cleared")

    def begin(self, row: Submission, *, response_deadline: float, quota: Quota | None = None) -> Submission | None:
        """RESERVED → SENDING for the caller alone, committed before the first byte. None: somebody else was faster.

        `response_deadline` (seconds from now) is when an answer may be missed: `in-doubt` lists the row from then on. Raises
        OnHold, and QuotaExceeded where its bytes do not fit (any more).
        """
        token, state = str(uuid.uuid4()), {"state": State.SENDING}
        return _twice(
            lambda: self._take(row, token, state, why="sending", response_deadline=response_deadline, quota=quota)
        )

    def _take(
        self,
        row: Submission,
        token: str,
        values: dict[str, Any],
        *,
        why: str,
        response_deadline: float = 0.0,
        quota: Quota | None = None,
    ) -> Submission | None:
        if quota is None and row.state == State.RESERVED and row.client_key is None:
            later = {"sending_at": 0.0, "accept_deadline": response_deadline} if "state" in values else {}
            swapped = self._swap(row, {**values, "fencing_token": token}, why=why, later=later)
            if swapped is not None:
                return swapped
        with self._changing(row) as (tx, now):
            if now.fencing_token == token:  # committed before, and only the commit's answer was lost
                return now
            if now.state != State.RESERVED or now.fencing_token != row.fencing_token:
                return None
            if now.cancel_requested_at is not None:
                tx.change(now, {"state": State.CANCELLED}, why=CANCELLED_UNSENT)
                return None
            if tx.hold is not None and tx.hold.until > tx.clock:
                raise OnHold(tx.hold, tx.clock)
            if quota is not None:
                user = QuotaUser(now.system, now.kind, now.account)
                quotas.check(tx, user, now.size_bytes, quota, without=now.id)
            if "state" in values:
                values = {**values, "sending_at": tx.now, "accept_deadline": tx.now + response_deadline}
                if now.client_key is not None and "first_sending_at" not in now.detail:
                    first = {"first_sending_at": tx.now, "first_sending_clock": tx.clock}
                    values["detail"] = {**now.detail, **first}
            return tx.change(now, {**values, "fencing_token": token}, why=why)

    def record_sent(
        self, attempt: Submission, external_id: str, *, why: str, detail: Mapping[str, Any] | None = None
    ) -> Submission:
        """Writes down the remote's id. Also a sender that comes late may record, and only record.

        An id that no database keeps is kept in another spelling, and as it came in detail `remote_id`. Raises LedgerError where
        the attempt has meanwhile been replaced or cancelled: the id is kept all the same.
        """
        facts, kept = facts_of(detail), storable_id(external_id)
        if kept is None:
            raise RequestError(
                f"{attempt}: the remote id {printable(external_id)} names nothing: give the one that it has there"
            )
        if kept != external_id:
            facts = {**facts, **storable({"remote_id": external_id})}
        external_id = kept
        row, welcome = _twice(lambda: self._record_sent(attempt, external_id, why, facts))
        if not welcome:
            error = LedgerError(
                f"{row}: the remote's answer {external_id} came after this attempt was replaced or cancelled; the ledger "
                "has kept it. Look at that job there, and end it if it is not wanted"
            )
            error.no_effect = False
            raise error
        return row

    def record_found(self, row: Submission, external_id: str) -> Submission:
        """Writes down a job that a search found, if the row still waits for one; else returns it as it now is.

        Unlike an answer, what is found is of no attempt: where it was sent anew since the search began, the job may be the new
        attempt's, or the next generation's, and must stay there to be found.
        """
        with self._changing(row) as (tx, now):
            if now.state == State.RESERVED:  # thought absent, and here it is
                now = tx.change(now, {"state": State.SENDING}, why="found after all")
            elif now.state not in (State.IN_DOUBT, State.ACCEPTED):
                return now
            values = {"state": State.SENT, "external_id": storable_id(external_id), "accept_deadline": tx.now}
            return tx.change(now, values, why="found by probe")

    def record_accepted(self, attempt: Submission, detail: Mapping[str, Any], *, named_within: float) -> Submission:
        """Writes down that the remote said yes and named nothing. `named_within` (seconds): by when it shows the job.

        Raises LedgerError where the attempt has meanwhile been replaced or cancelled: the answer is kept all the same.
        """
        within = named_within if 0 <= named_within < LONGEST_NAMELESS_SECONDS else LONGEST_NAMELESS_SECONDS
        row, welcome = _twice(lambda: self._record_accepted(attempt, storable(detail), within))
        if not welcome:
            error = LedgerError(
                f"{row}: the remote's yes came after this attempt was replaced or cancelled; the ledger has kept it. Look "
                "there for a second job"
            )
            error.no_effect = False
            raise error
        return row

    def _record_accepted(
        self, attempt: Submission, detail: dict[str, Any], named_within: float
    ) -> tuple[Submission, bool]:
        with self._changing(attempt) as (tx, now):
            if now.state == State.RESERVED:  # thought absent, but here is its answer: nothing else is out there
                now = tx.change(
                    now, {"state": State.SENDING, "fencing_token": attempt.fencing_token}, why="late answer"
                )
            if now.fencing_token == attempt.fencing_token:
                if now.state in (State.ACCEPTED, State.SENT):  # written before, or its job was found meanwhile
                    return now, True
                if now.state in (State.SENDING, State.IN_DOUBT, State.HELD):
                    facts = {**now.detail, **facts_of(detail), "named_by": tx.now + named_within}
                    values = {"state": State.ACCEPTED, "accept_deadline": tx.now, "detail": facts}
                    return tx.change(now, values, why="accepted, not named yet"), True
            late = now.detail.get("late_acceptances", [])
            if any(one["attempt"] == attempt.fencing_token for one in late):  # written before
                return now, False
            late = [*late, {"attempt": attempt.fencing_token, "said": detail}]
            values = {"detail": {**now.detail, "late_acceptances": late}, **_accepted_now(now, tx.now)}
            return tx.change(now, values, why="late answer of a replaced attempt"), False

    def _record_sent(
        self, attempt: Submission, external_id: str, why: str, detail: dict[str, Any]
    ) -> tuple[Submission, bool]:
        """The row, and whether this job is the row's own."""
        if attempt.state == State.SENDING and attempt.external_id is None:
            first = {"external_id": external_id, "state": State.SENT, "detail": {**attempt.detail, **detail}}
            swapped = self._swap(attempt, first, why=why, later={"accept_deadline": 0.0})
            if swapped is not None:
                return swapped, True
        with self._changing(attempt) as (tx, now):
            late = now.detail.get("late_answers", [])
            if external_id == now.external_id or external_id in late:
                return now, external_id not in late
            if now.state == State.RESERVED:  # thought absent, but here is its answer: nothing else is out there
                now = tx.change(
                    now, {"state": State.SENDING, "fencing_token": attempt.fencing_token}, why="late answer"
                )
            # Accepted at any instant up to now: a commit may come long after the client has given up.
            values: dict[str, Any] = {"external_id": external_id, "accept_deadline": tx.now}
            # Under one client key every attempt's answer is about one job.
            its_own = now.fencing_token == attempt.fencing_token or now.client_key is not None
            if now.state in NAMEABLE and its_own:
                values |= {"state": State.SENT, "detail": {**now.detail, **detail}}
                return tx.change(now, values, why=why), True
            if now.external_id is None and now.state in (State.SUPERSEDED, State.CANCELLED):
                return tx.change(now, values, why=f"late answer: {why}"), now.state == State.SUPERSEDED
            # It counts in a quota beside the row's own job.
            values = {"detail": {**now.detail, "late_answers": [*late, external_id]}, **_accepted_now(now, tx.now)}
            why = "late answer of a replaced attempt"
            return tx.change(now, values, why=why, late_answer=external_id), False

    def move(
        self,
        row: Submission,
        state: State,
        *,
        why: str,
        who: str | None = None,
        detail: Mapping[str, Any] | None = None,
        external_id: str | None = None,
    ) -> Submission:
        """Moves a row if it still is in the state and attempt that the caller saw; else returns it as it now is. `external_id`:
        as a person gives it."""
        detail = None if detail is None else storable(detail)
        external_id = None if external_id is None else id_as_shown(external_id)
        values, later = _moved(row, state, detail, external_id)
        swapped = self._swap(row, values, why=why, who=who, later=later)
        if swapped is not None:
            return swapped
        with self._changing(row) as (tx, now):
            if now.state != row.state or now.fencing_token != row.fencing_token:
                return now
            values, later = _moved(now, state, detail, external_id)
            moved = tx.change(now, {**values, **dict.fromkeys(later, tx.now)}, why=why, who=who)
            if state == State.RESERVED and now.cancel_requested_at is not None:
                return tx.change(moved, {"state": State.CANCELLED}, why=CANCELLED_UNSENT)
            return moved

    def annotate(self, row: Submission, detail: Mapping[str, Any], *, why: str) -> Submission:
        """Adds facts to a row without moving it."""
        with self._changing(row) as (tx, now):
            return tx.change(now, {"detail": {**now.detail, **storable(detail)}}, why=why)

    def request_cancel(self, row: Submission, *, who: str, why: str) -> Submission:
        """Writes down a cancellation request; a worker carries it out. Twice is once. What is RESERVED is cancelled at once:
        it will not be sent, and its task does not ask for it again."""
        with self._changing(row) as (tx, now):
            if now.cancel_requested_at is not None or now.state not in OPEN:
                return now
            values: dict[str, Any] = {"cancel_requested_at": tx.now}
            if now.state == State.RESERVED:
                values["state"] = State.CANCELLED
            return tx.change(now, values, why=why, who=who)


def _accepted_now(row: Submission, now: float) -> dict[str, Any]:
    """The column that changes where the remote has accepted another attempt of a submission, at the latest now."""
    return {"accept_deadline": max(now, row.accept_deadline or 0.0)}


def _moved(
    row: Submission, state: State, detail: Mapping[str, Any] | None, external_id: str | None
) -> tuple[dict[str, Any], dict[str, float]]:
    """The columns that a move changes, and those that become the ledger's time."""
    values: dict[str, Any] = {"state": state}
    later: dict[str, float] = {}
    if state in (State.RESERVED, State.REJECTED):
        values["sending_at"] = None  # proved: the remote never accepted it
        values["accept_deadline"] = row.accept_deadline if row.late_jobs else None
    elif row.sending_at is not None and row.state in UNCERTAIN and state not in UNCERTAIN:
        later["accept_deadline"] = 0.0  # it is decided now: until here the remote may have accepted it
    if state == State.RESERVED:
        values["fencing_token"] = str(uuid.uuid4())  # whoever still holds the old token may not send
    if external_id is not None:
        values["external_id"] = external_id
    if detail is not None:
        values["detail"] = {**row.detail, **detail}
    return values, later


def _twice(write: Callable[[], T]) -> T:
    """A write that may be repeated, once more after a lost database connection: what it protects is worth it."""
    try:
        return write()
    except TransientError:
        return write()


def _conflict(last: Submission, intent: Intent) -> str:
    return (
        f"{last} of run {last.owner.dag_id}/{last.owner.run_id} is open with payload {last.payload_sha256[:12]}, and run "
        f"{intent.owner.dag_id}/{intent.owner.run_id} asks for payload {intent.payload_sha256[:12]} on the same "
        f"{intent.business_key}: wait until the first has ended, or resolve it"
    )
