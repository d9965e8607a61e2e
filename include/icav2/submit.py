"""What is missing at a destination where no job is open, and how it is sent: cleaned up, reserved, sent once.

Invariant: everything goes through `submit_once`; what this looked at may be old by then, and
the ledger's open row is what keeps two workers off one folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from include.core import effects
from include.core.effects import Phase, Standing
from include.core.errors import TransientError, WaybillError
from include.core.http import Busy
from include.core.ledger import Intent, SendFence, Sent, State, Submission, submit_once
from include.icav2 import rules
from include.icav2.cleanup import partial_file_cleanup
from include.icav2.context import CopyContext
from include.icav2.folders import Place
from include.icav2.models import Data, Destination, Item, Proof, Verdict
from include.icav2.rules import KIND, SYSTEM, CopyStanding, Seen
from include.icav2.verify import incomplete, partial_files, prove


@dataclass(frozen=True)
class Work:
    """What to send to one destination, and what was seen there."""

    destination: Destination
    items: list[Item]
    proofs: list[Proof]
    there: Mapping[str, Data]


@dataclass(frozen=True)
class Sender:
    """Finds out what to send, and sends it, for one destination at a time. `now`: the ledger's time in this pass; `seen`: how
    long jobs have taken so far."""

    context: CopyContext
    now: float
    seen: Sequence[Seen] = ()

    async def missing(
        self, destination: Destination, rows: list[Submission], *, bare: bool = False
    ) -> CopyStanding | Work:
        """The items to send to a destination where nothing is open, or why there are none.

        `bare`: its folder is known not to exist, so that there is nothing to look at.
        """
        limit = effects.rate_limited_until(rows, self.now)
        if limit is not None:
            return Standing(destination, Phase.WAITING, rules.rate_limited(limit), look_again_at=limit)
        there = {} if bare else await self.context.look(destination, rows)
        proofs = prove(destination, there, use_etag=self.context.settings.use_etag)
        rest = incomplete(destination, proofs)
        if not rest:
            self.context.withdraw_unsent(rows, self.now, why="all its files are there")
            return Standing(destination, Phase.PASSED, "all files are there", rows[-1].external_id if rows else None)
        listed_from = self._listed_from(rows)
        if listed_from > self.now:
            why = "another run has just copied to this folder, and its files may not be listed yet"
            return Standing(destination, Phase.WAITING, why, look_again_at=listed_from)
        refusal = effects.refused(rows, self.context.owner)
        if refusal:
            return Standing(destination, Phase.FAILED, refusal)
        may = rules.may_send(rows, self.context.owner, rest, self.context.settings)
        if not may:
            why = rules.given_up(rows, self.context.owner, rest, self.context.settings)
            return Standing(destination, Phase.FAILED, why)
        going = [data.path for data in there.values() if data.status == "DELETING" and _in_the_way(data, destination)]
        if going:  # SKIP would leave it, and then it is gone
            raise TransientError(f"{going[0]} is still being deleted", retry_after=self.context.come_back_seconds)
        return Work(destination, may[: self.context.settings.items_per_job], proofs, there)

    def _listed_from(self, rows: list[Submission]) -> float:
        """When a look shows what another run's last submission has done (ledger time); of our own it was seen."""
        last = rows[-1] if rows else None
        if last is None or not last.is_effective or last.belongs_to(self.context.owner):
            return 0.0
        return (last.closed_at or 0.0) + self.context.settings.listing_lag_seconds

    async def launch(
        self, work: Work, rows: list[Submission], folders: Mapping[Place, str | WaybillError]
    ) -> CopyStanding:
        destination = work.destination
        folder_id = _folder_id(destination, folders)
        alive = rules.still_writing(rows, self.now, self.context.settings, self.seen)
        if rules.lost(alive):
            if await self.context.search.find(destination, rows):
                return Standing(destination, Phase.WAITING, "a lost job was found", look_again_at=self.now)
            again = self.context.ledger.generations(SYSTEM, KIND, destination.key)
            alive = rules.still_writing(again, self.now, self.context.settings, self.seen)
        stopped = self._held_up(work, rows, alive)
        if isinstance(stopped, Standing):
            return stopped
        intent = self._intent(destination, stopped, folder_id)
        seen = self.context.withdraw_unsent(rows, self.now, instead=intent)
        # Never while a superseded job may still write: what looks like a partial file of ours may be its work.
        removed = [] if alive else partial_files(destination, work.proofs, rules.made_by_us(rows), work.there)
        try:
            row = await submit_once(
                self.context.ledger,
                intent,
                probe=self.context.probe(destination),
                prepare=partial_file_cleanup(self.context, destination, removed) if removed else None,
                send=lambda attempt, fence: self._send(destination, attempt, fence),
                seen_absent=seen,
            )
        except Busy as error:
            row = self.context.ledger.generations(SYSTEM, KIND, destination.key)[-1]
            effects.note_rate_limit(self.context.ledger, row, error.retry_after)
            raise
        if row.state != State.SENT:  # another worker has sent it, and it has ended, since this one looked
            return Standing(destination, Phase.WAITING, "another worker's copy", look_again_at=self.now)
        return Standing(destination, Phase.RUNNING, "sent", row.external_id, self.context.stuck_at(row))

    def _held_up(self, work: Work, rows: list[Submission], alive: list[Submission]) -> CopyStanding | list[Item]:
        """What may be sent now, while superseded jobs (`alive`) may still write; or why nothing may."""
        stuck = [row for row in alive if row.external_id]
        if stuck and effects.sent_after(rows, self.context.owner, stuck[-1]):
            why = (
                f"job {stuck[-1].external_id} is stuck and may still write; one more was sent and did not complete the "
                "copy. Look at that job in ICA; once it has ended, the next run goes on"
            )
            return Standing(work.destination, Phase.FAILED, why)
        if stuck or not alive:
            return work.items
        blocked = {p.source_uri for p in work.proofs if p.verdict not in (Verdict.OK, Verdict.MISSING)}
        free = [item for item in work.items if item.source_uri not in blocked]
        if free:
            return free
        settings = self.context.settings
        until = max(rules.may_write_until(row, self.now, settings, self.seen) for row in alive)
        shown = max(
            (row.closed_at or self.now) + settings.doubt_seconds for row in alive
        )  # its absence, by a look then
        until = max(min(until, shown), self.now) + 1.0
        why = (
            "the answer to an earlier submission was lost, so its job may still write: until "
            f"{rules.clock(until)} the partial files that failed copies left are not cleaned up"
        )
        return Standing(work.destination, Phase.WAITING, why, look_again_at=until)

    def _intent(self, destination: Destination, items: Sequence[Item], folder_id: str | None) -> Intent:
        data_ids = [item.data_id for item in items]
        return Intent(
            system=SYSTEM,
            kind=KIND,
            business_key=destination.key,
            payload={"project": destination.project_id, "folder": folder_id, "items": sorted(data_ids)},
            owner=self.context.owner,
            size_bytes=sum(item.size_bytes for item in items),
            detail={
                "dest_uri": destination.dest_uri,
                "folder_id": folder_id,
                "names": [item.name for item in items],
                "data_ids": data_ids,
                "files": sum(len(item.files) for item in items),
            },
        )

    async def _send(self, destination: Destination, attempt: Submission, fence: SendFence) -> Sent:
        folder_id, data_ids = attempt.detail["folder_id"], attempt.detail["data_ids"]
        copy = self.context.client.copy(destination.project_id, folder_id, data_ids, fence=fence)
        batch = await self.context.into_folder(copy, destination.project_id, folder_id)
        return Sent(batch.job.id, {"batch_id": batch.id, "job_created": batch.job.created})


def _folder_id(destination: Destination, folders: Mapping[Place, str | WaybillError]) -> str | None:
    """The id of the destination folder, None for a project's root. Raises the error for which it cannot be had."""
    if destination.path == "/":
        return None
    folder = folders[destination.project_id, destination.path]
    if isinstance(folder, WaybillError):
        raise folder
    return folder


def _in_the_way(data: Data, destination: Destination) -> bool:
    """Whether something lies where an item of ours goes."""
    name = data.path[len(destination.path) :].split("/")[0]
    return any(item.name == name for item in destination.items)
