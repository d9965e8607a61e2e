"""Asks cold storage for the tarballs that are needed and waits for them.

Invariant: asking twice has one effect (docs/protocols/s3.md 5.2), so this may be repeated."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from airflow.sdk import Context
from operators.plates.base import PlateOperator, store_of
from operators.plates.restore_plan import manifests_of, restore_request, wanted_of
from triggers.leg import Leg, Legs, Wait
from triggers.plates import PlateThawTrigger

from include.core.errors import NotFound
from include.core.text import pluralize
from include.plates.models import Plate
from include.plates.request import RestoreRequest
from include.plates.restore import RestoreStatus, TarballState, request_restore


class PlateThawOperator(Legs, PlateOperator):
    """Asks cold storage for the tarballs that are needed and waits, deferred, until all can be read."""

    step = "thaw"
    trigger = PlateThawTrigger

    def recorded(self, context: Context) -> AbstractContextManager[dict[str, Any]]:
        return self.recording(context)

    def deadline(self, context: Context, began: float) -> float:
        return began + restore_request(context).wait_hours * 3600

    async def act(self, leg: Leg) -> Any:
        request = restore_request(leg.context)
        states = await self._ask(leg.context, request)
        missing = [state.key for state in states if state.status is RestoreStatus.MISSING]
        if missing:
            raise NotFound(f"the tarball {missing[0]} is missing from {request.archive_bucket}")
        cold = [state.key for state in states if state.status is not RestoreStatus.READY]
        if not cold:
            return dict(self.plate)
        return Wait(
            request.wait_hours * 3600,
            f"still in cold storage: {pluralize(len(cold), 'tarball')}, asked for ({request.tier}), the first {cold[0]}",
            {"bucket": request.archive_bucket, "keys": cold, "store_patience": request.store_patience},
            request.poll_seconds,
        )

    async def _ask(self, context: Context, request: RestoreRequest) -> list[TarballState]:
        async with store_of(self, context) as access:
            wanted, without = await wanted_of(request, Plate.model_validate(self.plate["ids"]), access)
            archive = access.bucket(request.archive_bucket)
            return await request_restore(manifests_of(wanted, without), archive, days=request.days, tier=request.tier)
