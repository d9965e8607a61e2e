"""A DAG of somebody else that moves files by Globus."""

from airflow.sdk import dag
from operators.globus.globus_batch import GlobusBatchOperator


@dag(schedule=None, render_template_as_native_obj=True)
def move_by_globus():
    GlobusBatchOperator(task_id="move", items="{{ dag_run.conf['items'] }}")


move_by_globus()
