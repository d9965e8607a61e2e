"""The pages that Waybill adds to Airflow's API server, under `/waybill`. So far: receipts, finished and in progress,
and where archived files lie.

Invariant: every route depends on a permission of Airflow's own; a route without one is public (docs/protocols/airflow.md 6.1).
GET changes nothing. A route is no coroutine: FastAPI runs it in a thread, where a ledger that is large or silent, and a page
that is long, keep nobody else of the API server waiting. This module is loaded by every Airflow process that loads plugins:
heavy imports stay in the functions.
"""

from __future__ import annotations

import html
import sqlite3
import time
from typing import TYPE_CHECKING

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, JSONResponse

if TYPE_CHECKING:
    from include.core.receipt import Receipt

app = FastAPI(title="Waybill", docs_url=None, redoc_url=None, openapi_url=None)
ARCHIVING = ("plate_backup", "plate_restore", "plate_drill")
may_read_run = [Depends(requires_access_dag("GET", DagAccessEntity.RUN))]


@app.get("/receipts/{dag_id}/{run_id}", dependencies=may_read_run, response_class=HTMLResponse)
def receipt_page(dag_id: str, run_id: str) -> HTMLResponse:
    """The receipt of a run as a page; while the run goes on, with the ledger's rows as they are now."""
    from include.core.receipt import page

    return HTMLResponse(page(_receipt(dag_id, run_id)), headers={"Cache-Control": "no-store"})


@app.get("/receipts/{dag_id}/{run_id}/receipt.json", dependencies=may_read_run)
def receipt_document(dag_id: str, run_id: str) -> JSONResponse:
    return JSONResponse(_receipt(dag_id, run_id).model_dump(mode="json"))


@app.get("/where/{dag_id}", dependencies=may_read_run, response_class=HTMLResponse)
def where_page(dag_id: str, name: str = "", page: int = 1) -> HTMLResponse:
    """Which tarball holds a file, by the index of connection waybill_archives. For whoever may read the runs of a DAG of plates,
    since their receipts name the same files."""
    from hooks.archives import archives, file_index

    from include.core.errors import WaybillError
    from include.plates import where_page as pages

    if dag_id not in ARCHIVING:
        raise HTTPException(404, f"{dag_id} archives nothing; ask with one of {', '.join(ARCHIVING)}.")
    try:
        place = archives()
        if place.index is None:
            raise HTTPException(404, "No index is kept: add the extra index to connection waybill_archives.")
        with file_index(place, read_only=True) as index:
            shown = pages.page(index, name, page, now=time.time())
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except (WaybillError, sqlite3.Error) as error:
        raise HTTPException(503, f"The index cannot be read now: {error}") from None
    return HTMLResponse(shown, headers={"Cache-Control": "no-store"})


@app.exception_handler(HTTPException)
async def told(request: Request, error: HTTPException) -> Response:
    """What cannot be shown is told as a page to whoever reads pages, and as JSON to programs."""
    if error.status_code not in _TOLD or "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    text = _TOLD_AS.format(title=_TOLD[error.status_code], text=html.escape(str(error.detail)))
    return HTMLResponse(text, error.status_code, headers={"Cache-Control": "no-store"})


_TOLD = {404: "There is nothing here", 422: "This cannot be asked", 503: "Not now"}
_TOLD_AS = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Waybill: {title}</title>
<body style="font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem">
<h1 style="font-size: 1.3rem">{title}</h1>
<p>{text}</p>
</body></html>
"""


def _receipt(dag_id: str, run_id: str) -> Receipt:
    """The stored receipt, or what the ledger says of a run that has none yet. 404 where neither knows the run."""
    from hooks.task import run_async
    from hooks.waybill import ledger, receipts

    from include.core.errors import WaybillError
    from include.core.receipt import Receipt

    nobody = HTTPException(404, f"Waybill knows no run {run_id} of {dag_id}.")
    if {dag_id, run_id} & {".", ".."}:  # would lead to another folder
        raise nobody
    try:
        receipt = run_async(receipts().read(dag_id, run_id))
        if receipt is not None and receipt.state != "running":
            return receipt
        with ledger() as book:
            rows = book.of_run(dag_id, run_id)
    except WaybillError as error:
        raise HTTPException(503, f"The receipt cannot be read now: {error}") from None
    if receipt is None and not rows:
        raise nobody
    receipt = receipt or Receipt(dag_id=dag_id, run_id=run_id, state="running", outcome="The run goes on.")
    # Of another request under the same run id (a run that was deleted, and posted anew) nothing is told.
    mine = receipt.request_sha256
    rows = [row for row in rows if not mine or any(one.request_sha256 == mine for one in row.owners)]
    items = [
        {
            "effect": row.business_key,
            "state": str(row.state).lower(),
            "generation": row.generation,
            "job": row.external_id,
        }
        for row in rows
    ]
    return receipt.model_copy(update={"items": items or receipt.items})
