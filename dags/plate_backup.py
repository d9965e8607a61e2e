"""
# Plate backup

Archives imaging plates from S3 into verified tarballs, and deletes their sources only by proof and approval. It replaces
`aws_backup.sh` run over a list of plates: the same tarballs under the same names, with no scratch disk.

**Trigger** with the plates of a batch:

```json
{"project": "2013_Gustafsdottir_PLOSONE", "batch": "BBBC022",
 "plates": [{"plate_id": "20585", "plate_id_full": "20585"}, {"plate_id": "20586", "plate_id_full": "20586"}],
 "delete_parts": ["images", "illum", "analysis", "backend"]}
```

or with a `plates.csv` below a prefix of connection `waybill_inputs`: `{"plates_uri": "s3://bucket/inputs/plates.csv"}`. In the
form of *Trigger* each of these is a field; *Dry run* comes first, and what few people need is in parts that are closed.

Without `delete_parts` nothing is deleted. `{"dry_run": true}` stops after the plan. How many plates are worked on at once
(the procedure's MAXPROCS) is the size of the pool `waybill_plates`.

**Steps.** *load_request* checks the conf as a whole. *plan* lists every plate and finds what would go wrong. *archive*, one
task per plate, streams the plate into its tarballs. *verify* reads each tarball back from the store and compares it with
its source. *approval* asks a person about the plates that are verified; *gate* judges the answer and lists them again.
*delete* removes exactly what the manifests name; *purge* follows when `undo_days` are over. *receipt* writes the waybill.

**Approval.** Who may answer is kept in connection `waybill_approvals` (extra `{"approvers": ["user id"]}`). Whoever
triggered the run may not approve it. What is approved is a digest; whatever changes afterwards is kept.

**When it is red.** The outcome in the log of *receipt* (or XCom `outcome`) names the first plate that is kept, and why. A
plate that failed stops no other. *Clear* goes on where a task stopped: finished parts are not sent again, and a deletion
that had begun is carried on batch by batch. A deletion that was never begun is asked for anew by clearing *approval*.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task_group
from operators.common.base import DEFAULT_ARGS
from operators.common.load_request import LoadRequestOperator
from operators.plates.approval import PlateApprovalOperator, PlateGateOperator
from operators.plates.base import POOL
from operators.plates.delete import PlateDeleteOperator, PlatePurgeOperator
from operators.plates.plan import PlatePlanOperator, check_backup
from operators.plates.receipt import PlateReceiptOperator
from operators.plates.tar_backup import TarBackupOperator
from operators.plates.verify import PlateVerifyOperator

from include.core.request import param_schemas
from include.plates.request import BackupRequest

PARAMS = {name: Param(**schema) for name, schema in param_schemas(BackupRequest).items()}
PER_PLATE: dict[str, Any] = {"pool": POOL, "map_index_template": "{{ task.plate['name'] }}"}


@dag(
    dag_id="plate_backup",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    params=PARAMS,
    default_args={**DEFAULT_ARGS, "execution_timeout": timedelta(hours=24)},
    tags=["waybill", "plates"],
)
def plate_backup() -> None:
    request = LoadRequestOperator(task_id="load_request", model=BackupRequest, check=check_backup)
    plan = PlatePlanOperator(task_id="plan")

    @task_group(prefix_group_id=False)
    def archived(plate: Any) -> None:
        archive = TarBackupOperator(task_id="archive", plate=plate, **PER_PLATE)
        PlateVerifyOperator(task_id="verify", plate=archive.output, **PER_PLATE)

    @task_group(prefix_group_id=False)
    def deleted(plate: Any) -> None:
        delete = PlateDeleteOperator(task_id="delete", plate=plate, **PER_PLATE)
        PlatePurgeOperator(task_id="purge", plate=delete.output, **PER_PLATE)

    approval = PlateApprovalOperator(task_id="approval")
    gate = PlateGateOperator(task_id="gate")
    receipt = PlateReceiptOperator(task_id="receipt")
    request >> plan >> archived.expand(plate=plan.output) >> approval >> gate
    deleted.expand(plate=gate.output) >> receipt


plate_backup()
