"""Records of questions: one per task, map index and request; and whose answer to which question counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from include.core.errors import VerificationError
from include.core.objects import Objects
from include.core.questions import (
    APPROVE,
    CHECK_AGAIN,
    REJECT,
    STOP,
    Answer,
    People,
    Question,
    QuestionStore,
    Record,
    asked,
    full_text,
    judge,
)


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects((tmp_path / "receipts").as_uri())


def store(objects: Objects, request: str = "r1") -> QuestionStore:
    return QuestionStore(objects, "dag/run", request)


def put(record: Record, where: QuestionStore) -> None:
    asyncio.run(where.write(record))


def answered(option: str, by: str | None = "amy", *, asked_by: str | None = "uli", stopping: str = REJECT) -> Record:
    user = None if by is None else {"id": by, "name": by}
    answer = Answer(chosen_options=[option], responded_by_user=user, responded_at="2026-01-02T00:00:00+00:00")
    options = (APPROVE, REJECT) if stopping == REJECT else (CHECK_AGAIN, STOP)
    return Record(
        task_id="ask",
        sha256="d",
        options=options,
        stopping=(stopping,),
        asked_by=asked_by,
        state="answered",
        answer=answer,
    )


def test_each_task_and_map_index_has_a_record_of_its_own(objects: Objects):
    where = store(objects)
    for task_id, index in (("approval", -1), ("review", -1), ("review", 0), ("review", 12)):
        put(Record(task_id=task_id, map_index=index, state="asked", subject=f"{task_id} {index}"), where)
    found = asyncio.run(where.read("review", 12))
    assert found is not None and found.subject == "review 12"
    assert asyncio.run(where.read("review", 1)) is None
    assert {record.subject for record in asyncio.run(where.read_all())} == {
        "approval -1", "review -1", "review 0", "review 12",
    }  # fmt: skip


def test_what_was_asked_for_another_request_under_the_same_run_id_is_not_seen(objects: Objects):
    put(answered(APPROVE), store(objects, "r1"))
    assert asyncio.run(store(objects, "r2").read("ask")) is None
    assert asyncio.run(store(objects, "r2").read_all()) == []
    assert asyncio.run(store(objects, "r1").read("ask")) is not None


def test_a_record_that_cannot_be_read_is_said_and_counts_as_nothing(objects: Objects):
    asyncio.run(objects.put("dag/run/questions/ask.json", b'{"state": "approved"}'))
    with pytest.raises(VerificationError, match=r"questions/ask\.json is no record of a question"):
        asyncio.run(store(objects).read("ask"))


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (answered(APPROVE), "approved"),
        (answered(REJECT), "rejected"),
        (answered(REJECT, "nobody in the list"), "rejected"),
        (answered(CHECK_AGAIN, stopping=STOP), "approved"),
        (answered(STOP, "uli", stopping=STOP), "rejected"),
    ],
)
def test_what_an_answer_leads_to(record: Record, state: str):
    judged = judge(record, "d", People(("amy",)))
    assert record.answer is not None
    assert (judged.state, judged.option) == (state, record.answer.chosen_options[0])
    assert judged.at == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (None, "nobody answered"),
        (Record(task_id="ask", state="asked", sha256="d"), "nobody answered"),
        (answered(APPROVE, None), "carries no person"),
        (answered(REJECT, ""), "carries no person"),
        (answered(STOP), "is not one of Approve, Reject"),
        (answered(APPROVE, "vic"), "vic is not one of the approvers"),
        (answered(APPROVE, asked_by="amy"), "amy triggered this run"),
        (answered(APPROVE, asked_by=None), "not known who triggered"),
    ],
)
def test_what_does_not_count(record: Record | None, why: str):
    with pytest.raises(VerificationError, match=why):
        judge(record, "d", People(("amy",)))


def test_an_answer_about_another_digest_does_not_count():
    with pytest.raises(VerificationError, match="the answer is about d, and what is proved now is e"):
        judge(answered(APPROVE), "e", People(("amy",)))


def test_a_question_says_what_happens_who_asks_who_answers_until_when_and_where_the_proof_is():
    question = Question("Delete 3 objects?", "Three objects go.", "d1", days=2, silence="nothing is deleted")
    before = Record(task_id="ask", earlier=({"option": "Approve", "by": "amy", "at": "t"},))
    record = asked(question, before, ("amy", "vic"), None, "https://a/required_actions", 0.0)
    text = full_text(question, record, "https://a/waybill/receipts/dag/run")
    for said in (
        "Three objects go.", "| asked by | the schedule |", "| may answer | amy, vic |", "`d1`", "nothing is deleted",
        "| until | 1970-01-03 00:00 UTC", "(https://a/waybill/receipts/dag/run)", "last “Approve” by amy",
    ):  # fmt: skip
        assert said in text
    assert record.who_can_answer == (
        "amy or vic can answer until 1970-01-03 00:00 UTC, at https://a/required_actions; without an answer nothing is deleted"
    )
    summary = record.summary()
    assert (summary["may_answer"], summary["where"]) == (["amy", "vic"], "https://a/required_actions")
    assert "may_answer" not in record.changed("approved").summary()


def test_answers_of_before_are_kept_and_bounded():
    record = answered(CHECK_AGAIN, stopping=STOP)
    for _ in range(50):
        record = record.model_copy(update={"earlier": record.history()})
    assert len(record.earlier) == 20
    assert record.earlier[-1] == {"option": CHECK_AGAIN, "by": "amy", "at": "2026-01-02T00:00:00+00:00"}


def test_whoever_triggered_the_run_is_not_able_to_answer_unless_one_person_may_do_both():
    assert People(("amy", "uli")).able("amy") == ("uli",)
    assert People(("amy",), self_approval=True).able("amy") == ("amy",)
