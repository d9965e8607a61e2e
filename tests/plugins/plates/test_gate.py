"""The question and the gate behind it: what a person is shown, and every way in which an answer does not count."""

from __future__ import annotations

import hashlib
import html
import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from airflow.sdk.exceptions import AirflowSkipException
from hooks.questions import approvers
from operators.common.gate import question_record
from operators.common.question import AskAgain, QuestionRetry
from operators.plates.approval import PlateApprovalOperator, PlateGateOperator
from operators.plates.delete import PlateDeleteOperator

from include.core.errors import RequestError, Stopped, TransientError, Unanswered, VerificationError
from include.core.questions import Answer, People, Record, judge
from include.plates.approval import Proved, digest_of
from include.plates.delete_preview import PartPreview
from include.plates.request import BackupRequest
from tests.docs import examples
from tests.plugins.plates.conftest import Store, generic
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan, receipt, verify

AMY = {"id": "amy", "name": "amy"}


class Asked(Exception):
    """Stands for Airflow parking the task until somebody answers."""


class Shown:
    """Airflow as it is: each task shows the subject of its first question for as long as the run exists."""

    def __init__(self) -> None:
        self.subjects: dict[str, str] = {}

    def __call__(self, ti_id: str, **question: Any) -> str:
        return self.subjects.setdefault(ti_id, question["subject"])


@pytest.fixture(autouse=True)
def parked(monkeypatch: pytest.MonkeyPatch) -> None:
    def park(self: Any, context: Any) -> None:
        raise Asked

    monkeypatch.setattr("airflow.providers.standard.operators.hitl.HITLOperator.execute", park)
    monkeypatch.setattr("operators.common.question.put_question", Shown())


def proved(store: Store, *plates: str, **options: Any) -> tuple[Run, list[dict[str, Any]]]:
    """A run whose plates are archived and verified."""
    store.seed(*plates, sites=1)
    run = store.run(*plates, **{"delete_parts": ["images", "illum"], **options})
    return run, [verify(run, archive(run, entry)) for entry in plan(run)]


def ask(run: Run) -> PlateApprovalOperator:
    question = PlateApprovalOperator(task_id="approval")
    with pytest.raises(Asked):
        run.execute(question)
    return question


def nothing_is_asked(run: Run) -> bool:
    with pytest.raises(AirflowSkipException):
        run.execute(PlateApprovalOperator(task_id="approval"))
    return True


def say(run: Run, option: str = "Approve", by: Any = AMY, code: str = "") -> None:
    """Airflow wakes the approval with an answer."""
    event = {
        "chosen_options": [option],
        "params_input": {"code": code} if code else {},
        "responded_by_user": by,
        "responded_at": datetime(2026, 1, 2),
    }
    context = run.context("approval")
    run.xcoms["approval", "return_value"] = PlateApprovalOperator(task_id="approval").execute_complete(context, event)


def gate(run: Run) -> list[dict[str, Any]]:
    return run.execute(PlateGateOperator(task_id="gate"))


def answer(run: Run, option: str = "Approve", by: Any = AMY) -> list[dict[str, Any]]:
    say(run, option, by)
    return gate(run)


def record(run: Run) -> Record:
    found = question_record(run.context("gate"))
    assert found is not None
    return found


def disturb(store: Store, plate_id: str, how: str) -> None:
    key = next(key for key in sorted(store.files) if f"/images/{plate_id}/" in key)
    if how == "vanished":
        store.client.delete_object(Bucket=store.live, Key=key)
    else:
        store.put(key if how == "changed" else f"{key}.new", b"something else")


def forge(store: Store, label: str, change: Any) -> None:
    """Changes a plate's verdict and the step record that names it, as who can write to the receipts may do."""
    folder = next(store.receipts.rglob(f"plates/{label}"))
    data = change((folder / "verdict.json").read_bytes())
    (folder / "verdict.json").write_bytes(data)
    note = json.loads((folder / "verify.note.json").read_text())
    note["verdict"] |= {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "verify.note.json").write_text(json.dumps({**note, "state": "verified"}))


