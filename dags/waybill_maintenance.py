"""
# Waybill maintenance

Looks after the ledger once a day: proves that nobody changed it, lists what is in doubt, and carries out what was asked to be
cancelled. Where plates are archived it also looks after their archive. It moves no data and needs no conf.

**Trigger** nothing: it runs at midnight, UTC. To look now, trigger it with an empty conf:

```json
{}
```

**Steps.** *check_ledger* recomputes the chain of events, and compares it with the rows and with the heads that all receipts
carry. *cancellations* follows where the ledger is whole: what was not sent yet is closed; what was sent is cancelled by
its exact id where the system can do that, as Globus can. ICAv2 cannot: its jobs end by themselves, and the next run that asks
for the same adopts them. *list_in_doubt* warns of submissions of which nobody has known for an hour whether the remote
accepted them. It resolves none of them, and it does not fail: the warning is in its log, in XCom and, where notes are on, on
the run.

With connection `waybill_archives`, *index_archives* takes new archives into the index that finds files, where one is named;
*clean_up_staging* lists the pieces that lie under `waybill-staging/` of the archive buckets (log, XCom `staging`), and then
removes those of killed runs: no piece, and no part of an upload that could use one, is younger than 7 days. Without it both are
skipped.

**When it is red.** *check_ledger* names every problem in its log (and XCom `problems`). An event or a row that differs was
changed by hand; a receipt that names an event which the ledger does not hold means that events were lost, as after an older
backup was restored; a receipt of another ledger means that connection waybill_ledger or waybill_receipts points to the
wrong place. Start no other run before that is explained: `python -m include.core.ledger verify` checks again. A red
*cancellations* names what could not be cancelled and why; *clear* it, or wait for the next day. A red *clean_up_staging* names
the pieces that the store did not remove: give the right to, or remove them by hand; no archive rests on them.
"""

from __future__ import annotations

from airflow.sdk import dag
from operators.common.base import DEFAULT_ARGS
from operators.common.maintenance import CancellationsOperator, CheckLedgerOperator, ListInDoubtOperator
from operators.plates.upkeep import CleanUpStagingOperator, IndexArchivesOperator


@dag(
    dag_id="waybill_maintenance",
    schedule="@daily",
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    default_args=DEFAULT_ARGS,
    tags=["waybill"],
)
def waybill_maintenance() -> None:
    check = CheckLedgerOperator(task_id="check_ledger")
    cancellations = CancellationsOperator(task_id="cancellations")
    ListInDoubtOperator(task_id="list_in_doubt")  # by itself: it is worth listing in a broken ledger too
    check >> cancellations
    IndexArchivesOperator(task_id="index_archives")
    CleanUpStagingOperator(task_id="clean_up_staging")


waybill_maintenance()
