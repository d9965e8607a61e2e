"""What Waybill's operators share: the retry policy, the record of how a step went, and how a request is refused.

Invariant: Airflow's retries do not multiply ours. A permanent error fails the task at once; a transient one is tried again
when the remote says so; the retry re-attaches through the ledger.

Longer than 120 lines: the retry policy and the record of a step belong to every operator, and to nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowSkipException
from hooks.task import run_async, step_records
from hooks.waybill import write_note

from include.core.errors import RemoteError, RequestError, WaybillError
from include.core.request import truncate_for_xcom
from include.core.steps import StepRecords
from include.core.text import few, pluralize, shorten
from include.core.watch import asked_pause, may_pass


class WaybillRetry(RetryPolicy):
    """Maps our errors to Airflow: what may pass comes back when it makes sense, the rest fails at once. What waits for a
    remote (`triggers.leg`) waits by itself, and needs this only where its worker dies."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        if may_pass(exception):
            asked = asked_pause(exception, time.time())
            return RetryDecision.retry(timedelta(seconds=asked) if asked else None, "it may pass")
        if isinstance(exception, WaybillError):
            return RetryDecision.fail("trying again would not help")
        return RetryDecision.default()


# A deferring task needs at least one retry: Airflow 3.3.2 can fail a healthy task that is woken early (docs/protocols/
# airflow.md 2.1), and so may a worker die.
DEFAULT_ARGS: dict[str, Any] = {
    "owner": "waybill",
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=1),
    "retry_policy": WaybillRetry(),
    "execution_timeout": timedelta(minutes=30),
}


class WaybillOperator(BaseOperator):
    """Base of our operators. Each does its work inside of `recording` or `refusing`.

    `step` names the operator's step in the records of its run, by default its task id. Receipts read the records by that
    name, so a DAG may name its tasks as it likes.
    """

    step: ClassVar[str] = ""

    def records(self, context: Context) -> StepRecords:
        """Where the record of this step is kept: among those of the run as a whole, before those of the tasks downstream."""
        return step_records(context, order=(self.step or self.task_id, *self._later_steps()))

    def _later_steps(self) -> list[str]:
        tasks = [self.dag.get_task(task_id) for task_id in sorted(self.get_flat_relative_ids(upstream=False))]
        return [getattr(getattr(task, "operator_class", type(task)), "step", "") or task.task_id for task in tasks]

    @contextmanager
    def recording(self, context: Context, **known: Any) -> Iterator[dict[str, Any]]:
        """Records how the step goes. `known` is recorded at its begin; what is put into the given dict, at its end.

        A step that waits (deferred), that a person ended or whose worker was lost stays `running`.
        """
        step = self.step or self.task_id
        facts = {"task_id": context["ti"].task_id, **known}
        records = self._begun(context, step, facts)
        try:
            yield facts
        except AirflowSkipException as skipped:
            run_async(records.write(step, "skipped", **facts, why=str(skipped)))
            raise
        except WaybillError as error:
            self._record_failure(records, error, facts)
            raise
        run_async(records.end(step, **facts))

    def _begun(self, context: Context, step: str, facts: dict[str, Any]) -> StepRecords:
        """The records, with this step begun. Raises RequestError naming the connection where there is no place for them."""
        try:
            records = self.records(context)
            run_async(records.begin(step, **facts))
        except (RequestError, RemoteError) as error:
            raise RequestError(f"{error}; it needs a folder or bucket that every worker can write to") from None
        return records

    def _record_failure(self, records: StepRecords, error: WaybillError, facts: dict[str, Any]) -> None:
        connections = [value for name, value in vars(self).items() if name.endswith("_conn_id")]
        try:
            run_async(records.end(self.step or self.task_id, error, **{**facts, "connections": connections}))
        except WaybillError as other:  # the error of the step itself decides whether it is tried again
            self.log.error("the receipt will not tell why this step failed: %s", other)

    @contextmanager
    def refusing(self, context: Context, **known: Any) -> Iterator[dict[str, Any]]:
        """Records how the step goes, and shows why it failed in Airflow: every problem of a refused request in the log, in
        XCom `request_errors` and in the run's note; any other reason in XCom `failure`."""
        try:
            with self.recording(context, **known) as facts:
                yield facts
        except RequestError as error:
            for problem in error.problems:
                self.log.error("refused: %s", problem)
            context["ti"].xcom_push(key="request_errors", value=truncate_for_xcom(error.problems))
            count, rest = pluralize(len(error.problems), "problem"), "all are listed in the log and in the receipt"
            said = few([shorten(problem, 150, rest) for problem in error.problems], 4, rest)
            write_note(context["ti"].dag_id, context["ti"].run_id, f"Refused, {count}: {said}")
            raise RequestError(f"refused, {count}: see the log or XCom request_errors") from None
        except WaybillError as error:
            context["ti"].xcom_push(key="failure", value=shorten(str(error), 2000, "the whole is in the log"))
            raise
