"""Restore files from tape: plans, asks for what the window allows, and says what is open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from hooks.globus import GlobusHook
from hooks.jgi import JdpHook
from hooks.task import run_folder
from hooks.waybill import receipts
from operators.common.leg import Leg, LegOperator, Wait
from operators.jgi.opened import opened
from triggers.jgi import RestoreRequestTrigger
from triggers.leg import run_began

from include.core.errors import AuthError, ConflictingRequest, Held, QuotaExceeded, TransientError, WaybillError
from include.core.request import load
from include.jgi.forecast import forecast, planned
from include.jgi.planner import Plan
from include.jgi.request import StagingRequest
from include.jgi.restoring import OPEN_REQUESTS, Restoring

FULL_WINDOW_SECONDS = (
    3 * 3600.0
)  # how long a run waits for a window that is about to be free, before it watches what is open


class TapeRestoreOperator(LegOperator):
    """Returns the business keys of all open restore requests, of this run and of earlier ones.

    A full window is waited for, without a worker, while it frees within three hours; else the rest is the next run's. A refused
    token, or JDP out of reach, ends it with what is open: the receipt names the connection.
    """

    step = "restore"
    trigger = RestoreRequestTrigger
    template_fields: Sequence[str] = ()

    def __init__(
        self,
        *,
        jdp_conn_id: str = JdpHook.default_conn_name,
        globus_conn_id: str = GlobusHook.default_conn_name,
        **kwargs: Any,
    ):
        super().__init__(conn_id=jdp_conn_id, **kwargs)
        self.globus_conn_id = globus_conn_id

    def deadline(self, context: Context, began: float) -> float:
        return run_began(context) + FULL_WINDOW_SECONDS

    async def act(self, leg: Leg) -> Any:
        request = load(StagingRequest, leg.context["dag_run"].conf)
        async with opened(leg.owner, self.conn_id, self.globus_conn_id) as restoring:
            plan = planned(restoring)
            await self._keep(leg, restoring, plan)
            trouble = "" if request.dry_run or leg.over else await self._ask(leg, restoring, plan)
            now = restoring.ledger.now()
            plan = planned(restoring)
            soon = [one.send_at - now for one in plan.requests if one.send_at - now <= FULL_WINDOW_SECONDS]
            if soon and not trouble and not request.dry_run and not leg.over:
                return Wait(max(soon[0], 1.0), "JDP's window is full: the rest is asked for when it frees")
            await self._keep(leg, restoring, plan)
            return [one.key for one in restoring.tracking.requests(OPEN_REQUESTS)] if not request.dry_run else []

    async def _ask(self, leg: Leg, restoring: Restoring, plan: Plan) -> str:
        """Sends what is due. Returns why it had to stop, "" where it did not; trouble with one request stops no other."""
        for one in plan.requests:
            if one.send_at > restoring.ledger.now():
                break
            try:
                row = await restoring.ask(one.files)
                self.log.info("restore request %s: %d files, %d bytes", row.external_id, len(one.files), one.size_bytes)
            except (QuotaExceeded, ConflictingRequest) as error:
                self.log.info("%s", error)
                return ""
            except (AuthError, TransientError) as error:
                self._note(leg, error)
                return str(error)
            except Held as error:
                self._note(leg, error)
            except WaybillError as error:
                self._note(leg, error)
        return ""

    def _note(self, leg: Leg, error: WaybillError) -> None:
        self.log.error("%s", error)
        key = "refused" if isinstance(error, AuthError) else "trouble"
        leg.facts.setdefault(key, []).append(str(error))

    async def _keep(self, leg: Leg, restoring: Restoring, plan: Plan) -> None:
        told = json.dumps(forecast(plan, restoring.ledger.now()), indent=1).encode()
        document = await receipts().objects.put(f"{run_folder(leg.context)}/forecast.json", told)
        leg.facts["forecast"] = document.to_dict()
