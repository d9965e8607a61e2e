"""Lets through what a person approved, and nothing else. Everything irreversible stands behind it.

The thing to know before changing it: each refusal here is a way in which an approval was bypassed or grew stale in a real
Airflow; removing one must make a test fail.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from operators.approval import APPROVE, REJECT, Approvers, approvers
from operators.base import WaybillOperator

from include.core.errors import VerificationError


@dataclass(frozen=True)
class Decision:
    """What a person decided: by whom, when, about which digest."""

    approved: bool
    by: str
    at: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decision(
    answer: Mapping[str, Any] | None,
    asked: Mapping[str, Any] | None,
    sha256_now: str,
    allowed: Approvers,
    triggered_by: str | None,
) -> Decision:
    """The decision that an answer is. Raises VerificationError where it is none, saying why.

    `answer` is the approval task's XCom, `asked` its XCom of that name, `sha256_now` the digest of what would be done now.
    """
    if not answer or not asked:
        raise VerificationError(
            "nobody answered: the approval was marked success or its answer is gone; clear it to ask again"
        )
    user = answer.get("responded_by_user") or {}
    if not user.get("id"):
        raise VerificationError(
            "the answer carries no person, so it was not given by one; clear the approval to ask again"
        )
    if not hmac.compare_digest(str(asked.get("sha256")), sha256_now):
        raise VerificationError(
            f"the answer is about {asked.get('sha256')}, and what is proved now is {sha256_now}; clear the approval to ask again"
        )
    chosen = list(answer.get("chosen_options") or [])
    by, at = str(user["id"]), str(answer.get("responded_at"))
    if chosen == [REJECT]:
        return Decision(False, by, at, sha256_now)
    if chosen != [APPROVE]:
        raise VerificationError(
            f"the answer {chosen} is neither {APPROVE} nor {REJECT}; clear the approval to ask again"
        )
    barred = allowed.barred(by, str(user.get("name") or ""), triggered_by)
    if barred:
        raise VerificationError(f"the approval does not count: {barred}. Clear it to ask again")
    return Decision(True, by, at, sha256_now)


class GateOperator(WaybillOperator):
    """Returns the list of what may go on. `answer` is the output of the approval task `approval_task_id`.

    Fails, without retry, where the approval does not count; skips where it was rejected.
    """

    template_fields: Sequence[str] = ("answer",)

    def __init__(self, *, answer: Any, approval_task_id: str = "approval", **kwargs: Any):
        super().__init__(**kwargs)
        self.answer = answer
        self.approval_task_id = approval_task_id

    def sha256_now(self, context: Context) -> str:
        """The digest of what would be done now, computed afresh from the proofs."""
        raise NotImplementedError

    def passed(self, context: Context, decided: Decision) -> list[dict[str, Any]]:
        """What may go on after an approval: the subclass leaves out what changed since it was proved."""
        raise NotImplementedError

    def note(self, context: Context, state: str, facts: Mapping[str, Any]) -> None:
        """Keeps what was decided for the receipt."""

    def execute(self, context: Context) -> list[dict[str, Any]]:
        asked = context["ti"].xcom_pull(task_ids=self.approval_task_id, key="asked")
        triggered_by = getattr(context["dag_run"], "triggering_user_name", None)
        try:
            decided = decision(self.answer, asked, self.sha256_now(context), approvers(), triggered_by)
        except VerificationError as error:
            self.note(context, "refused", {"why": str(error)})
            raise
        context["ti"].xcom_push(key="decision", value=decided.to_dict())
        if not decided.approved:
            self.note(context, "rejected", decided.to_dict())
            raise AirflowSkipException(f"{decided.by} rejected it")
        self.note(context, "approved", decided.to_dict())
        return self.passed(context, decided)
