"""The real ledger, on a database in memory that can be set to any state that was seen.

Invariant: nothing of the ledger is modelled; what it answered once in a state, it would answer again.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.pool import StaticPool

from harness.core.explored_remote import Answer, Question
from harness.core.explored_worker import NAMES, Texts, Tokens
from include.core.errors import WaybillError
from include.core.ledger import (
    init,
    schema,
    store,
    verify,
)


class RealLedger:
    """The real ledger on a database in memory that can be set to any state that was seen. States have numbers, from 0."""

    def __init__(self, ledger_class: type[store.Ledger], texts: Texts):
        self.clock = 0.0
        with tempfile.TemporaryDirectory() as folder:
            url = URL.create("sqlite", database=str(Path(folder) / "ledger.db"))
            init(url)
            self.ledger = ledger_class(url, clock=lambda: self.clock, monotonic=lambda: 0.0)
            self.ledger.close()
            self._memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            with closing(sqlite3.connect(str(url.database))) as on_disk:
                on_disk.execute("PRAGMA journal_mode = DELETE")  # in memory there is no write-ahead log
                on_disk.backup(self._memory)
        self.ledger._engine = self._in_memory()
        self._texts = texts
        self._numbers: dict[str, int] = {}
        self._snapshots: list[bytes] = []
        self.texts: list[tuple[int, tuple[str, ...]]] = []
        self.rows: list[list[dict[str, Any]]] = []
        self._known: dict[tuple[int, str, str, float], tuple[Answer, int]] = {}
        self.problems: list[str] = []
        self.state = self._number()

    def _in_memory(self) -> sa.Engine:
        engine = sa.create_engine("sqlite://", creator=lambda: self._memory, poolclass=StaticPool)

        @event.listens_for(engine, "begin")
        def _on_begin(conn: sa.Connection) -> None:
            conn.exec_driver_sql("BEGIN")

        return engine

    def ask(self, state: int, question: Question, held: Tokens = frozenset(), clock: float = 0.0) -> tuple[Answer, int]:
        """What the ledger in this state answers, and the state it is in then. `held`: tokens that workers still hold.

        A new token is the first that nobody holds: so equal states have equal names far more often.
        """
        used = held.union(self.texts[state][1])
        free = [name for name in NAMES if name not in used]
        key = (state, question.key, free[0], clock)
        if key not in self._known:
            self.clock = clock
            self._known[key] = self._really_ask(state, question, iter(free))
        return self._known[key]

    def _really_ask(self, state: int, question: Question, tokens: Iterator[str]) -> tuple[Answer, int]:
        if state != self.state:
            self._memory.deserialize(self._snapshots[state])
        with mock.patch("uuid.uuid4", lambda: next(tokens)):
            try:
                answer = Answer(getattr(self.ledger, question.name)(*question.args, **dict(question.more)))
            except WaybillError as error:
                answer = Answer(error=error)
        self.state = self._number()
        return answer, self.state

    def _number(self) -> int:
        """The number of the state that the database is in. The chain is not part of it: it says how one came here."""
        tables = [name for (name,) in self._memory.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        told = {
            name: self._memory.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in tables
            if name not in (schema.events.name, schema.info.name)
        }
        key = repr(told)
        if key not in self._numbers:
            self._numbers[key] = len(self._snapshots)
            self._snapshots.append(self._memory.serialize())
            self.texts.append(self._texts(key))
            self.rows.append([dict(row._mapping) for row in self._select()])
            if len(self._snapshots) > 1:
                self.problems += verify(self.ledger).problems
        return self._numbers[key]

    def _select(self) -> list[Any]:
        with self.ledger.reading() as conn:
            return list(conn.execute(sa.select(schema.submissions).order_by(schema.submissions.c.id)))
