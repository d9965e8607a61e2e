"""What stands in for Airflow when an operator is called directly: a task instance that keeps its XComs, and a context."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

DAG_ID, RUN_ID = "icav2_copy_batch", "manual__2026-01-02T03:04:05+00:00"


class Run:
    """One DAG run: `xcoms` by task and key, `context(task_id)` as Airflow gives it to that task."""

    def __init__(self, conf: dict[str, Any] | None = None, run_id: str = RUN_ID):
        self.conf = conf or {}
        self.run_id = run_id
        self.run_after = "2026-01-02 03:04:05+00:00"
        self.xcoms: dict[tuple[str, str], Any] = {}
        self.start_date = datetime.now(UTC)

    def context(self, task_id: str) -> Any:
        dag_run = SimpleNamespace(
            conf=self.conf, start_date=self.start_date, run_after=self.run_after, run_id=self.run_id
        )
        return {"ti": TaskInstance(self, task_id), "dag_run": dag_run}

    def execute(self, operator: Any) -> Any:
        """Runs a task and keeps what it returns, as Airflow does."""
        value = operator.execute(self.context(operator.task_id))
        self.xcoms[operator.task_id, "return_value"] = value
        return value


class TaskInstance:
    """The part of a task instance that Waybill uses."""

    def __init__(self, run: Run, task_id: str):
        self._run = run
        self.dag_id, self.run_id, self.task_id, self.map_index = DAG_ID, run.run_id, task_id, -1

    def xcom_push(self, key: str, value: Any) -> None:
        self._run.xcoms[self.task_id, key] = value

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self._run.xcoms.get((task_ids, key))
