"""Finds what is archived of each plate and wanted, and how cold it lies. Starts nothing."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.task import run_async
from hooks.waybill import inputs
from operators.common.base import WaybillOperator
from operators.plates.base import read_plates, records_of, store_of
from operators.plates.plan_document import label_of, write_plan

from include.core.errors import NotFound, VerificationError
from include.core.request import load
from include.core.text import format_bytes
from include.plates.models import Manifest, Plate
from include.plates.request import RestoreRequest
from include.plates.restore import Wanted, all_of, select, tarball_states
from include.plates.script_archive import ScriptTarball, find_archive
from include.s3.bucket import S3Access
from include.s3.errors import BucketMissing


def restore_request(context: Context) -> RestoreRequest:
    return load(RestoreRequest, context["dag_run"].conf)


async def wanted_of(request: RestoreRequest, plate: Plate, access: S3Access) -> tuple[Wanted, list[ScriptTarball]]:
    """The members that a request wants of a plate, and the tarballs without manifests, whose members are not known before
    they are read. Raises NotFound naming what is not in the archive."""
    manifests, without = await find_archive(plate, request.layout_used(), access.bucket(request.archive_bucket))
    try:
        return select(manifests, parts=request.parts, files=request.files), without
    except NotFound:
        if not without:
            raise
        return all_of(manifests), without


def manifests_of(wanted: Wanted, without: list[ScriptTarball]) -> list[Manifest]:
    """Each tarball that must be read, once."""
    return [*wanted.manifests, *(tarball.manifest() for tarball in without)]


class PlateRestorePlanOperator(WaybillOperator):
    """Returns an entry per plate of which something is archived and wanted; none on a dry run. Starts nothing."""

    step = "plan"

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        with self.refusing(context) as facts:
            request = restore_request(context)
            rows = run_async(self._rows(context, request, read_plates(request, inputs())))
            facts["plan"] = write_plan(context, rows)
        for row in rows:
            self.log.info(
                "%s: %s", row["name"], row["problem"] or f"{row['files']} files, {format_bytes(row['bytes'])}"
            )
        names = ("plate", "name", "ids")
        return [] if request.dry_run else [{name: row[name] for name in names} for row in rows if not row["problem"]]

    async def _rows(self, context: Context, request: RestoreRequest, plates: list[Plate]) -> list[dict[str, Any]]:
        rows = []
        async with store_of(self, context) as access:
            for number, plate in enumerate(plates, start=1):
                row: dict[str, Any] = {"plate": label_of(number, plate), "name": plate.plate_id_full, "problem": ""}
                await records_of(context, row["plate"]).empty("thaw", "restore")
                row |= {"ids": plate.model_dump(), "files": 0, "bytes": 0, "tarballs": {}}
                try:
                    wanted, without = await wanted_of(request, plate, access)
                    manifests = manifests_of(wanted, without)
                    states = await tarball_states(manifests, access.bucket(request.archive_bucket))
                    row |= {"files": len(wanted), "bytes": sum(member.size for _, member in wanted)}
                    row["tarballs"] = {state.key: state.status.value for state in states}
                    row["without_manifest"] = [tarball.key for tarball in without]
                except BucketMissing:
                    raise
                except (NotFound, VerificationError) as error:
                    row["problem"] = str(error)
                rows.append(row)
        return rows
