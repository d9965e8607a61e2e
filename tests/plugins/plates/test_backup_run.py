"""plate_backup from trigger to receipt in one process: `dag.test()`, with the approval written as the API writes it.

Invariant: `dag.test()` waits for ever for an answer, so a thread gives it, to the question of
the run that is under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from include.core.ledger import Ledger, State
from include.core.ledger.audit import verify
from include.core.receipt import Receipt
from tests.plugins.plates.conftest import Store, rows_of

ROOT = Path(__file__).parents[3]
PARKING_SECONDS = 3.0  # an answer that comes while the task is still being parked would be lost


@contextmanager
def answering(dag_id: str, option: str | None, before: Callable[[], None]) -> Iterator[list[str]]:
    """Answers the open question of a DAG as amy; `option` None marks it success instead. Yields what was asked."""
    stop, asked = threading.Event(), list[str]()

    def loop() -> None:
        while not stop.wait(0.3):
            try:
                if _answer(dag_id, option, before, asked):
                    return
            except Exception as error:  # the database may be busy with the run itself: look again
                asked.append(f"failed: {error}")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        stop.set()
        thread.join(30)


def _answer(dag_id: str, option: str | None, before: Callable[[], None], asked: list[str]) -> bool:
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import handle_event_submit
    from airflow.sdk.timezone import utcnow
    from airflow.triggers.base import TriggerEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        where = (TaskInstance.dag_id == dag_id, TaskInstance.state == "awaiting_input")
        ti = session.scalar(select(TaskInstance).where(*where))
        if ti is None:
            return False
        detail = session.scalar(select(HITLDetail).where(HITLDetail.ti_id == ti.id))
        if (utcnow() - detail.created_at).total_seconds() < PARKING_SECONDS:
            return False
        asked.append(f"{detail.subject}\n{detail.body}")
        before()
        if option is None:
            ti.set_state("success", session=session)
            return True
        detail.responded_by = {"id": "amy", "name": "amy"}
        detail.responded_at = utcnow()
        detail.chosen_options = [option]
        detail.params_input = {}
        event = TriggerEvent(detail.as_resume_event_payload())
        handle_event_submit(event, task_instance=ti, session=session)
    return True


@pytest.fixture
def play(store: Store, metadata_database: Path) -> Callable[..., tuple[Any, list[str]]]:
    """Runs the DAG to its end and gives the run and what was asked."""

    def run(
        conf: dict[str, Any], option: str | None = "Approve", before: Callable[[], None] = lambda: None
    ) -> tuple[Any, list[str]]:
        import airflow.models
        from airflow.dag_processing.dagbag import DagBag
        from sqlalchemy.orm import configure_mappers

        # Two threads that load the models at the same time wait for each other for ever.
        airflow.models.import_all_models()
        configure_mappers()
        dag = DagBag(str(ROOT / "dags"), collect_dags=True).dags["plate_backup"]
        with answering("plate_backup", option, before) as asked:
            return dag.test(run_conf=conf), asked

    return run


def receipt_of(store: Store, run: Any) -> Receipt:
    return Receipt.model_validate_json((store.receipts / "plate_backup" / run.run_id / "receipt.json").read_text())


def states(run: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ti in sorted(run.get_task_instances(), key=lambda ti: (ti.task_id, ti.map_index)):
        found.setdefault(ti.task_id, []).append(str(ti.state))
    return found


PARTS = ["images", "illum", "analysis", "backend"]


def test_approved_plates_are_deleted_and_a_corrupt_one_is_kept_and_explained(
    store: Store, play: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    from operators.plates.tar_backup import TarBackupOperator

    store.seed("20585", "20586", "20589", sites=2)
    work = TarBackupOperator.work

    async def then_a_bit_flips(self: Any, context: Any, notes: Any) -> Any:
        done = await work(self, context, notes)
        if self.plate["name"] == "20586":
            store.flip("20586")
        return done

    monkeypatch.setattr(TarBackupOperator, "work", then_a_bit_flips)
    run, asked = play(store.conf("20585", "20586", "20589", delete_parts=PARTS))
    told = receipt_of(store, run)
    assert [item["state"] for item in told.items] == ["deleted", "mismatch", "deleted"]
    assert (str(run.state), told.state) == ("failed", "incomplete")
    assert len(asked) == 1
    assert "of 2 plates" in asked[0]
    assert "| 20586 |" not in asked[0]
    assert not store.of_plate("20585") | store.of_plate("20589")
    assert store.of_plate("20586") == {key for key in store.files if "/20586/" in key}
    assert told.questions[0]["by"] == "amy"
    assert "approved by amy" in told.outcome
    assert told.items[0]["guard"].startswith("by If-Match")
    assert told.totals["objects deleted"] == sum("/20586/" not in key for key in store.files)
    rows = rows_of(ledger)
    assert {row.state for row in rows} == {State.DONE}
    assert len(rows) == 2
    assert verify(ledger).problems == []
    assert states(run)["verify"].count("failed") == 1
    assert states(run)["delete"] == ["success", "success"]


def test_a_rejection_deletes_nothing_and_the_run_succeeds(store: Store, play: Any, ledger: Ledger):
    store.seed("20585", sites=2)
    run, _ = play(store.conf("20585", delete_parts=PARTS), "Reject")
    told = receipt_of(store, run)
    assert (str(run.state), told.items[0]["state"]) == ("success", "rejected")
    assert store.files.keys() <= store.keys()
    assert rows_of(ledger) == []


def test_a_question_marked_success_deletes_nothing(store: Store, play: Any):
    store.seed("20585", sites=2)
    run, _ = play(store.conf("20585", delete_parts=PARTS), None)
    told = receipt_of(store, run)
    assert (str(run.state), told.items[0]["state"]) == ("failed", "not deleted")
    assert "nobody answered" in told.items[0]["why"]
    assert store.files.keys() <= store.keys()


def test_what_arrives_while_a_person_decides_voids_that_plate_alone(store: Store, play: Any):
    store.seed("20585", "20586", sites=2)
    late = next(key for key in store.files if "/images/20586/" in key) + ".late"
    run, _ = play(store.conf("20585", "20586", delete_parts=PARTS), before=lambda: store.put(late, b"new"))
    told = receipt_of(store, run)
    assert [item["state"] for item in told.items] == ["deleted", "approval void"]
    assert repr(late) in told.items[1]["why"]
    assert not store.of_plate("20585")
    assert store.of_plate("20586") == {key for key in store.files if "/20586/" in key}


def test_nothing_is_asked_and_nothing_fails_where_nothing_shall_be_deleted(store: Store, play: Any):
    store.seed("20585", sites=2)
    run, asked = play(store.conf("20585"))
    assert (str(run.state), asked) == ("success", [])
    assert states(run)["approval"] == ["skipped"]
    dry, asked = play(store.conf("20585", dry_run=True, delete_parts=PARTS))
    assert (str(dry.state), asked) == ("success", [])
    assert receipt_of(store, dry).items[0]["state"] == "planned"


def test_with_undo_days_markers_are_set_now_and_purged_later(store: Store, play: Any, ledger: Ledger):
    store.versioned()
    store.seed("20585", sites=2)
    conf = store.conf("20585", delete_parts=["images"], undo_days=4 / 86_400, retention="versioned")
    began = time.monotonic()
    run, asked = play(conf)
    told = receipt_of(store, run)
    assert str(run.state) == "success", told.outcome
    assert time.monotonic() - began > 4
    assert asked[0].startswith("Set delete markers on ")
    assert told.items[0]["state"] == "deleted"
    versions = store.client.list_object_versions(Bucket=store.live)
    left = [row["Key"] for kind in ("Versions", "DeleteMarkers") for row in versions.get(kind, [])]
    assert [key for key in left if "/images/20585/" in key] == []
    assert [row.business_key.split("/")[-2] for row in rows_of(ledger)] == ["marker", "purge"]
