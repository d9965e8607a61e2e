"""Each step of plate_backup called by itself against a real S3 socket: what it writes, refuses, hands on and notes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from operators.common.load_request import LoadRequestOperator
from operators.plates.plan import PlatePlanOperator, check_backup
from operators.plates.receipt import PlateReceiptOperator
from operators.plates.tar_backup import TarBackupOperator
from operators.plates.verify import PlateVerifyOperator

from include.core.errors import ConflictingRequest, RequestError, VerificationError
from include.core.receipt import Receipt
from include.plates.request import BackupRequest
from include.s3.errors import SourceChanged
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.doubles import Run


def load(run: Run) -> Any:
    return run.execute(LoadRequestOperator(task_id="load_request", model=BackupRequest, check=check_backup))


def plan(run: Run) -> list[dict[str, Any]]:
    load(run)
    return run.execute(PlatePlanOperator(task_id="plan"))


def archive(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    return run.execute(TarBackupOperator(task_id="archive", plate=entry))


def verify(run: Run, entry: dict[str, Any]) -> dict[str, Any]:
    return run.execute(PlateVerifyOperator(task_id="verify", plate=entry))


def receipt(run: Run, store: Store) -> Receipt:
    try:
        run.execute(PlateReceiptOperator(task_id="receipt"))
    except VerificationError:
        pass
    path = store.receipts / run.dag_id / run.run_id / "receipt.json"
    return Receipt.model_validate_json(path.read_text())


def test_a_plate_goes_from_listing_to_receipt_and_nothing_is_deleted_unless_asked(store: Store):
    store.seed("20585", "20586")
    run = store.run("20585", "20586")
    entries = plan(run)
    assert [entry["name"] for entry in entries] == ["20585", "20586"]
    for entry in entries:
        verify(run, archive(run, entry))
    told = receipt(run, store)
    assert told.state == "complete"
    assert [item["state"] for item in told.items] == ["verified", "verified"]
    assert told.totals["files proved"] == len(store.files)
    assert store.files.keys() <= store.keys()
    assert set(told.items[0]["verify"]["proofs"]) == {"V1", "V2", "V3", "V4", "V5"}


def test_the_entries_that_travel_by_xcom_are_small(store: Store):
    store.seed("20585")
    entry = plan(store.run("20585"))[0]
    assert len(json.dumps(entry)) < 480, "100 plates fit 48 KiB"


def test_a_dry_run_stops_after_the_plan_and_writes_to_no_bucket(store: Store):
    store.seed("20585")
    run = store.run("20585", "20999", dry_run=True)
    assert plan(run) == []
    told = receipt(run, store)
    assert told.outcome.startswith("Dry run, nothing was written: 1 of 2 plates")
    assert {item["plate"]: item["state"] for item in told.items} == {"20585": "planned", "20999": "not planned"}
    assert told.state == "incomplete", "one of the plates does not exist"
    assert store.keys(store.cold) == set()
    assert store.keys() == set(store.files)


def test_a_plate_that_cannot_be_planned_stops_no_other(store: Store):
    store.seed("20585")
    run = store.run("20585", "20999")
    assert [entry["name"] for entry in plan(run)] == ["20585"]


def test_a_bucket_that_does_not_exist_is_refused_with_its_field(store: Store):
    run = store.run("20585", archive_bucket="no-such-bucket")
    with pytest.raises(RequestError):
        plan(run)
    assert run.xcoms["plan", "request_errors"] == ["archive_bucket: no-such-bucket does not exist"]


def test_what_the_deletion_would_refuse_is_refused_before_the_archiving(store: Store):
    store.seed("20585")
    run = store.run("20585", retention="versioned", delete_parts=["images"], undo_days=3)
    with pytest.raises(RequestError):
        plan(run)
    problems = run.xcoms["plan", "request_errors"]
    assert [problem.split(":")[0] for problem in problems] == ["retention", "undo_days"]
    told = receipt(run, store)
    assert told.outcome.startswith("Refused, nothing was archived: retention:")


def test_deletion_without_a_list_of_approvers_is_refused_at_once(store: Store, connect: Any):
    connect("waybill_approvals", json.dumps({"conn_type": "generic", "extra": {"approvers": []}}))
    run = store.run("20585", delete_parts=["images"])
    with pytest.raises(RequestError):
        load(run)
    assert "waybill_approvals" in run.xcoms["load_request", "request_errors"][0]
    load(store.run("20585"))


def test_plates_come_from_a_file_under_an_allowed_prefix_only(store: Store):
    store.seed("20585")
    (store.inputs / "plates.csv").write_text("plate_id,plate_id_full\n20585,20585\n")
    run = store.run(plates=None, plates_uri=(store.inputs / "plates.csv").as_uri())
    assert [entry["name"] for entry in plan(run)] == ["20585"]
    with pytest.raises(RequestError, match="refused, 1 problem"):
        load(store.run(plates=None, plates_uri="file:///etc/passwd"))


def test_a_flipped_bit_is_a_mismatch_that_is_told_and_kept(store: Store):
    store.seed("20585")
    run = store.run("20585", delete_parts=["images"])
    entry = archive(run, plan(run)[0])
    store.flip("20585")
    with pytest.raises(VerificationError, match="mismatch"):
        verify(run, entry)
    told = receipt(run, store)
    assert told.items[0]["state"] == "mismatch"
    assert "V" in told.items[0]["why"]
    assert told.remedy.startswith("20585 (V4: imaging_analysis/") and "Keep both copies" in told.remedy
    assert told.problems == [f"20585: {told.items[0]['why']}"]


def test_an_unverifiable_plate_is_looked_at_twice(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("operators.plates.verify._PAUSE_SECONDS", 0.0)
    store.seed("20585")
    run = store.run("20585")
    entry = archive(run, plan(run)[0])
    for key in store.keys(store.cold):
        if key.endswith(".manifest.jsonl.zst"):
            store.client.delete_object(Bucket=store.cold, Key=key)
    with pytest.raises(VerificationError, match="unverifiable"):
        verify(run, entry)
    assert receipt(run, store).items[0]["state"] == "unverifiable"


def test_an_archive_is_found_finished_by_the_next_run_and_not_sent_again(store: Store):
    store.seed("20585")
    first, second = store.run("20585"), Run("plate_backup", store.conf("20585"), "manual__2")
    archive(first, plan(first)[0])
    before = {
        key: store.client.head_object(Bucket=store.cold, Key=key)["LastModified"] for key in store.keys(store.cold)
    }
    archive(second, plan(second)[0])
    for key, modified in before.items():
        if key.endswith(".tar.gz"):
            assert store.client.head_object(Bucket=store.cold, Key=key)["LastModified"] == modified


def test_a_source_that_changed_since_the_plan_fails_without_retry_and_is_told(store: Store):
    store.seed("20585")
    run = store.run("20585")
    entry = plan(run)[0]
    store.put(next(key for key in store.files if "/images/" in key), b"another image")
    with pytest.raises(SourceChanged):
        archive(run, entry)
    told = receipt(run, store)
    assert told.items[0]["state"] == "not archived"
    assert "changed" in told.items[0]["why"]


def test_an_archive_of_something_else_is_never_overwritten(store: Store):
    store.seed("20585")
    run = store.run("20585")
    entry = plan(run)[0]
    taken = f"imaging_analysis/{run.conf['project']}/plates/{run.conf['project']}_BBBC022_20585_backend.tar.gz"
    store.put(taken, b"somebody else's", store.cold)
    with pytest.raises(ConflictingRequest):
        archive(run, entry)
    assert store.client.get_object(Bucket=store.cold, Key=taken)["Body"].read() == b"somebody else's"


def test_a_cleared_step_forgets_what_an_earlier_try_said_of_later_steps(store: Store):
    store.seed("20585")
    run = store.run("20585")
    entry = plan(run)[0]
    verify(run, archive(run, entry))
    store.put(next(key for key in store.files if "/images/" in key), b"another image")
    run.xcoms.clear()
    load(run)
    with pytest.raises(VerificationError):
        verify(run, archive(run, entry))
    told = receipt(run, store)
    assert told.items[0]["state"] == "mismatch"


def test_without_any_plan_the_receipt_says_that_nothing_happened(store: Store):
    told = receipt(store.run("20585"), store)
    assert (told.state, told.items) == ("incomplete", [])
