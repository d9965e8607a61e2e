"""Lets through what a person approved, and nothing else. Everything irreversible stands behind it.

Invariant: each refusal here is a way in which an approval was bypassed or grew stale in a real
Airflow (docs/protocols/airflow.md 3.6, 5); removing one must make a test fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from operators.common.approval import approval_record, approvers, record_approval
from operators.common.base import WaybillOperator

from include.core.approval import decision
from include.core.errors import VerificationError


def let_through(context: Context, name: str, sha256: str) -> bool:
    """Whether the gate let pass the thing of this name and digest. Who acts asks again: the gate's XCom can be written."""
    record = approval_record(context)
    return record.get("state") == "approved" and (record.get("passed") or {}).get(name) == sha256


class GateOperator(WaybillOperator):
    """Returns the list of what may go on. Fails, without retry, where the approval does not count; skips where it was
    rejected."""

    def sha256_now(self, context: Context, about: Mapping[str, Any]) -> str:
        """The digest of what would be done now, computed afresh from the proofs. `about` is what was asked about."""
        raise NotImplementedError

    def passed(self, context: Context, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """By name, the entry of each thing that may go on after an approval; its `verdict` is a Document.

        The subclass leaves out what changed since.
        """
        raise NotImplementedError

    def execute(self, context: Context) -> list[dict[str, Any]]:
        record = approval_record(context)
        kept = {name: record.get(name) for name in ("sha256", "subject", "about", "answer")}
        about = record.get("about") or {}
        triggered_by = getattr(context["dag_run"], "triggering_user_name", None)
        try:
            decided = decision(record, self.sha256_now(context, about), approvers(), triggered_by)
        except VerificationError as error:
            record_approval(context, "refused", **kept, why=str(error))
            raise
        if not decided.approved:
            record_approval(context, "rejected", **{**kept, **decided.to_dict()})
            raise AirflowSkipException(f"{decided.by} rejected it")
        passed = self.passed(context, about)
        digests = {name: entry["verdict"]["sha256"] for name, entry in passed.items()}
        record_approval(context, "approved", **{**kept, **decided.to_dict()}, passed=digests)
        return list(passed.values())
