"""Questions to people without Airflow: what is asked, of whom, what is kept of it, and whether an answer counts.

An approval asks for leave to do one thing (`APPROVE`, `REJECT`). A review shows what is wrong, and is answered once that is
mended (`CHECK_AGAIN`), or by `STOP`. Other questions bring options of their own.

Invariant: an answer counts for one question only: that of this task and map index, asked for this request, about this
digest. Question and answer are kept here, beside the receipt, since in Airflow a role with edit rights may mark a question
success or write an answer into XCom. Airflow shows the text of a task's first question for as long as its run exists, so an
answer to a later one must carry that one's code, which stands in the receipt alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import pydantic

from include.core.errors import NotFound, RequestError, VerificationError
from include.core.objects import Objects
from include.core.text import file_name, sentences, shorten

APPROVE, REJECT = "Approve", "Reject"
CHECK_AGAIN, STOP = "Fixed, check again", "Stop"
QuestionState = Literal["not asked", "asked", "expired", "answered", "approved", "rejected", "refused"]
_EARLIER_KEPT = 20
_CODE_LENGTH = 8


@dataclass(frozen=True)
class People:
    """Who may answer, by the ids of Airflow's auth manager (the login name under the simple one).

    `self_approval`: whoever triggered the run may answer too, where the list holds them.
    """

    ids: tuple[str, ...]
    self_approval: bool = False

    @classmethod
    def of_dag(cls, dag_id: str, extra: Mapping[str, Any], connection: str) -> People:
        """The list of one DAG (`dags` in the extras of a connection), else the general one. Raises RequestError."""
        own = extra.get("dags") or {}
        listed: Any = own.get(dag_id, extra) if isinstance(own, Mapping) else None
        where = f'"dags": {{"{dag_id}": …}}' if listed is not extra else "the extra"
        ids = listed.get("approvers") if isinstance(listed, Mapping) else None
        if not isinstance(ids, list) or not ids or not all(isinstance(one, str) and one for one in ids):
            raise RequestError(
                f'connection {connection}, {where}: give {{"approvers": ["user id", …]}}; nobody may approve yet'
            )
        return cls(tuple(ids), listed.get("self_approval") is True)

    def able(self, asked_by: str | None) -> tuple[str, ...]:
        """Those whose answer would count."""
        return tuple(one for one in self.ids if self.self_approval or one != asked_by)

    def rejection_reason(self, user_id: str, user_name: str, asked_by: str | None) -> str | None:
        """Why this person's answer does not count; None if it does."""
        if user_id not in self.ids:
            return f"{user_id} is not one of the approvers ({', '.join(self.ids)})"
        if self.self_approval:
            return None
        if asked_by is None:
            return "it is not known who triggered the run, so it may have been the approver"
        if asked_by in (user_id, user_name):
            return f"{user_id} triggered this run, and another person must approve it"
        return None


@dataclass(frozen=True)
class Question:
    """What a person is asked: a line, and in Markdown exactly what each answer leads to.

    `sha256` names what the answer is about, `about` says it for the gate and the receipt. `stopping` are the options that
    change nothing: anybody may give them. `silence` says what happens without an answer.
    """

    subject: str
    body: str
    sha256: str
    days: float
    options: tuple[str, ...] = (APPROVE, REJECT)
    stopping: tuple[str, ...] = (REJECT,)
    about: Mapping[str, Any] = field(default_factory=dict)
    silence: str = "nothing is done"


