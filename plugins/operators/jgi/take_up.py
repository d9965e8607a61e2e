"""Takes up what earlier runs left open."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from airflow.sdk import Context
from hooks.globus import GlobusHook
from hooks.jgi import JdpHook
from hooks.task import owner_of, run_async
from operators.common.base import WaybillOperator
from operators.jgi.opened import opened

from include.core.ledger import Owner
from include.jgi.take_up import TakenUp, take_up


class TakeUpOperator(WaybillOperator):
    """MongoDB is put right from the ledger, doubts are looked into, expired files found. Trouble at JDP does not fail it."""

    step = "take_up"

    def __init__(
        self,
        *,
        jdp_conn_id: str = JdpHook.default_conn_name,
        globus_conn_id: str = GlobusHook.default_conn_name,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.jdp_conn_id = jdp_conn_id
        self.globus_conn_id = globus_conn_id

    def execute(self, context: Context) -> dict[str, int]:
        with self.refusing(context) as facts:
            found = run_async(self._taken_up(owner_of(context)))
            facts |= asdict(found)
        for name in ("repaired", "withdrawn", "expired", "in_doubt", "held", "failed"):
            for line in getattr(found, name):
                self.log.info("%s: %s", name.replace("_", " "), line)
        return {name: len(value) for name, value in asdict(found).items() if isinstance(value, list)}

    async def _taken_up(self, owner: Owner) -> TakenUp:
        async with opened(owner, self.jdp_conn_id, self.globus_conn_id) as restoring:
            return await take_up(restoring)
