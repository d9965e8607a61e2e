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
from triggers.until import UntilTrigger

from include.core.errors import ConflictingRequest, QuotaExceeded, WaybillError
from include.core.ledger import InDoubt
from include.core.remedies import cause_of
from include.core.request import load
from include.core.watch import may_pass
from include.jgi.forecast import forecast, planned
from include.jgi.planner import Plan
from include.jgi.request import StagingRequest
from include.jgi.restoring import OPEN_REQUESTS, Restoring
from include.jgi.take_up import TakenUp, repair

TROUBLE_SECONDS = 3 * 3600.0  # how long a database that is out of reach is waited for
PART_OF_WINDOW = 1 / 8  # so long a full window is waited for, before what is open is watched: three hours of a day


class TapeRestoreOperator(LegOperator):
    """Returns the business keys of all open restore requests, of this run and of earlier ones.

    A full window is waited for, without a worker, if it frees within an eighth of its length after the run's begin; else the rest
    is the next run's. A refused token, or JDP out of reach, ends it with what is open: the receipt names the connection.
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
        return run_began(context) + TROUBLE_SECONDS

    async def act(self, leg: Leg) -> Any:
        request = load(StagingRequest, leg.context["dag_run"].conf)
        async with opened(leg.owner, self.conn_id, self.globus_conn_id) as restoring:
            repair(restoring, TakenUp())  # what was just found may be in an open request, where MongoDB had lost it
            plan = planned(restoring, request.project)
            trouble = "" if request.dry_run or leg.over else await self._ask(leg, restoring, plan)
            plan = planned(restoring, request.project)
            await self._keep(leg, restoring, plan)
            if request.dry_run:
                return []
            patience = restoring.account.limits.window_seconds * PART_OF_WINDOW
            soon = [one.send_at for one in plan.requests if one.send_at <= run_began(leg.context) + patience]
            if soon and not trouble and not leg.over:
                seconds = max(soon[0] - restoring.ledger.now(), 1.0)
                return Wait(seconds, "JDP's window is full: the rest is asked for when it frees", trigger=UntilTrigger)
            return [one.key for one in restoring.tracking.requests(OPEN_REQUESTS)]

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
            except InDoubt as error:  # the next run's take_up searches for it; its files wait
                self.log.warning("%s", error)
                leg.facts.setdefault("in_doubt", []).append(str(error))
            except WaybillError as error:
                self.log.error("%s", error)
                leg.facts.setdefault("trouble", []).append({"cause": cause_of(error).value, "why": str(error)})
                if may_pass(error):  # a refused credential, or an outage: the same would meet the next request
                    return str(error)
        return ""

    async def _keep(self, leg: Leg, restoring: Restoring, plan: Plan) -> None:
        told = json.dumps(forecast(plan, restoring.ledger.now()), indent=1).encode()
        document = await receipts().objects.put(f"{run_folder(leg.context)}/forecast.json", told)
        leg.facts["forecast"] = document.to_dict()
