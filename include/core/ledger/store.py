"""The ledger's rows and the moves on them.

The thing to know before changing it: every change goes through `_write`, which holds the one write lock, appends the
event and updates the row in a single short transaction. No input or output happens inside. That lock is what makes the
chain gapless, the compare-and-sets decisive and the quota sums right.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from include.core.errors import ConflictingRequest, LedgerError, QuotaExceeded, TransientError
from include.core.ledger import schema
from include.core.ledger.schema import events, submissions
from include.core.ledger.states import CLOSED, MOVES, OPEN, UNCERTAIN, State

GENESIS = "0" * 64


def canonical(value: Any) -> str:
    """One spelling for equal JSON values, so that equal content has equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Owner:
    """The task that asks: written beside what it asked for, so that a person finds the log."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class Intent:
    """What shall come true in the world. `business_key` names the effect, never the run (unless it repeats per run).

    `payload` is what will be asked of the remote (JSON); its digest tells the same request from another one.
    `detail` is kept for people and for the probe; it holds no secret.
    """

    system: str
    kind: str
    business_key: str
    payload: Mapping[str, Any]
    owner: Owner
    size_bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def payload_sha256(self) -> str:
        return sha256_of(dict(self.payload))


@dataclass(frozen=True)
class Quota:
    """At most `limit_bytes` of one kind accepted by the remote within any `window_seconds`, plus a margin."""

    limit_bytes: int
    window_seconds: float = 86_400.0
    margin_seconds: float = 900.0


@dataclass(frozen=True)
class Submission:
    """One row of the ledger, as it was when read. Times are epoch seconds of the ledger's clock."""

    id: int
    system: str
    kind: str
    business_key: str
    generation: int
    state: State
    attempt_token: str | None
    external_id: str | None
    payload_sha256: str
    size_bytes: int
    owner: Owner
    reserved_at: float
    sending_at: float | None
    accepted_by: float | None
    closed_at: float | None
    cancel_requested_at: float | None
    detail: Mapping[str, Any]

    @property
    def runs(self) -> list[str]:
        """The runs that asked for it or attached to it."""
        return [self.owner.run_id, *self.detail.get("attached_runs", [])]

    def __str__(self) -> str:
        return f"{self.system}/{self.kind} {self.business_key} generation {self.generation} ({self.state})"


def _submission(row: Mapping[Any, Any]) -> Submission:
    fields = {name: row[name] for name in Submission.__dataclass_fields__ if name not in ("owner", "state", "detail")}
    owner = Owner(row["dag_id"], row["run_id"], row["task_id"], row["map_index"])
    return Submission(**fields, owner=owner, state=State(row["state"]), detail=json.loads(row["detail"]))


@dataclass
class _Write:
    """One transaction under the write lock. `now` never runs backwards, whatever the host's clock does."""

    conn: Connection
    now: float
    last_number: int
    last_sha256: str

    def row(self, submission_id: int) -> Submission:
        found = self.conn.execute(sa.select(submissions).where(submissions.c.id == submission_id)).mappings().first()
        if found is None:
            raise LedgerError(f"the ledger has no submission {submission_id}")
        return _submission(found)

    def insert(self, values: dict[str, Any], *, why: str) -> Submission:
        new_id = self.conn.execute(submissions.insert().values(**values).returning(submissions.c.id)).scalar_one()
        return self._record(int(new_id), None, why, None)

    def change(self, old: Submission, values: dict[str, Any], *, why: str, who: str | None = None) -> Submission:
        """Changes a row and appends the event. Refuses a move that the state machine does not know."""
        new_state = State(values.get("state", old.state))
        if new_state != old.state and new_state not in MOVES[old.state]:
            raise LedgerError(f"{old}: a move to {new_state} does not exist")
        if new_state in CLOSED and new_state != old.state:
            values["closed_at"] = self.now
        if "detail" in values:
            values["detail"] = canonical(values["detail"])
        self.conn.execute(submissions.update().where(submissions.c.id == old.id).values(**values))
        return self._record(old.id, old.state, why, who)

    def _record(self, submission_id: int, before: State | None, why: str, who: str | None) -> Submission:
        row = dict(self.conn.execute(sa.select(submissions).where(submissions.c.id == submission_id)).mappings().one())
        self.last_number += 1
        body = canonical(
            {"number": self.last_number, "at": self.now, "before": before, "why": why, "who": who, "row": dict(row)}
        )
        digest = chain_sha256(self.last_sha256, body)
        self.conn.execute(
            events.insert().values(
                number=self.last_number,
                submission_id=submission_id,
                at=self.now,
                body=body,
                previous_sha256=self.last_sha256,
                sha256=digest,
            )
        )
        self.last_sha256 = digest
        return _submission(row)


