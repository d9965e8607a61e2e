"""The daily maintenance as Airflow runs it: after a copy it is green, and red where somebody has changed the ledger."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from typing import Any

import pytest

from tests.dags.conftest import ROOT, World

SOURCE, TARGET = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
MANIFEST = {f"icav2://{SOURCE}/run/a.gz": [f"icav2://{TARGET}/cache/"]}


@pytest.fixture
def maintenance(world: World) -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(str(ROOT / "dags"), collect_dags=True).dags["waybill_maintenance"]


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def test_it_is_green_after_a_copy_and_red_once_the_ledger_was_changed(world: World, maintenance: Any):
    world.seed(MANIFEST)
    assert world.run({"manifest": MANIFEST}).state == "success"
    run = maintenance.test()
    assert str(run.state) == "success"
    told = run.get_task_instance("check_ledger").xcom_pull(task_ids="check_ledger")
    assert "1 submissions, 1 receipts agree" in told

    with sqlite3.connect(world.folder / "ledger.db") as database:
        database.execute("UPDATE waybill_submissions SET state = 'FAILED'")
    database.close()
    run = maintenance.test()
    assert str(run.state) == "failed"
    assert states(run) == {
        "check_ledger": "failed",
        "cancellations": "upstream_failed",
        "list_in_doubt": "success",
        "index_archives": "skipped",  # no archive of plates is configured here
        "clean_up_staging": "skipped",
    }


def test_it_is_due_once_a_day_and_makes_up_for_no_day_that_was_missed(maintenance: Any):
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.timetables.base import DataInterval

    dag = DagSerialization.from_dict(DagSerialization.to_dict(maintenance))

    def due_after(last: DataInterval | None) -> Any:
        info = dag.timetable.next_dagrun_info(last_automated_data_interval=last, restriction=dag._time_restriction)
        assert info is not None, "it has no start date, and needs none"
        return info.run_after

    first = due_after(None)
    assert due_after(DataInterval.exact(first)) - first == timedelta(days=1)
    assert first - due_after(DataInterval.exact(first - timedelta(days=30))) <= timedelta(days=1)
