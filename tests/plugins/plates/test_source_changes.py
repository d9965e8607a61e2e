"""Approval and gate over the table of what may happen to a plate after its proof: said before anyone is asked."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from operators.plates.approval import PlateApprovalOperator

from harness.plates.source_changes import IDS, TABLE, SourceChange, lagging
from include.s3.bucket import Bucket
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.test_backup_steps import receipt
from tests.plugins.plates.test_gate import answer, ask, parked, proved

__all__ = ["parked"]


def happen(change: SourceChange, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(key for key in sorted(store.files) if key.endswith("Index.idx.xml"))
    change.happen(store.client, store.live, key)
    if change.hidden:
        for name, listing in lagging(key).items():
            monkeypatch.setattr(Bucket, name, listing)


@pytest.mark.parametrize(("change", "versioned"), TABLE, ids=IDS)
def test_approval_says_it_before_anyone_is_asked(
    change: SourceChange, versioned: bool, store: Store, monkeypatch: pytest.MonkeyPatch
):
    if versioned:
        store.versioned()
    run, _ = proved(store, "20585")
    happen(change, store, monkeypatch)
    if not change.says:
        ask(run)
        return
    with pytest.raises(AirflowSkipException):
        run.execute(PlateApprovalOperator(task_id="approval"))
    item = receipt(run, store).items[0]
    assert item["state"] == "mismatch" and change.says in item["why"]


@pytest.mark.parametrize(("change", "versioned"), TABLE, ids=IDS)
def test_gate_says_it_and_lets_nothing_through(
    change: SourceChange, versioned: bool, store: Store, monkeypatch: pytest.MonkeyPatch
):
    if versioned:
        store.versioned()
    run, _ = proved(store, "20585")
    ask(run)
    happen(change, store, monkeypatch)
    passed = answer(run)
    assert [entry["name"] for entry in passed] == ([] if change.says else ["20585"])
    if change.says:
        item = receipt(run, store).items[0]
        assert item["state"] == "approval void" and change.says in item["why"]
