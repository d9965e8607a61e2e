"""One Globus task per batch: submitted once, found again, cancelled by id, and judged file by file.

Read it in this order: `Transfers.submit`; `trouble`, what a task's word means and how long it is borne; `outcomes`, what
became of each file.

Invariant: the document is kept in the ledger before it is sent, and sent again unchanged, under the same submission_id. A task's
SUCCEEDED proves nothing of a single file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from include.core.errors import RemoteError, TransientError
from include.core.http import Conflict
from include.core.ledger import (
    ClientKey,
    Intent,
    Ledger,
    Owner,
    Probe,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    submit_once,
)
from include.core.ledger.states import CLOSED
from include.globus.batch import Batch, Item, check_items
from include.globus.client import GlobusClient, Task

SYSTEM, KIND = "globus", "transfer"
KEY_VALID_SECONDS = 86_400.0  # how old a submission_id may be is not documented; a day is borne
VISIBLE_WITHIN_SECONDS = 600.0
CANCEL_SECONDS = 15.0  # a cancellation takes up to ten
MINUTE = 60.0
LONGEST_WAIT_SECONDS = 86_400.0


@dataclass(frozen=True)
class Transfers:
    client: GlobusClient
    ledger: Ledger
    owner: Owner

    async def submit(self, batch: Batch, *, seen_absent: int | None = None) -> Submission:
        """Sees to it that there is one task for this batch. Raises as `submit_once`; `seen_absent` as there."""
        check_items(batch.items)
        rows = self.ledger.generations(SYSTEM, KIND, batch.key)
        generation = rows[-1].generation if rows else 1
        if rows and rows[-1].state in CLOSED:
            generation += 1
        intent = Intent(
            system=SYSTEM,
            kind=KIND,
            business_key=batch.key,
            payload={
                "source": batch.source_collection,
                "destination": batch.destination_collection,
                "files": len(batch.items),
            },
            owner=self.owner,
            size_bytes=batch.size_bytes,
            detail={"document": batch.document(generation), "files": len(batch.items)},
        )
        return await submit_once(self.ledger, intent, send=self._send, probe=self.probe(), seen_absent=seen_absent)

    def probe(self) -> Probe:
        """A lost task is found by its label; and its submission_id makes it harmless to send the same document again."""

        async def new_key(row: Submission) -> str:
            return await asyncio.to_thread(self.client.submission_id)

        return Probe(
            self.search,
            VISIBLE_WITHIN_SECONDS,
            self.client.timeout_seconds * 2,
            proves_absence=True,
            client_key=ClientKey(new_key, KEY_VALID_SECONDS),
        )

    async def search(self, row: Submission) -> RemoteSearch:
        tasks = await asyncio.to_thread(self.client.tasks_labelled, row.detail["document"]["label"])
        now = self.client.remote_now or self.ledger.now()
        return RemoteSearch(tuple(sorted(task.task_id for task in tasks)), complete=True, remote_now=now)

    async def _send(self, row: Submission, fence: SendFence) -> Sent:
        document = {**row.detail["document"], "submission_id": row.client_key}
        try:
            task_id, known = await asyncio.to_thread(self.client.submit, document, fence)
        except Conflict as error:
            return await self._same_paths(row, error)
        return Sent(task_id, {"duplicate": known})

    async def _same_paths(self, row: Submission, error: Conflict) -> Sent:
        """A task with the same paths is at work; Globus does not say which. Nothing was sent.

        Our own of this submission is adopted; our own of an earlier one is ended first, and this one sent after that. Anybody
        else's is waited for: what it leaves is judged like everything else.
        """
        label = row.detail["document"]["label"]
        mine = [task for task in await asyncio.to_thread(self.client.tasks_labelled, label) if not task.ended]
        if len(mine) == 1:
            return Sent(mine[0].task_id, {"found_by": "identical paths"})
        earlier = [
            one for one in self.ledger.generations(SYSTEM, KIND, row.business_key) if one.generation < row.generation
        ]
        alive = [one for one in earlier if one.external_id and await self._is_alive(one.external_id)]
        for one in alive:
            await asyncio.to_thread(self.client.cancel, str(one.external_id))
        if alive:
            raise TransientError(
                f"{error} It is ours, of an earlier try: it is being cancelled",
                retry_after=CANCEL_SECONDS,
                no_effect=True,
            )
        raise TransientError(
            f"{error} No task of ours has this label: look at Globus' activity page who moves these files",
            retry_after=5 * MINUTE,
            no_effect=True,
        )

    async def _is_alive(self, task_id: str) -> bool:
        task = await asyncio.to_thread(self.client.task, task_id)
        return task is not None and not task.ended


# -- what a task's word means -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """Why a task does not get on. `bear_seconds`: how long that is borne before it is cancelled; None: until its deadline."""

    code: str
    says: str
    bear_seconds: float | None


RULES: Mapping[str, tuple[str, float | None]] = {
    "PERMISSION_DENIED": (
        "the source or the destination refuses access: ask for the share, or for write access",
        60 * MINUTE,
    ),
    "FILE_NOT_FOUND": ("a file is gone at the source: what was purged there is asked for again", 15 * MINUTE),
    "AUTH": ("Globus has lost its credential for a collection; it often finds it again", 6 * 60 * MINUTE),
    "NO_CREDENTIAL": ("Globus has no credential for a collection: its administrator must renew it", 6 * 60 * MINUTE),
    "QUOTA_EXCEEDED": ("the destination is full: make room there", 15 * MINUTE),
    "NO_SPACE_LEFT": ("the destination is full: make room there", 15 * MINUTE),
    "CONNECT_FAILED": ("a collection is out of reach", None),
    "CONNECTION_RESET": ("a collection is out of reach", None),
    "ENDPOINT_ERROR": ("a collection has a fault of its own", None),
    "TIMEOUT": ("a collection does not answer in time", None),
    "CHECKSUM_MISMATCH": ("a file arrived with another checksum, and is moved again", None),
    "VERIFY_CHECKSUM": ("a file arrived with another checksum, and is moved again", None),
    "GC_PAUSED": ("the collection's owner has paused it", None),
}
FINE = ("", "OK", "Queued")


def trouble(task: Task) -> Trouble | None:
    """What keeps a task from getting on, None where nothing does. An unknown word is borne until the deadline, and shown."""
    if task.ended:
        return None
    if task.status == "INACTIVE":
        return Trouble(
            "INACTIVE", "it is suspended until somebody renews a credential for one of its collections", None
        )
    if task.is_paused:
        return Trouble("PAUSED", "an administrator has paused it", None)
    if task.nice_status in FINE:
        return None
    says, bear = RULES.get(task.nice_status, (f"Globus says {task.nice_status}: {task.nice_details}", None))
    return Trouble(task.nice_status, says, bear)


async def bear(transfers: Transfers, row: Submission, task: Task, stuck: Trouble | None) -> float:
    """How many seconds a task may go on as it is. Trouble that has lasted its time ends it: it is cancelled, and judged."""
    if stuck is None or stuck.bear_seconds is None:
        return LONGEST_WAIT_SECONDS
    now = transfers.client.remote_now or transfers.ledger.now()
    if row.detail.get("trouble") != stuck.code:
        transfers.ledger.annotate(row, {"trouble": stuck.code, "trouble_since": now}, why=f"Globus says {stuck.code}")
        return stuck.bear_seconds
    left = float(row.detail["trouble_since"]) + stuck.bear_seconds - now
    if left > 0:
        return left
    await asyncio.to_thread(transfers.client.cancel, task.task_id)
    return CANCEL_SECONDS


# -- what became of each file -----------------------------------------------------------------------------------------


class Verdict(StrEnum):
    VERIFIED = "verified"
    MISMATCH = "mismatch"
    UNVERIFIABLE = "unverifiable"
    NOT_MOVED = "not moved"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file, and how that is known."""

    item: Item
    verdict: Verdict
    why: str
    source_gone: bool = False


