"""Plates that are not what was proved any more, or whose proof does not count: what question and gate make of them."""

from __future__ import annotations

from typing import Any

import pytest
from operators.plates.approval import PlateApprovalOperator

from include.core.errors import RequestError, VerificationError
from include.plates.delete_preview import older_versions
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan, receipt, verify
from tests.plugins.plates.test_gate import answer, ask, disturb, forge, nothing_is_asked, parked, proved, record

__all__ = ["parked"]


def test_a_proof_that_only_xcom_knows_of_is_none(store: Store):
    _run, entries = proved(store, "20585")
    store.seed("20586", sites=1)
    both = store.run("20585", "20586", delete_parts=["images"])
    first, second = plan(both)
    verify(both, archive(both, first))
    archive(both, second)
    store.flip("20586")
    both.xcoms["verify", "return_value"] = [entries[0], {**entries[0], "plate": "002_20586"}]
    ask(both)
    assert record(both).about["plates"] == ["001_20585"]


def test_a_verdict_that_is_another_than_was_recorded_decides_nothing(store: Store):
    run, _ = proved(store, "20585")
    path = next(store.receipts.rglob("verdict.json"))
    path.write_bytes(path.read_bytes().replace(b"20585", b"20586"))
    with pytest.raises(RequestError, match="not what it was"):
        run.execute(PlateApprovalOperator(task_id="approval"))


def test_a_verdict_that_is_not_verified_is_no_proof_whatever_the_record_says(store: Store):
    run, _ = proved(store, "20585")
    forge(store, "001_20585", lambda data: data.replace(b'"outcome":"verified"', b'"outcome":"mismatch"'))
    assert nothing_is_asked(run)


def test_a_proof_of_another_request_under_the_same_run_id_is_none(store: Store):
    run, _ = proved(store, "20585")
    again = Run("plate_backup", {**run.conf, "approval_days": 3}, run.run_id)
    assert nothing_is_asked(again)


def test_a_plate_whose_proof_is_gone_voids_the_answer(store: Store):
    run, _ = proved(store, "20585", "20586")
    ask(run)
    next(store.receipts.rglob("002_20586/verify.note.json")).unlink()
    with pytest.raises(VerificationError, match="no proof is left of 002_20586"):
        answer(run)


@pytest.mark.parametrize("how", ["appeared", "changed", "vanished"])
def test_what_changes_before_the_question_is_a_mismatch_and_not_asked_about(store: Store, how: str):
    run, _entries = proved(store, "20585", "20586")
    disturb(store, "20586", how)
    question = ask(run)
    assert "20585" in question.subject + question.body
    assert record(run).about["plates"] == ["001_20585"]
    told = receipt(run, store)
    assert told.items[1]["state"] == "mismatch"
    assert how in told.items[1]["why"]


@pytest.mark.parametrize("how", ["appeared", "changed", "vanished"])
def test_what_changes_after_the_answer_voids_the_approval_for_that_plate_alone(store: Store, how: str):
    run, _entries = proved(store, "20585", "20586")
    ask(run)
    disturb(store, "20586", how)
    assert [entry["name"] for entry in answer(run)] == ["20585"]
    told = receipt(run, store)
    assert told.items[1]["state"] == "approval void"
    assert how in told.items[1]["why"]


def test_a_manifest_that_is_another_by_now_stops_its_plate(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    key = next(key for key in store.keys(store.cold) if key.endswith(".manifest.jsonl.zst"))
    store.put(key, b"forged", store.cold)
    assert answer(run) == []


def test_a_store_that_cannot_be_reached_keeps_the_plate(store: Store, connect: Any):
    run, _entries = proved(store, "20585")
    ask(run)
    for key in store.keys(store.cold):
        store.client.delete_object(Bucket=store.cold, Key=key)
    assert answer(run) == []
    assert "cannot be looked at" in receipt(run, store).items[0]["why"]


# Older versions that nobody was asked about


def older_since_the_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proved plate, one of whose objects has an older version that its plan did not show."""
    store.versioned(store.live)
    store.seed("20585", sites=1)
    key = next(key for key in sorted(store.files) if "/images/20585/" in key)
    store.put(key, b"older")
    monkeypatch.setattr("include.plates.plan.older_versions", nothing)
    return proved(store, "20585")[0]


async def nothing(*_: Any) -> tuple[()]:
    return ()


def test_older_versions_since_the_plan_refuse_the_order_and_the_receipt_says_what_to_do(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    run = older_since_the_plan(store, monkeypatch)
    assert nothing_is_asked(run)
    told = receipt(run, store)
    (item,) = told.items
    assert item["verify"]["state"] == "verified" and item["state"] == "not deleted"
    assert "older version" in item["why"] and "mismatch" not in item["why"]
    assert "keep_hidden" in told.remedy and "Keep both copies" not in told.remedy


def test_older_versions_since_the_question_refuse_the_order_as_well(store: Store, monkeypatch: pytest.MonkeyPatch):
    run = older_since_the_plan(store, monkeypatch)
    with monkeypatch.context() as unseen:
        unseen.setattr("include.plates.delete_preview.older_versions", nothing)
        ask(run)
    assert answer(run) == []
    told = receipt(run, store)
    assert told.items[0]["state"] == "not deleted" and "keep_hidden" in told.remedy
    monkeypatch.setattr("include.plates.delete_preview.older_versions", older_versions)
    assert nothing_is_asked(run), "a cleared approval looks again"
