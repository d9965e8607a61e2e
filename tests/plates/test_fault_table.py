"""Every case of the fault table once: nothing is lost, and what has no fault is deleted to the end."""

from __future__ import annotations

from typing import Any

import pytest

from include.plates import deletion, verifying
from include.plates.bucket import Bucket
from include.plates.models import Outcome
from tests.plates.fault_table import CASES, Case, play, procedure

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_nothing_is_lost(case: Case, moto_url: str):
    played = play(case, moto_url, seed=1)
    assert played.ours == 0, played
    if case.completes:
        assert played.report is not None, played.said
        assert played.report.complete and played.deleted > 0


def test_the_procedure_s_own_check_loses_objects_in_many_of_these_cases():
    losing = {case.name for case in CASES if case.custom is None and procedure(case, seed=1) > 0}
    assert {"F17 one flipped bit at rest", "F21 a new object after the proof"} < losing
    assert "no fault" not in losing and "a plate id that begins another's" not in losing


# The table can fail: without a guard, objects are lost


def test_without_the_proof_a_damaged_tarball_costs_objects(moto_url: str, monkeypatch: pytest.MonkeyPatch):
    verdict = verifying._Verification.verdict

    def blind(self: Any) -> Any:
        told = verdict(self)
        checks = tuple(check.model_copy(update={"outcome": Outcome.VERIFIED}) for check in told.checks)
        return told.model_copy(update={"outcome": Outcome.VERIFIED, "checks": checks})

    monkeypatch.setattr(verifying._Verification, "verdict", blind)
    for name in ("F17 one flipped bit at rest", "F19 a part is lost", "one image is not in the tarball"):
        assert play(BY_NAME[name], moto_url, seed=1).ours > 0, name


def test_without_the_guard_of_each_key_an_overwritten_object_is_lost(moto_url: str, monkeypatch: pytest.MonkeyPatch):
    async def unguarded(self: Any, target: Any, **_: Any) -> Any:
        await self._source.delete_one(target.key)
        return deletion.KeyOutcome(target.key, None, deletion.Result.DELETED)

    monkeypatch.setattr(deletion.Deleter, "_one", unguarded)
    lost = [
        play(BY_NAME["F20 an object overwritten while the deletion runs"], moto_url, seed).ours for seed in range(8)
    ]
    assert sum(lost) > 0


def test_without_the_look_before_the_first_key_a_changed_plate_is_deleted(
    moto_url: str, monkeypatch: pytest.MonkeyPatch
):
    async def careless(self: Bucket, key: str, **_: Any) -> Any:
        return await self.access.call("delete_object", "DELETE", Bucket=self.name, Key=key)

    monkeypatch.setattr(Bucket, "delete_one", careless)
    monkeypatch.setattr("include.plates.deleting._Deletion.check_source", _passes)
    monkeypatch.setattr("include.plates.deletion.learn_guard", _no_guard)
    monkeypatch.setattr("include.plates.deleting.learn_guard", _no_guard)
    assert play(BY_NAME["F20 an object overwritten after the proof"], moto_url, seed=1).ours > 0


async def _passes(*_: Any) -> None:
    return None


async def _no_guard(*_: Any) -> Any:
    return deletion.Guard.SINGLE_ETAG
