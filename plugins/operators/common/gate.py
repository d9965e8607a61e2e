"""Lets through what a person approved, and nothing else. Everything irreversible stands behind it.

Invariant: each refusal here is a way in which an approval was bypassed or grew stale in a real
Airflow (docs/protocols/airflow.md 3.6, 5); removing one must make a test fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from hooks.questions import approvers, question_store
from hooks.task import owner_of, run_async
from operators.common.base import WaybillOperator

from include.core.errors import VerificationError
from include.core.questions import Record, judge

QUESTION = "approval"  # the task id of the question that a gate stands behind, where a DAG names no other


@dataclass(frozen=True)
class Passed:
    """One thing that may go on: its name, the digest of what may be acted on, and what the next task is given."""

    name: str
    sha256: str
    entry: dict[str, Any]


def question_record(context: Context, question: str = QUESTION, map_index: int = -1) -> Record | None:
    """What is kept of the question of another task of this run."""
    return run_async(question_store(context).read(question, map_index))


def let_through(context: Context, name: str, sha256: str, question: str = QUESTION) -> bool:
    """Whether the gate let pass the thing of this name and digest. Who acts asks again: the gate's XCom can be written.

    A mapped task stands behind the question of its own map index, or where there is none behind that of the run.
    """
    record = question_record(context, question, owner_of(context).map_index) or question_record(context, question)
    return record is not None and record.state == "approved" and record.passed.get(name) == sha256


class GateOperator(WaybillOperator):
    """Returns the entries of what may go on. Fails, without retry, where the answer does not count; skips where it stops.

    `question`: the task that asked.
    """

    def __init__(self, *, question: str = QUESTION, **kwargs: Any):
        super().__init__(**kwargs)
        self.question = question

    def sha256_now(self, context: Context, record: Record) -> str:
        """The digest of what would be done now, computed afresh from the proofs; `record.about` is what was asked about."""
        raise NotImplementedError

    def passed(self, context: Context, record: Record) -> list[Passed]:
        """What may go on after this answer (`record.option`). The subclass leaves out what changed since."""
        raise NotImplementedError

    def execute(self, context: Context) -> list[dict[str, Any]]:
        with self.recording(context) as facts:
            store = question_store(context)
            record = question_record(context, self.question, owner_of(context).map_index)
            try:
                about = record or Record(task_id=self.question)
                decided = judge(record, self.sha256_now(context, about), approvers(context["ti"].dag_id))
            except VerificationError as error:
                if record is not None:
                    run_async(store.write(record.changed("refused", why=str(error), passed={})))
                raise
            if decided.state == "rejected":
                run_async(store.write(decided.changed("rejected", why="", passed={})))
                raise AirflowSkipException(f"{decided.by} answered “{decided.option}”")
            passed = self.passed(context, decided)
            digests = {one.name: one.sha256 for one in passed}
            run_async(store.write(decided.changed("approved", why="", passed=digests)))
            facts |= {"by": decided.by, "passed": len(passed)}
        return [one.entry for one in passed]
