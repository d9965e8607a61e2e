"""The ledger: its rows, and the only ways to change them.

Invariant: every change goes through `_write`, which holds the one write lock, appends the event and updates the row in a
single short transaction without other input or output. That lock is what makes the chain gapless, the compare-and-sets
decisive and the quota sums right.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from include.core.errors import ConflictingRequest, LedgerError, RequestError, TransientError
from include.core.ledger import schema
from include.core.ledger.migrations import todays_names
from include.core.ledger.rows import Intent, Owner, Quota, Submission, canonical, submission
from include.core.ledger.schema import events, submissions
from include.core.ledger.states import OPEN, UNCERTAIN, State
from include.core.ledger.transaction import Write, head

T = TypeVar("T")
KEY_LIMIT = 2000  # bytes; PostgreSQL indexes at most 2704. Longer keys are given as a digest.
CHUNK = 500  # values in one IN list


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
        with schema.plain_errors("opened"):
            self._engine = schema.engine_for(url)
        try:
            with self.reading() as conn:
                self.ledger_id = schema.check_schema(conn)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the database connections back. The next call opens new ones."""
        self._engine.dispose()

    # -- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that takes no lock and sees one consistent snapshot, for as long as it is open."""
        with schema.plain_errors("read"), self._engine.connect() as conn:
            yield schema.read_only(conn)

    def _select(self, *where: sa.ColumnElement[bool]) -> list[Submission]:
        query = sa.select(submissions).where(*where).order_by(submissions.c.id)
        with self.reading() as conn:
            return [submission(row) for row in conn.execute(query).mappings()]

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
        c = submissions.c
        found: dict[str, list[Submission]] = {}
        for some in _chunks(keys):
            for row in self._select(c.system == system, c.kind == kind, c.business_key.in_(some)):
                found.setdefault(row.business_key, []).append(row)
        return found

    def of_run(self, dag_id: str, run_id: str) -> list[Submission]:
        """What this run asked for, and what it attached to."""
        c = submissions.c
        asked = sa.and_(c.dag_id == dag_id, c.run_id == run_id)
        attached = c.detail.contains(canonical([dag_id, run_id]), autoescape=True)
        return [row for row in self._select(sa.or_(asked, attached)) if row.belongs_to(dag_id, run_id)]

    def in_states(self, *states: State, system: str | None = None) -> list[Submission]:
        where = [submissions.c.state.in_([str(s) for s in states])]
        return self._select(*where, *([submissions.c.system == system] if system else []))

    def known(self, system: str, kind: str, external_ids: Sequence[str]) -> set[str]:
        """Those of these remote ids that are in the ledger already, be it as the late answer of a replaced attempt."""
        c, asked, found = submissions.c, set(external_ids), set[str]()
        for some in _chunks(external_ids):
            rows = self._select(c.system == system, c.kind == kind, c.external_id.in_(some))
            found.update(str(row.external_id) for row in rows)
        for row in self._select(c.system == system, c.kind == kind, c.detail.contains('"late_answers":')):
            found.update(asked & set(row.detail.get("late_answers", [])))
        return found

    def head(self) -> tuple[int, str]:
        """Number and sha256 of the last event: what a receipt carries."""
        with self.reading() as conn:
            return head(conn)

    def event_bodies(self, submission_id: int) -> list[dict[str, Any]]:
        """What happened to a submission, oldest first, with columns and states named as they are now."""
        query = sa.select(events.c.body).where(events.c.submission_id == submission_id).order_by(events.c.number)
        with self.reading() as conn:
            return [todays_names(json.loads(body)) for body in conn.execute(query).scalars()]

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[Write]:
        with schema.plain_errors("written"), self._engine.begin() as conn:
            schema.lock(conn)
            number, digest = head(conn)
            yield Write(conn, self._now(conn, number), number, digest)

    def _now(self, conn: Connection, last_number: int) -> float:
        now = schema.database_now(conn) if self._clock is None else self._clock()
        last_at = conn.execute(sa.select(events.c.at).where(events.c.number == last_number)).scalar()
        return max(now, float(last_at or 0.0))

    def now(self) -> float:
        """The ledger's clock: the database's, never behind the last event."""
        with self.reading() as conn:
            return self._now(conn, head(conn)[0])

    def open(self, intent: Intent, *, quota: Quota | None = None, absent_generation: int | None = None) -> Submission:
        """The open row for this intent: the one that exists with the same payload, or a new generation, RESERVED.

        A generation whose effect is in place is returned as it is, unless it is `absent_generation`: the one whose effect the
        caller has just seen to be absent. Raises ConflictingRequest when one with another payload is open,
        QuotaExceeded, RequestError, LedgerError.
        """
        _check(intent)
        with self._write() as tx:
            last = tx.last(intent)
            if last is not None and last.state == State.RESERVED and last.cancel_requested_at is not None:
                last = tx.change(last, {"state": State.CANCELLED}, why="cancelled before anything was sent")
            if last is not None and last.state in OPEN:
                if last.payload_sha256 != intent.payload_sha256:
                    raise ConflictingRequest(_conflict(last, intent))
                return self._attach(tx, last, intent.owner)
            # The number matters: another worker may have made the effect again since this one looked.
            if last is not None and last.is_effective and last.generation != absent_generation:
                return last
            if quota is not None:
                tx.check_quota(intent, quota)
            return tx.insert(_reserved(intent, last.generation + 1 if last else 1, tx.now), why="intent")

    def attach(self, row: Submission, owner: Owner) -> Submission:
        """Notes that another run waits for this submission too."""
        with self._write() as tx:
            return self._attach(tx, tx.row(row.id), owner)

    def _attach(self, tx: Write, row: Submission, owner: Owner) -> Submission:
        if row.belongs_to(owner.dag_id, owner.run_id):
            return row
        runs = [*row.detail.get("attached_runs", []), [owner.dag_id, owner.run_id]]
        who = f"{owner.dag_id}/{owner.run_id}/{owner.task_id}"
        return tx.change(row, {"detail": {**row.detail, "attached_runs": runs}}, why="attached", who=who)

    def begin(self, row: Submission, *, response_deadline: float) -> Submission | None:
        """RESERVED → SENDING for the caller alone, committed before the first byte. None: somebody else was faster.

        `response_deadline` (seconds from now) is when an answer may be missed: `in-doubt` lists the row from then on.
        """
        token = str(uuid.uuid4())
        return _twice(lambda: self._begin(row, token, response_deadline))

    def _begin(self, row: Submission, token: str, response_deadline: float) -> Submission | None:
        with self._write() as tx:
            now = tx.row(row.id)
            if now.fencing_token == token:  # committed before, and only the commit's answer was lost
                return now
            if now.state != State.RESERVED or now.fencing_token != row.fencing_token:
                return None
            if now.cancel_requested_at is not None:
                tx.change(now, {"state": State.CANCELLED}, why="cancelled before anything was sent")
                return None
            values = {"state": State.SENDING, "fencing_token": token, "sending_at": tx.now}
            return tx.change(now, {**values, "accept_deadline": tx.now + response_deadline}, why="sending")

    def record_sent(
        self, attempt: Submission, external_id: str, *, why: str, detail: Mapping[str, Any] | None = None
    ) -> Submission:
        """Writes down the remote's id. Also a sender that comes late may record, and only record.

        Raises LedgerError where the attempt has meanwhile been replaced or cancelled: the id is kept all the same.
        """
        row, welcome = _twice(lambda: self._record_sent(attempt, external_id, why, dict(detail or {})))
        if not welcome:
            error = LedgerError(
                f"{row}: the remote's answer {external_id} came after this attempt was replaced or cancelled; the ledger "
                "has kept it. Look at that job there, and end it if it is not wanted"
            )
            error.no_effect = False
            raise error
        return row

    def _record_sent(
        self, attempt: Submission, external_id: str, why: str, detail: dict[str, Any]
    ) -> tuple[Submission, bool]:
        """The row, and whether this job is the row's own."""
        with self._write() as tx:
            now = tx.row(attempt.id)
            late = now.detail.get("late_answers", [])
            if external_id == now.external_id or external_id in late:
                return now, external_id not in late
            if now.state == State.RESERVED:  # thought absent, but here is its answer: nothing else is out there
                now = tx.change(
                    now, {"state": State.SENDING, "fencing_token": attempt.fencing_token}, why="late answer"
                )
            # Accepted at any instant up to now: a commit may come long after the client has given up.
            values: dict[str, Any] = {"external_id": external_id, "accept_deadline": tx.now}
            if now.state in (State.SENDING, State.IN_DOUBT, State.HELD) and now.fencing_token == attempt.fencing_token:
                values |= {"state": State.SENT, "detail": {**now.detail, **detail}}
                return tx.change(now, values, why=why), True
            if now.external_id is None and now.state in (State.SUPERSEDED, State.CANCELLED):
                return tx.change(now, values, why=f"late answer: {why}"), now.state == State.SUPERSEDED
            values = {"detail": {**now.detail, "late_answers": [*late, external_id]}}
            return tx.change(now, values, why="late answer of a replaced attempt"), False

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
            if now.state != row.state or now.fencing_token != row.fencing_token:
                return now
            values: dict[str, Any] = {"state": state}
            if state in (State.RESERVED, State.REJECTED):
                values |= {"accept_deadline": None, "sending_at": None}  # proved: the remote never accepted it
            elif now.sending_at is not None and now.state in UNCERTAIN and state not in UNCERTAIN:
                values["accept_deadline"] = tx.now  # it is decided now: until here the remote may have accepted it
            if state == State.RESERVED:
                values["fencing_token"] = str(uuid.uuid4())  # whoever still holds the old token may not send
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
        """Writes down a cancellation request; a worker carries it out. Twice is once. What is RESERVED is not sent any more."""
        with self._write() as tx:
            now = tx.row(row.id)
            if now.cancel_requested_at is not None or now.state not in OPEN:
                return now
            return tx.change(now, {"cancel_requested_at": tx.now}, why=why, who=who)


