"""The ledger as it is read: rows, heads, holds, quotas. It takes no lock and changes nothing.

Invariant: each call sees one consistent snapshot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from include.core.errors import LedgerError
from include.core.ledger import quota as quotas
from include.core.ledger import schema, sql
from include.core.ledger.clock import Time, ledger_time
from include.core.ledger.migrations import todays_names
from include.core.ledger.odd_values import storable_id, unstorable
from include.core.ledger.quota import QuotaUser
from include.core.ledger.rows import Owner, Quota, QuotaReading, Submission
from include.core.ledger.schema import events
from include.core.ledger.states import State
from include.core.ledger.transaction import GENESIS


class LedgerReader:
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

    def close(self) -> None:
        """Gives the database connections back. The next call opens new ones."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that takes no lock and sees one consistent snapshot, for as long as it is open."""
        with schema.plain_errors("read"), self._engine.connect() as conn:
            yield schema.read_only(conn)

    def _select(self, where: str, values: Mapping[str, Any]) -> list[Submission]:
        with self.reading() as conn:
            return sql.select(conn, where, values)

    def get(self, submission_id: int) -> Submission:
        rows = self._select("s.id = :id", {"id": submission_id})
        if not rows:
            raise LedgerError(f"the ledger has no submission {submission_id}")
        return rows[0]

    def generations(self, system: str, kind: str, business_key: str) -> list[Submission]:
        """All generations of one effect, oldest first."""
        return self.latest(system, kind, [business_key]).get(business_key, [])

    def latest(self, system: str, kind: str, keys: Sequence[str]) -> dict[str, list[Submission]]:
        """All generations of many effects by business key; keys without any row are absent."""
        found: dict[str, list[Submission]] = {}
        for row in self._among(system, kind, "s.business_key", [key for key in keys if unstorable(key) is None]):
            found.setdefault(row.business_key, []).append(row)
        return found

    def _among(self, system: str, kind: str, column: str, values: Sequence[str]) -> Iterator[Submission]:
        for some in _chunks(values):
            where, bound = sql.one_of(column, some)
            yield from self._select(
                f"s.system = :system AND s.kind = :kind AND {where}", {"system": system, "kind": kind, **bound}
            )

    def of_run(self, dag_id: str, run_id: str) -> list[Submission]:
        """What this run asked for, and what it attached to, whichever task of it did, and for whichever request."""
        return self._select(sql.OF_RUN, {"dag_id": dag_id, "run_id": run_id})

    def of_owner(self, owner: Owner) -> list[Submission]:
        """What this task asked for or attached to, for this request."""
        return [row for row in self.of_run(owner.dag_id, owner.run_id) if row.belongs_to(owner)]

    def in_states(self, *states: State, system: str | None = None) -> list[Submission]:
        where, values = sql.one_of("s.state", [str(state) for state in states])
        if system:
            where, values = f"{where} AND s.system = :system", {**values, "system": system}
        return self._select(where, values)

    def systems(self) -> list[str]:
        """The systems of which the ledger has a submission."""
        with self.reading() as conn:
            return list(
                sql.execute(conn, "SELECT DISTINCT system FROM waybill_submissions ORDER BY system", {}).scalars()
            )

    def known(self, system: str, kind: str, external_ids: Sequence[str]) -> set[str]:
        """Those of these remote ids that are in the ledger already, be it as the late answer of a replaced attempt."""
        found = set[str]()
        spelled = {kept: given for given in external_ids if (kept := storable_id(given)) is not None}
        for some in _chunks(list(spelled)):
            where, values = sql.one_of("external_id", some)
            for table in ("waybill_submissions", "waybill_late_answers"):
                query = f"SELECT external_id FROM {table} WHERE system = :system AND kind = :kind AND {where}"
                with self.reading() as conn:
                    found |= set(sql.execute(conn, query, {"system": system, "kind": kind, **values}).scalars())
        return {spelled[kept] for kept in found}

    def quota_reading(self, system: str, kind: str, quota: Quota, *, account: str = "") -> QuotaReading:
        """How much of a quota is used now, and when how much becomes free: for planners and pages."""
        with self.reading() as conn:
            now = self._time(sql.head_and_row(conn)).now
            return quotas.reading(conn, QuotaUser(system, kind, account), quota, now)

    def holds(self) -> list[sql.Hold]:
        """The holds that have not ended."""
        with self.reading() as conn:
            now = self._time(sql.head_and_row(conn)).clock
            found = sql.execute(
                conn, "SELECT system, until, who, why FROM waybill_holds WHERE until > :now", {"now": now}
            )
            return [sql.Hold(**row) for row in found.mappings()]

    def head(self) -> tuple[int, str]:
        """Number and sha256 of the last event: what a receipt carries."""
        with self.reading() as conn:
            found = sql.head_and_row(conn)
            return (found.number, found.sha256) if found.number and found.sha256 else (0, GENESIS)

    def event_bodies(self, submission_id: int) -> list[dict[str, Any]]:
        """What happened to a submission, oldest first, with columns and states named as they are now."""
        query = sa.select(events.c.body).where(events.c.submission_id == submission_id).order_by(events.c.number)
        with self.reading() as conn:
            return [todays_names(json.loads(body)) for body in conn.execute(query).scalars()]

    def _time(self, found: sql.Found) -> Time:
        """The ledger's time, and what the database's clock shows."""
        return ledger_time(found, found.clock if self._clock is None else float(self._clock()))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), sql.CHUNK):
        yield values[start : start + sql.CHUNK]
