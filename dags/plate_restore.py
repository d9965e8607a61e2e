"""
# Plate restore

Gives archived plates back from their tarballs: whole plates, some parts, or single files, each checked against the
checksum that was taken when it was archived. It replaces `glacier_restore.sh`, a download, and a sync by hand.

**Trigger** with the plates, and with the files or parts that are wanted (all, by default):

```json
{"project": "2013_Gustafsdottir_PLOSONE", "batch": "BBBC022", "plates": [{"plate_id": "20586", "plate_id_full": "20586"}],
 "files": ["20586.sqlite"]}
```

`{"dry_run": true}` says what would be restored, and how cold it lies. Files get their own keys back, or lie below
`to_prefix`. What is there and differs is never replaced, unless `overwrite` says so.

**Steps.** *load_request* checks the conf as a whole. *plan* reads the manifests and finds what is wanted. *thaw* asks cold
storage for the tarballs that are needed and waits for them (hours; it occupies no worker). *restore* reads just the
parts of the tarballs that hold the wanted files. *receipt* writes the waybill: file by file, how it went.

**When it is red.** The outcome in the log of *receipt* (or XCom `outcome`) names the first file that is missing, and why.
*Clear* the task of that plate: what is restored already is recognised and not written again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task_group
from operators.common.base import DEFAULT_ARGS
from operators.common.load_request import LoadRequestOperator
from operators.plates.base import POOL, read_plates
from operators.plates.restore import PlateRestoreOperator
from operators.plates.restore_plan import PlateRestorePlanOperator
from operators.plates.restore_receipt import PlateRestoreReceiptOperator
from operators.plates.thaw import PlateThawOperator

from include.core.request import param_schemas
from include.plates.request import RestoreRequest

PARAMS = {name: Param(**schema) for name, schema in param_schemas(RestoreRequest).items()}
PER_PLATE: dict[str, Any] = {"pool": POOL, "map_index_template": "{{ task.plate['name'] }}"}


@dag(
    dag_id="plate_restore",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    params=PARAMS,
    default_args={**DEFAULT_ARGS, "execution_timeout": timedelta(hours=24)},
    tags=["waybill", "plates"],
)
def plate_restore() -> None:
    request = LoadRequestOperator(task_id="load_request", model=RestoreRequest, check=read_plates)
    plan = PlateRestorePlanOperator(task_id="plan")
    receipt = PlateRestoreReceiptOperator(task_id="receipt")

    @task_group(prefix_group_id=False)
    def restored(plate: Any) -> None:
        thaw = PlateThawOperator(task_id="thaw", plate=plate, **PER_PLATE)
        PlateRestoreOperator(task_id="restore", plate=thaw.output, **PER_PLATE)

    request >> plan
    restored.expand(plate=plan.output) >> receipt


plate_restore()
