"""
# JGI tape staging

Restores the files of JGI projects from tape, moves them by Globus, proves each by its md5, and keeps in MongoDB where each
stands. It replaces four scripts and a person every day.

**Trigger** nothing: it runs every day, and goes on with all projects that it knows. A new project needs its proposal, once:

```json
{"project": "grow_project", "proposal_id": 503125}
```

With `"biosamples_uri": "s3://our-inputs/grow_biosamples.csv"` (a CSV with the column `biosample_id`) only these biosamples are
staged, else all of the proposal.

With `{"dry_run": true}` it plans and asks for nothing: the forecast is in the receipt.

**Steps.** *load_request* checks the conf as a whole. *take_up* puts MongoDB right from the ledger, looks into requests whose
answer was lost, and finds files that JDP took off its disk. *metadata* looks up the project's files. *restore* asks JDP for what
its window allows (10 TB in 24 hours, 750 files a request). Then, for each open request: *wait* until it is on disk, *transfer*
by Globus, *verify* each file's md5. *receipt* writes the waybill and the forecast.

**Green** means that nobody has to do anything: all is there, or the rest is the next run's (*handed on*).

**When it is red.** The outcome of *receipt* names what to do: a token to renew (then clear *restore*), files that a person must
look at, a request that may or may not have been accepted. What fails for one project or request stops no other.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task_group
from operators.common.base import DEFAULT_ARGS
from operators.common.load_request import LoadRequestOperator
from operators.jgi.metadata import StagingMetadataOperator, check_staging
from operators.jgi.receipt import StagingReceiptOperator
from operators.jgi.take_up import TakeUpOperator
from operators.jgi.tape_restore import TapeRestoreOperator
from operators.jgi.transfer import StagingTransferOperator
from operators.jgi.verify import StagingVerifyOperator
from sensors.restore_request import RestoreRequestSensor

from include.core.request import param_schemas
from include.jgi.request import StagingRequest

PARAMS = {name: Param(**schema) for name, schema in param_schemas(StagingRequest).items()}


@dag(
    dag_id="jgi_staging",
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    doc_md=__doc__,
    params=PARAMS,
    default_args={**DEFAULT_ARGS, "execution_timeout": timedelta(hours=2)},
    tags=["waybill", "jgi"],
)
def jgi_staging() -> None:
    request = LoadRequestOperator(task_id="load_request", model=StagingRequest, check=check_staging)
    take_up = TakeUpOperator(task_id="take_up")
    metadata = StagingMetadataOperator(task_id="metadata")
    restore = TapeRestoreOperator(task_id="restore")

    @task_group(prefix_group_id=False)
    def moved(key: Any) -> None:
        wait = RestoreRequestSensor(task_id="wait", key=key, wait_hours="{{ params.wait_hours or 20 }}")
        transfer = StagingTransferOperator(task_id="transfer", ready=wait.output)
        transfer >> StagingVerifyOperator(task_id="verify", moved=transfer.output, ready=wait.output)

    request >> take_up >> metadata >> restore
    moved.expand(key=restore.output) >> StagingReceiptOperator(task_id="receipt")


jgi_staging()
