"""What Waybill's operators share: the retry policy, the owner of what they ask for, and how they refuse.

The thing to know before changing it: Airflow's retries do not multiply ours. A permanent error fails the task at once; a
transient one is tried again when the remote says so; the retry re-attaches through the ledger.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from hooks.waybill import write_note

from include.core.errors import QuotaExceeded, RequestError, TransientError, WaybillError
from include.core.request import XCOM_LIMIT_BYTES
from include.core.text import pluralize


class WaybillRetry(RetryPolicy):
    """Maps our errors to Airflow: permanent ones fail at once, transient ones come back when it makes sense."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        if isinstance(exception, QuotaExceeded):
            wait = max(60.0, exception.available_at - time.time())
            return RetryDecision.retry(timedelta(seconds=wait), "the quota is full until then")
        if isinstance(exception, TransientError):
            asked = timedelta(seconds=exception.retry_after) if exception.retry_after else None
            return RetryDecision.retry(asked, "a passing trouble")
        if isinstance(exception, WaybillError):
            return RetryDecision.fail("trying again would not help")
        return RetryDecision.default()


# A deferring task needs at least one retry: Airflow can fail a healthy task that is woken early (docs/protocols/airflow.md 2.1), and a worker may die.
DEFAULT_ARGS: dict[str, Any] = {
    "owner": "waybill",
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(hours=1),
    "retry_policy": WaybillRetry(),
    "execution_timeout": timedelta(minutes=30),
}


def truncate_for_xcom(lines: Sequence[str]) -> list[str]:
    """As many of these lines as XCom may hold; the last one says how many more there are."""
    room = XCOM_LIMIT_BYTES - 200
    kept: list[str] = []
    for line in lines:
        room -= len(json.dumps(line)) + 2
        if room < 0:
            return [*kept, f"and {len(lines) - len(kept)} more: see the log"]
        kept.append(line)
    return kept


class WaybillOperator(BaseOperator):
    """Base of our operators: why one failed is told in the log, in XCom and, for a refusal, in the run's note."""

    @contextmanager
    def refusing(self, context: Context) -> Iterator[None]:
        """Publishes why the task fails, for the receipt: XCom `failure`, and every problem of a refusal in `request_errors`."""
        try:
            yield
        except RequestError as error:
            for problem in error.problems:
                self.log.error("refused: %s", problem)
            context["ti"].xcom_push(key="request_errors", value=truncate_for_xcom(error.problems))
            write_note(context["ti"].dag_id, context["ti"].run_id, "Refused: " + "; ".join(error.problems))
            raise RequestError(
                f"refused, {pluralize(len(error.problems), 'problem')}: see the log or XCom request_errors"
            ) from None
        except WaybillError as error:
            context["ti"].xcom_push(key="failure", value=str(error)[:2000])
            raise
