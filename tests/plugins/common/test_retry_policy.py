"""Which error comes back and when: Airflow's retries do not multiply ours."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction
from operators.common.base import WaybillRetry

from include.core import errors
from include.core.ledger.submit import AttemptLost, InDoubt

RETRY, FAIL, DEFAULT = RetryAction.RETRY, RetryAction.FAIL, RetryAction.DEFAULT
TABLE = [
    (errors.TransientError("busy"), RETRY, None),
    (errors.TransientError("busy", retry_after=42), RETRY, timedelta(seconds=42)),
    (errors.TransientError("busy", retry_after=9999999999), RETRY, timedelta(hours=1)),
    (errors.CommandFailed("exit status 1"), RETRY, None),
    (AttemptLost("another worker"), RETRY, timedelta(seconds=1)),
    (InDoubt("not found yet", retry_after=90), RETRY, timedelta(seconds=90)),
    (errors.QuotaExceeded("full", available_at=0.0), RETRY, timedelta(seconds=60)),
    (errors.AuthError("401"), RETRY, None),
    (errors.Forbidden("403"), FAIL, None),
    (errors.RequestError("wrong"), FAIL, None),
    (errors.NotFound("404"), FAIL, None),
    (errors.ConflictingRequest("another payload"), FAIL, None),
    (errors.RemoteError("refused"), FAIL, None),
    (errors.VerificationError("used up"), FAIL, None),
    (errors.DeadlinePassed("seven days"), FAIL, None),
    (errors.Held("held"), FAIL, None),
    (errors.Cancelled("by a person"), FAIL, None),
    (errors.LedgerError("missing"), FAIL, None),
    (errors.Stopped("amy stopped it"), FAIL, None),
    (errors.Unanswered("nobody answered"), FAIL, None),
    (ValueError("a mistake of ours"), DEFAULT, None),
    (ConnectionResetError("of a library"), DEFAULT, None),
]


@pytest.mark.parametrize(("error", "action", "delay"), TABLE, ids=lambda value: type(value).__name__)
def test_each_error_has_its_rule(error: Exception, action: RetryAction, delay: timedelta | None):
    decision = WaybillRetry().evaluate(error, 1, 4)
    assert (decision.action, decision.retry_delay) == (action, delay)


def test_every_error_of_waybill_stands_in_the_table():
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    ours = {kind for kind in below(errors.WaybillError) if kind.__module__ in (errors.__name__, AttemptLost.__module__)}
    assert ours - {errors.WaybillError} == {
        type(error) for error, *_ in TABLE if isinstance(error, errors.WaybillError)
    }


def test_a_full_quota_is_waited_for_until_it_is_free_again():
    decision = WaybillRetry().evaluate(errors.QuotaExceeded("full", available_at=time.time() + 7200), 1, 4)
    assert decision.retry_delay is not None
    assert decision.retry_delay.total_seconds() == pytest.approx(7200, abs=10)
