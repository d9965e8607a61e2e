"""Moves a batch: one step at a time, from the submission to what became of each file.

Invariant: green is looked at, never remembered: what an earlier run has moved is looked for at its destination.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from include.core.ledger import State, Submission
from include.globus.batch import Batch
from include.globus.client import Task
from include.globus.transfer import (
    KIND,
    NOT_KNOWN,
    SYSTEM,
    Outcome,
    Transfers,
    Verdict,
    bear,
    close,
    not_shown_seconds,
    outcomes,
    trouble,
)


@dataclass(frozen=True)
class Underway:
    """A task that has not ended. `seconds`: when a worker must look again at the latest; `borne`: trouble that is timed."""

    task_id: str
    seconds: float
    why: str
    borne: str | None

    @property
    def borne_by_id(self) -> dict[str, str]:
        """As the trigger's option."""
        return {self.task_id: self.borne} if self.borne else {}


async def move(
    transfers: Transfers,
    batch: Batch,
    mount: Path | None,
    *,
    first: bool = True,
    fine: Collection[Verdict] = (Verdict.VERIFIED,),
) -> list[Outcome] | Underway:
    """One step. `first`: it is asked for anew: what has failed before is sent again, and sync by checksum leaves what is right.
    Otherwise what another worker has closed meanwhile is judged as it is. Raises as `Transfers.submit`."""
    rows = transfers.ledger.generations(SYSTEM, KIND, batch.key)
    row = rows[-1] if rows else None
    ended = row is not None and row.state in (State.FAILED, State.CANCELLED)
    if row is None or first or not ended:
        row = await transfers.submit(batch, seen_absent=row.generation if row is not None and ended else None)
    if row.state == State.DONE:  # by an earlier run: is it still there?
        found = await outcomes(transfers.client, batch, None, mount)
        if not any(one.verdict in (Verdict.NOT_MOVED, Verdict.MISMATCH) for one in found):
            why = "it was verified when it was moved, and is still there"
            return [Outcome(one.item, Verdict.VERIFIED, why) for one in found]
        row = await transfers.submit(batch, seen_absent=row.generation)
    task = await ended_task(transfers, row)
    if isinstance(task, Underway):
        return task
    found = await outcomes(transfers.client, batch, task, mount)
    close(transfers.ledger, row, found, task, fine)
    return found


async def ended_task(transfers: Transfers, row: Submission) -> Task | Underway | None:
    """The task once it has ended (None where Globus does not know it any more), or how it fares."""
    client = transfers.client
    task = await asyncio.to_thread(client.task, str(row.external_id))
    if task is None:
        left = not_shown_seconds(transfers, row)
        why = f"Globus does not know task {row.external_id}, which it has accepted: it may still show it"
        return Underway(str(row.external_id), left, why, NOT_KNOWN) if left > 0 else None
    if task.ended:
        return task
    stuck = trouble(task, client.remote_now or transfers.ledger.now())
    seconds = await bear(transfers, row, task, stuck)
    why = f"task {task.task_id}: {task.files_transferred} of {task.files} files"
    if stuck is not None:
        why += f"; {stuck.code}: {stuck.says}"
    if task.is_paused and (said := await asyncio.to_thread(client.pause_reason, task.task_id)):
        why += f" ({said})"
    return Underway(task.task_id, seconds, why, stuck.code if stuck is not None else None)
