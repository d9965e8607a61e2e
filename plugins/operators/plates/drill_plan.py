"""Draws the plates of a restore drill, and says what reading them will cost. Reads listings, manifests and HEADs."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.archives import archives, file_index, split_uri
from hooks.aws import AwsHook
from hooks.task import run_async, run_folder
from hooks.waybill import receipts
from operators.common.base import WaybillOperator
from operators.plates.base import progress_log, records_of, store_of

from include.core.objects import Document
from include.core.request import load
from include.core.text import file_name, format_bytes
from include.plates.drill_plan import DrillPlan, batch_list, plan_drill
from include.plates.drill_request import DrillRequest


def drill_request(context: Context) -> DrillRequest:
    return load(DrillRequest, context["dag_run"].conf)


def check_drill(request: DrillRequest, _: Any) -> list[str]:
    """What load_request checks beyond the form: that the prefixes are those that an operator has configured."""
    place = archives()
    return request.checked(place.prefixes, place.reports)


def label_of_drill(number: int, name: str) -> str:
    return f"{number:03d}_{file_name(name)}"


class PlateDrillPlanOperator(WaybillOperator):
    """Returns an entry per plate that will be looked at; none on a dry run. Keeps the plan and, for what is cold, a list for
    S3 Batch Operations beside the receipt; XCom `cost` says by storage class what will be read."""

    step = "plan"

    def __init__(self, *, aws_conn_id: str = AwsHook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.aws_conn_id = aws_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        with self.refusing(context) as facts:
            request = drill_request(context)
            plan = run_async(self._plan(context, request, check_drill(request, None)))
            facts["plan"] = document = run_async(self._keep(context, plan, facts))
        context["ti"].xcom_push(key="cost", value=plan.cost())
        self.log.info("seed %s: %d of %d plates are drawn", plan.seed, len(plan.drawn), plan.plates_there)
        for kind, cost in plan.cost().items():
            what = (
                f"{cost['tarballs']} tarballs, {format_bytes(cost['read_bytes'])}, at most {cost['requests']} requests"
            )
            self.log.info("storage class %s: %s", kind, what)
        rows = [
            {"plate": label_of_drill(number, one.name), "name": one.name, "number": number, "plan": document}
            for number, one in enumerate(plan.drawn)
            if not one.left_out
        ]
        return [] if request.dry_run else rows

    async def _plan(self, context: Context, request: DrillRequest, prefixes: list[str]) -> DrillPlan:
        listed, seed = [], request.seed or context["ti"].run_id
        async with store_of(self, context) as access:
            with file_index(archives()) as index:
                for bucket, prefix in map(split_uri, prefixes):
                    archive = access.bucket(bucket)
                    listing = await index.refresh(archive, prefix, on_progress=progress_log(self.log.info))
                    listed.append((archive, listing, index.archived(bucket, prefix)))
            return await plan_drill(listed, seed=seed, plates=request.plates, max_gib=request.max_gib)

    async def _keep(self, context: Context, plan: DrillPlan, facts: dict[str, Any]) -> dict[str, Any]:
        place, objects = run_folder(context), receipts().objects
        for number, one in enumerate(plan.drawn):
            await records_of(context, label_of_drill(number, one.name)).empty("drill")  # what an earlier try left
        cold = batch_list(plan)
        if cold:
            listed: Document = await objects.put(f"{place}/cold_tarballs.csv", cold.encode())
            facts["cold_tarballs"] = listed.to_dict()
        return (await objects.put(f"{place}/drill.json", plan.model_dump_json().encode())).to_dict()
