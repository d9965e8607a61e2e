"""What must protect the tarball before its source is deleted (docs/faults.md, V6): read from the store, right before
the first deletion."""

from __future__ import annotations

import datetime

import pytest

from harness.plates.bench import Bench
from include.plates.errors import RetentionRefused
from include.plates.models import Verdict
from tests.include.plates.test_delete import delete, order, plate_keys, proved


def test_retention_versioned_and_locked_are_preconditions(bench: Bench):
    verdict = proved(bench)
    for retention in ("versioned", "locked"):
        with pytest.raises(RetentionRefused):
            delete(bench, verdict, order(verdict, retention=retention))
    assert plate_keys(bench) == set(bench.files)


def test_retention_versioned_is_met_by_a_versioned_archive_bucket(versioned: Bench):
    verdict = proved(versioned)
    with pytest.raises(RetentionRefused):
        delete(versioned, verdict, order(verdict, retention="locked"))
    assert delete(versioned, verdict, order(verdict, retention="versioned")).complete


def locked(bench: Bench) -> Verdict:
    bench.client.create_bucket(Bucket=bench.cold + "-locked", ObjectLockEnabledForBucket=True)
    bench.cold += "-locked"
    return proved(bench)


def hold(bench: Bench, verdict: Verdict, status: str) -> None:
    for one in verdict.volumes:
        bench.client.put_object_legal_hold(Bucket=bench.cold, Key=one.key, LegalHold={"Status": status})


def test_retention_locked_is_met_by_a_legal_hold_and_looked_at_right_before_the_first_deletion(bench: Bench):
    verdict = locked(bench)
    hold(bench, verdict, "ON")
    hold(bench, verdict, "OFF")
    with pytest.raises(RetentionRefused):
        delete(bench, verdict, order(verdict, retention="locked"))
    assert plate_keys(bench) == set(bench.files)
    hold(bench, verdict, "ON")
    assert delete(bench, verdict, order(verdict, retention="locked")).complete


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_retention_locked_is_met_by_a_date_that_the_store_holds_until_it_is_over(mode: str, bench: Bench):
    verdict = locked(bench)
    until = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=10)
    first, *others = verdict.volumes
    for one in others:
        bench.client.put_object_retention(
            Bucket=bench.cold, Key=one.key, Retention={"Mode": mode, "RetainUntilDate": until}
        )
    with pytest.raises(RetentionRefused, match=first.key):  # each tarball must have its own
        delete(bench, verdict, order(verdict, retention="locked"))
    bench.client.put_object_retention(
        Bucket=bench.cold, Key=first.key, Retention={"Mode": mode, "RetainUntilDate": until}
    )
    with pytest.raises(RetentionRefused):
        delete(bench, verdict, order(verdict, retention="locked"), clock=lambda: until.timestamp() + 1)
    assert plate_keys(bench) == set(bench.files)
    assert delete(bench, verdict, order(verdict, retention="locked"), clock=lambda: until.timestamp() - 1).complete