def test_the_question_says_exactly_what_will_be_deleted_who_asks_who_answers_until_when_and_shows_the_proof(
    store: Store,
):
    run, entries = proved(store, "20585", "20586")
    question, asked = ask(run), record(run)
    chosen = [key for key in store.files if "/images/2058" in key or "/illum/" in key]
    size = sum(len(store.files[key]) for key in chosen)
    assert question.subject.startswith(f"Delete {len(chosen)} objects (")
    assert f"{size} bytes): illum, images of 2 plates, from {store.live}?" in question.subject
    for text in (question.subject, question.body):
        assert asked.sha256 in text
    for entry in entries:
        images = [key for key in chosen if f"/images/{entry['name']}/" in key]
        assert re.search(
            rf"\| {entry['name']} \| \d+, .* \| {len(images)}, .* \| `{entry['manifests'][:16]}", question.body
        )
    for said in ("retention **none**", "deleted permanently", "| **all** |"):
        assert said in question.body
    for said in (
        "asked by | admin",
        "may answer | amy, uli",
        f"until | {asked.until}",
        "/waybill/receipts/plate_backup/",
    ):
        assert said in question.body
    assert (question.defaults, question.options) == (None, ["Approve", "Reject"])
    assert question.assigned_users == [{"id": "amy", "name": "amy"}, {"id": "uli", "name": "uli"}]


def test_what_the_question_counts_is_what_is_deleted(store: Store):
    run, _ = proved(store, "20585", delete_parts=["images"])
    ask(run)
    before = store.keys()
    [entry] = answer(run)
    run.execute(PlateDeleteOperator(task_id="delete", plate=entry))
    gone = before - store.keys()
    said = record(run).about["parts"]["001_20585"]
    assert said == [["images", len(gone), sum(len(store.files[key]) for key in gone), False, 0, 0, ""]]


def test_a_part_that_another_measurement_uses_is_counted_as_kept(store: Store):
    run, _ = proved(store, "20585")
    store.put(f"projects/{run.conf['project']}/{run.conf['batch']}/images/20585__again/Images/a.tiff", b"another")
    question = ask(run)
    assert "kept: shared" in question.body
    assert record(run).about["parts"]["001_20585"][0] == ["illum", 0, 0, True, 0, 0, ""]


def test_what_would_be_deleted_by_now_and_was_not_asked_about_voids_the_approval(store: Store):
    run, _ = proved(store, "20585")
    other = f"projects/{run.conf['project']}/{run.conf['batch']}/images/20585__again/Images/a.tiff"
    store.put(other, b"another measurement, which shares the illumination images")
    ask(run)
    store.client.delete_object(Bucket=store.live, Key=other)
    assert answer(run) == []
    assert "what would be deleted is another" in receipt(run, store).items[0]["why"]


def test_whoever_triggered_the_run_is_not_among_those_asked(store: Store):
    run, _entries = proved(store, "20585")
    run.triggered_by = "amy"
    assert ask(run).assigned_users == [{"id": "uli", "name": "uli"}]


def test_nothing_is_asked_where_nothing_shall_be_deleted_or_nothing_is_verified(store: Store):
    run, _ = proved(store, "20585", delete_parts=[])
    assert nothing_is_asked(run)
    assert nothing_is_asked(store.run("20585", delete_parts=["images"])), "there is no plan"
    other = Run("plate_backup", store.conf("20585", delete_parts=["images"]), "manual__2")
    plan(other)
    assert nothing_is_asked(other), "nothing is archived"


