"""
# ICAv2 copy batch

Copies files between ICAv2 projects in batches, sends failed jobs again, and proves every file at its destination.
It replaces the step function of UMCCR's ICAv2 copy batch utility: the same two inputs, the same output object.

**Trigger** with a manifest of source files and the folders that each is copied to:

```json
{"manifest": {"icav2://b23fb516-d852-4985-adcc-831c12e8cd22/run/a.fastq.gz":
  ["icav2://7595e8f2-32d3-4c76-a324-c6a85dae87b5/cache/L2301368/"]}}
```

or the same, packed: `{"manifest_b64gz": "H4sI…"}`, or as a file: `{"manifest_uri": "s3://bucket/manifest.json"}`. In the form
of *Trigger* paste the manifest into *Manifest*, or give its file.

**Steps.** *load_request* checks the conf as a whole. *plan* flips the manifest, resolves every file, and refuses what cannot
be right, all at once, before any job exists. *copy* launches one copy batch per destination, watches all of them, and sends
failed ones again, up to five times. *receipt* writes the waybill: what was asked, what was moved, how each file was proved.

**When it is red.** Read the outcome in the log of *receipt* (or XCom `outcome`): it names what is missing and why. Deal with
the reason and trigger again with the same conf: only what is missing is copied. *Clear* adopts what still runs at ICA, but
gives no new attempts. Nothing can be cancelled at ICA: a job of a run that you stop goes on, and the next run adopts it. A
*held* destination needs a person: run `python -m include.core.ledger in-doubt`, resolve it, clear *copy*.
"""

from __future__ import annotations

from airflow.sdk import Param, dag
from operators.common.base import DEFAULT_ARGS
from operators.common.load_request import LoadRequestOperator
from operators.icav2.copy_batch import ICAv2CopyBatchOperator
from operators.icav2.plan import ICAv2PlanOperator, read_and_flip
from operators.icav2.receipt import ICAv2ReceiptOperator

from include.core.request import param_schemas
from include.icav2.models import CopyRequest

PARAMS = {name: Param(**schema) for name, schema in param_schemas(CopyRequest).items()}


@dag(
    dag_id="icav2_copy_batch",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    tags=["waybill", "icav2"],
)
def icav2_copy_batch() -> None:
    request = LoadRequestOperator(task_id="load_request", model=CopyRequest, check=read_and_flip)
    plan = ICAv2PlanOperator(task_id="plan")
    copy = ICAv2CopyBatchOperator(task_id="copy", plan=plan.output, request=request.output)
    receipt = ICAv2ReceiptOperator(task_id="receipt")
    request >> plan >> copy >> receipt


icav2_copy_batch()
