"""Moves the events of submissions that ended long ago into a file, so that the ledger stays small.

What stays of such a submission is its row, of the `detail` only what may decide something (`stub`): whether something was done
already, which remote jobs are known, and what Waybill has placed where, must be answered for ever.

The file has one JSON object per line: a head, then the events, each as it was stored, then the documents that they named.

Invariant: the file is whole and on the disk before anything is taken out of the ledger, and it is taken out in the
transaction that writes down the file's sha256. The chain goes through files and ledger alike.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from include.core.errors import LedgerError
from include.core.ledger.rows import ARCHIVED, DOCUMENT, INLINE, PLACED, canonical, documents_of
from include.core.ledger.schema import archives, documents, events, submissions
from include.core.ledger.sql import CHUNK
from include.core.ledger.states import CLOSED, State
from include.core.ledger.store import Ledger

FORMAT = 1
YOUNGEST_SECONDS = 7 * 86_400.0  # what ended later may still be in the eyes of a worker that looked before it ended
SETTLED = (State.DONE, State.CANCELLED, State.REJECTED)
ENDED_BADLY = (State.FAILED, State.SUPERSEDED)
AT_MOST = 20_000  # submissions in one file, and so in one transaction: writers wait for it


@dataclass(frozen=True)
class Archive:
    """A file as it was read: whose events it holds, and its sha256."""

    path: Path
    sha256: str
    ledger_id: str
    submission_ids: frozenset[int]

    @classmethod
    def at(cls, path: Path) -> Archive:
        """Raises LedgerError where the file cannot be read or is none of ours."""
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            with gzip.open(path, "rt", encoding="ascii") as lines:
                head = json.loads(next(lines))
            if head["format"] != FORMAT:
                raise LedgerError(f"{path}: an archive of format {head['format']}; this code reads format {FORMAT}")
            return cls(path, sha256, head["ledger_id"], frozenset(head["submission_ids"]))
        except (OSError, EOFError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise LedgerError(f"{path} is no archive of a ledger, or not whole ({type(error).__name__})") from None

    def events(self) -> Iterator[dict[str, Any]]:
        """The events, in the order of their numbers."""
        with gzip.open(self.path, "rt", encoding="ascii") as lines:
            next(lines)
            for line in lines:
                entry = json.loads(line)
                if "event" in entry:
                    yield entry["event"]

    def changed_documents(self) -> list[str]:
        """The documents whose content is not what their sha256 says."""
        with gzip.open(self.path, "rt", encoding="ascii") as lines:
            found = [entry["document"] for entry in map(json.loads, lines) if "document" in entry]
        return [d["sha256"] for d in found if hashlib.sha256(d["content"].encode()).hexdigest() != d["sha256"]]


def merged(stored: Iterable[Mapping[Any, Any]], files: Sequence[Archive]) -> Iterator[Mapping[Any, Any]]:
    """The events of the ledger and of its archives, in the order of their numbers."""
    return heapq.merge(stored, *(one.events() for one in files), key=lambda event: int(event["number"]))


def stub(state: str, detail: Mapping[str, Any]) -> str:
    """What stays of the `detail` of an archived submission, as its row holds it: of one that ended badly all, since what it may
    have left there must be known to whoever finds it."""
    kept = detail if state in ENDED_BADLY else {name: detail[name] for name in (*INLINE, *PLACED) if name in detail}
    return canonical({**kept, ARCHIVED: True})


def archives_in(folder: Path) -> list[Archive]:
    """The archives in a folder. Raises LedgerError for a folder that is not there, or a file that cannot be read."""
    if not folder.is_dir():
        raise LedgerError(f"{folder} is no folder: name the one that `archive` has written to")
    return [Archive.at(path) for path in sorted(folder.glob("*.jsonl.gz"))]


def archive(ledger: Ledger, folder: Path, *, before: float) -> list[Archive]:
    """Moves what belongs to submissions that ended before an instant (epoch seconds) into new files of a folder.

    The submission of the last event stays: receipts and the next event name the head of the chain. So do effects whose newest
    generation is open, or ended without its effect: what it left there must be known for the next one. Raises LedgerError for
    an instant of the last week, and where a file cannot be written; what was moved until then is in the files written until
    then.
    """
    if before > ledger.now() - YOUNGEST_SECONDS:
        raise LedgerError("only what ended more than a week ago is archived: name an earlier day")
    if not folder.is_dir():
        raise LedgerError(f"{folder} is no folder: create it, on a disk that is backed up")
    written: list[Archive] = []
    while True:
        with ledger.reading() as conn:
            ids = _ended(conn, before)
            if not ids:
                return written
            path, counted = _write(conn, folder, ledger.ledger_id, ids)
        made = Archive.at(path)
        with ledger.tidying() as (conn, now):
            _take_out(conn, ids, counted)
            facts = {"sha256": made.sha256, "name": path.name, "at": now, "events": counted, "submissions": len(ids)}
            conn.execute(archives.insert().values(**facts))
        written.append(made)


def _ended(conn: Connection, before: float) -> list[int]:
    """The submissions to archive: ended, with events in the ledger, and not the owner of the last event."""
    last = sa.select(events.c.submission_id).order_by(events.c.number.desc()).limit(1).scalar_subquery()
    other = submissions.alias()
    same = (other.c[name] == submissions.c[name] for name in ("system", "kind", "business_key"))
    newest = sa.select(other.c.state).where(*same).order_by(other.c.generation.desc()).limit(1).scalar_subquery()
    query = sa.select(submissions.c.id).where(
        submissions.c.state.in_([str(state) for state in CLOSED]),
        submissions.c.closed_at < before,
        submissions.c.id != last,
        submissions.c.id.in_(sa.select(events.c.submission_id)),
        newest.in_([str(state) for state in SETTLED]),
    )
    return [int(found) for found in conn.execute(query.order_by(submissions.c.id).limit(AT_MOST)).scalars()]


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _write(conn: Connection, folder: Path, ledger_id: str, ids: Sequence[int]) -> tuple[Path, int]:
    """Writes a file, whole or not at all. Returns its path and the number of its events."""
    # Two that archive at once write two files; the one that comes second finds nothing to take out.
    unfinished, mine, numbers = folder / f"{ledger_id}.{uuid.uuid4()}.unfinished", set(ids), list[int]()
    wanted = {digest for _id, _state, detail in _details(conn, ids) for digest in documents_of(detail).values()}
    try:
        with unfinished.open("wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                head = {"format": FORMAT, "ledger_id": ledger_id, "submission_ids": list(ids)}
                packed.write(canonical(head).encode() + b"\n")
                stream = conn.execution_options(yield_per=1000).execute(sa.select(events).order_by(events.c.number))
                for event in stream.mappings():
                    if event["submission_id"] in mine:
                        numbers.append(event["number"])
                        packed.write(canonical({"event": dict(event)}).encode() + b"\n")
                for row in conn.execute(sa.select(documents).order_by(documents.c.sha256)).mappings():
                    if row["sha256"] in wanted:
                        packed.write(canonical({"document": dict(row)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"waybill-ledger-{ledger_id}-{numbers[0]}-{numbers[-1]}.jsonl.gz"
        os.link(unfinished, path)  # never over a file that is there
        unfinished.unlink()
    except FileExistsError:
        unfinished.unlink()
        why = (
            "exists already: another archiving runs, or was broken off. Let it end; else move the file away and repeat"
        )
        raise LedgerError(f"{path} {why}") from None
    except OSError as error:
        raise LedgerError(f"the archive in {folder} cannot be written ({error.strerror})") from None
    return path, len(numbers)


def _details(conn: Connection, ids: Sequence[int]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Id, state and `detail`."""
    for some in _chunks(ids):
        query = sa.select(submissions.c.id, submissions.c.state, submissions.c.detail).where(submissions.c.id.in_(some))
        yield from ((row.id, row.state, json.loads(row.detail)) for row in conn.execute(query).all())


def _take_out(conn: Connection, ids: Sequence[int], counted: int) -> None:
    """Deletes events, most of the `detail` of the rows, and documents that no row names any more."""
    deleted = 0
    for some in _chunks(ids):
        deleted += conn.execute(events.delete().where(events.c.submission_id.in_(some))).rowcount
    if deleted != counted:
        raise LedgerError(
            "what should be archived has changed meanwhile: nothing was moved; remove the file and repeat"
        )
    stubs, named = [], set[str]()
    for row_id, state, detail in _details(conn, ids):
        named |= set(documents_of(detail).values())
        stubs.append({"row_id": row_id, "stub": stub(state, detail)})
    update = submissions.update().where(submissions.c.id == sa.bindparam("row_id"))
    conn.execute(update.values(detail=sa.bindparam("stub")), stubs)
    others = sa.select(submissions.c.detail).where(submissions.c.detail.contains(DOCUMENT))
    named -= {
        digest for detail in conn.execute(others).scalars() for digest in documents_of(json.loads(detail)).values()
    }
    for digest in sorted(named):
        conn.execute(documents.delete().where(documents.c.sha256 == digest))