def chain_sha256(previous: str, body: str) -> str:
    """The digest that binds an event to all before it."""
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()


class Ledger:
    """A ledger that exists already: opening one never creates it. Raises LedgerError where it cannot be trusted.

    `clock` replaces the database's clock in tests. `monotonic` measures how long this process has held an attempt.
    """

    def __init__(
        self,
        url: URL,
        *,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        on_step: Callable[[str, Submission], None] = lambda _step, _row: None,
    ):
        self._clock = clock
        self.monotonic = monotonic
        self.on_step = on_step
        try:
            self._engine = schema.engine_for(url)
            with self._read() as conn:
                self.ledger_id = schema.check_schema(conn)
        except sa.exc.DBAPIError as error:
            raise LedgerError(
                f"the ledger cannot be read ({type(error.orig).__name__}): check connection waybill_ledger"
            ) from None

    # -- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._engine.connect() as conn:
            yield conn.execution_options(**{schema.READ_ONLY: True})

    def _select(self, *where: sa.ColumnElement[bool]) -> list[Submission]:
        query = sa.select(submissions).where(*where).order_by(submissions.c.id)
        with self._read() as conn:
            return [_submission(row) for row in conn.execute(query).mappings()]

    def get(self, submission_id: int) -> Submission:
        rows = self._select(submissions.c.id == submission_id)
        if not rows:
            raise LedgerError(f"the ledger has no submission {submission_id}")
        return rows[0]

    def generations(self, system: str, kind: str, business_key: str) -> list[Submission]:
        """All generations of one effect, oldest first."""
        c = submissions.c
        return self._select(c.system == system, c.kind == kind, c.business_key == business_key)

    def latest(self, system: str, kind: str, keys: Sequence[str]) -> dict[str, list[Submission]]:
        """All generations of many effects by business key (keys without any row are absent)."""
        c, found = submissions.c, {}  # type: ignore[var-annotated]
        for start in range(0, len(keys), 500):
            for row in self._select(c.system == system, c.kind == kind, c.business_key.in_(keys[start : start + 500])):
                found.setdefault(row.business_key, []).append(row)
        return found

    def of_run(self, dag_id: str, run_id: str) -> list[Submission]:
        """What this run asked for, and what it attached to."""
        c = submissions.c
        asked = sa.and_(c.dag_id == dag_id, c.run_id == run_id)
        attached = c.detail.contains(canonical(run_id), autoescape=True)
        return [row for row in self._select(sa.or_(asked, attached)) if run_id in row.runs]

    def in_states(self, *states: State, system: str | None = None) -> list[Submission]:
        where = [submissions.c.state.in_([str(s) for s in states])]
        return self._select(*where, *([submissions.c.system == system] if system else []))

    def known(self, system: str, kind: str, external_ids: Sequence[str]) -> set[str]:
        """Those of these remote ids that stand in the ledger already."""
        c = submissions.c
        return {
            str(r.external_id)
            for r in self._select(c.system == system, c.kind == kind, c.external_id.in_(external_ids))
        }

    def head(self) -> tuple[int, str]:
        """Number and sha256 of the last event: what a receipt carries."""
        with self._read() as conn:
            return _head(conn)

    def event_bodies(self, submission_id: int) -> list[dict[str, Any]]:
        query = sa.select(events.c.body).where(events.c.submission_id == submission_id).order_by(events.c.number)
        with self._read() as conn:
            return [json.loads(body) for body in conn.execute(query).scalars()]

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[_Write]:
        try:
            with self._engine.begin() as conn:
                schema.lock(conn)
                number, digest = _head(conn)
                yield _Write(conn, self._now(conn, number), number, digest)
        except sa.exc.IntegrityError as error:
            raise LedgerError(
                f"the ledger refuses a second row for the same effect or remote job: {error.orig}"
            ) from None
        except sa.exc.DBAPIError as error:
            raise TransientError(
                f"the ledger cannot be written now ({type(error.orig).__name__}: {error.orig})"
            ) from None

    def _now(self, conn: Connection, last_number: int) -> float:
        if self._clock is not None:
            now = self._clock()
        elif conn.dialect.name == "sqlite":
            now = float(conn.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar_one())
        else:
            now = float(conn.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        last_at = conn.execute(sa.select(events.c.at).where(events.c.number == last_number)).scalar()
        return max(now, float(last_at or 0.0))

    def now(self) -> float:
        """The ledger's clock: the database's, never behind the last event."""
        with self._read() as conn:
            return self._now(conn, _head(conn)[0])

    def open(self, intent: Intent, *, quota: Quota | None = None, effect_absent: bool = False) -> Submission:
        """The open row for this intent: the one that exists with the same payload, or a new generation, RESERVED.

        `effect_absent`: the caller has just seen that the effect of a DONE generation is not there (any more).
        Raises ConflictingRequest when one with another payload is open, QuotaExceeded, LedgerError.
        """
        with self._write() as tx:
            last = self._last(tx.conn, intent)
            if last is not None and last.state in OPEN:
                if last.payload_sha256 != intent.payload_sha256:
                    raise ConflictingRequest(_conflict(last, intent))
                return self._attach(tx, last, intent.owner)
            if last is not None and last.state == State.DONE and not effect_absent:
                return last
            if quota is not None:
                self._check_quota(tx, intent, quota)
            return tx.insert(_reserved(intent, last.generation + 1 if last else 1, tx.now), why="intent")

    def _last(self, conn: Connection, intent: Intent) -> Submission | None:
        c = submissions.c
        key = (c.system == intent.system, c.kind == intent.kind, c.business_key == intent.business_key)
        row = conn.execute(sa.select(submissions).where(*key).order_by(c.generation.desc()).limit(1)).mappings().first()
        return _submission(row) if row is not None else None

    def attach(self, row: Submission, owner: Owner) -> Submission:
        """Notes that another run waits for this submission too."""
        with self._write() as tx:
            return self._attach(tx, tx.row(row.id), owner)

    def _attach(self, tx: _Write, row: Submission, owner: Owner) -> Submission:
        if owner.run_id in row.runs:
            return row
        detail = {**row.detail, "attached_runs": [*row.detail.get("attached_runs", []), owner.run_id]}
        return tx.change(row, {"detail": detail}, why="attached", who=f"{owner.dag_id}/{owner.run_id}/{owner.task_id}")

    def _check_quota(self, tx: _Write, intent: Intent, quota: Quota) -> None:
        span = quota.window_seconds + quota.margin_seconds
        c = submissions.c
        counted = sa.or_(c.state.in_([str(s) for s in UNCERTAIN]), c.accepted_by > tx.now - span)
        query = sa.select(c.size_bytes, c.accepted_by, c.state).where(
            c.system == intent.system, c.kind == intent.kind, counted
        )
        rows = tx.conn.execute(query).all()
        over = sum(r.size_bytes for r in rows) + intent.size_bytes - quota.limit_bytes
        if over <= 0:
            return
        if intent.size_bytes > quota.limit_bytes:
            raise ConflictingRequest(
                f"{intent.business_key} asks for {intent.size_bytes} bytes, more than the whole quota of "
                f"{quota.limit_bytes} bytes per {quota.window_seconds:.0f} s: split it"
            )
        available_at = tx.now + span
        for row in sorted((r for r in rows if r.state not in UNCERTAIN), key=lambda r: r.accepted_by):
            over -= row.size_bytes
            if over <= 0:
                available_at = row.accepted_by + span
                break
        raise QuotaExceeded(
            f"{intent.system}/{intent.kind}: {intent.size_bytes} bytes do not fit into the quota of {quota.limit_bytes} bytes "
            f"per {quota.window_seconds:.0f} s now; they will in {available_at - tx.now:.0f} s",
            available_at=available_at,
        )

    def begin(self, row: Submission, *, answer_within: float) -> Submission | None:
        """RESERVED → SENDING for the caller alone, committed before the first byte. None: somebody else was faster.

        `answer_within` (seconds) bounds how long after now the remote may still receive what this attempt sends.
        """
        with self._write() as tx:
            now = tx.row(row.id)
            if now.state != State.RESERVED or now.attempt_token != row.attempt_token:
                return None
            values = {"state": State.SENDING, "attempt_token": str(uuid.uuid4()), "sending_at": tx.now}
            return tx.change(now, {**values, "accepted_by": tx.now + answer_within}, why="sending")

    def record_sent(
        self, attempt: Submission, external_id: str, *, why: str, detail: Mapping[str, Any] | None = None
    ) -> Submission:
        """Writes down the remote's id. Also a sender that comes late may record, and only record.

        Raises LedgerError where the attempt has meanwhile been replaced: the id is kept in the row's detail all the same.
        """
        with self._write() as tx:
            now = tx.row(attempt.id)
            if now.external_id == external_id:
                return now
            if now.state == State.RESERVED:  # thought absent, but here is its answer: nothing else is out there
                now = tx.change(
                    now, {"state": State.SENDING, "attempt_token": attempt.attempt_token}, why="late answer"
                )
            if now.state in (State.SENDING, State.DOUBTFUL, State.HELD) and now.attempt_token == attempt.attempt_token:
                accepted_by = min(now.accepted_by or tx.now, tx.now)
                values = {
                    "external_id": external_id,
                    "accepted_by": accepted_by,
                    "detail": {**now.detail, **(detail or {})},
                }
                return tx.change(now, {**values, "state": State.SENT}, why=why)
            if now.external_id is None and now.state in (State.SUPERSEDED, State.CANCELLED):
                return tx.change(now, {"external_id": external_id}, why=f"late answer: {why}")
            late = [*now.detail.get("late_answers", []), external_id]
            row = tx.change(
                now, {"detail": {**now.detail, "late_answers": late}}, why="late answer of a replaced attempt"
            )
        raise LedgerError(
            f"{row}: the remote's answer {external_id} came after this attempt was replaced; look at both jobs"
        )

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
        """Moves a row if it still is in the state and attempt that the caller saw; else returns it as it now is."""
        with self._write() as tx:
            now = tx.row(row.id)
            if now.state != row.state or now.attempt_token != row.attempt_token:
                return now
            values: dict[str, Any] = {"state": state}
            if state == State.RESERVED or state == State.REJECTED:
                values |= {"accepted_by": None, "sending_at": None}  # proved: the remote never accepted it
            if state == State.RESERVED:
                values["attempt_token"] = str(uuid.uuid4())  # whoever still holds the old token may not send
            if external_id is not None:
                values["external_id"] = external_id
            if detail is not None:
                values["detail"] = {**now.detail, **detail}
            return tx.change(now, values, why=why, who=who)

    def annotate(self, row: Submission, detail: Mapping[str, Any], *, why: str) -> Submission:
        """Adds facts to a row without moving it."""
        with self._write() as tx:
            now = tx.row(row.id)
            return tx.change(now, {"detail": {**now.detail, **detail}}, why=why)

    def request_cancel(self, row: Submission, *, who: str, why: str) -> Submission:
        """Writes down the wish to cancel; a worker carries it out. Twice is once."""
        with self._write() as tx:
            now = tx.row(row.id)
            if now.cancel_requested_at is not None or now.state not in OPEN:
                return now
            return tx.change(now, {"cancel_requested_at": tx.now}, why=why, who=who)


def _head(conn: Connection) -> tuple[int, str]:
    row = conn.execute(sa.select(events.c.number, events.c.sha256).order_by(events.c.number.desc()).limit(1)).first()
    return (int(row.number), str(row.sha256)) if row is not None else (0, GENESIS)


def _reserved(intent: Intent, generation: int, now: float) -> dict[str, Any]:
    return {
        "system": intent.system,
        "kind": intent.kind,
        "business_key": intent.business_key,
        "generation": generation,
        "state": State.RESERVED,
        "attempt_token": str(uuid.uuid4()),
        "payload_sha256": intent.payload_sha256,
        "size_bytes": intent.size_bytes,
        "dag_id": intent.owner.dag_id,
        "run_id": intent.owner.run_id,
        "task_id": intent.owner.task_id,
        "map_index": intent.owner.map_index,
        "reserved_at": now,
        "detail": canonical(dict(intent.detail)),
    }


def _conflict(last: Submission, intent: Intent) -> str:
    return (
        f"{last} of run {last.owner.dag_id}/{last.owner.run_id} is open with payload {last.payload_sha256[:12]}, and run "
        f"{intent.owner.dag_id}/{intent.owner.run_id} asks for payload {intent.payload_sha256[:12]} on the same "
        f"{intent.business_key}: wait until the first has ended, or settle it"
    )
