"""One batch of deletions is one submission of the ledger: its intent before the first request, its outcomes after the last.

Invariant: a second deletion of the same batch does no harm. It hits exact versions, or objects
whose ETag is still the archived one, and finds nothing where the first succeeded. So one in doubt ends in looking, and sending
again what is left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from include.core.concurrency import map_concurrently
from include.core.ledger import (
    AttemptLost,
    DuplicateSafe,
    InDoubt,
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
from include.core.objects import Objects
from include.s3.bucket import Bucket
from include.s3.guarded_delete import DeleteBatch, KeyOutcome, Outcomes, Result, SendBatch

SYSTEM, KIND = "plates", "delete"
HARMLESS = "a deletion names exact versions or ETags, so its duplicate finds nothing to delete"
_LOOKS_AT_ONCE = 8
_DOUBTS = 5


@dataclass(frozen=True)
class LedgeredBatches:
    """Wraps each batch of a plate's deletion (`around_batch` of include/plates/delete.py).

    Outcomes lie as JSON Lines in `folder` of the receipts; the ledger's event holds their digest. `answer_seconds` is how
    long a dead worker's last request may still be on its way to the store. `sleep` may be a virtual clock's.
    """

    book: Ledger
    owner: Owner
    source: Bucket
    phase: str
    objects: Objects
    folder: str
    answer_seconds: float = 20.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def __call__(self, batch: DeleteBatch, send: SendBatch) -> Outcomes:
        """The outcomes of a batch, sent now or before. Raises what `submit_once` raises."""
        fresh: list[Outcomes] = []

        async def send_and_keep(row: Submission, fence: SendFence) -> Sent:
            fence()
            fresh.append(await send())
            return Sent(f"batch-{row.id}", await self._kept(batch, row, fresh[0]))

        row = await self._submit(batch, send_and_keep)
        if fresh:
            return self._closed(row, fresh[0])
        if "outcomes" in row.detail:  # a worker that died after the answer, before its journal had it
            data = await self.objects.get_document(row.detail["outcomes"])
            return self._closed(row, tuple(_outcome(line) for line in data.splitlines()))
        return self._closed(row, await send())  # everything was found gone; sending again tells it key by key

    async def _submit(self, batch: DeleteBatch, send: Any) -> Submission:
        probe = Probe(
            search=self._no_candidates,
            visibility_window_seconds=0.0,
            request_timeout_seconds=self.answer_seconds,
            proves_absence=False,
            harmless=DuplicateSafe(HARMLESS, lambda _: self._all_gone(batch)),
        )
        for _ in range(_DOUBTS):
            try:
                return await submit_once(self.book, self._intent(batch), send=send, probe=probe)
            except (AttemptLost, InDoubt) as pending:  # another worker is at it, or may have been
                await self.sleep(pending.retry_after or self.answer_seconds)
        return await submit_once(self.book, self._intent(batch), send=send, probe=probe)

    def _intent(self, batch: DeleteBatch) -> Intent:
        return Intent(
            system=SYSTEM,
            kind=KIND,
            business_key=f"{self.source.name}/{batch.business_key}",
            payload={"bucket": self.source.name, "phase": self.phase, "list": batch.digest},
            owner=self.owner,
            size_bytes=batch.size_bytes,
            detail={"keys": len(batch.targets), "batch": f"{batch.number} of {batch.of}"},
        )

    async def _no_candidates(self, _: Submission) -> RemoteSearch:
        """Deletions have no ids to search for; only their effect can be looked at."""
        return RemoteSearch((), complete=True, remote_now=self.book.now())

    async def _all_gone(self, batch: DeleteBatch) -> bool:
        """Whether nothing of a batch is left to delete."""

        async def left(target: Any) -> bool:
            version = target.version_id if self.phase != "marker" else None
            there = await self.source.head(target.key, version)
            return there is not None and (there.etag, there.size) == (target.etag, target.size)

        return not any(await map_concurrently(batch.targets, left, _LOOKS_AT_ONCE))

    async def _kept(self, batch: DeleteBatch, row: Submission, outcomes: Outcomes) -> dict[str, Any]:
        lines = "".join(json.dumps(one.to_dict(), ensure_ascii=False) + "\n" for one in outcomes)
        name = f"{self.folder}/{self.phase}-{batch.number:05d}.{row.generation}.jsonl"
        document = await self.objects.put(name, lines.encode())
        counts = {result.value: sum(one.result is result for one in outcomes) for result in Result}
        return {"outcomes": document.to_dict(), **counts}

    def _closed(self, row: Submission, outcomes: Outcomes) -> Outcomes:
        """Closes the submission: DONE, or FAILED where keys failed, so that a next try opens a new generation."""
        failed = sum(one.result is Result.FAILED for one in outcomes)
        if row.state == State.SENT:
            state = State.FAILED if failed else State.DONE
            self.book.move(row, state, why=f"{failed} keys failed" if failed else "every key has its outcome")
        return outcomes


def _outcome(line: bytes) -> KeyOutcome:
    row = json.loads(line)
    return KeyOutcome(**{**row, "result": Result(row["result"])})
