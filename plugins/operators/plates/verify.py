"""Proves a plate's archive by reading it back from the store: another task than the archiver's, and other code."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.sdk import Context
from operators.plates.base import PlateOperator, backup_request, progress_log, read_model, store_of
from operators.plates.delete import begun, journal_of

from include.core.errors import NotFound, VerificationError
from include.core.steps import StepRecords
from include.core.text import sentences
from include.plates.approval import manifests_sha256
from include.plates.compare import ArchivedObject, compare
from include.plates.models import Level, Outcome, PlatePlan, Verdict
from include.plates.report import DELETION_BEGUN, how_to_undo
from include.plates.verify import verify_archive
from include.s3.bucket import S3Access

_LOOKS = 2
_PAUSE_SECONDS = 5.0


class PlateVerifyOperator(PlateOperator):
    """Adds "verdict" (a Document) and what a person is shown of it; fails, without retry, for any other outcome.

    What is unverifiable is looked at once more: it may have been a passing trouble of the store.
    """

    step = "verify"

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        plan = await read_model(PlatePlan, self.plate["plan"])
        async with store_of(self, context) as access:
            await self._refuse_begun(context, notes, plan, access)
            for look in range(1, _LOOKS + 1):
                verdict = await self._look(plan, access, Level(backup_request(context).proof))
                if verdict.outcome is not Outcome.UNVERIFIABLE or look == _LOOKS:
                    break
                self.log.warning("unverifiable (%s); looking once more", "; ".join(verdict.reasons))
                await asyncio.sleep(_PAUSE_SECONDS)
        document = await notes.document("verdict", verdict)
        await notes.write("verify", verdict.outcome.value, verdict=document, **told(verdict))
        for check in verdict.checks:
            self.log.info("%s %s: %s", check.name, check.outcome.value, check.detail)
        if verdict.outcome is not Outcome.VERIFIED:
            raise VerificationError(
                f"{verdict.tag} is {verdict.outcome.value}, so it is kept: {'; '.join(verdict.reasons)}"
            )
        return {
            "verdict": document,
            "manifests": verdict.manifests_sha256,
            "objects": verdict.objects,
            "bytes": verdict.size_bytes,
        }

    async def _refuse_begun(self, context: Context, notes: StepRecords, plan: PlatePlan, access: S3Access) -> None:
        """A source that differs from its archive because its deletion has begun is no mismatch, and says how to undo it."""
        request, archive = backup_request(context), access.bucket(plan.archive_bucket)
        if not request.delete_parts:
            return
        try:
            digest = await manifests_sha256(plan, archive)
        except NotFound:
            return  # without its manifests nothing of it can have been deleted
        journal = journal_of(plan.archive_bucket, plan.tag, digest, request.order(digest))
        if not await asyncio.to_thread(begun, journal):
            return
        planned = (one for volume in plan.volumes for one in volume.objects)
        archived = (ArchivedObject(one.key, one.etag, one.size, one.version_id) for one in planned)
        found = await compare(archived, plan.plate, plan.layout, access.bucket(plan.bucket))
        if found.sentence is not None:
            why = f"its deletion has begun, so its source differs from its archive by Waybill's own doing: {found.sentence}"
            await notes.write("verify", DELETION_BEGUN, why=why)
            raise VerificationError(sentences(f"{plan.tag}: {why}", how_to_undo(plan.bucket, request.undo_days)))

    async def _look(self, plan: PlatePlan, access: S3Access, level: Level) -> Verdict:
        return await verify_archive(
            plan.plate,
            plan.layout,
            source=access.bucket(plan.bucket),
            archive=access.bucket(plan.archive_bucket),
            level=level,
            on_progress=progress_log(self.log.info),
        )


def told(verdict: Verdict) -> dict[str, Any]:
    """What the receipt says of a verdict."""
    return {
        "objects": verdict.objects,
        "bytes": verdict.size_bytes,
        "level": verdict.level.value,
        "manifests": verdict.manifests_sha256,
        "reasons": list(verdict.reasons),
        "proofs": {check.name: check.detail for check in verdict.checks},
        "delete_script": verdict.delete_script,
    }
