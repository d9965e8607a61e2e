"""
# Plate restore drill

Reads a sample of archived plates back, as a restore would, and says which of them could not be given back today. An
archive that nobody reads is believed, not known. It needs no source: most plates are deleted once they are archived.

**Trigger** nothing: it runs on the first of each month, once it is switched on. To look now, trigger it; every field has a
default, and a dry run says what reading would cost:

```json
{"dry_run": true, "plates": 5, "max_gib": 200}
```

Where tarballs lie is kept in connection `waybill_archives`. The plates are drawn by a seed, which the receipt tells: with the
same seed and prefixes the same plates are drawn again.

**Steps.** *load_request* checks the conf as a whole. *plan* lists the prefixes, draws the plates, and says by storage class how
many bytes and requests reading them takes (XCom `cost`); what the listing shows to be missing is reported of all plates. *drill*,
one task per plate, reads each tarball back and compares every member with the manifest, and renews the proof document beside
it; what lies in cold storage is not restored, but compared with what S3 says of it. *receipt* writes the waybill.

**States.** `sound`: read back byte for byte. `damaged`: it could not be given back. `cold: checked by …`: not read by us, but
S3's checksum of it is right. `not looked at`: with the reason, as `max_gib`.

**When it is red.** The outcome in the log of *receipt* (or XCom `outcome`) names the plates, and the receipt what to do. A
damaged plate stops no other. *Clear* a *drill* that could not read: it writes nothing but proof documents, and may be repeated.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag
from operators.common.base import DEFAULT_ARGS
from operators.common.load_request import LoadRequestOperator
from operators.plates.base import POOL
from operators.plates.drill import PlateDrillOperator
from operators.plates.drill_plan import PlateDrillPlanOperator, check_drill
from operators.plates.drill_receipt import PlateDrillReceiptOperator

from include.core.request import param_schemas
from include.plates.drill_request import DrillRequest

PARAMS = {name: Param(**schema) for name, schema in param_schemas(DrillRequest).items()}
PER_PLATE: dict[str, Any] = {"pool": POOL, "map_index_template": "{{ task.plate['name'] }}"}


@dag(
    dag_id="plate_drill",
    schedule="@monthly",
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    doc_md=__doc__,
    params=PARAMS,
    default_args={**DEFAULT_ARGS, "execution_timeout": timedelta(hours=24)},
    tags=["waybill", "plates"],
)
def plate_drill() -> None:
    request = LoadRequestOperator(task_id="load_request", model=DrillRequest, check=check_drill)
    plan = PlateDrillPlanOperator(task_id="plan")
    drill = PlateDrillOperator.partial(task_id="drill", **PER_PLATE).expand(plate=plan.output)
    request >> plan
    drill >> PlateDrillReceiptOperator(task_id="receipt")


plate_drill()
