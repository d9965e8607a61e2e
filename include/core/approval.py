"""Approvals without Airflow: who may answer, what is asked, and whether an answer counts."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from include.core.errors import VerificationError

APPROVE, REJECT = "Approve", "Reject"


@dataclass(frozen=True)
class Approvers:
    """Who may approve, by the ids of Airflow's auth manager (the login name under the simple one)."""

    ids: tuple[str, ...]
    self_approval: bool = False

    def rejection_reason(self, user_id: str, user_name: str, triggered_by: str | None) -> str | None:
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


@dataclass(frozen=True)
class Question:
    """What a person is asked. `sha256` names exactly what is approved; it is added to subject and body. `about` says for
    the gate and the receipt what the question is about."""

    subject: str
    body: str
    sha256: str
    days: float
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What a person decided: by whom, when, about which digest."""

    approved: bool
    by: str
    at: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decision(record: Mapping[str, Any], sha256_now: str, allowed: Approvers, triggered_by: str | None) -> Decision:
    """The decision that is recorded. Raises VerificationError where there is none that counts, saying why.

    `record` is what `approval_record` gives, `sha256_now` the digest of what would be done now.
    """
    answer = record.get("answer")
    if not answer:
        raise VerificationError(
            "nobody answered: the approval was marked success, or its record is gone; clear it to ask again"
        )
    user = answer.get("responded_by_user") or {}
    if not user.get("id"):
        raise VerificationError(
            "the answer carries no person, so it was not given by one; clear the approval to ask again"
        )
    if not hmac.compare_digest(str(record.get("sha256")), sha256_now):
        raise VerificationError(
            f"the answer is about {record.get('sha256')}, and what is proved now is {sha256_now}; clear the approval to ask again"
        )
    chosen = list(answer.get("chosen_options") or [])
    by, at = str(user["id"]), str(answer.get("responded_at"))
    if chosen == [REJECT]:
        return Decision(False, by, at, sha256_now)
    if chosen != [APPROVE]:
        raise VerificationError(
            f"the answer {chosen} is neither {APPROVE} nor {REJECT}; clear the approval to ask again"
        )
    rejection_reason = allowed.rejection_reason(by, str(user.get("name") or ""), triggered_by)
    if rejection_reason:
        raise VerificationError(f"the approval does not count: {rejection_reason}. Clear it to ask again")
    return Decision(True, by, at, sha256_now)
