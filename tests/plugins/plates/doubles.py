"""What stands in for Airflow when an operator is called directly: XComs by task and key, and a context."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Run:
    """One DAG run. `triggered_by` is whom Airflow names as its trigger."""

    def __init__(
        self, dag_id: str, conf: dict[str, Any], run_id: str = "manual__1", triggered_by: str | None = "admin"
    ):
        self.dag_id, self.conf, self.run_id, self.triggered_by = dag_id, conf, run_id, triggered_by
        self.xcoms: dict[tuple[str, str], Any] = {}

    def context(self, task_id: str, map_index: int = -1) -> Any:
        dag_run = SimpleNamespace(
            conf=self.conf,
            start_date="2026-01-02",
            run_after="2026-01-02",
            run_id=self.run_id,
            triggering_user_name=self.triggered_by,
        )
        ti = TaskInstance(self, task_id, map_index)
        return {"ti": ti, "task_instance": ti, "dag_run": dag_run}

    def execute(self, operator: Any, map_index: int = -1) -> Any:
        """Runs a task and keeps what it returns, as Airflow does."""
        value = operator.execute(self.context(operator.task_id, map_index))
        self.xcoms[operator.task_id, "return_value"] = value
        return value


class TaskInstance:
    """The part of a task instance that Waybill uses."""

    def __init__(self, run: Run, task_id: str, map_index: int):
        self._run = run
        self.dag_id, self.run_id, self.task_id, self.map_index = run.dag_id, run.run_id, task_id, map_index
        self.id = f"{task_id}-id"

    def xcom_push(self, key: str, value: Any) -> None:
        self._run.xcoms[self.task_id, key] = value

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self._run.xcoms.get((task_ids, key))
