"""How long a step waits for a store that is out of reach: as the run's conf says, in every step and in the trigger."""

from __future__ import annotations

import asyncio
from typing import Any

import hooks.aws
import pytest

from tests.plugins.plates.conftest import Store
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_delete import delete
from tests.plugins.plates.test_drill import configure, drilled
from tests.plugins.plates.test_gate import answer, ask, parked, proved
from tests.plugins.plates.test_restore import freeze, waiting

__all__ = ["parked"]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The patience, in seconds, of every store that is opened."""
    opened, real = list[float](), hooks.aws.s3_access

    def seen(connection: Any, patience: Any = None) -> Any:
        opened.append(patience.seconds if patience else 0.0)
        return real(connection, patience)

    monkeypatch.setattr(hooks.aws, "s3_access", seen)
    return opened


def test_every_step_of_a_backup_waits_as_long_as_the_run_says(store: Store, patience: list[float]):
    run, _ = proved(store, "20585", store_patience=7)
    archived = len(patience)
    ask(run)
    asked = len(patience)
    (passed,) = answer(run)
    let_through = len(patience)
    delete(run, passed)
    assert 0 < archived < asked < let_through < len(patience), "a step has opened no store"
    assert set(patience) == {420.0}


def test_the_trigger_that_waits_for_cold_storage_does_so_too(
    store: Store, patience: list[float], monkeypatch: pytest.MonkeyPatch
):
    run, _ = proved(store, "20585", delete_parts=[])
    freeze(store)
    ids = {"project": run.conf["project"], "batch": run.conf["batch"], "plate_id": "20585", "plate_id_full": "20585"}
    conf = {name: run.conf[name] for name in ("project", "batch", "bucket", "archive_bucket", "plates")}
    restore = Run("plate_restore", {**conf, "store_patience": 7}, "manual__restore")
    monkeypatch.setattr("include.s3.bucket.Head.cold", property(lambda self: True))
    patience.clear()
    trigger = waiting(restore, {"plate": "001_20585", "name": "20585", "ids": ids})["trigger"]

    async def look() -> None:
        async with trigger.observer() as observe:
            await observe()

    asyncio.run(look())
    assert patience == [420.0, 420.0]
    del trigger.options["store_patience"]  # as an earlier release deferred it
    asyncio.run(look())
    assert patience[-1] == 0.0


def test_a_drill_waits_as_long_as_others_do_by_default(store: Store, connect: Any, patience: list[float]):
    proved(store, "20585", delete_parts=[])
    configure(store, connect)
    patience.clear()
    drilled(Run("plate_drill", {}))
    assert len(patience) == 2 and set(patience) == {600.0}
