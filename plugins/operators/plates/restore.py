"""Restores the wanted files of a plate by ranged reads of its tarballs, and says file by file how it went.

Invariant: a restored file is visible under its name only once its checksum is right, so a restore may be repeated.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.waybill import journals
from operators.plates.base import PlateOperator, progress_log, store_of
from operators.plates.restore_plan import restore_request, wanted_of

from include.core.errors import VerificationError
from include.core.steps import StepRecords
from include.plates.models import Plate
from include.plates.restore import (
    Restored,
    restore,
    select,
)
from include.plates.restore_target import BucketSink
from include.plates.restore_uploads import RestoreUploads
from include.plates.script_archive import inspect_to_restore


class PlateRestoreOperator(PlateOperator):
    """Restores the wanted files of an entry's plate into the live bucket; fails where one is not there and right."""

    step = "restore"

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        request = restore_request(context)
        async with store_of(self, context) as access:
            archive = access.bucket(request.archive_bucket)
            wanted, without = await wanted_of(request, Plate.model_validate(self.plate["ids"]), access)
            left_out = list[str]()
            if without:
                source, log = access.bucket(request.bucket), progress_log(self.log.info)
                seen, left_out = await inspect_to_restore(without, source=source, archive=archive, on_progress=log)
                manifests = [*wanted.manifests, *(one.manifest for one in seen)]
                wanted = select(manifests, parts=request.parts, files=request.files)
            journal = journals("restore", request.bucket)(self.plate["plate"])
            report = await restore(
                wanted,
                BucketSink(
                    access.bucket(request.bucket), request.to_prefix, uploads=RestoreUploads(journal, [journal])
                ),
                archive=archive,
                overwrite=request.overwrite,
                on_progress=progress_log(self.log.info),
            )
        counts = {result.value: sum(one.result is result for one in report.files) for result in Restored}
        left = [f"{one.key}: {one.detail}" for one in report.files if one.result in (Restored.REFUSED, Restored.FAILED)]
        left += left_out
        noted = [f"{one.key}: {one.detail}" for one in report.files if one.result is Restored.RESTORED and one.detail]
        facts: dict[str, Any] = {"files": len(report.files), "bytes": sum(one.size for one in report.files)}
        facts |= {"without_manifest": [tarball.key for tarball in without]} if without else {}
        facts |= {"noted": noted[:3], "noted_count": len(noted)} if noted else {}
        facts |= {"counts": counts, "read_bytes": report.read_bytes, "left": left[:20], "left_count": len(left)}
        document = await notes.document("restored", report)
        await notes.write("restore", "left" if left else "done", **facts, document=document)
        if left:
            raise VerificationError(
                f"{len(left)} of {len(report.files) + len(left_out)} files are not restored, the first {left[0]}"
            )
        return {"restored": document}
