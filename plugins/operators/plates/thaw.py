"""Asks cold storage for the tarballs that are needed and waits for them.

Invariant: asking twice has one effect (docs/protocols/s3.md 5.2), so this may be repeated."""

from __future__ import annotations

import time
from typing import Any

from airflow.sdk import Context
from hooks.aws import AwsHook
from hooks.task import owner_of, run_async
from operators.plates.base import PlateOperator
from operators.plates.restore_plan import manifests_of, restore_request, wanted_of
from triggers.plates import PlateThawTrigger

from include.core.errors import NotFound, TransientError
from include.plates.models import Plate
from include.plates.request import RestoreRequest
from include.plates.restore import RestoreStatus, TarballState, request_restore


class PlateThawOperator(PlateOperator):
    """Asks cold storage for the tarballs that are needed and waits, deferred, until all can be read."""

    step = "thaw"

    def execute(self, context: Context) -> dict[str, Any]:
        return self.resume(context)

    def resume(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Looks for itself; the event only says why to wake."""
        with self.recording(context):
            return self._look(context, event)

    def _look(self, context: Context, event: dict[str, Any] | None) -> dict[str, Any]:
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
            trigger=PlateThawTrigger(
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
        async with AwsHook(self.aws_conn_id).access() as access:
            wanted = await wanted_of(request, Plate.model_validate(self.plate["ids"]), access)
            archive = access.bucket(request.archive_bucket)
            return await request_restore(manifests_of(wanted), archive, days=request.days, tier=request.tier)
