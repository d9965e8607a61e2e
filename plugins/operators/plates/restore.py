"""Gives plates back: finds what is archived, warms it, restores it by ranged reads, and says file by file how it went.

The thing to know before changing it: asking cold storage twice has one effect (S3 refuses a second request while one is
going on), and a restored file is only visible under its name once its checksum is right. So everything may be repeated.
"""

from __future__ import annotations

import json
import time
from typing import Any

from airflow.sdk import Context
from hooks.aws import PlatesHook
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import inputs, receipts
from operators.common.base import WaybillOperator
from operators.common.receipt import ReceiptOperator
from operators.plates.base import PlateOperator, progress_log, read_plates, records_of
from operators.plates.plan import PLAN_NOTE, label_of
from triggers.plates import PlateWarmTrigger

from include.core.errors import NotFound, TransientError, VerificationError
from include.core.ledger import Ledger
from include.core.receipt import Receipt
from include.core.request import load
from include.core.steps import StepRecords
from include.core.text import format_bytes, pluralize
from include.plates.models import Manifest, ManifestMember, Plate
from include.plates.request import RestoreRequest
from include.plates.restore import (
    Restored,
    RestoreStatus,
    TarballState,
    find_manifests,
    request_restore,
    restore,
    select,
    tarball_states,
)
from include.plates.restore_target import BucketSink
from include.s3.client import S3Access

Wanted = list[tuple[Manifest, ManifestMember]]


def restore_request(context: Context) -> RestoreRequest:
    return load(RestoreRequest, context["dag_run"].conf)


async def wanted_of(request: RestoreRequest, plate: Plate, access: S3Access) -> Wanted:
    """The members that a request wants of a plate. Raises NotFound naming what is not in the archive."""
    manifests = await find_manifests(plate, request.layout_used(), access.bucket(request.archive_bucket))
    return select(manifests, parts=request.parts, files=request.files)


def manifests_of(wanted: Wanted) -> list[Manifest]:
    """Each tarball that must be read, once."""
    return list({manifest.head.key: manifest for manifest, _ in wanted}.values())


