"""What the tasks of one plate share: its entry from the plan, its step records, progress in the log.

Invariant: each step writes its record when it begins and when it ends, and empties those of the steps after it, so that a
receipt never takes an earlier try's success for this one's. Records are for people; what decides anything travels as a
Document with its digest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic
from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.task import owner_of, run_async, step_records
from hooks.waybill import receipts
from operators.common.base import WaybillOperator

from include.core.errors import NotFound, RequestError, WaybillError
from include.core.objects import Objects, read_input
from include.core.progress import OnProgress, Progress
from include.core.request import load
from include.core.steps import StepRecords
from include.core.text import format_bytes
from include.plates.models import Plate
from include.plates.plates_csv import read_plates_csv
from include.plates.report import STEPS
from include.plates.request import CSV_LIMIT_BYTES, BackupRequest, RestoreRequest, patience_of
from include.s3.bucket import S3Access

log = logging.getLogger(__name__)
POOL = "waybill_plates"
M = TypeVar("M", bound=pydantic.BaseModel)
_SAY_EVERY_SECONDS = 30.0


def read_plates(request: BackupRequest | RestoreRequest, places: Sequence[Objects]) -> list[Plate]:
    """The plates of a request in either form. Raises RequestError with all refusals."""
    document = None
    if request.plates_uri is not None:
        try:
            document = run_async(read_input(request.plates_uri, places, limit_bytes=CSV_LIMIT_BYTES))
        except NotFound as error:
            raise RequestError(f"plates_uri: {error}") from None
    if document is not None:
        log.info("%s", read_plates_csv(document).told or "plates.csv was read")
    return request.plates_used(document)


def records_of(context: Context, label: str) -> StepRecords:
    """The step records of one plate of this run."""
    return step_records(context, f"plates/{label}", (*STEPS, "thaw", "restore"))


def backup_request(context: Context) -> BackupRequest:
    return load(BackupRequest, context["dag_run"].conf)


def store_of(operator: Any, context: Context) -> S3Access:
    """The store of an operator's connection, with the patience that the run's conf asks for, or else the usual one."""
    return AwsHook(operator.aws_conn_id).access(patience_minutes=patience_of(context["dag_run"].conf))


def progress_log(say: Callable[..., None]) -> OnProgress:
    """A progress callback that says at most one line in 30 s."""
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_EVERY_SECONDS:
            last = time.monotonic()
            done, total = format_bytes(progress.done_bytes), format_bytes(progress.total_bytes)
            counts = f"{progress.done_items} of {progress.total_items} items, {done} of {total}"
            say("%s: %s %s", progress.stage, counts, progress.note)

    return report


async def read_model(model: type[M], document: Mapping[str, Any]) -> M:
    """What a Document holds, checked against its digest."""
    return model.model_validate_json(await receipts().objects.get_document(document))


class PlateOperator(WaybillOperator):
    """One step of one plate. `plate` is its entry: {"plate": label, …Documents} as the step before returned it."""

    template_fields: Sequence[str] = ("plate",)
    step: ClassVar[str] = ""

    def __init__(self, *, plate: Any, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.plate = plate
        self.conn_id = self.aws_conn_id = aws_conn_id

    def records(self, context: Context) -> StepRecords:
        """The step is one of its plate's, not of the run as a whole."""
        return records_of(context, self.plate["plate"])

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        """Does the step and notes how it ended; what it returns is added to the entry."""
        raise NotImplementedError

    def execute(self, context: Context) -> dict[str, Any]:
        return run_async(self.noted(context))

    async def noted(self, context: Context) -> dict[str, Any]:
        """Does the step's work, and records how it goes."""
        notes, owner = self.records(context), owner_of(context)
        facts: dict[str, Any] = {"task_id": owner.task_id}
        if owner.map_index >= 0:
            facts["map_index"] = owner.map_index
        await notes.begin(self.step, **facts)
        try:
            return {**self.plate, **await self.work(context, notes)}
        except WaybillError as error:
            await notes.end(self.step, error, **facts, connections=[self.aws_conn_id])
            raise
