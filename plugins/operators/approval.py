"""Asks a person before anything irreversible, and says who may answer. The answer is judged by operators/gate.py.

The thing to know before changing it: an approval is for one digest. Airflow's own UI and API take the answer, and a role
with edit rights can mark the question success, so nothing here is a guard: the gate is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import BaseHook, Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSkipException

from include.core.errors import RequestError

APPROVE, REJECT = "Approve", "Reject"
APPROVALS = "waybill_approvals"


@dataclass(frozen=True)
class Approvers:
    """Who may approve, by the ids of Airflow's auth manager (the login name under the simple one)."""

    ids: tuple[str, ...]
    self_approval: bool = False

    def barred(self, user_id: str, user_name: str, triggered_by: str | None) -> str | None:
        """Why this person's answer does not count; None if it does."""
        if user_id not in self.ids:
            return f"{user_id} is not one of the approvers ({', '.join(self.ids)})"
        if self.self_approval:
            return None
        if triggered_by is None:
            return "it is not known who triggered the run, so it may have been the approver"
        if triggered_by in (user_id, user_name):
            return f"{user_id} triggered this run, and another person must approve it"
        return None


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


@dataclass(frozen=True)
class Question:
    """What a person is asked. `sha256` names exactly what is approved; it is added to subject and body."""

    subject: str
    body: str
    sha256: str
    days: float


class ApprovalOperator(HITLOperator):
    """Puts the question that a subclass composes, or skips where there is none. XCom `asked` holds the digest.

    No retries (each would ask anew) and no default answer: silence is no approval.
    """

    def __init__(self, **kwargs: Any):
        fixed: dict[str, Any] = {"retries": 0, "execution_timeout": None, "options": [APPROVE, REJECT]}
        super().__init__(subject="Approval", **{**kwargs, **fixed})

    def question(self, context: Context) -> Question | None:
        """What to ask now; None if there is nothing to approve."""
        raise NotImplementedError

    def execute(self, context: Context) -> Any:
        question = self.question(context)
        if question is None:
            raise AirflowSkipException("there is nothing to approve")
        allowed = approvers()
        self.subject = f"{question.subject} [{question.sha256}]"
        self.body = f"{question.body}\n\nDigest of what you approve: `{question.sha256}`\n"
        self.response_timeout = timedelta(days=question.days)
        # Airflow refuses the answers of others at once; that they do not count is the gate's doing.
        triggered_by = getattr(context["dag_run"], "triggering_user_name", None)
        able = [one for one in allowed.ids if allowed.self_approval or one != triggered_by]
        self.assigned_users = [{"id": one, "name": one} for one in able or allowed.ids]
        context["ti"].xcom_push(key="asked", value={"sha256": question.sha256, "subject": self.subject})
        return super().execute(context)