class Answer(pydantic.BaseModel):
    """What Airflow says was answered. `responded_by_user` is null where no person did (a default, an edited answer)."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    chosen_options: list[str] = []
    responded_by_user: dict[str, Any] | None = None
    responded_at: str = ""
    params_input: dict[str, Any] | None = None

    @property
    def code(self) -> str:
        return str((self.params_input or {}).get("code") or "").strip()


class Record(pydantic.BaseModel):
    """What is kept of one question, from its asking to what was let through.

    `passed`: by name, the digest of what may be acted on. `earlier`: the answers to this task's questions of before.
    `old_text_shown`: Airflow shows another question than this one; `code` must then come with the answer. `text` is what a
    person reads.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore")

    task_id: str
    map_index: int = -1
    request_sha256: str = ""
    state: QuestionState = "not asked"
    subject: str = ""
    sha256: str = ""
    options: tuple[str, ...] = ()
    stopping: tuple[str, ...] = ()
    about: dict[str, Any] = {}
    asked_by: str | None = None
    people: tuple[str, ...] = ()
    asked_at: str = ""
    until: str = ""
    where: str = ""
    silence: str = ""
    text: str = ""
    old_text_shown: bool = False
    code: str = ""
    answer: Answer | None = None
    option: str = ""
    by: str = ""
    at: str = ""
    why: str = ""
    passed: dict[str, str] = {}
    earlier: tuple[dict[str, str], ...] = ()

    def changed(self, state: QuestionState, **fields: Any) -> Record:
        return self.model_copy(update={"state": state, **fields})

    @property
    def who_can_answer(self) -> str:
        """Who, where, until when: what the receipt, the run's note and the question say alike."""
        names = " or ".join(self.people) or "nobody"
        said = f"{names} can answer until {self.until}, at {self.where}; without an answer {self.silence}"
        if self.old_text_shown:
            said += (
                ". Airflow still shows an earlier question there: what is asked now stands in the receipt of this run"
            )
            said += f", and the code {self.code} must come with the answer" if self.code else ""
        return said

    def behind_an_old_text(self, needs_code: bool) -> Record:
        """The record of a question that Airflow cannot show."""
        code = self.sha256[:_CODE_LENGTH] if needs_code else ""
        return self.changed(self.state, old_text_shown=True, code=code)

    def history(self) -> tuple[dict[str, str], ...]:
        """The answers so far, this one last; the oldest are dropped."""
        if self.answer is None:
            return self.earlier
        user = self.answer.responded_by_user or {}
        mine = {"option": ", ".join(self.answer.chosen_options), "by": str(user.get("id", ""))}
        return (*self.earlier, {**mine, "at": self.answer.responded_at})[-_EARLIER_KEPT:]

    def summary(self) -> dict[str, Any]:
        """What a receipt says of it."""
        user = (self.answer.responded_by_user or {}) if self.answer else {}
        waiting = self.state == "asked"
        facts = {
            "task": self.task_id if self.map_index < 0 else f"{self.task_id} [{self.map_index}]",
            "state": self.state,
            "question": self.subject,
            "asked_by": self.asked_by or "the schedule",
            "asked_at": self.asked_at,
            "may_answer": list(self.people) if waiting else [],
            "until": self.until if waiting else "",
            "where": self.where if waiting else "",
            "code": self.code if waiting else "",
            "text": self.text if waiting else "",
            "answer": self.option or ", ".join(self.answer.chosen_options if self.answer else ()),
            "by": self.by or user.get("id"),
            "at": self.at or (self.answer.responded_at if self.answer else ""),
            "why": self.why,
            "sha256": self.sha256,
            "passed": sorted(self.passed),
            "earlier": list(self.earlier),
        }
        return {name: value for name, value in facts.items() if value}


def asked(
    question: Question, record: Record, people: tuple[str, ...], asked_by: str | None, where: str, now: float
) -> Record:
    """The record of a question that is put now; `record` is what lay there before."""
    return Record(
        task_id=record.task_id,
        map_index=record.map_index,
        request_sha256=record.request_sha256,
        state="asked",
        subject=question.subject,
        sha256=question.sha256,
        options=question.options,
        stopping=question.stopping,
        about=dict(question.about),
        asked_by=asked_by,
        people=people,
        asked_at=_minute(now),
        until=_minute(now + question.days * 86_400),
        where=where,
        silence=question.silence,
        earlier=record.earlier,
    )