async def outcomes(client: GlobusClient, batch: Batch, task: Task | None, mount: Path | None = None) -> list[Outcome]:
    """What became of each file of a batch whose task has ended, or is not known any more (None).

    By the task's own list of what it moved, and by looking at the destination for the rest: where the collection is mounted
    at `mount`, its bytes are read; elsewhere its size is asked for, which proves absence or a mismatch and nothing else.
    """
    moved, skipped = {}, {}
    if task is not None and task.ended and not task.history_deleted:
        moved = {one.destination: one for one in await asyncio.to_thread(lambda: list(client.moved(task.task_id)))}
        skipped = {one.destination: one for one in await asyncio.to_thread(client.skipped, task.task_id)}
    found = []
    for item in batch.items:
        row = moved.get(item.destination)
        gone = skipped.get(item.destination)
        if gone is not None:
            found.append(
                Outcome(item, Verdict.NOT_MOVED, f"its source could not be read ({gone.code})", source_gone=True)
            )
        elif row is not None and row.checksum and row.algorithm in (None, "MD5"):
            found.append(judged(item, row.size_bytes, row.checksum, "by Globus' own checksum"))
        elif mount is not None:
            found.append(await asyncio.to_thread(_at_mount, item, mount))
        else:
            found.append(await asyncio.to_thread(_by_size, client, batch, item))
    return found


