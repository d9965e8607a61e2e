"""A DAG of somebody else that moves files by Globus."""

from airflow.sdk import dag
from operators.globus.globus_batch import GlobusBatchOperator


@dag(schedule=None, params={"items": []})
def move_by_globus():
    GlobusBatchOperator(task_id="move", items="{{ params['items'] }}")


move_by_globus()
