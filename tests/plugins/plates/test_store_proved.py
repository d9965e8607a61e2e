"""Runs whose tarballs the store put together and proved: told apart in verdict, question and receipt, and kept by default."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from hooks.task import run_async
from operators.plates.approval import PlateApprovalOperator, proved_plates

from harness.plates import servers
from harness.plates.simulated import simulated
from include.core.errors import VerificationError
from include.plates.approval import body, digest_of
from include.plates.models import Level
from include.plates.request import BackupRequest
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.test_backup_steps import receipt
from tests.plugins.plates.test_delete import delete as delete_of
from tests.plugins.plates.test_gate import ask, gate, parked, proved, say

__all__ = ["parked"]
BY_CHECKSUMS = {"compression": "none", "copy_by": "server", "proof": "store_proved"}


@pytest.fixture
def kept(store: Store, tmp_path: Path, connect: Any) -> Iterator[Store]:
    """The same on a store that keeps checksums as S3 does, with an image that it can copy in each plate."""
    with simulated(tmp_path / "journals") as made:
        keys = {"login": "rehearsal", "password": "rehearsal-secret"}
        extra = {"endpoint_url": made.bench.url, "region_name": "us-east-1"}
        connect("waybill_aws", json.dumps({"conn_type": "aws", **keys, "extra": extra}))
        other = dataclasses.replace(
            store, url=made.bench.url, live=made.bench.live, cold=made.bench.cold, access=made.bench.access
        )
        for name in ("20585", "20586"):
            image = f"projects/{servers.PROJECT}/{servers.BATCH}/images/{name}/Images/big.tiff"
            other.put(image, servers.noise(name, 6 * 1024 * 1024))
        yield other


def test_the_question_the_digest_and_the_receipt_say_which_proof_it_is(kept: Store):
    run, _ = proved(kept, "20585", "20586", **BY_CHECKSUMS, deletion_needs="store_proved")
    asked = ask(run).body
    assert asked.count("V1 to V5, store-proved") == 2 and "**store-proved**: nothing was read" in asked
    assert "read back whole" not in asked
    told = receipt(run, kept)
    assert "all of them store-proved, not read back" in told.outcome
    assert {item["verify"]["level"] for item in told.items} == {"store_proved"}
    say(run)
    passed = gate(run)
    for entry in passed:
        delete_of(run, entry)
    left = kept.keys()
    assert not {key for key in left if key.endswith("big.tiff")}


def test_a_run_with_both_proofs_says_of_which_plates(kept: Store):
    run, _ = proved(kept, "20585", "20586", **BY_CHECKSUMS, deletion_needs="store_proved")
    first, second = run_async(proved_plates(run.context("gate")))
    plates = [dataclasses.replace(first, verdict=_read_back(first.verdict)), second]
    asked = body(BackupRequest.model_validate(run.conf), plates, {})
    assert asked.count("V1 to V5, store-proved") == 1 and asked.count("V1 to V5, read back") == 1
    assert "1 plate of 2, see the column *proof*, are **store-proved**" in asked


def test_a_proof_by_checksums_alone_lets_nothing_be_deleted_by_default(kept: Store, monkeypatch: pytest.MonkeyPatch):
    """The request would be refused before; gate and deletion look at the proof all the same."""
    run, _ = proved(kept, "20585", **BY_CHECKSUMS, deletion_needs="store_proved")
    ask(run)
    say(run)
    passed = gate(run)
    order = BackupRequest.order
    monkeypatch.setattr(
        BackupRequest,
        "order",
        lambda self, digest, **more: dataclasses.replace(order(self, digest, **more), needs=Level.READ_BACK),
    )
    with pytest.raises(VerificationError, match="store-proved"):
        delete_of(run, passed[0])
    with pytest.raises(AirflowSkipException):
        run.execute(PlateApprovalOperator(task_id="approval"))
    assert kept.files.keys() <= kept.keys()


def test_an_approval_at_one_level_is_none_at_the_other(kept: Store):
    run, _ = proved(kept, "20585", **BY_CHECKSUMS, deletion_needs="store_proved")
    plates = run_async(proved_plates(run.context("gate")))
    request = BackupRequest.model_validate(run.conf)
    weak = digest_of(request, plates)
    strong = [dataclasses.replace(one, verdict=_read_back(one.verdict)) for one in plates]
    assert digest_of(request, strong) != weak
    asked = BackupRequest.model_validate({**run.conf, "proof": "read_back", "deletion_needs": "read_back"})
    assert digest_of(asked, plates) != weak


def _read_back(verdict: Any) -> Any:
    volumes = tuple(one.model_copy(update={"level": Level.READ_BACK}) for one in verdict.volumes)
    return verdict.model_copy(update={"volumes": volumes})
