"""Looks up which files a project has, and writes them into MongoDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Context
from hooks.globus import GlobusHook
from hooks.jgi import GoldHook, JdpHook
from hooks.mongo import tracking
from hooks.task import run_async
from hooks.waybill import inputs
from operators.common.base import WaybillOperator

from include.core.errors import NotFound, RequestError, WaybillError
from include.core.objects import Objects, read_input
from include.core.remedies import cause_of
from include.core.request import load
from include.core.watch import may_pass
from include.jgi.metadata import Discovered, discover, record
from include.jgi.models import Project
from include.jgi.request import CSV_LIMIT_BYTES, StagingRequest, read_biosamples


def check_staging(request: StagingRequest, places: Sequence[Objects]) -> list[str]:
    """The biosamples that the conf's file names; none where it names no file. Raises RequestError with every fault."""
    if not request.biosamples_uri:
        return []
    try:
        data = run_async(read_input(request.biosamples_uri, places, limit_bytes=CSV_LIMIT_BYTES))
    except NotFound as error:
        raise RequestError(f"biosamples_uri: {error}") from None
    return read_biosamples(data)


class StagingMetadataOperator(WaybillOperator):
    """The files of the conf's project, by GOLD and JDP. Without a project nothing is looked up: all that is known goes on.

    Where they cannot be looked up, also after Airflow's retries, the receipt says so: all other projects go on.
    """

    step = "metadata"

    def __init__(
        self,
        *,
        gold_conn_id: str = GoldHook.default_conn_name,
        jdp_conn_id: str = JdpHook.default_conn_name,
        globus_conn_id: str = GlobusHook.default_conn_name,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.gold_conn_id = gold_conn_id
        self.jdp_conn_id = jdp_conn_id
        self.globus_conn_id = globus_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        request = load(StagingRequest, context["dag_run"].conf)
        with self.refusing(context) as facts:
            if not request.project:
                return {}
            try:
                done = self._looked_up(request)
            except RequestError:
                raise
            except WaybillError as error:
                ti = context["ti"]
                if may_pass(error) and ti.try_number <= (ti.max_tries or 0):
                    raise
                self.log.error("%s", error)
                facts |= {"trouble": str(error), "cause": cause_of(error).value}
                return {}
            facts |= done
        self.log.info("project %s: %s", request.project, done)
        return {name: value for name, value in done.items() if isinstance(value, int)}

    def _looked_up(self, request: StagingRequest) -> dict[str, Any]:
        biosamples = check_staging(request, inputs())
        root = GlobusHook(self.globus_conn_id).collections().destination_root
        with tracking() as kept:
            kept.ensure_indexes()
            project = self._project(request, kept)
            kept.put_project(project)
            found = run_async(self._discovered(project, biosamples))
            return asdict(record(kept, project, found, root, datetime.now(UTC)))

    def _project(self, request: StagingRequest, kept: Any) -> Project:
        """The conf's project; a known one needs only its name."""
        proposal = request.proposal_id or kept.project(request.project).proposal_id
        return Project(request.project, proposal, request.nmdc_study_id, request.priority, tuple(request.remove_files))

    async def _discovered(self, project: Project, biosamples: Sequence[str]) -> Discovered:
        async with GoldHook(self.gold_conn_id).client() as gold, JdpHook(self.jdp_conn_id).client() as jdp:
            return await discover(gold, jdp, project, biosamples)
