"""Puts a question to a person and records question and answer. What an answer leads to is a subclass's or the gate's doing.

Invariant: only what is recorded beside the receipt counts, out of Airflow's reach: in Airflow a role with edit rights can
mark the question success, and who may write XComs can write an answer there. Airflow shows the text of a task's first
question for as long as the run exists; a later one stands in the receipt, and its answer needs a code (`needs_code`).

Longer than 120 lines: asking, waiting and taking the answer write one record, and are read together.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, ClassVar

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context, Param
from airflow.sdk.definitions.retry_policy import RetryDecision
from hooks.questions import answer_url, approvers, put_question, question_store, triggered_by
from hooks.task import owner_of, run_async
from hooks.waybill import receipts, write_note
from operators.common.base import WaybillOperator, WaybillRetry
from operators.common.receipt import ReceiptLink, completed, receipt_url

from include.core.errors import Unanswered, WaybillError
from include.core.questions import APPROVE, REJECT, Answer, People, Question, Record, asked, full_text
from include.core.receipt import Receipt

_MOST_TRIES = 100


class AskAgain(WaybillError):
    """The question must be put anew, with the text of now."""


class QuestionRetry(WaybillRetry):
    """A question is put anew only where the operator says so; a deadline or a refusal ends the task."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        if isinstance(exception, AskAgain):
            return RetryDecision.retry(timedelta(seconds=1), "the question is put anew")
        if isinstance(exception, WaybillError):
            return super().evaluate(exception, try_number, max_tries, context)
        return RetryDecision.fail("a question is not put anew after an error that nobody expects")


class QuestionOperator(WaybillOperator, HITLOperator):
    """Base: a subclass composes the question, and says what follows from the answer.

    There is no default answer: silence is none.
    """

    options_of_kind: ClassVar[tuple[str, ...]] = (APPROVE, REJECT)
    needs_code: ClassVar[bool] = (
        True  # whether an answer to a text that Airflow does not show must prove which it is about
    )
    operator_extra_links = (ReceiptLink(),)

    def __init__(self, **kwargs: Any):
        fixed: dict[str, Any] = {"retries": _MOST_TRIES, "retry_policy": QuestionRetry(), "execution_timeout": None}
        fixed["options"] = list(self.options_of_kind)
        if self.needs_code:
            about = "Only where the receipt of this run names one."
            fixed["params"] = {"code": Param(None, about, source="task", type=["null", "string"], title="Code")}
        super().__init__(subject="Question", **{**kwargs, **fixed})

    def question(self, context: Context) -> Question | None:
        """What to ask now; None if there is nothing to ask."""
        raise NotImplementedError

    def people(self, context: Context) -> People:
        """Whose answer counts."""
        return approvers(context["ti"].dag_id)

    def nothing_to_ask(self, context: Context) -> Any:
        """What the task does where there is no question."""
        raise NotImplementedError

    def answered(self, context: Context, record: Record) -> None:
        """What the task does with an answer, which is recorded. Nothing by default: a gate judges it."""

    def receipt_so_far(self, context: Context) -> Receipt:
        """The receipt while the answer is awaited; what waits for it is added."""
        owner = owner_of(context)
        return Receipt(dag_id=owner.dag_id, run_id=owner.run_id, state="running", outcome="")

    def execute(self, context: Context) -> Any:
        with self.recording(context):
            store, owner = question_store(context), owner_of(context)
            before = run_async(store.read(owner.task_id, owner.map_index))
            record = Record(
                task_id=owner.task_id, map_index=owner.map_index, earlier=before.history() if before else ()
            )
            run_async(store.write(record))  # an answer of before is no answer to what is asked now
            question = self.question(context)
            if question is None:
                return self.nothing_to_ask(context)
            asker, allowed = triggered_by(context), self.people(context)
            able = allowed.able(asker) or allowed.ids
            record = asked(question, record, able, asker, answer_url(context), time.time())
            self.subject = f"{question.subject} [{question.sha256}]"
            self.body = full_text(question, record, receipt_url(owner.dag_id, owner.run_id))
            self.options = list(question.options)
            self.response_timeout = timedelta(days=question.days)
            # Airflow refuses the answers of others at once (docs/protocols/airflow.md 5.2); that they do not count is
            # not its doing.
            self.assigned_users = [{"id": one, "name": one} for one in able]
            record = record.changed("asked", text=self.body)
            run_async(store.write(record))
            if self._shown_by_airflow(context) != self.subject:
                record = record.behind_an_old_text(self.needs_code)
                run_async(store.write(record))
            self._say_so(context, record)
            return super().execute(context)

    def _shown_by_airflow(self, context: Context) -> str:
        return put_question(
            context["ti"].id,
            subject=self.subject,
            body=self.body,
            options=self.options,
            params=self.serialized_params,
            assigned_users=self.assigned_users,
        )

    def _say_so(self, context: Context, record: Record) -> None:
        """The receipt and the run's note while the answer is awaited, which may take days."""
        waits = {"state": "running", "outcome": f"Waiting for an answer: {record.subject}"}
        waits["remedy"] = f"{record.who_can_answer}."
        receipt = completed(self.receipt_so_far(context), context, None).model_copy(update=waits)
        run_async(receipts().write(receipt))
        self.log.info("%s", receipt.sentence)
        url = receipt_url(receipt.dag_id, receipt.run_id)
        context["ti"].xcom_push(key=ReceiptLink().xcom_key, value=url)
        write_note(receipt.dag_id, receipt.run_id, receipt.sentence)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Airflow calls this with the answer as its own database has it, or at the deadline."""
        with self.recording(context):
            store, owner = question_store(context), owner_of(context)
            record = run_async(store.read(owner.task_id, owner.map_index))
            if record is None or record.state != "asked":
                raise AskAgain(
                    "this question was put by an earlier release, or for another request: it is put anew; "
                    "where that does not happen, clear this task"
                )
            if event.get("error_type") == "timeout":
                run_async(store.write(record.changed("expired", why=f"nobody answered until {record.until}")))
                raise Unanswered(f"nobody answered until {record.until}: {', '.join(record.people)} could have")
            self.options = list(record.options)
            payload = super().execute_complete(context, event)
            when = event["responded_at"]
            answer = Answer(
                chosen_options=event["chosen_options"],
                responded_by_user=event["responded_by_user"],
                params_input=event.get("params_input"),
                responded_at=when.isoformat() if hasattr(when, "isoformat") else str(when),
            )
            record = record.changed("answered", answer=answer)
            run_async(store.write(record))
            self.answered(context, record)
            return payload
