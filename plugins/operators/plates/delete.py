"""Deletes what the gate let through, from the manifests, batch by batch; and, days later, purges what was only marked.

Invariant: before a plate's first deletion any difference voids its approval; after it, whatever
is not what was archived is kept and listed. The engine (include/plates/delete.py) sees to that, key by key.

Longer than 120 lines: deletion and purge are two phases of one order, and share all but their wait.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from hooks.task import owner_of, run_folder
from hooks.waybill import journals, ledger, receipts
from operators.common.gate import let_through
from operators.plates.base import PlateOperator, backup_request, progress_log, read_model, records_of, store_of
from triggers.leg import DAY_SECONDS, Leg, Legs, Wait

from include.core.errors import VerificationError
from include.core.journal import PartJournal
from include.core.request import DEADLINE_DAYS
from include.core.steps import StepRecords
from include.plates.delete import delete_plate
from include.plates.delete_ledger import LedgeredBatches
from include.plates.delete_report import DeleteReport
from include.plates.errors import ApprovalVoid, RetentionRefused
from include.plates.models import DeleteOrder, Verdict


class PlateDeleteOperator(Legs, PlateOperator):
    """Deletes the approved parts of an entry's plate, or sets delete markers where the request gives undo_days.

    A crash resumes with the same batches: each is one submission of the ledger. Fails, without retry, where the approval
    is void, the tarball is not protected as demanded, or anything was left.
    """

    step = "delete"

    async def act(self, leg: Leg) -> Any:
        return await self.noted(leg.context)

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        request = backup_request(context)
        if not await asyncio.to_thread(let_through, context, self.plate["plate"], self.plate["verdict"]["sha256"]):
            why = f"the gate did not let {self.plate['name']} through with this proof; clear the approval to ask again"
            await notes.write(self.step, "void", why=why)
            raise ApprovalVoid(why)
        verdict = await read_model(Verdict, self.plate["verdict"])
        order = request.order(verdict.manifests_sha256, purge=self.step == "purge")
        try:
            report = await self._delete(context, verdict, order)
        except (ApprovalVoid, RetentionRefused) as error:
            state = "void" if isinstance(error, ApprovalVoid) else "refused"
            await notes.write(self.step, state, why=str(error))
            raise
        state = "done" if report.complete else "current_again" if report.current_again else "left"
        await notes.write(self.step, state, **told(report))
        self.log.info("%s: %d of %d deleted, %s", report.tag, report.deleted, report.targets, report.guard)
        if not report.complete:
            if report.current_again:
                raise VerificationError(
                    f"{report.tag}: {len(report.current_again)} deleted objects are current again, the first "
                    f"{report.current_again[0]!r}; see the receipt"
                )
            left = [*report.changed, *report.failed]
            raise VerificationError(
                f"{report.tag}: {len(left)} objects were left, the first {left[0]!r}; see the receipt"
            )
        return {"report": await notes.document(f"{self.step}d", report)}

    async def _delete(self, context: Context, verdict: Verdict, order: DeleteOrder) -> DeleteReport:
        place = f"{run_folder(context)}/plates/{self.plate['plate']}"
        with ledger() as book:
            async with store_of(self, context) as access:
                source = access.bucket(verdict.bucket)
                return await delete_plate(
                    verdict,
                    order,
                    source=source,
                    archive=access.bucket(verdict.archive_bucket),
                    journal=delete_journal(verdict, order),
                    around_batch=LedgeredBatches(
                        book, owner_of(context), source, order.phase, receipts().objects, place, self.answer_seconds
                    ),
                    on_progress=progress_log(self.log.info),
                )

    answer_seconds = 20.0


class PlatePurgeOperator(PlateDeleteOperator):
    """Waits until the time to undo is over, then ends the versions under the markers. Skips where nothing was marked."""

    step = "purge"

    def deadline(self, context: Context, began: float) -> float:
        return began + (backup_request(context).undo_days + DEADLINE_DAYS) * DAY_SECONDS

    async def act(self, leg: Leg) -> Any:
        request = backup_request(leg.context)
        if not request.undo_days:
            raise AirflowSkipException("deleted permanently already: the request gives no undo_days")
        verdict = await read_model(Verdict, self.plate["verdict"])
        ready = marked_at(verdict, request.order(verdict.manifests_sha256)) + request.undo_days * DAY_SECONDS
        if ready <= time.time():
            return await super().act(leg)
        until = datetime.fromtimestamp(ready, UTC).isoformat(timespec="minutes")
        await records_of(leg.context, self.plate["plate"]).write(self.step, "waiting", until=until)
        why = f"markers are set; until {until} the deletion can be undone by removing them"
        return Wait(ready - time.time(), why, {"counts": {"plates marked": 1}}, poll_seconds=3600.0)


def marked_at(verdict: Verdict, order: DeleteOrder) -> float:
    """When the last delete marker of a plate was set, by its journal."""
    times = [row["at"] for row in delete_journal(verdict, order).rows() if "outcomes" in row]
    return float(max(times, default=time.time()))


def told(report: DeleteReport) -> dict[str, Any]:
    """What the receipt says of a deletion."""
    return {
        "phase": report.phase,
        "deleted": report.deleted,
        "deleted_bytes": report.deleted_bytes,
        "freed_bytes": report.freed_bytes,
        "older_versions": report.older_versions,
        "older_deleted": report.older_deleted,
        "absent": report.absent,
        "guard": report.guard,
        "retention": report.retention,
        "changed": list(report.changed),
        "failed": list(report.failed),
        "inferred": list(report.inferred),
        "current_again": list(report.current_again),
        "unknown": list(report.unknown),
        "left_behind": list(report.left_behind),
        "proof_age_days": report.proof_age_days,
        "shared_parts": list(report.shared_parts),
        "batches": report.batches,
        "resumed_batches": report.resumed_batches,
        "outcomes": {"key": report.outcomes_key, "sha256": report.outcomes_sha256},
    }


def delete_journal(verdict: Verdict, order: DeleteOrder) -> PartJournal:
    """The journal of a plate's deletion, the same for every run, by what was verified and what was ordered."""
    return journal_of(verdict.archive_bucket, verdict.tag, verdict.manifests_sha256, order)


def journal_of(archive_bucket: str, tag: str, manifests_sha256: str, order: DeleteOrder) -> PartJournal:
    """The same where there is no verdict."""
    way = "delete" if order.phase == "delete" else "undo"  # marking and purging share one
    place = journals("delete", archive_bucket, f"{tag}.{manifests_sha256[:16]}")
    return place(f"{way}.{'.'.join(order.parts)}")


def begun(journal: PartJournal) -> bool:
    """Whether a batch was ever sent: from then on, what is missing at the source was our doing."""
    return any("intent" in row for row in journal.rows())