def full_text(question: Question, record: Record, receipt_url: str) -> str:
    """The question as a person reads it: what will happen, who asks, who may answer until when, where the proof is."""
    rows = [
        ("asked by", record.asked_by or "the schedule"),
        ("may answer", ", ".join(record.people)),
        ("until", f"{record.until}; without an answer {question.silence}"),
        ("proof", f"[the receipt of this run]({receipt_url})"),
        ("digest of what is asked about", f"`{question.sha256}`"),
    ]
    if record.earlier:
        last = record.earlier[-1]
        rows.append(("answered before", f"{len(record.earlier)} times, last “{last['option']}” by {last['by']}"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"{question.body}\n\n| | |\n| --- | --- |\n{table}\n"


def judge(record: Record | None, sha256_now: str, people: People) -> Record:
    """The record with the decision in it: `approved` or `rejected`, by whom, when.

    Raises VerificationError where no answer counts, saying why. `sha256_now` is the digest of what would be done now.
    """
    if record is None or record.answer is None:
        raise VerificationError(
            "nobody answered: the question was marked success, or its record is gone; clear it to ask again"
        )
    answer, user = record.answer, record.answer.responded_by_user or {}
    if not user.get("id"):
        raise VerificationError(
            "the answer carries no person, so it was not given by one; clear the question to ask again"
        )
    if not hmac.compare_digest(record.sha256, sha256_now):
        raise VerificationError(
            f"the answer is about {record.sha256 or 'nothing'}, and what is proved now is {sha256_now}; "
            "clear the question to ask again"
        )
    if len(answer.chosen_options) != 1 or answer.chosen_options[0] not in record.options:
        raise VerificationError(
            f"the answer {answer.chosen_options} is not one of {', '.join(record.options)}; clear the question to ask again"
        )
    option, by = answer.chosen_options[0], str(user["id"])
    decided = {"option": option, "by": by, "at": answer.responded_at}
    if option in record.stopping:
        return record.changed("rejected", **decided)
    if record.code and not hmac.compare_digest(answer.code.encode(), record.code.encode()):
        raise VerificationError(
            "the answer does not carry the code of this question, so it may be about an earlier one, which Airflow still "
            "shows. Clear the question, and answer it with the code that its receipt shows"
        )
    reason = people.rejection_reason(by, str(user.get("name") or ""), record.asked_by)
    if reason:
        raise VerificationError(sentences(f"the answer does not count: {reason}", "Clear the question to ask again"))
    return record.changed("approved", **decided)


class QuestionStore:
    """The records of one run, `<run's folder>/questions/TASK.json`. What was asked for another request is not seen."""

    def __init__(self, objects: Objects, folder: str, request_sha256: str = ""):
        self._objects = objects
        self._place = f"{folder}/questions"
        self._request = request_sha256

    async def read(self, task_id: str, map_index: int = -1) -> Record | None:
        """The record of the question of this very task."""
        found = await self._read(self._name(task_id, map_index))
        same = found is not None and (found.task_id, found.map_index) == (task_id, map_index)
        return found if same else None

    async def write(self, record: Record) -> None:
        record = record.model_copy(update={"request_sha256": self._request})
        name = self._name(record.task_id, record.map_index)
        await self._objects.put(name, record.model_dump_json(indent=1).encode())

    async def read_all(self) -> list[Record]:
        """Every question that was put in this run, for this request."""
        names = await self._objects.names(".json", under=self._place)
        found = [await self._read(name) for name in names]
        return [record for record in found if record is not None and record.state != "not asked"]

    async def _read(self, name: str) -> Record | None:
        try:
            record = Record.model_validate_json(await self._objects.get(name))
        except NotFound:
            return None
        except pydantic.ValidationError as error:
            problem = shorten(str(error), 200, "the rest is of no use")
            raise VerificationError(f"{name} is no record of a question: {problem}") from None
        return record if record.request_sha256 == self._request else None

    def _name(self, task_id: str, map_index: int) -> str:
        index = f".{map_index}" if map_index >= 0 else ""
        return f"{self._place}/{file_name(task_id)}{index}.json"


def _minute(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
