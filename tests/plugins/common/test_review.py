"""A review: what is wrong is shown, mended outside, and looked at again; and gates that know nothing of plates."""

from __future__ import annotations

import html
import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from hooks.questions import question_store
from hooks.task import run_async, step_records
from operators.common.approval import ApprovalOperator
from operators.common.gate import GateOperator, Passed, let_through
from operators.common.question import AskAgain, QuestionOperator
from operators.common.review import ReviewOperator

from include.core.errors import RequestError, Stopped, VerificationError
from include.core.questions import APPROVE, CHECK_AGAIN, REJECT, STOP, Question, Record
from tests.plugins.conftest import Connect

DAG_ID, RUN_ID = "archive_to_dsp", "run-1"


class Asked(Exception):
    """Stands for Airflow parking the task until somebody answers."""


class Shown:
    """Airflow as it is: each task shows the subject of its first question for as long as the run exists."""

    def __init__(self) -> None:
        self.subjects: dict[str, str] = {}

    def __call__(self, ti_id: str, **question: Any) -> str:
        return self.subjects.setdefault(ti_id, question["subject"])


@pytest.fixture(autouse=True)
def parked(monkeypatch: pytest.MonkeyPatch, receipts_folder: Path, connect: Connect) -> None:
    def park(self: Any, context: Any) -> None:
        raise Asked

    monkeypatch.setattr("airflow.providers.standard.operators.hitl.HITLOperator.execute", park)
    monkeypatch.setattr("operators.common.question.put_question", Shown())
    approvals = {"approvers": ["amy"], "dags": {DAG_ID: {"approvers": ["dora"]}}}
    connect("waybill_approvals", json.dumps({"conn_type": "generic", "extra": approvals}))


def context(task_id: str, map_index: int = -1, *, conf: Any = None, by: str | None = "uli") -> Any:
    name = {"dag_id": DAG_ID, "run_id": RUN_ID, "task_id": task_id, "map_index": map_index}
    ti = SimpleNamespace(**name, id=f"{task_id}[{map_index}]", xcom_push=lambda **_: None)
    run = SimpleNamespace(conf=conf or {}, run_after="2026-01-02", start_date="2026-01-02", triggering_user_name=by)
    return {"ti": ti, "task_instance": ti, "dag_run": run}


class Validation(ReviewOperator):
    """Asks about the errors of a submission, as they are now."""

    errors: tuple[str, ...] = ("sample 3 has no organism",)

    def question(self, context: Any) -> Question | None:
        if not Validation.errors:
            return None
        body = "\n".join(f"- {error}" for error in Validation.errors)
        return Question(
            f"{len(Validation.errors)} errors", body, str(hash(body)), days=7, options=(CHECK_AGAIN, STOP), stopping=(STOP,),
            silence="the submission stays as it is",
        )  # fmt: skip


@pytest.fixture(autouse=True)
def one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "errors", ("sample 3 has no organism",))


def review() -> Validation:
    return Validation(task_id="review")


def ask(task: QuestionOperator, where: Any) -> QuestionOperator:
    with pytest.raises(Asked):
        task.execute(where)
    return task


def say(task: QuestionOperator, where: Any, option: str, by: str = "dora") -> Any:
    user = {"id": by, "name": by}
    when = datetime(2026, 1, 2, tzinfo=UTC)
    event = {"chosen_options": [option], "params_input": {}, "responded_by_user": user, "responded_at": when}
    return task.execute_complete(where, event)


def record(where: Any) -> Record:
    ti = where["ti"]
    found = run_async(question_store(where).read(ti.task_id, ti.map_index))
    assert found is not None
    return found


def test_what_is_wrong_is_asked_of_the_dags_own_people_and_of_whoever_triggered_the_run():
    task = ask(review(), context("review"))
    assert task.options == [CHECK_AGAIN, STOP]
    assert [user["id"] for user in task.assigned_users or []] == ["dora", "uli"]
    assert "sample 3 has no organism" in str(task.body)
    assert "the submission stays as it is" in str(task.body)


def test_mended_and_checked_again_it_goes_on_without_another_question():
    ask(review(), context("review"))
    with pytest.raises(AskAgain, match="dora says that it is mended"):
        say(review(), context("review"), CHECK_AGAIN)
    Validation.errors = ()
    assert review().execute(context("review")) is None
    assert run_async(step_records(context("receipt")).read("review"))["state"] == "done"


def test_what_is_still_wrong_is_asked_again_with_the_text_of_now_and_the_answers_so_far(receipts_folder: Path):
    ask(review(), context("review"))
    with pytest.raises(AskAgain):
        say(review(), context("review"), CHECK_AGAIN, by="uli")
    Validation.errors = ("sample 4 has no organism",)
    task = ask(review(), context("review"))
    assert "sample 4" in str(task.body) and "sample 3" not in str(task.body)
    assert f"last “{CHECK_AGAIN}” by uli" in str(task.body)
    now = record(context("review"))
    assert (now.state, now.old_text_shown, now.code) == ("asked", True, "")
    assert "what is asked now stands in the receipt" in now.who_can_answer
    assert "sample 4" in html.unescape(next(receipts_folder.rglob("receipt.html")).read_text())


