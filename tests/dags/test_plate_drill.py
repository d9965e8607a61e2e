"""The restore drill as Airflow runs it: green with a receipt over a whole archive, red with a remedy over a rotten one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.fixtures import Connect
from tests.dags.conftest import ROOT
from tests.plugins.plates.conftest import Store, ledger, moto_url, store
from tests.plugins.plates.test_backup_steps import archive, plan
from tests.plugins.plates.test_drill import configure

__all__ = ["ledger", "moto_url", "store"]


@pytest.fixture
def drill(metadata_database: Path) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(str(ROOT / "dags"), collect_dags=True).dags["plate_drill"]
    for task in dag.tasks:
        task.retries = 0
    return dag


def receipt(store: Store, run: Any) -> dict[str, Any]:
    return dict(json.loads((store.receipts / "plate_drill" / run.run_id / "receipt.json").read_text()))


def test_a_drill_tells_its_cost_reads_back_and_finds_what_was_planted(store: Store, connect: Connect, drill: Any):
    store.seed("20585", "20586", sites=1)
    backup = store.run("20585", "20586")
    for entry in plan(backup):
        archive(backup, entry)
    configure(store, connect)

    run = drill.test(run_conf={"dry_run": True})
    assert str(run.state) == "success"
    cost = run.get_task_instance("plan").xcom_pull(task_ids="plan", key="cost")["STANDARD"]
    assert cost["tarballs"] == 4 and cost["read_bytes"] > 0 and cost["requests"] > 4
    planned = receipt(store, run)
    assert planned["totals"]["planned bytes"] == cost["read_bytes"] and planned["totals"]["read bytes"] == 0

    run = drill.test()  # as by its schedule, which asks for nothing
    assert str(run.state) == "success"
    told = receipt(store, run)
    assert told["state"] == "complete" and [item["state"] for item in told["items"]] == ["sound", "sound"]
    assert told["totals"]["read bytes"] == cost["read_bytes"], "what it cost is what was said before"

    store.flip("20585")
    run = drill.test()
    assert str(run.state) == "failed"
    states = {(ti.task_id, ti.map_index): str(ti.state) for ti in run.get_task_instances()}
    assert states["receipt", -1] == "failed" and states["plan", -1] == "success"
    assert sorted(state for (task, _), state in states.items() if task == "drill") == ["failed", "success"]
    told = receipt(store, run)
    assert told["state"] == "incomplete" and "Do not run plate_backup over it" in told["remedy"]
    (problem,) = told["problems"]
    assert "20585_images_illum_analysis" in problem
