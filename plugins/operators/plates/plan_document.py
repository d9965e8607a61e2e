"""The plan of a run as a document: a row per plate, and the label by which all its tasks name it.

Invariant: it is found by the record of step `plan`, with its digest, so that no task works by the plan of another request.
"""

from __future__ import annotations

import json
from typing import Any

from airflow.sdk import Context
from hooks.task import run_async, run_folder, step_records
from hooks.waybill import receipts

from include.core.text import file_name
from include.plates.models import Plate, PlatePlan
from include.plates.request import BackupRequest


def label_of(number: int, plate: Plate) -> str:
    """A plate's name in this run: unique, and fit for a path."""
    return f"{number:03d}_{file_name(plate.plate_id_full)}"


def write_plan(context: Context, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Keeps the rows of a plan, and gives the Document that names them."""
    data = json.dumps(rows, ensure_ascii=False).encode()
    return run_async(receipts().objects.put(f"{run_folder(context)}/plan.json", data)).to_dict()


async def plan_rows(context: Context) -> list[dict[str, Any]]:
    """The rows of the plan that this run has made for this request; empty where it made none."""
    record = await step_records(context).read("plan")
    if "plan" not in record:
        return []
    rows: list[dict[str, Any]] = json.loads(await receipts().objects.get_document(record["plan"]))
    return rows


def told(plan: PlatePlan, request: BackupRequest) -> dict[str, Any]:
    """A plan without its thousands of objects; of older versions, those below what would be deleted."""
    return {
        "tag": plan.tag,
        "objects": plan.objects,
        "bytes": plan.size_bytes,
        "parts": {part.name: part.objects for part in plan.parts},
        "tarballs": [volume.key for volume in plan.volumes],
        "existing": list(plan.existing),
        "problems": list(plan.problems),
        "older_versions": request.older_below(plan)[0],
        "warnings": [*plan.warnings, *request.order_notes(plan)],
    }