def test_stop_ends_it_and_says_who_and_about_what():
    ask(review(), context("review"))
    with pytest.raises(Stopped, match="dora answered “Stop” to: 1 errors"):
        say(review(), context("review"), STOP)
    step = run_async(step_records(context("receipt")).read("review"))
    assert (step["state"], step["cause"]) == ("failed", "stopped")


def test_an_answer_of_somebody_else_neither_checks_again_nor_passes():
    ask(review(), context("review"))
    with pytest.raises(VerificationError, match="vic is not one of"):
        say(review(), context("review"), CHECK_AGAIN, by="vic")


def test_a_review_needs_no_list_where_somebody_triggered_the_run(connect: Connect):
    connect("waybill_approvals", json.dumps({"conn_type": "generic", "extra": {}}))
    task = ask(review(), context("review"))
    assert [user["id"] for user in task.assigned_users or []] == ["uli"]
    with pytest.raises(RequestError, match="waybill_approvals"):
        review().execute(context("review", by=None))


def test_each_mapped_review_is_a_question_of_its_own(receipts_folder: Path):
    for index in (0, 1):
        ask(review(), context("review", index))
    with pytest.raises(AskAgain):
        say(review(), context("review", 1), CHECK_AGAIN)
    assert (record(context("review", 0)).state, record(context("review", 1)).state) == ("asked", "approved")
    assert record(context("review", 1)).where.endswith("/tasks/review/mapped/1/required_actions")
    told = json.loads(next(receipts_folder.rglob("receipt.json")).read_text())
    assert [one["task"] for one in told["questions"]] == ["review [0]", "review [1]"]


def test_while_it_waits_the_receipt_and_the_note_say_the_same(receipts_folder: Path, monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    monkeypatch.setattr("operators.common.question.write_note", lambda dag_id, run_id, note: notes.append(note))
    ask(review(), context("review"))
    told = json.loads(next(receipts_folder.rglob("receipt.json")).read_text())
    assert notes == [f"{told['outcome']} {told['remedy']}"]
    assert told["outcome"] == "Waiting for an answer: 1 errors"
    assert told["remedy"].startswith("dora or uli can answer until ")
    assert "dora" in next(receipts_folder.rglob("receipt.html")).read_text()


# -- an approval and a gate of their own ------------------------------------------------------------------------------


class Reset(ApprovalOperator):
    def question(self, context: Any) -> Question | None:
        return Question(
            "Delete the submission?", "It is deleted.", "digest", days=1, options=("Delete", "Hide", REJECT)
        )


class ResetGate(GateOperator):
    now = "digest"

    def sha256_now(self, context: Any, record: Record) -> str:
        return self.now

    def passed(self, context: Any, record: Record) -> list[Passed]:
        return [Passed("submission", "the digest of the dry run", {"uuid": "u", "how": record.option})]


def test_a_question_with_options_of_its_own_passes_a_gate_that_knows_no_plates():
    ask(Reset(task_id="reset"), context("reset"))
    say(Reset(task_id="reset"), context("reset"), "Hide")
    entries = ResetGate(task_id="reset_gate", question="reset").execute(context("reset_gate"))
    assert entries == [{"uuid": "u", "how": "Hide"}]
    assert let_through(context("act"), "submission", "the digest of the dry run", "reset")
    assert not let_through(context("act"), "submission", "another", "reset")
    assert not let_through(context("act"), "submission", "the digest of the dry run"), (
        "another question was never asked"
    )
    assert not let_through(context("act", conf={"other": 1}), "submission", "the digest of the dry run", "reset")
    assert run_async(step_records(context("receipt")).read("reset_gate"))["state"] == "done"


def test_what_a_gate_let_pass_of_a_mapped_question_counts_for_that_index_alone():
    for index, option in ((0, "Delete"), (1, REJECT)):
        ask(Reset(task_id="reset"), context("reset", index))
        say(Reset(task_id="reset"), context("reset", index), option)
    gate = ResetGate(task_id="reset_gate", question="reset")
    gate.execute(context("reset_gate", 0))
    with pytest.raises(AirflowSkipException, match="dora answered “Reject”"):
        gate.execute(context("reset_gate", 1))
    assert let_through(context("act", 0), "submission", "the digest of the dry run", "reset")
    assert not let_through(context("act", 1), "submission", "the digest of the dry run", "reset")
    assert run_async(step_records(context("receipt")).read_mapped("reset_gate"))[1]["state"] == "skipped"


def test_a_gate_that_refuses_takes_back_what_it_let_pass(monkeypatch: pytest.MonkeyPatch):
    ask(Reset(task_id="reset"), context("reset"))
    say(Reset(task_id="reset"), context("reset"), "Delete")
    gate = ResetGate(task_id="reset_gate", question="reset")
    gate.execute(context("reset_gate"))
    monkeypatch.setattr(ResetGate, "now", "another digest")
    with pytest.raises(VerificationError, match="what is proved now is another digest"):
        gate.execute(context("reset_gate"))
    assert not let_through(context("act"), "submission", "the digest of the dry run", "reset")


def test_there_is_no_default_answer():
    task = Reset(task_id="reset", defaults=None)
    assert (task.defaults, task.options_of_kind, task.execution_timeout) == (None, (APPROVE, REJECT), None)