def test_while_the_answer_is_awaited_the_receipt_says_so(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    told = json.loads(next(store.receipts.rglob("receipt.json")).read_text())
    assert told["state"] == "running"
    assert told["outcome"].startswith("Waiting for an answer: Delete ")
    url = "/dags/plate_backup/runs/manual__1/tasks/approval/required_actions"
    assert re.search(
        rf"amy or uli can answer until \S+ \S+ UTC, at \S*{url}; without an answer nothing is deleted", told["remedy"]
    )
    assert told["items"][0]["state"] == "awaits approval"
    asked = told["questions"][0]
    assert (asked["state"], asked["asked_by"], asked["may_answer"]) == ("asked", "admin", ["amy", "uli"])
    assert asked["where"].endswith(url)
    assert next(store.receipts.rglob("receipt.html")).is_file()


def test_an_approved_plate_goes_on_with_its_verdict(store: Store):
    run, entries = proved(store, "20585")
    ask(run)
    assert answer(run) == [{name: entries[0][name] for name in ("plate", "name", "verdict")}]
    assert (record(run).state, record(run).by) == ("approved", "amy")
    told = receipt(run, store)
    assert told.questions[0]["by"] == "amy"
    assert told.items[0]["state"] == "not deleted", "approved, and not yet deleted"


def test_a_rejection_keeps_everything_and_is_no_failure(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    with pytest.raises(AirflowSkipException):
        answer(run, "Reject")
    told = receipt(run, store)
    assert told.state == "complete"
    assert "amy rejected the deletion" in told.outcome


def test_a_question_marked_success_lets_nothing_through(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run)
    told = receipt(run, store)
    assert (told.items[0]["state"], told.state) == ("not deleted", "incomplete")
    assert "nobody answered" in told.items[0]["why"]


def test_an_answer_to_a_question_of_an_earlier_release_or_request_is_asked_again(store: Store):
    run, _ = proved(store, "20585")
    old = store.receipts / "plate_backup/manual__1/approval.json"
    old.write_text(json.dumps({"state": "asked", "sha256": "f" * 64, "about": {"plates": ["001_20585"]}}))
    with pytest.raises(AskAgain, match="put anew"):
        say(run)
    decision = QuestionRetry().evaluate(AskAgain("…"), 1, 100)
    assert decision.action is RetryAction.RETRY
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run)


def test_an_answer_given_to_an_older_request_under_the_same_run_id_never_counts(store: Store):
    run, _ = proved(store, "20585")
    ask(run)
    say(run)
    again = Run("plate_backup", {**run.conf, "delete_parts": ["images", "illum", "analysis"]}, run.run_id)
    for entry in plan(again):
        verify(again, archive(again, entry))
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(again)
    with pytest.raises(AskAgain):
        say(again)


def test_an_approval_of_a_text_that_airflow_does_not_show_needs_the_code_of_the_receipt(store: Store):
    run, _ = proved(store, "20585", "20586")
    ask(run)
    assert record(run).code == ""
    disturb(store, "20586", "changed")
    ask(run)  # cleared: one plate less, and Airflow goes on showing the first question
    code = record(run).sha256[:8]
    told = json.loads(next(store.receipts.rglob("receipt.json")).read_text())
    assert f"the code {code} must come with the answer" in told["remedy"]
    assert (told["questions"][0]["code"], "| 20586 |" in told["questions"][0]["text"]) == (code, False)
    assert f"<pre>{record(run).text[:30]}" in html.unescape(next(store.receipts.rglob("receipt.html")).read_text())
    for wrong in ("", "00000000"):
        say(run, code=wrong)
        with pytest.raises(VerificationError, match="does not carry the code of this question"):
            gate(run)
        ask(run)
    say(run, code=code)
    assert [entry["name"] for entry in gate(run)] == ["20585"]


def test_a_rejection_needs_no_code(store: Store):
    run, _ = proved(store, "20585", "20586")
    ask(run)
    disturb(store, "20586", "changed")
    ask(run)
    with pytest.raises(AirflowSkipException):
        answer(run, "Reject")


def test_only_a_new_question_and_a_busy_store_are_tried_again():
    retry = QuestionRetry()
    assert retry.evaluate(TransientError("busy"), 1, 100).action is RetryAction.RETRY
    for error in (VerificationError("void"), Unanswered("late"), ValueError("a mistake"), Stopped("no")):
        assert retry.evaluate(error, 1, 100).action is RetryAction.FAIL


def test_silence_until_the_deadline_is_no_answer_and_the_receipt_says_who_could_have_given_one(store: Store):
    run, _ = proved(store, "20585")
    ask(run)
    context = run.context("approval")
    with pytest.raises(Unanswered, match="amy, uli could have"):
        PlateApprovalOperator(task_id="approval").execute_complete(context, {"error": "…", "error_type": "timeout"})
    told = receipt(run, store)
    assert "Clear task approval: it asks again" in told.remedy
    assert "nobody answered until" in told.items[0]["why"]
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run)


def test_an_answer_written_into_xcom_lets_nothing_through(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    forged = {"chosen_options": ["Approve"], "params_input": {}, "responded_at": "2026-01-02", "responded_by_user": AMY}
    run.xcoms["approval", "return_value"] = forged
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run)


