"""Reads the tarballs of one drawn plate back, and renews their proof documents."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.archives import split_uri
from operators.plates.base import PlateOperator, progress_log, read_model, store_of
from operators.plates.drill_plan import drill_request

from include.core.errors import VerificationError
from include.core.steps import StepRecords
from include.plates.checksum_report import read_report
from include.plates.drill import look_at_plate
from include.plates.drill_plan import DrillPlan


class PlateDrillOperator(PlateOperator):
    """Fails where a tarball is damaged, without retry; is tried again where the store did not let it be read."""

    step = "drill"

    async def work(self, context: Context, notes: StepRecords) -> dict[str, Any]:
        uri = drill_request(context).report_uri
        plan = await read_model(DrillPlan, self.plate["plan"])
        async with store_of(self, context) as access:
            report = await read_report(*split_uri(uri), access) if uri else None
            say = progress_log(self.log.info)
            look, error = await look_at_plate(
                plan.drawn[self.plate["number"]], access, by=self.dag_id, report=report, on_progress=say
            )
        for tarball in look.tarballs:
            self.log.info("%s: %s %s", tarball.key, tarball.state, tarball.why)
        document = await notes.document("drill", look)
        read = sum(tarball.read_bytes for tarball in look.tarballs)
        facts = {"why": look.why, "tarballs": len(look.tarballs), "read_bytes": read, "document": document}
        if error is not None and look.state != "damaged":
            raise error
        await notes.write("drill", look.state, task_id=self.task_id, **facts)
        if look.state == "damaged":
            raise VerificationError(f"{look.name} is damaged in the archive: {look.why}")
        return {}
