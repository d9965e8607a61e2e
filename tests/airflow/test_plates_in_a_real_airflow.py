"""Twenty plates from listing to receipt in a real Airflow, in parallel, while the store is busy and workers die.

Invariant: what is right is read from the buckets (and the tarballs, by Python's own tarfile),
not from what Waybill says of itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from include.core.ledger import State
from include.core.ledger.audit import verify
from rehearsal.scenes import plates
from rehearsal.stack import Stack
from tests.airflow.conftest import HANG, Rehearsal

pytestmark = [pytest.mark.airflow, pytest.mark.full, HANG]

IDS = plates.plate_ids()
DAMAGED, KILLED_ARCHIVING, KILLED_DELETING, GREW = IDS[2], IDS[4], IDS[6], IDS[8]
LIVE, COLD = "twenty-plates", "twenty-plates-cold"


@pytest.fixture(scope="module")
def store(stack: Stack) -> Any:
    """Two buckets, and twenty plates in the first."""
    client = plates.s3_client(stack.addresses["s3"])
    for bucket in (LIVE, COLD):
        client.create_bucket(Bucket=bucket)
    for plate_id in IDS:
        for key, data in plates.plate_files(plate_id, wells=1).items():
            client.put_object(Bucket=LIVE, Key=key, Body=data)
    for dag_id in (plates.BACKUP, plates.RESTORE):
        stack.api.unpause(dag_id)
    return client


def fault(stack: Stack, **rule: Any) -> None:
    httpx.post(f"{stack.addresses['s3']}/_sim/faults", json=rule, trust_env=False).raise_for_status()


def kill_worker_of(rehearsal: Rehearsal, run_id: str, task_id: str, plate_id: str, sent: Callable[[], bool]) -> None:
    """SIGKILL for the process of one plate's task, once `sent` says that its request has left."""
    index = IDS.index(plate_id)
    rehearsal.api.wait_task(plates.BACKUP, run_id, task_id, 400, states={"running"}, map_index=index)
    rehearsal.until(sent, f"{task_id} of {plate_id} is at work", 120)
    task = rehearsal.api.task(plates.BACKUP, run_id, task_id, index)
    for process in rehearsal.until(lambda: rehearsal.stack.task_processes(task), "its process", 30):
        process.kill()


def test_twenty_plates_go_from_listing_to_receipt_and_only_proved_ones_are_deleted(rehearsal: Rehearsal, store: Any):
    stack, api = rehearsal.stack, rehearsal.api
    busy = {"fault": "status", "code": 503, "problem": {"code": "SlowDown"}}
    fault(stack, method="PUT", path=f"_{DAMAGED}_images_illum_analysis.tar.gz", fault="flip_bit")
    fault(stack, method="PUT", path=f"_{KILLED_ARCHIVING}_backend.tar.gz", fault="slow", seconds=25)
    fault(stack, method="DELETE", path=f"/{KILLED_DELETING}/", fault="slow", seconds=25)
    fault(stack, method="GET", path=LIVE, times=15, **busy)
    fault(stack, method="PUT", path=COLD, times=5, **busy)
    conf = {
        "project": plates.PROJECT, "batch": plates.BATCH, "bucket": LIVE, "archive_bucket": COLD, "retention": "none",
        "plates": [{"plate_id": one, "plate_id_full": one} for one in IDS], "delete_parts": list(plates.PARTS),
    }  # fmt: skip
    run_id = api.trigger(plates.BACKUP, conf).run_id

    def first_tarball_stored() -> bool:
        return any(
            f"_{KILLED_ARCHIVING}_images" in key and key.endswith(".tar.gz") for key in plates.keys_of(store, COLD)
        )

    kill_worker_of(rehearsal, run_id, "archive", KILLED_ARCHIVING, first_tarball_stored)
    api.wait_task(plates.BACKUP, run_id, "approval", 900, states={"awaiting_input"})
    late = f"projects/{plates.PROJECT}/{plates.BATCH}/images/{GREW}/Images/late.tiff"
    store.put_object(Bucket=LIVE, Key=late, Body=b"arrived while a person decided")
    asked = plates.approve(stack, run_id)
    assert "19 plates" in asked

    def batch_in_the_ledger() -> bool:
        rows = rehearsal.ledger.in_states(State.SENDING, system="plates")
        return any(f"_{KILLED_DELETING}/" in row.business_key for row in rows)

    kill_worker_of_delete = [item for item in range(len(IDS)) if IDS[item] not in (DAMAGED, GREW)]
    index = kill_worker_of_delete.index(IDS.index(KILLED_DELETING))
    rehearsal.until(batch_in_the_ledger, "the batch is being sent", 400)
    task = api.task(plates.BACKUP, run_id, "delete", index)
    for process in rehearsal.until(lambda: stack.task_processes(task), "its process", 30):
        process.kill()
    assert api.wait(plates.BACKUP, run_id, 900).state == "failed", "two plates are kept, and the run says so"

    receipt = json.loads(
        (stack.home / "environment" / "receipts" / plates.BACKUP / run_id / "receipt.json").read_text()
    )
    items = {item["plate"]: item for item in receipt["items"]}
    assert items[DAMAGED]["state"] == "mismatch", items[DAMAGED]["why"]
    assert items[GREW]["state"] == "approval void"
    assert late in items[GREW]["why"]
    assert {item["state"] for one, item in items.items() if one not in (DAMAGED, GREW)} == {"deleted"}
    assert [one["by"] for one in receipt["questions"]] == [plates.APPROVER]
    left = plates.keys_of(store, LIVE)
    for plate_id in IDS:
        files = plates.plate_files(plate_id, wells=1)
        there = {key for key in left if f"/{plate_id}/" in key} - {late}
        assert there == (files.keys() if plate_id in (DAMAGED, GREW) else set()), plate_id
        if plate_id != DAMAGED:
            assert plates.archived(store, COLD, plate_id) == files, plate_id
    assert late in left
    assert api.task(plates.BACKUP, run_id, "archive", IDS.index(KILLED_ARCHIVING)).try_number == 2
    assert api.task(plates.BACKUP, run_id, "delete", index).try_number == 2
    tasks = [t for t in api.task_instances(plates.BACKUP, run_id) if t.task_id == "archive"]
    assert {t.raw["rendered_map_index"] for t in tasks} == set(IDS)
    spans = sorted((t.raw["start_date"], t.raw["end_date"]) for t in tasks)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans)), "some ran in parallel"
    assert verify(rehearsal.ledger).problems == []


def test_one_file_of_a_deleted_plate_comes_back(rehearsal: Rehearsal, store: Any):
    wanted = f"projects/{plates.PROJECT}/workspace/backend/{plates.BATCH}/{IDS[0]}/{IDS[0]}.sqlite"
    conf = {
        "project": plates.PROJECT, "batch": plates.BATCH, "bucket": LIVE, "archive_bucket": COLD,
        "plates": [{"plate_id": IDS[0], "plate_id_full": IDS[0]}], "files": [f"{IDS[0]}.sqlite"],
    }  # fmt: skip
    run_id = rehearsal.api.trigger(plates.RESTORE, conf).run_id
    assert rehearsal.api.wait(plates.RESTORE, run_id, 240).state == "success"
    assert store.get_object(Bucket=LIVE, Key=wanted)["Body"].read() == plates.plate_files(IDS[0], wells=1)[wanted]