def _twice(write: Callable[[], T]) -> T:
    """A write that may be repeated, once more after a lost database connection: what it protects is worth it."""
    try:
        return write()
    except TransientError:
        return write()


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def _check(intent: Intent) -> None:
    """Refuses what one of the databases would refuse, or cut, before anything is written."""
    problems = []
    if len(intent.system) > 40 or len(intent.kind) > 40:
        problems.append("system and kind have at most 40 characters")
    key = intent.business_key
    if (
        "\0" in key
        or len(key.encode(errors="surrogatepass")) > KEY_LIMIT
        or any("\ud800" <= c <= "\udfff" for c in key)
    ):
        problems.append(f"business_key must be text of at most {KEY_LIMIT} bytes: give a digest")
    if intent.size_bytes < 0:
        problems.append("size_bytes must not be negative")
    if problems:
        raise RequestError([f"{intent.system[:40]}/{intent.kind[:40]}: {problem}" for problem in problems])


def _reserved(intent: Intent, generation: int, now: float) -> dict[str, Any]:
    return {
        "system": intent.system,
        "kind": intent.kind,
        "business_key": intent.business_key,
        "generation": generation,
        "state": State.RESERVED,
        "fencing_token": str(uuid.uuid4()),
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
        f"{intent.business_key}: wait until the first has ended, or resolve it"
    )
