"""Flip Manifest, and what the SOP left to chance: every URI resolved, every destination looked at, before any job exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from airflow.sdk import Context
from hooks.icav2 import ICAv2Hook
from hooks.task import owner_of, run_async, run_folder
from hooks.waybill import inputs, ledger, receipts
from operators.common.base import WaybillOperator

from include.core.errors import NotFound, RequestError
from include.core.ledger import Ledger
from include.core.objects import Objects, read_input
from include.core.receipt import ReceiptStore
from include.core.request import load
from include.icav2.manifest import DECODED_LIMIT_BYTES, flipped
from include.icav2.models import CopyPlan, CopyRequest, Flipped
from include.icav2.plan import occupied, resolve
from include.icav2.small_files import names_created


def read_and_flip(request: CopyRequest, places: Sequence[Objects]) -> list[Flipped]:
    """The flipped manifest of a request in any input form. Raises RequestError with all refusals."""
    document = None
    if request.manifest_uri is not None:
        try:
            document = run_async(read_input(request.manifest_uri, places, limit_bytes=DECODED_LIMIT_BYTES))
        except NotFound as error:
            raise RequestError(f"manifest_uri: {error}") from None
    return flipped(request, document)


class ICAv2PlanOperator(WaybillOperator):
    """Writes the run's plan (`plan.json` beside the receipt) and returns {"plan": Document, counts}.

    Whether destinations are empty is judged once: a plan that was written before for this very request is used as it is. A
    run that was deleted and posted anew under its id is another request.
    """

    step = "plan"

    def __init__(self, *, icav2_conn_id: str = ICAv2Hook.default_conn_name, **kwargs: Any):
        super().__init__(**kwargs)
        self.icav2_conn_id = icav2_conn_id

    def execute(self, context: Context) -> Mapping[str, Any]:
        request = load(CopyRequest, context["dag_run"].conf)
        store, name = receipts(), f"{run_folder(context)}/plan.json"
        asked = owner_of(context).request_sha256
        with self.refusing(context) as facts:
            plan = run_async(self._earlier(store, name, asked))
            if plan is None:
                entries = read_and_flip(request, inputs())
                with ledger() as book:
                    plan = run_async(self._plan(request, entries, book))
                plan = plan.model_copy(update={"request_sha256": asked})
            document = run_async(store.objects.put(name, plan.model_dump_json().encode()))
            counts = {"destinations": len(plan.destinations), "files": plan.files, "bytes": plan.size_bytes}
            facts |= {"plan": document.to_dict(), "counts": counts}
        self.log.info("%d files, %d bytes, to %d destinations", plan.files, plan.size_bytes, len(plan.destinations))
        return {"plan": document.to_dict(), **counts}

    async def _earlier(self, store: ReceiptStore, name: str, asked: str) -> CopyPlan | None:
        """The plan that an earlier try of this task wrote. What cannot be read is as good as none."""
        try:
            plan = CopyPlan.model_validate_json(await store.objects.get(name))
        except (NotFound, ValueError):
            return None
        return plan if plan.request_sha256 == asked else None

    async def _plan(self, request: CopyRequest, entries: list[Flipped], book: Ledger) -> CopyPlan:
        async with ICAv2Hook(self.icav2_conn_id).client() as client:
            plan = await resolve(client, entries)
            problems = await occupied(
                client,
                plan,
                partial(names_created, book, plan),
                refuse_unmanaged=request.require_empty_destination,
                use_etag=request.verify == "size_and_etag",
            )
        if problems:
            raise RequestError(problems)
        return plan
