"""Asks a person before anything irreversible. The answer is judged by operators/common/gate.py.

Invariant: an approval is for one digest, of exactly what will be done.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from operators.common.question import QuestionOperator


class ApprovalOperator(QuestionOperator):
    """Puts the question that a subclass composes, or skips where there is none."""

    def nothing_to_ask(self, context: Context) -> Any:
        raise AirflowSkipException("there is nothing to approve")
