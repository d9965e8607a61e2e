"""A whole run of jgi_staging, from nothing to verified files, judged by the simulators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulators.jgi import add_published
from tests.plugins.jgi.conftest import Jgi

PROPOSAL = 503568


@pytest.mark.usefixtures("metadata_database", "ledger", "quick_looks", "inputs_folder")
def test_a_run_takes_a_project_from_nothing_to_verified(jgi: Jgi, receipts_folder: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    jgi.servers["jdp"].call(lambda: add_published(jgi.catalog, PROPOSAL, "grow", biosamples=1, scale=1e-6))
    run = DagBag("dags/jgi_staging.py").dags["jgi_staging"].test(run_conf={"project": "grow", "proposal_id": PROPOSAL})
    (receipt,) = (json.loads(path.read_text()) for path in receipts_folder.rglob("receipt.json"))
    print(receipt["outcome"], receipt["problems"], receipt["items"], jgi.tracking.counts("grow"))
    assert run.state == "success"
    ids = [one for request in jgi.requests() for one in request]
    assert len(ids) == len(set(ids)) > 0
    assert receipt["items"][0]["placements verified"] == len(ids)
