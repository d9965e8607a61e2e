"""GlobusBatchOperator in a DAG of its own, GlobusTaskSensor, the trigger, and cancelling by maintenance."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from operators.common.maintenance import CancellationsOperator
from operators.globus.globus_batch import GlobusBatchOperator
from sensors.globus_task import GlobusTaskSensor
from triggers.globus import GlobusTaskTrigger

from harness.fixtures import Connect
from include.core.errors import NotFound, RemoteError, RequestError, VerificationError
from include.core.ledger import Ledger, State
from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION
from tests.include.globus.conftest import World
from tests.plugins.doubles import Run
from tests.plugins.globus.conftest import connection

MANUAL = Path(__file__).parents[3] / "docs" / "jgi.md"


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path, quick_looks: None) -> None:
    """Documents and records lie beside the receipts; the trigger opens the ledger."""


def items(world: World, *names: str, **wrong_md5: str) -> list[dict[str, Any]]:
    found = [world.item(name, as_md5=wrong_md5.get(name)) for name in names]
    return [
        {"source": f"R1/{name}", "destination": name, "size_bytes": one.size_bytes, "md5": one.md5}
        for name, one in zip(names, found, strict=True)
    ]


def test_the_dag_of_the_manual_moves_and_verifies_a_file(world: World, metadata_database: None, tmp_path: Path) -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    (text,) = re.findall(
        r"```python\n(.*?)```", MANUAL.read_text().partition("## Globus in a DAG of your own")[2], re.DOTALL
    )
    assert len([line for line in text.splitlines() if line.strip()]) <= 10
    file = tmp_path / "bring_reads.py"
    file.write_text(text)
    world.item("reads.fastq.gz", b"reads of a sample\n")
    found = DagBag(str(file), bundle_name="manual")
    assert not found.import_errors
    manager = DagBundlesManager()
    manager.sync_bundles_to_db()
    sync_bag_to_db(found, next(iter(manager.get_all_dag_bundles())).name, None)
    assert found.dags["bring_reads"].test().state == "success"
    assert (world.mount / "staging" / "reads.fastq.gz").read_bytes() == b"reads of a sample\n"
    assert len(world.accepted()) == 1


def execute(operator: Any) -> Any:
    return operator.execute(Run().context(operator.task_id))


def batch(given: Any, **options: Any) -> GlobusBatchOperator:
    return GlobusBatchOperator(task_id="move", items=given, deferrable=False, **options)


def test_a_file_that_is_wrong_is_named(world: World) -> None:
    given = items(world, "a", "page", page="0" * 32)
    with pytest.raises(VerificationError, match=r"1 of 2 files are not verified: /staging/page \(mismatch"):
        execute(batch(given))


def test_without_md5_it_is_taken_only_where_that_was_said(world: World) -> None:
    given = [{"source": one["source"], "destination": one["destination"]} for one in items(world, "a")]
    with pytest.raises(VerificationError, match="nothing names its md5"):
        execute(batch(given))
    assert execute(batch(given, require_md5=False))["unverifiable"] == 1


@pytest.mark.parametrize("given", [[], "x", [{"source": "R1/a"}], [{"source": "R1/../../x", "destination": "a"}]])
def test_bad_items_are_refused(world: World, given: Any) -> None:
    with pytest.raises(RequestError):
        execute(batch(given))
    assert not world.accepted()


def test_collections_are_looked_at_first(world: World, connect: Connect) -> None:
    given = items(world, "a")
    connect("waybill_globus", json.dumps(connection(world, destination_collection="0" * 36)))
    with pytest.raises(NotFound):
        execute(batch(given))
    assert not world.accepted()


def test_an_extra_that_is_missing_is_named(world: World, connect: Connect) -> None:
    connect("waybill_globus", json.dumps(connection(world, destination_root="")))
    with pytest.raises(RequestError) as raised:
        execute(batch(items(world, "a")))
    assert "extra destination_root is missing" in str(raised.value.__cause__ or raised.value.__context__)


def deferred(operator: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as raised:
        execute(operator)
    return raised.value


def test_the_trigger_wakes_for_trouble_that_must_be_timed_once(world: World) -> None:
    """A worker that has seen it is not woken for it again; its time is in the trigger's deadline."""
    given = items(world, "a")
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused="wait"))
    trigger = deferred(GlobusBatchOperator(task_id="move", items=given)).trigger
    assert isinstance(trigger, GlobusTaskTrigger)
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=[".*"]))
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused=None))
    event = asyncio.run(_event(trigger))
    assert "PERMISSION_DENIED" in event["why"]
    (task,) = world.sim.engine.tasks
    options = {"tasks": [task], "borne": {task: "PERMISSION_DENIED"}}
    again = _trigger(options, trigger)
    seen = asyncio.run(_look(again))
    assert seen.wake is None


def test_the_sensor_waits_and_tells(world: World) -> None:
    good = _submitted(world, "a")
    assert execute(GlobusTaskSensor(task_id="wait", task_ids=[good], deferrable=False)) == {good: "SUCCEEDED"}
    bad = _submitted(world, "b", "fail_task")
    with pytest.raises(RemoteError, match=f"1 of 2 tasks did not succeed: {bad} FAILED"):
        execute(GlobusTaskSensor(task_id="wait", task_ids=[good, bad], deferrable=False))
    with pytest.raises(RemoteError, match="not known"):
        execute(GlobusTaskSensor(task_id="wait", task_ids=["0" * 36]))


def test_the_sensor_defers_without_the_ledger(world: World) -> None:
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused="wait"))
    task = _submitted(world, "a")
    trigger = deferred(GlobusTaskSensor(task_id="wait", task_ids=[task])).trigger
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused=None))
    event = asyncio.run(_event(trigger))
    assert event["kind"] == "wake"


def test_maintenance_cancels_by_the_exact_id(world: World, ledger: Ledger) -> None:
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, paused="wait"))
    deferred(GlobusBatchOperator(task_id="move", items=items(world, "a")))
    deferred(GlobusBatchOperator(task_id="move2", items=items(world, "b")))
    row, other = ledger.in_states(State.SENT)
    ledger.request_cancel(row, who="amy", why="not wanted")
    told = execute(CancellationsOperator(task_id="cancellations"))
    assert len(told) == 1
    assert str(row.external_id) in told[0]
    ended = {task.id: task.status for task in world.sim.engine.tasks.values()}
    assert ended == {row.external_id: "FAILED", other.external_id: "ACTIVE"}
    assert (ledger.get(row.id).state, ledger.get(other.id).state) == (State.CANCELLED, State.SENT)


def _submitted(world: World, name: str, fault: str | None = None) -> str:
    item = world.item(name)
    if fault:
        world.fault(fault, method="POST", path="/transfer$", times=1)
    document = {**world.batch(item).document(), "submission_id": world.client.submission_id()}
    return world.client.submit(document, lambda: None)[0]  # type: ignore[arg-type]


def _trigger(options: dict[str, Any], like: GlobusTaskTrigger) -> GlobusTaskTrigger:
    return GlobusTaskTrigger(
        conn_id="waybill_globus",
        owner=asdict(like.owner),
        deadline=like.deadline,
        since=like.since,
        poll_seconds=1.0,
        options=options,
    )


async def _event(trigger: Any) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("no event")


async def _look(trigger: GlobusTaskTrigger) -> Any:
    async with trigger.observer() as look:
        return await look()
