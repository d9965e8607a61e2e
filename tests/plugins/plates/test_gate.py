"""The question and the gate behind it: what a person is shown, and every way in which an answer does not count."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from include.core.approval import Approvers, decision
from operators.common.approval import approval_record, approvers
from operators.plates.approval import PlateApprovalOperator, PlateGateOperator

from include.core.errors import RequestError, VerificationError
from tests.plugins.plates.conftest import Store, generic
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan, receipt, verify

AMY = {"id": "amy", "name": "amy"}


class Asked(Exception):
    """Stands for Airflow parking the task until somebody answers."""


@pytest.fixture(autouse=True)
def parked(monkeypatch: pytest.MonkeyPatch) -> None:
    def park(self: Any, context: Any) -> None:
        raise Asked

    monkeypatch.setattr("airflow.providers.standard.operators.hitl.HITLOperator.execute", park)


def proved(store: Store, *plates: str, **options: Any) -> tuple[Run, list[dict[str, Any]]]:
    """A run whose plates are archived and verified."""
    store.seed(*plates, sites=1)
    run = store.run(*plates, **{"delete_parts": ["images", "illum"], **options})
    return run, [verify(run, archive(run, entry)) for entry in plan(run)]


def ask(run: Run, entries: list[dict[str, Any]]) -> PlateApprovalOperator:
    run.xcoms["verify", "return_value"] = entries
    question = PlateApprovalOperator(task_id="approval")
    with pytest.raises(Asked):
        run.execute(question)
    return question


def say(run: Run, option: str = "Approve", by: Any = AMY) -> None:
    """Airflow wakes the approval with an answer."""
    event = {
        "chosen_options": [option],
        "params_input": {},
        "responded_by_user": by,
        "responded_at": datetime(2026, 1, 2),
    }
    context = run.context("approval")
    run.xcoms["approval", "return_value"] = PlateApprovalOperator(task_id="approval").execute_complete(context, event)


def gate(run: Run, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    run.xcoms["verify", "return_value"] = entries
    return run.execute(PlateGateOperator(task_id="gate"))


def answer(run: Run, entries: list[dict[str, Any]], option: str = "Approve", by: Any = AMY) -> list[dict[str, Any]]:
    say(run, option, by)
    return gate(run, entries)


def test_the_question_shows_plates_counts_bytes_proofs_and_the_digest(store: Store):
    run, entries = proved(store, "20585", "20586")
    question = ask(run, entries)
    digest = record(run)["sha256"]
    assert digest in question.subject
    assert digest in question.body
    assert "retention **none**" in question.body
    for entry in entries:
        assert f"| {entry['name']} | {entry['objects']} |" in question.body
        assert entry["manifests"][:16] in question.body
    assert (question.retries, question.defaults, question.options) == (0, None, ["Approve", "Reject"])
    assert question.assigned_users == [{"id": "amy", "name": "amy"}, {"id": "uli", "name": "uli"}]


def test_whoever_triggered_the_run_is_not_among_those_asked(store: Store):
    run, entries = proved(store, "20585")
    run.triggered_by = "amy"
    assert ask(run, entries).assigned_users == [{"id": "uli", "name": "uli"}]


def test_nothing_is_asked_where_nothing_shall_be_deleted_or_nothing_is_verified(store: Store):
    run, entries = proved(store, "20585", delete_parts=[])
    run.xcoms["verify", "return_value"] = entries
    with pytest.raises(AirflowSkipException):
        run.execute(PlateApprovalOperator(task_id="approval"))
    asks = store.run("20585", delete_parts=["images"])
    for found in (None, []):
        asks.xcoms["verify", "return_value"] = found
        with pytest.raises(AirflowSkipException):
            asks.execute(PlateApprovalOperator(task_id="approval"))


def test_while_the_answer_is_awaited_the_receipt_says_so(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    told = json.loads(next(store.receipts.rglob("receipt.json")).read_text())
    assert told["state"] == "running"
    assert "Waiting for an answer" in told["outcome"]
    assert told["items"][0]["state"] == "awaits approval"
    assert next(store.receipts.rglob("receipt.html")).is_file()


def test_an_approved_plate_goes_on_with_its_verdict(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    assert answer(run, entries) == [{name: entries[0][name] for name in ("plate", "name", "verdict")}]
    assert (record(run)["state"], record(run)["by"]) == ("approved", "amy")
    told = receipt(run, store)
    assert told.approvals[0]["by"] == "amy"
    assert told.items[0]["state"] == "not deleted", "approved, and not yet deleted"


def test_a_rejection_keeps_everything_and_is_no_failure(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    with pytest.raises(AirflowSkipException):
        answer(run, entries, "Reject")
    told = receipt(run, store)
    assert told.state == "complete"
    assert "amy rejected the deletion" in told.outcome


def test_a_question_marked_success_lets_nothing_through(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run, entries)
    told = receipt(run, store)
    assert (told.items[0]["state"], told.state) == ("not deleted", "incomplete")
    assert "nobody answered" in told.items[0]["why"]


def test_an_answer_without_a_question_lets_nothing_through(store: Store):
    run, entries = proved(store, "20585")
    with pytest.raises(VerificationError, match="the answer is about None"):
        answer(run, entries)


def test_an_answer_written_into_xcom_lets_nothing_through(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    forged = {"chosen_options": ["Approve"], "params_input": {}, "responded_at": "2026-01-02", "responded_by_user": AMY}
    run.xcoms["approval", "return_value"] = forged
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run, entries)


def test_an_answer_of_before_is_no_answer_to_a_new_question(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    say(run)
    ask(run, entries)
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run, entries)


def test_a_gate_that_is_cleared_judges_the_same_answer_again(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    assert answer(run, entries) == gate(run, entries) != []


def test_a_proof_that_only_xcom_knows_of_is_none(store: Store):
    run, entries = proved(store, "20585", "20586")
    store.flip("20586")
    with pytest.raises(VerificationError, match="mismatch"):
        verify(run, entries[1])
    kept = next(store.receipts.rglob("002_20586/verdict.json"))
    forged = {
        **entries[1],
        "verdict": {**entries[1]["verdict"], "sha256": hashlib.sha256(kept.read_bytes()).hexdigest()},
    }
    question = ask(run, [entries[0], forged])
    assert record(run)["about"] == {"plates": ["001_20585"]}
    assert "of 1 plate " in question.subject


def record(run: Run) -> dict[str, Any]:
    return approval_record(run.context("gate"))


def judged(by: Any = AMY, option: str = "Approve", asked: str = "abc", triggered_by: str | None = "admin") -> bool:
    said = {"chosen_options": [option], "responded_at": "2026-01-02", "responded_by_user": by}
    return decision({"answer": said, "sha256": asked}, "abc", Approvers(("amy", "uli")), triggered_by).approved


def test_an_approver_s_answer_to_this_very_question_counts():
    assert judged()
    assert not judged(option="Reject")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"by": None}, "carries no person"),  # a timeout with a default, or an edited answer
        ({"by": {"id": "", "name": "amy"}}, "carries no person"),
        ({"by": {"id": "vic", "name": "vic"}}, "vic is not one of the approvers"),
        ({"by": {"id": "vic", "name": "amy"}}, "vic is not one of the approvers"),
        ({"triggered_by": "amy"}, "triggered this run"),
        ({"by": {"id": "uli", "name": "Uli"}, "triggered_by": "Uli"}, "triggered this run"),
        ({"triggered_by": None}, "not known who triggered"),
        ({"asked": "ab"}, "what is proved now is"),
        ({"option": "Yes"}, "neither"),
        ({"option": "approve"}, "neither"),
    ],
)
def test_what_does_not_count(answer: dict[str, Any], why: str):
    with pytest.raises(VerificationError, match=why):
        judged(**answer)


def test_a_refused_answer_is_told_and_nothing_goes_on(store: Store):
    run, entries = proved(store, "20585")
    run.triggered_by = "amy"
    ask(run, entries)
    with pytest.raises(VerificationError, match="triggered this run"):
        answer(run, entries)
    assert "triggered this run" in receipt(run, store).items[0]["why"]


def test_one_person_may_do_both_only_where_the_connection_says_so(store: Store, connect: Any):
    run, entries = proved(store, "20585")
    run.triggered_by = "amy"
    connect("waybill_approvals", generic(approvers=["amy"], self_approval=True))
    assert ask(run, entries).assigned_users == [AMY]
    assert len(answer(run, entries)) == 1


def test_an_approval_of_other_manifests_lets_nothing_through(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    path = next(store.receipts.rglob("verdict.json"))
    other = path.read_bytes().replace(entries[0]["manifests"].encode(), b"f" * 64)
    path.write_bytes(other)
    entries[0] = {**entries[0], "verdict": {**entries[0]["verdict"], "sha256": hashlib.sha256(other).hexdigest()}}
    with pytest.raises(VerificationError, match="what is proved now is"):
        answer(run, entries)


@pytest.mark.parametrize(
    "change", [{"delete_parts": ["images", "backend"]}, {"retention": "versioned"}, {"undo_days": 2}]
)
def test_an_approval_is_for_what_was_asked_to_be_deleted_and_how(store: Store, change: dict[str, Any]):
    run, entries = proved(store, "20585")
    ask(run, entries)
    run.conf |= change
    with pytest.raises(VerificationError, match="what is proved now is"):
        answer(run, entries)


def test_a_plate_whose_proof_is_gone_voids_the_answer(store: Store):
    run, entries = proved(store, "20585", "20586")
    ask(run, entries)
    with pytest.raises(VerificationError, match="no proof is left of 002_20586"):
        answer(run, entries[:1])


@pytest.mark.parametrize("how", ["appeared", "changed", "vanished"])
def test_what_changes_before_the_question_is_a_mismatch_and_not_asked_about(store: Store, how: str):
    run, entries = proved(store, "20585", "20586")
    disturb(store, "20586", how)
    question = ask(run, entries)
    assert "20585" in question.subject + question.body
    assert record(run)["about"] == {"plates": ["001_20585"]}
    told = receipt(run, store)
    assert told.items[1]["state"] == "mismatch"
    assert how in told.items[1]["why"]


@pytest.mark.parametrize("how", ["appeared", "changed", "vanished"])
def test_what_changes_after_the_answer_voids_the_approval_for_that_plate_alone(store: Store, how: str):
    run, entries = proved(store, "20585", "20586")
    ask(run, entries)
    disturb(store, "20586", how)
    assert [entry["name"] for entry in answer(run, entries)] == ["20585"]
    told = receipt(run, store)
    assert told.items[1]["state"] == "approval void"
    assert how in told.items[1]["why"]


def disturb(store: Store, plate_id: str, how: str) -> None:
    key = next(key for key in sorted(store.files) if f"/images/{plate_id}/" in key)
    if how == "vanished":
        store.client.delete_object(Bucket=store.live, Key=key)
    else:
        store.put(key if how == "changed" else f"{key}.new", b"something else")


def test_a_manifest_that_is_another_by_now_stops_its_plate(store: Store):
    run, entries = proved(store, "20585")
    ask(run, entries)
    key = next(key for key in store.keys(store.cold) if key.endswith(".manifest.jsonl.zst"))
    store.put(key, b"forged", store.cold)
    assert answer(run, entries) == []


def test_a_store_that_cannot_be_reached_keeps_the_plate(store: Store, connect: Any):
    run, entries = proved(store, "20585")
    ask(run, entries)
    for key in store.keys(store.cold):
        store.client.delete_object(Bucket=store.cold, Key=key)
    assert answer(run, entries) == []
    assert "cannot be looked at" in receipt(run, store).items[0]["why"]


def test_the_list_of_approvers_must_name_somebody(connect: Any):
    for extra in ({}, {"approvers": []}, {"approvers": "amy"}, {"approvers": [""]}):
        connect("waybill_approvals", generic(**extra))
        with pytest.raises(RequestError, match="nobody may approve"):
            approvers()
    connect("waybill_approvals", generic(approvers=["amy"], self_approval="yes"))
    assert approvers() == Approvers(("amy",), self_approval=False), "only true allows it"