class PlateRestorePlanOperator(WaybillOperator):
    """Returns an entry per plate of which something is archived and wanted; none on a dry run. Starts nothing."""

    def __init__(self, *, aws_conn_id: str = PlatesHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        request, place = restore_request(context), f"{run_folder(context)}/{PLAN_NOTE}"
        run_async(receipts().objects.put(place, b"[]"))
        with self.refusing(context):
            rows = run_async(self._rows(request, read_plates(request, inputs())))
        run_async(receipts().objects.put(place, json.dumps(rows, ensure_ascii=False).encode()))
        for row in rows:
            self.log.info(
                "%s: %s", row["name"], row["problem"] or f"{row['files']} files, {format_bytes(row['bytes'])}"
            )
        names = ("plate", "name", "ids")
        return [] if request.dry_run else [{name: row[name] for name in names} for row in rows if not row["problem"]]

    async def _rows(self, request: RestoreRequest, plates: list[Plate]) -> list[dict[str, Any]]:
        rows = []
        async with PlatesHook(self.aws_conn_id).access() as access:
            for number, plate in enumerate(plates, start=1):
                row: dict[str, Any] = {"plate": label_of(number, plate), "name": plate.plate_id_full, "problem": ""}
                row |= {"ids": plate.model_dump(), "files": 0, "bytes": 0, "tarballs": {}}
                try:
                    wanted = await wanted_of(request, plate, access)
                    manifests = manifests_of(wanted)
                    states = await tarball_states(manifests, access.bucket(request.archive_bucket))
                    row |= {"files": len(wanted), "bytes": sum(member.size for _, member in wanted)}
                    row["tarballs"] = {state.key: state.status.value for state in states}
                except (NotFound, VerificationError) as error:
                    row["problem"] = str(error)
                rows.append(row)
        return rows


class PlateWarmOperator(PlateOperator):
    """Asks cold storage for the tarballs that are needed and waits, deferred, until all can be read."""

    step = "warm"

    def execute(self, context: Context) -> dict[str, Any]:
        return self.resume(context)

    def resume(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Looks for itself; the event only says why to wake."""
        request = restore_request(context)
        states = run_async(self._ask(request))
        missing = [state.key for state in states if state.status is RestoreStatus.MISSING]
        if missing:
            raise NotFound(f"the tarball {missing[0]} is missing from {request.archive_bucket}")
        cold = [state.key for state in states if state.status is not RestoreStatus.READY]
        if cold:
            self._wait(context, request, cold, event)
        return dict(self.plate)

    def _wait(self, context: Context, request: RestoreRequest, cold: list[str], event: dict[str, Any] | None) -> None:
        if event and event["kind"] == "deadline":
            raise TransientError(
                f"{cold[0]} is still cold after {request.wait_hours:g} hours; clear this task to wait on"
            )
        owner = owner_of(context)
        self.log.info("%d tarballs lie in cold storage and are asked for (%s): waiting", len(cold), request.tier)
        self.defer(
            trigger=PlateWarmTrigger(
                conn_id=self.aws_conn_id,
                dag_id=owner.dag_id,
                run_id=owner.run_id,
                deadline=time.time() + request.wait_hours * 3600,
                since=time.time(),
                poll_seconds=request.poll_seconds,
                options={"bucket": request.archive_bucket, "keys": cold},
            ),
            method_name="resume",
        )

    async def _ask(self, request: RestoreRequest) -> list[TarballState]:
        async with PlatesHook(self.aws_conn_id).access() as access:
            wanted = await wanted_of(request, Plate.model_validate(self.plate["ids"]), access)
            archive = access.bucket(request.archive_bucket)
            return await request_restore(manifests_of(wanted), archive, days=request.days, tier=request.tier)


class PlateRestoreOperator(PlateOperator):
    """Restores the wanted files of an entry's plate into the live bucket; fails where one is not there and right."""

    step = "restore"

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        request = restore_request(context)
        async with PlatesHook(self.aws_conn_id).access() as access:
            report = await restore(
                await wanted_of(request, Plate.model_validate(self.plate["ids"]), access),
                BucketSink(access.bucket(request.bucket), request.to_prefix),
                archive=access.bucket(request.archive_bucket),
                overwrite=request.overwrite,
                on_progress=progress_log(self.log.info),
            )
        counts = {result.value: sum(one.result is result for one in report.files) for result in Restored}
        left = [f"{one.key}: {one.detail}" for one in report.files if one.result in (Restored.REFUSED, Restored.FAILED)]
        facts = {"counts": counts, "read_bytes": report.read_bytes, "left": left[:20], "left_count": len(left)}
        document = await notes.document("restored", report)
        await notes.write("restore", "left" if left else "done", **facts, document=document)
        if left:
            raise VerificationError(f"{len(left)} of {len(report.files)} files are not restored, the first {left[0]}")
        return {"restored": document}


class PlateRestoreReceiptOperator(ReceiptOperator):
    """Reads the notes of every plate's restore."""

    def tell(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), context["ti"].xcom_pull(task_ids="load_request") or {}
        try:
            rows = json.loads(run_async(receipts().objects.get(f"{run_folder(context)}/{PLAN_NOTE}")))
        except NotFound:
            rows = []
        items = [self._item(row, run_async(records_of(context, row["plate"]).read("restore")), asked) for row in rows]
        bad = [item for item in items if item["state"] not in ("restored", "planned")]
        files = sum(item["files"] for item in items if item["state"] == "restored")
        refused = context["ti"].xcom_pull(task_ids="load_request", key="request_errors")
        word = "Dry run, nothing was restored" if asked.get("dry_run") else "Restored with their right checksums"
        count = sum(item["files"] for item in items if item["state"] == "planned") if asked.get("dry_run") else files
        outcome = f"{word}: {pluralize(count, 'file')} of {len(items) - len(bad)} of {pluralize(len(items), 'plate')}."
        return Receipt(
            dag_id=owner.dag_id,
            run_id=owner.run_id,
            state="incomplete" if bad or not items else "complete",
            outcome=outcome
            if items
            else f"Nothing was restored: {'; '.join(refused or ['see the first failed task'])}.",
            remedy=f"First: {bad[0]['plate']}: {bad[0]['why']}. Clear its task, or trigger again." if bad else "",
            asked=asked,
            items=items,
            totals={
                "files": sum(row["files"] for row in rows),
                "files proved": files,
                "bytes": sum(row["bytes"] for row in rows),
                "proved bytes": sum(item["bytes"] for item in items if item["state"] == "restored"),
                "bytes read": sum(item["read_bytes"] for item in items),
            },
        )

    def _item(self, row: dict[str, Any], note: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        state, why = "not restored", note.get("why", "the task did not come to its end; see its log")
        if row["problem"]:
            why = row["problem"]
        elif asked.get("dry_run"):
            state, why = "planned", "a dry run"
        elif note.get("state") == "done":
            state, why = "restored", ", ".join(f"{count} {result}" for result, count in note["counts"].items() if count)
        elif note.get("state") == "left":
            why = f"{note['left_count']} files: {'; '.join(note['left'][:3])}"
        facts = {"files": row["files"], "bytes": row["bytes"], "read_bytes": note.get("read_bytes", 0)}
        documents = {"document": note["document"]} if "document" in note else {}
        return {"plate": row["name"], "state": state, "why": why, **facts, "tarballs": row["tarballs"], **documents}