def test_an_answer_of_before_is_no_answer_to_a_new_question(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    say(run)
    ask(run)
    with pytest.raises(VerificationError, match="nobody answered"):
        gate(run)


def test_a_gate_that_is_cleared_judges_the_same_answer_again(store: Store):
    run, _entries = proved(store, "20585")
    ask(run)
    assert answer(run) == gate(run) != []


def aged(store: Store, label: str, days: float) -> None:
    """The proof of a plate is so old."""
    at = f'"verified_at":{time.time() - days * 86_400:.1f}'.encode()
    forge(store, label, lambda data: re.sub(rb'"verified_at":[\d.]+', at, data))


@pytest.mark.parametrize(("given", "age", "days"), [(5, 1, 5), (14, 20, 10), (30, 0, 30)])
def test_a_question_stands_no_longer_than_the_oldest_proof_counts(store: Store, given: float, age: float, days: float):
    run, _ = proved(store, "20585", "20586", approval_days=given)
    aged(store, "002_20586", age)
    ask(run)
    until = datetime.strptime(record(run).until, "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    left = (until - datetime.now(UTC)).total_seconds() / 86_400
    assert days - 0.1 < left <= days


def test_nothing_is_asked_where_a_proof_does_not_count_any_more(store: Store):
    run, _ = proved(store, "20585", "20586")
    aged(store, "002_20586", 31)
    with pytest.raises(VerificationError, match=r"31 days old, and a proof counts 30 days.*Clear verify"):
        run.execute(PlateApprovalOperator(task_id="approval"))


def judged(
    by: Any = AMY, option: str = "Approve", asked: str = "abc", triggered_by: str | None = "admin", more: Any = ()
) -> bool:
    said = Answer(chosen_options=[option, *more], responded_at="2026-01-02", responded_by_user=by)
    about = Record(
        task_id="approval", options=("Approve", "Reject"), stopping=("Reject",), answer=said, sha256=asked,
        asked_by=triggered_by,
    )  # fmt: skip
    return judge(about, "abc", People(("amy", "uli"))).state == "approved"


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
        ({"option": "Yes"}, "is not one of"),
        ({"option": "approve"}, "is not one of"),
        ({"more": ["Approve"]}, "is not one of"),
    ],
)
def test_what_does_not_count(answer: dict[str, Any], why: str):
    with pytest.raises(VerificationError, match=why):
        judged(**answer)


def test_a_refused_answer_is_told_and_nothing_goes_on(store: Store):
    run, _entries = proved(store, "20585")
    run.triggered_by = "amy"
    ask(run)
    with pytest.raises(VerificationError, match="triggered this run"):
        answer(run)
    assert "triggered this run" in receipt(run, store).items[0]["why"]


def test_one_person_may_do_both_only_where_the_connection_says_so(store: Store, connect: Any):
    run, _entries = proved(store, "20585")
    run.triggered_by = "amy"
    connect("waybill_approvals", generic(approvers=["amy"], self_approval=True))
    assert ask(run).assigned_users == [AMY]
    assert len(answer(run)) == 1


def test_an_approval_of_other_manifests_lets_nothing_through(store: Store):
    run, entries = proved(store, "20585")
    ask(run)
    forge(store, "001_20585", lambda data: data.replace(entries[0]["manifests"].encode(), b"f" * 64))
    with pytest.raises(VerificationError, match="what is proved now is"):
        answer(run)


@pytest.mark.parametrize("change", [{"delete_parts": ["images", "backend"]}, {"retention": "none"}, {"undo_days": 2}])
def test_an_approval_is_for_what_was_asked_to_be_deleted_and_how(change: dict[str, Any]):
    conf = {
        "project": "P",
        "batch": "B",
        "plates": [{"plate_id": "1", "plate_id_full": "1"}],
        "delete_parts": ["images"],
    }
    plates = [Proved("001_1", examples.verdict(), {}, (PartPreview("images", 3, 9),))]
    now, then = (digest_of(BackupRequest(**one), plates) for one in (conf, {**conf, **change}))
    assert now != then
    counted = [Proved("001_1", examples.verdict(), {}, (PartPreview("images", 4, 9),))]
    assert digest_of(BackupRequest(**conf), counted) != now


def test_the_list_of_approvers_must_name_somebody(connect: Any):
    for extra in (
        {},
        {"approvers": []},
        {"approvers": "amy"},
        {"approvers": [""]},
        {"approvers": ["amy"], "dags": ["x"]},
    ):
        connect("waybill_approvals", generic(**extra))
        with pytest.raises(RequestError, match="nobody may approve"):
            approvers("plate_backup")
    connect("waybill_approvals", generic(approvers=["amy"], self_approval="yes"))
    assert approvers("plate_backup") == People(("amy",), self_approval=False), "only true allows it"


def test_a_dag_may_have_a_list_of_its_own(connect: Any):
    own = {"archive_to_dsp": {"approvers": ["dora"], "self_approval": True}, "empty": {"approvers": []}}
    connect("waybill_approvals", generic(approvers=["amy"], dags=own))
    assert approvers("archive_to_dsp") == People(("dora",), self_approval=True)
    assert approvers("plate_backup") == People(("amy",))
    with pytest.raises(RequestError, match=r'waybill_approvals, "dags": \{"empty"'):
        approvers("empty")


def test_an_answer_by_the_list_of_another_dag_does_not_count(store: Store, connect: Any):
    run, _ = proved(store, "20585")
    ask(run)
    connect("waybill_approvals", generic(approvers=["amy"], dags={"plate_backup": {"approvers": ["uli"]}}))
    with pytest.raises(VerificationError, match="amy is not one of the approvers"):
        answer(run)
