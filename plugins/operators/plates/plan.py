"""Lists every plate and finds what would go wrong, before anything is written anywhere."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.questions import approvers
from hooks.task import run_async
from hooks.waybill import check_ledger, inputs
from operators.common.base import WaybillOperator
from operators.plates.base import backup_request, progress_log, read_plates, records_of, store_of
from operators.plates.plan_document import label_of, told, write_plan

from include.core.concurrency import map_concurrently
from include.core.errors import RequestError
from include.core.steps import StepRecords
from include.core.text import format_bytes
from include.plates.models import Plate
from include.plates.plan import _check_buckets, plan_plate
from include.plates.report import STEPS
from include.plates.request import BackupRequest
from include.s3.bucket import S3Access

DAG_ID = "plate_backup"  # whose list of approvers load_request looks for
_PLATES_AT_ONCE = 3


def check_backup(request: BackupRequest, places: Any) -> list[Plate]:
    """What load_request checks beyond the form: the plates, and that somebody may approve what shall be deleted."""
    problems: list[str] = []
    plates: list[Plate] = []
    for check in (
        lambda: plates.extend(read_plates(request, places)),
        lambda: request.delete_parts and approvers(DAG_ID),
    ):
        try:
            check()
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)
    return plates


class PlatePlanOperator(WaybillOperator):
    """Writes each plate's plan beside the receipt and returns the entries of those that can be archived.

    An entry is {"plate": label, "name": plate_id_full, "plan": Document}. A plate with problems is left out and named in
    the receipt; a dry run returns none. Planning again is harmless: the same plate gives the same plan.
    """

    step = "plan"

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        with self.refusing(context) as facts:
            request = backup_request(context)
            check_ledger()
            plates = check_backup(request, inputs())
            rows = run_async(self._plan(context, request, plates))
            facts["plan"] = write_plan(context, rows)
        for row in rows:
            for problem in row["problems"]:
                self.log.error("plate %s: %s", row["name"], problem)
        good = [row for row in rows if not row["problems"]]
        total = sum(row["bytes"] for row in good)
        self.log.info("%d of %d plates can be archived, %s", len(good), len(rows), format_bytes(total))
        if request.dry_run:
            return []
        return [{name: row[name] for name in ("plate", "name", "plan")} for row in good]

    async def _plan(self, context: Context, request: BackupRequest, plates: list[Plate]) -> list[dict[str, Any]]:
        async with store_of(self, context) as access:
            source, archive = access.bucket(request.bucket), access.bucket(request.archive_bucket)
            await _check_buckets(request, source, archive)

            async def one(item: tuple[int, Plate]) -> dict[str, Any]:
                notes = records_of(context, label_of(*item))
                await notes.empty(*STEPS)  # what an earlier try, or another plan, left of this plate
                return await self._row(request, item, notes, access)

            return await map_concurrently(list(enumerate(plates, start=1)), one, _PLATES_AT_ONCE)

    async def _row(
        self, request: BackupRequest, item: tuple[int, Plate], notes: StepRecords, access: S3Access
    ) -> dict[str, Any]:
        plate = item[1]
        row = {"plate": label_of(*item), "name": plate.plate_id_full, "bytes": 0, "objects": 0}
        try:
            plan = await plan_plate(
                plate,
                request.layout_used(),
                request.settings_used(),
                source=access.bucket(request.bucket),
                archive=access.bucket(request.archive_bucket),
                all_tags=bool(request.delete_parts),
                on_progress=progress_log(self.log.info),
            )
        except RequestError as error:
            return {**row, "problems": error.problems, "warnings": []}
        plan = plan.model_copy(update={"problems": (*plan.problems, *request.order_problems(plan))})
        return {**row, **told(plan, request), "plan": await notes.document("plan", plan)}
