"""What a task knows of itself: who it is to the ledger, where its run's documents lie, and how it runs asynchronous work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from airflow.sdk import Context
from hooks.waybill import receipts

from include.core.ledger import Owner
from include.core.ledger.rows import sha256_of
from include.core.receipt import folder
from include.core.steps import StepRecords

T = TypeVar("T")
RUN = "steps"  # the folder of the step records of a run as a whole


def run_async(work: Awaitable[T]) -> T:
    """Runs asynchronous work of `include` to its end in a task."""

    async def main() -> T:
        return await work

    return asyncio.run(main())


def owner_of(context: Context) -> Owner:
    """Who asks. The request is what was asked and when: a run that was deleted and posted anew under its id serves another
    one, and a cleared run the same."""
    ti, run = context["ti"], context["dag_run"]
    request = sha256_of({"conf": dict(run.conf or {}), "run_after": str(run.run_after)})
    return Owner(ti.dag_id, ti.run_id, ti.task_id, ti.map_index if ti.map_index is not None else -1, request)


def run_folder(context: Context) -> str:
    """Where this run's documents lie under the receipts prefix."""
    return folder(context["ti"].dag_id, context["ti"].run_id)


def step_records(context: Context, item: str = RUN, order: Sequence[str] = ()) -> StepRecords:
    """The step records of one item of this run: `item` is a folder below the run's own. By default they are those of the run
    as a whole, in which each mapped task has its own."""
    owner = owner_of(context)
    return StepRecords(
        receipts().objects,
        f"{run_folder(context)}/{item}",
        order,
        map_index=owner.map_index if item == RUN else -1,
        request_sha256=owner.request_sha256,
    )
