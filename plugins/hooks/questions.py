"""Where the questions of a run are kept, who may answer them, and where."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from hooks.task import owner_of, run_folder
from hooks.waybill import receipts

from include.core.questions import People, QuestionStore

APPROVALS = "waybill_approvals"


def question_store(context: Context) -> QuestionStore:
    """The records of this run, for the request that it serves."""
    return QuestionStore(receipts().objects, run_folder(context), owner_of(context).request_sha256)


def approvers(dag_id: str, conn_id: str = APPROVALS) -> People:
    """The list kept in a connection, where those who trigger runs cannot change it.

    Extras: `approvers`, a list of user ids; `self_approval`, true where one person alone may trigger and approve; `dags`,
    by DAG id the same two for one DAG alone. Raises RequestError where there is no such list.
    """
    try:
        extra = BaseHook.get_connection(conn_id).extra_dejson
    except AirflowNotFoundException:
        extra = {}
    return People.of_dag(dag_id, extra, conn_id)


def answer_url(context: Context) -> str:
    """The page of Airflow on which the question of this task is answered."""
    ti, base = context["ti"], conf.get("api", "base_url", fallback="").rstrip("/")
    index = owner_of(context).map_index
    mapped = f"/mapped/{index}" if index >= 0 else ""
    return f"{base}/dags/{ti.dag_id}/runs/{ti.run_id}/tasks/{ti.task_id}{mapped}/required_actions"


def put_question(ti_id: Any, **question: Any) -> str:
    """Puts a question into Airflow and gives the subject that Airflow shows from now on.

    That is another one where the task has asked before in this run: only the answer is taken away then, text, options and
    people stay (docs/protocols/airflow.md 5.5).
    """
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    return str(SUPERVISOR_COMMS.send(msg=CreateHITLDetailPayload(ti_id=ti_id, **question)).subject)  # type: ignore[union-attr]


def triggered_by(context: Context) -> str | None:
    """Who triggered the run; None for a scheduled one."""
    return getattr(context["dag_run"], "triggering_user_name", None)