def judged(item: Item, size_bytes: int | None, md5: str, how: str) -> Outcome:
    """Compares what is there with what should be."""
    if item.size_bytes is not None and size_bytes is not None and size_bytes != item.size_bytes:
        return Outcome(item, Verdict.MISMATCH, f"{size_bytes} bytes arrived, and it has {item.size_bytes}")
    if item.md5 is None:
        return Outcome(item, Verdict.UNVERIFIABLE, "nothing names its md5")
    if md5 != item.md5.lower():
        return Outcome(item, Verdict.MISMATCH, f"its md5 is {md5}, and should be {item.md5}")
    return Outcome(item, Verdict.VERIFIED, f"its md5 is right, {how}")


def _at_mount(item: Item, mount: Path) -> Outcome:
    import hashlib

    path = mount / item.destination.lstrip("/")
    try:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return Outcome(item, Verdict.NOT_MOVED, "it is not at the destination")
    except OSError as error:
        return Outcome(item, Verdict.UNVERIFIABLE, f"it cannot be read at the destination ({error.strerror})")
    return judged(item, size, md5, "read at the destination")


def _by_size(client: GlobusClient, batch: Batch, item: Item) -> Outcome:
    try:
        there = client.stat(batch.destination_collection, item.destination)
    except (TransientError, RemoteError) as error:
        return Outcome(item, Verdict.UNVERIFIABLE, f"the destination cannot be looked at: {error}")
    if there is None or there.is_folder:
        return Outcome(item, Verdict.NOT_MOVED, "it is not at the destination")
    if item.size_bytes is not None and there.size_bytes != item.size_bytes:
        return Outcome(item, Verdict.MISMATCH, f"{there.size_bytes} bytes are there, and it has {item.size_bytes}")
    return Outcome(item, Verdict.UNVERIFIABLE, "its size is right, and nothing else is known of it")


def close(ledger: Ledger, row: Submission, found: Sequence[Outcome], task: Task | None) -> Submission:
    """Closes the row of a task that has ended: DONE where every file is verified."""
    if row.state != State.SENT:
        return row
    counts = {str(verdict): sum(1 for one in found if one.verdict == verdict) for verdict in Verdict}
    good = counts[str(Verdict.VERIFIED)] == len(found)
    said = task.status if task is not None else "not known any more"
    why = f"the task is {said}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return ledger.move(row, State.DONE if good else State.FAILED, why=why, detail={"outcome": counts})
