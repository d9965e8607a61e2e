"""Asks a person before anything irreversible, and says who may answer. The answer is judged by operators/gate.py.

Invariant: an approval is for one digest. Airflow's own UI and API take the answer, a role with
edit rights can mark the question success, and who may write XComs can write an answer there. So the question, its answer
and what the gate let through are kept in `approval.json` beside the receipt, out of Airflow's reach, and only that counts.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import BaseHook, Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSkipException
from hooks.task import run_async, run_folder
from hooks.waybill import receipts

from include.core.approval import APPROVE, REJECT, Approvers, Question
from include.core.errors import NotFound, RequestError

APPROVALS = "waybill_approvals"
_RECORD = "approval.json"


def approval_record(context: Context) -> dict[str, Any]:
    """What is kept of this run's approval: `state`, and as far as it came `sha256`, `about`, `answer`, `by`, `passed`."""
    try:
        record: dict[str, Any] = json.loads(run_async(receipts().objects.get(f"{run_folder(context)}/{_RECORD}")))
    except NotFound:
        return {}
    return record


def record_approval(context: Context, state: str, **facts: Any) -> None:
    """Replaces the record."""
    data = json.dumps({"state": state, **facts}, ensure_ascii=False, default=str).encode()
    run_async(receipts().objects.put(f"{run_folder(context)}/{_RECORD}", data))


def approvers(conn_id: str = APPROVALS) -> Approvers:
    """The list kept in a connection, where those who trigger runs cannot change it.

    Extras: `approvers`, a list of user ids; `self_approval`, true where one person alone may trigger and approve.
    Raises RequestError where there is no such list.
    """
    try:
        extra = BaseHook.get_connection(conn_id).extra_dejson
    except AirflowNotFoundException:
        extra = {}
    ids = extra.get("approvers")
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) and one for one in ids):
        raise RequestError(
            f'connection {conn_id}: give the extra {{"approvers": ["user id", …]}}; nobody may approve yet'
        )
    return Approvers(tuple(ids), extra.get("self_approval") is True)


class ApprovalOperator(HITLOperator):
    """Puts the question that a subclass composes, or skips where there is none, and records question and answer.

    No retries (each would ask anew) and no default answer: silence is no approval.
    """

    def __init__(self, **kwargs: Any):
        fixed: dict[str, Any] = {"retries": 0, "execution_timeout": None, "options": [APPROVE, REJECT]}
        super().__init__(subject="Approval", **{**kwargs, **fixed})

    def question(self, context: Context) -> Question | None:
        """What to ask now; None if there is nothing to approve."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        record_approval(context, "not asked")  # an answer of before is no answer to what is asked now
        question = self.question(context)
        if question is None:
            raise AirflowSkipException("there is nothing to approve")
        allowed = approvers()
        self.subject = f"{question.subject} [{question.sha256}]"
        self.body = f"{question.body}\n\nDigest of what you approve: `{question.sha256}`\n"
        self.response_timeout = timedelta(days=question.days)
        # Airflow refuses the answers of others at once (docs/protocols/airflow.md 5.2); that they do not count is
        # the gate's doing.
        triggered_by = getattr(context["dag_run"], "triggering_user_name", None)
        able = [one for one in allowed.ids if allowed.self_approval or one != triggered_by]
        self.assigned_users = [{"id": one, "name": one} for one in able or allowed.ids]
        record_approval(context, "asked", sha256=question.sha256, subject=self.subject, about=question.about)
        self.tell_progress(context)
        return super().execute(context)

    def tell_progress(self, context: Context) -> None:
        """Writes the receipt as it stands: an answer may be days away. None by default."""

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Airflow calls this with the answer as its own database has it."""
        answer = super().execute_complete(context, event)
        record_approval(context, "answered", **{**_facts(context), "answer": dict(answer)})
        return answer


def _facts(context: Context) -> dict[str, Any]:
    return {name: value for name, value in approval_record(context).items() if name != "state"}
