"""One Globus task per batch: submitted once, found again, cancelled by id, and judged file by file.

Read it in this order: `Transfers.submit`; `trouble`, what a task's word means and how long it is borne; `outcomes`, what
became of each file.

Invariant: the document is kept in the ledger before it is sent, and sent again unchanged, under the same submission_id. A task's
SUCCEEDED proves nothing of a single file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from include.core.errors import Forbidden, NotFound, RemoteError, TransientError
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
from include.core.ledger.states import OPEN
from include.core.text import few
from include.globus.batch import Batch, Item, batch_of, check_items, sealed
from include.globus.client import GlobusClient, Moved, Skipped, Task

SYSTEM, KIND = "globus", "transfer"
KEY_VALID_SECONDS = 86_400.0  # how old a submission_id may be is not documented; a day is borne
VISIBLE_WITHIN_SECONDS = 600.0
CANCEL_SECONDS = 15.0  # a cancellation takes up to ten
CANCEL_LOOKS = 20
OVERDUE_SECONDS = 600.0
MINUTE = 60.0
LONGEST_WAIT_SECONDS = 86_400.0


@dataclass(frozen=True)
class Transfers:
    client: GlobusClient
    ledger: Ledger
    owner: Owner

    async def submit(self, batch: Batch, *, seen_absent: int | None = None) -> Submission:
        """Sees to it that there is one task for this batch. Raises as `submit_once`; `seen_absent` as there.

        One that a person has asked to cancel is cancelled first.
        """
        row = await self._submitted(batch, seen_absent)
        if row.state == State.SENT and row.cancel_requested_at is not None:
            await asyncio.to_thread(cancel, self.client, self.ledger, row)
            row = await self._submitted(batch, row.generation)
        return row

    async def _submitted(self, batch: Batch, seen_absent: int | None) -> Submission:
        check_items(batch.items)
        rows = self.ledger.generations(SYSTEM, KIND, batch.key)
        if not rows or rows[-1].state not in OPEN:
            await self._check_places(batch)
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
            detail={"document": batch.document(), "files": len(batch.items), "connection": self.client.name},
        )
        return await submit_once(self.ledger, intent, send=self._send, probe=self.probe(), seen_absent=seen_absent)

    async def _check_places(self, batch: Batch) -> None:
        """Raises TransientError while a task of another batch moves something to one of these places."""
        mine = {item.destination for item in batch.items}
        for row in self.ledger.in_states(*OPEN - {State.RESERVED}, system=SYSTEM):
            document = row.detail["document"]
            theirs = {one["destination_path"] for one in document["DATA"]}
            clash = mine & theirs if document["destination_endpoint"] == batch.destination_collection else set()
            if not clash or row.business_key == batch.key:
                continue
            tasks = await asyncio.to_thread(self.client.tasks_of, row.business_key)
            alive = [task.task_id for task in tasks if not task.ended]
            if alive:
                raise TransientError(
                    f"{few(sorted(clash), 3)}: task {alive[0]} of run {row.owner.dag_id}/{row.owner.run_id} moves other files "
                    "there: give each file a destination of its own; until then this waits for its end",
                    retry_after=5 * MINUTE,
                    no_effect=True,
                )

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
        """By the label, in which the submission_id stands that was kept before anything was sent."""
        tasks = await asyncio.to_thread(self.client.tasks_of, row.business_key)
        mine = sorted(task.task_id for task in tasks if task.label.endswith(_end_of(row)))
        return RemoteSearch(tuple(mine), complete=True, remote_now=self.client.remote_now or self.ledger.now())

    async def _send(self, row: Submission, fence: SendFence) -> Sent:
        document = sealed(row.detail["document"], row.business_key, str(row.client_key))
        try:
            task_id, known = await asyncio.to_thread(self.client.submit, document, fence)
        except Conflict as error:
            return await self._same_paths(row, error, fence)
        return Sent(task_id, {"duplicate": known})

    async def _same_paths(self, row: Submission, error: Conflict, fence: SendFence) -> Sent:
        """A task with the same paths is at work; Globus does not say which. Nothing was sent.

        The one of this very submission is adopted. Another of ours for this batch is ended first, by its id, and this one is sent
        after that. Anybody else's is waited for: what it leaves is judged like everything else.
        """
        alive = [task for task in await asyncio.to_thread(self.client.tasks_of, row.business_key) if not task.ended]
        mine = [task for task in alive if task.label.endswith(_end_of(row))]
        if len(mine) == 1:
            return Sent(mine[0].task_id, {"found_by": "identical paths"})
        for task in alive:
            fence()
            await asyncio.to_thread(self.client.cancel, task.task_id)
        if alive:
            raise TransientError(
                f"{error} It is ours, of an earlier try: it is being cancelled",
                retry_after=CANCEL_SECONDS,
                no_effect=True,
            )
        raise TransientError(
            f"{error} No task of ours moves these files: look at Globus' activity page who does",
            retry_after=5 * MINUTE,
            no_effect=True,
        )


def kept_batch(row: Submission) -> Batch:
    """The batch that a submission moves, as the ledger keeps it; sizes and md5 are not in it."""
    return batch_of(row.detail["document"], row.business_key)


def _end_of(row: Submission) -> str:
    return f" {row.business_key} {str(row.client_key)[:8]}"


def cancel(client: GlobusClient, ledger: Ledger, row: Submission, sleep: Callable[[float], None] = time.sleep) -> str:
    """Ends the task of a SENT row by its exact id, waits until it has ended, and closes the row. Returns what it did.

    Raises TransientError while Globus has not ended it; asked again, it goes on. Its files are judged by whoever asks for
    them next.
    """
    task_id = str(row.external_id)
    try:
        client.cancel(task_id)
    except NotFound:
        said = "not known to Globus any more"
    else:
        said = _ended(client, task_id, sleep)
    if row.state == State.SENT:
        ledger.move(row, State.CANCELLED, why=f"cancelled by its id; the task is {said}")
    return f"{row}: task {task_id} is {said}"


def _ended(client: GlobusClient, task_id: str, sleep: Callable[[float], None]) -> str:
    for _ in range(CANCEL_LOOKS):
        task = client.task(task_id)
        if task is None:
            return "not known to Globus any more"
        if task.ended:
            return "cancelled" if task.canceled else f"{task.status}: it ended before it could be cancelled"
        sleep(1.0)
    raise TransientError(f"task {task_id} is still being cancelled", retry_after=CANCEL_SECONDS)


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
    "PAUSED": ("an administrator of a collection has paused it: ask when it goes on", None),
    "INACTIVE": (
        "it is suspended until somebody renews a credential for one of its collections, and never ends by itself",
        6 * 60 * MINUTE,
    ),
    "OVERDUE": ("its deadline is over, and it has not ended", 0.0),
}
FINE = ("", "OK", "Queued")
NOT_KNOWN = "NOT_KNOWN"


def trouble(task: Task, now: float) -> Trouble | None:
    """What keeps a task from getting on, None where nothing does. `now`: Globus' time. An unknown word is borne until the
    deadline, and shown."""
    if task.ended:
        return None
    code = task.nice_status
    if task.deadline is not None and now > task.deadline.timestamp() + OVERDUE_SECONDS:
        code = "OVERDUE"
    elif task.status == "INACTIVE":
        code = "INACTIVE"
    elif task.is_paused:
        code = "PAUSED"
    if code in FINE:
        return None
    says, seconds = RULES.get(code, (f"Globus says {code}: {task.nice_details}", None))
    return Trouble(code, says, seconds)


async def bear(transfers: Transfers, row: Submission, task: Task, stuck: Trouble | None) -> float:
    """For how many seconds a task may go on as it is. Trouble that has lasted its time, by Globus' clock and without anything
    having been moved meanwhile, ends it: it is cancelled, and judged then."""
    now = transfers.client.remote_now or transfers.ledger.now()
    left = LONGEST_WAIT_SECONDS
    kept = dict(row.detail.get("trouble") or {})
    if stuck is None or stuck.bear_seconds is None:
        if kept and row.state == State.SENT:
            transfers.ledger.annotate(row, {"trouble": None}, why="it gets on again")
    else:
        seen = {"code": stuck.code, "files": task.files_transferred, "bytes": task.bytes_transferred}
        since = float(kept.pop("since", now))
        if kept != seen:
            since = now
            transfers.ledger.annotate(row, {"trouble": {**seen, "since": now}}, why=f"Globus says {stuck.code}")
        left = since + stuck.bear_seconds - now
        if left <= 0:
            await asyncio.to_thread(transfers.client.cancel, task.task_id)
            return CANCEL_SECONDS
    if task.deadline is not None:
        left = min(left, max(task.deadline.timestamp() - now, 0.0) + OVERDUE_SECONDS + 1.0)
    return left


def not_shown_seconds(transfers: Transfers, row: Submission) -> float:
    """For how long a task that answers 404 is still waited for, by Globus' clock: a new one may not be shown yet, an old one is
    forgotten. What is not SENT any more is not waited for."""
    if row.state != State.SENT:
        return 0.0
    now = transfers.client.remote_now or transfers.ledger.now()
    kept = row.detail.get("trouble") or {}
    if kept.get("code") != NOT_KNOWN:
        transfers.ledger.annotate(
            row, {"trouble": {"code": NOT_KNOWN, "since": now}}, why="Globus does not know the task"
        )
        return VISIBLE_WITHIN_SECONDS
    return float(kept["since"]) + VISIBLE_WITHIN_SECONDS - now


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
    moved: dict[str, Moved] = {}
    skipped: dict[str, Skipped] = {}
    if task is not None and task.ended and not task.history_deleted:
        moved = {one.destination: one for one in await asyncio.to_thread(client.moved, task.task_id)}
        skipped = {one.destination: one for one in await asyncio.to_thread(client.skipped, task.task_id)}
    found = []
    for item in batch.items:
        row = moved.get(item.destination)
        if row is not None and row.checksum and row.algorithm in (None, "MD5") and _still_there(item, row, mount):
            found.append(judged(item, row.size_bytes, row.checksum, "by Globus' own checksum"))
            continue
        there = await asyncio.to_thread(_at_destination, client, batch, item, mount)
        left_out = skipped.get(item.destination)
        if left_out is not None and there.verdict != Verdict.VERIFIED:
            why = f"its source could not be read ({left_out.code})"
            there = Outcome(item, Verdict.NOT_MOVED, why, source_gone=left_out.code == "FILE_NOT_FOUND")
        elif there.verdict == Verdict.NOT_MOVED and task is not None:
            there = replace(there, why=f"{there.why}; the task is {task.end}")
        found.append(there)
    return found


def _still_there(item: Item, moved: Moved, mount: Path | None) -> bool:
    """Where the destination is mounted, a size is cheap to see; one that differs is looked at closely."""
    if mount is None:
        return True
    try:
        return (mount / item.destination.lstrip("/")).stat().st_size == moved.size_bytes
    except OSError:
        return False


def _at_destination(client: GlobusClient, batch: Batch, item: Item, mount: Path | None) -> Outcome:
    return _at_mount(item, mount) if mount is not None else _by_size(client, batch, item)


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
    except (Forbidden, RemoteError) as error:  # an outage is waited for
        return Outcome(item, Verdict.UNVERIFIABLE, f"the destination cannot be looked at: {error}")
    if there is None or there.is_folder:
        return Outcome(item, Verdict.NOT_MOVED, "it is not at the destination")
    if item.size_bytes is not None and there.size_bytes != item.size_bytes:
        return Outcome(item, Verdict.MISMATCH, f"{there.size_bytes} bytes are there, and it has {item.size_bytes}")
    return Outcome(item, Verdict.UNVERIFIABLE, "its size is right, and nothing else is known of it")


def close(
    ledger: Ledger,
    row: Submission,
    found: Sequence[Outcome],
    task: Task | None,
    fine: Collection[Verdict] = (Verdict.VERIFIED,),
) -> Submission:
    """Closes the row of a task that has ended: DONE where every file's verdict is fine."""
    if row.state != State.SENT:
        return row
    counts = counted(found)
    good = all(one.verdict in fine for one in found)
    said = task.end if task is not None else "not known any more"
    why = f"the task is {said}: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return ledger.move(row, State.DONE if good else State.FAILED, why=why, detail={"outcome": counts})


def counted(found: Sequence[Outcome]) -> dict[str, int]:
    return {str(verdict): sum(one.verdict == verdict for one in found) for verdict in Verdict}
