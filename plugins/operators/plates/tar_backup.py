"""One plate from S3 to its tarballs, streamed: no scratch disk, and memory bounded by the parts in flight."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.waybill import journals
from operators.plates.base import PlateOperator, progress_log, read_model, store_of

from include.core.steps import StepRecords
from include.core.text import format_bytes
from include.plates.archive import archive_plate
from include.plates.models import ArchiveResult, PlatePlan


class TarBackupOperator(PlateOperator):
    """Archives the plate of an entry and adds "archive", a Document with each tarball's facts.

    A crash, a retry or a new run with the same plan goes on where the last one stopped: finished parts are in a journal
    under the receipts prefix, by the plan's digest. Fails without retry where a source changed or a name is taken.
    """

    step = "archive"

    def __init__(self, *, parts_in_flight: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        self.parts_in_flight = parts_in_flight

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        plan = await read_model(PlatePlan, self.plate["plan"])
        self.log.info(
            "%s: %d objects, %s, to %s", plan.tag, plan.objects, format_bytes(plan.size_bytes), plan.archive_bucket
        )
        async with store_of(self, context) as access:
            result = await archive_plate(
                plan,
                source=access.bucket(plan.bucket),
                archive=access.bucket(plan.archive_bucket),
                journal_for=journals("archive", plan.archive_bucket, f"{plan.tag}.{plan.digest[:16]}"),
                parts_in_flight=self.parts_in_flight,
                on_progress=progress_log(self.log.info),
            )
        await notes.write("archive", "done", **told(result))
        for volume in result.volumes:
            self.log.info(
                "%s: %s, %d parts sent, %d kept", volume.key, format_bytes(volume.stored_bytes), *_parts(volume)
            )
        return {"archive": await notes.document("archive", result)}


def _parts(volume: Any) -> tuple[int, int]:
    return volume.sent_parts, volume.resumed_parts


def told(result: ArchiveResult) -> dict[str, Any]:
    """What the receipt says of an archive."""
    return {
        "stored_bytes": sum(volume.stored_bytes for volume in result.volumes),
        "tarballs": {volume.key: volume.manifest_sha256 for volume in result.volumes},
        "sent_parts": sum(volume.sent_parts for volume in result.volumes),
        "resumed_parts": sum(volume.resumed_parts for volume in result.volumes),
        "remarks": sorted({note for volume in result.volumes for note in volume.notes}),
    }
