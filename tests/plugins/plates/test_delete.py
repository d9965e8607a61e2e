"""Deletion through the ledger: whatever dies where, every object goes once, under its guard, and has its line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import Any

import pytest
from hooks.questions import question_store
from hooks.task import run_async
from operators.plates.delete import PlateDeleteOperator, PlatePurgeOperator

from include.core.errors import AuthError, VerificationError
from include.core.ledger import Ledger, State
from include.core.ledger.audit import verify as audit
from include.core.questions import Record
from include.core.receipt import Receipt
from include.plates.errors import ApprovalVoid, RetentionRefused
from include.plates.request import BackupRequest
from include.s3.bucket import Bucket
from tests.plugins.plates.conftest import Store, rows_of
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan, receipt, verify

PARTS = ["images", "illum", "analysis", "backend"]
BATCH = 3


class Killed(BaseException):
    """The worker dies here."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of three keys, and no long wait for a dead worker's last request."""
    order = BackupRequest.order
    monkeypatch.setattr(BackupRequest, "order", lambda *a, **k: dataclasses.replace(order(*a, **k), batch_size=BATCH))
    monkeypatch.setattr(PlateDeleteOperator, "answer_seconds", 1.0)


def proved(store: Store, **options: Any) -> tuple[Run, dict[str, Any]]:
    """A verified plate, as the gate lets it through."""
    store.seed("20585", sites=3)
    run = store.run("20585", **{"delete_parts": PARTS, **options})
    entry = verify(run, archive(run, plan(run)[0]))
    let_pass(run, entry)
    return run, {name: entry[name] for name in ("plate", "name", "verdict")}


def let_pass(run: Run, *entries: dict[str, Any]) -> None:
    """What the gate records of an approval."""
    passed = {entry["plate"]: entry["verdict"]["sha256"] for entry in entries}
    recorded(run, "approved", passed)


def recorded(run: Run, state: str, passed: dict[str, str]) -> None:
    """The record of the question, in that state."""
    record = Record(task_id="approval", by="amy", passed=passed).changed(state)  # type: ignore[arg-type]
    run_async(question_store(run.context("gate")).write(record))


@pytest.mark.parametrize("state", ["asked", "answered", "rejected", "refused", "another proof", "another plate"])
def test_what_the_gate_did_not_let_through_is_not_deleted(store: Store, state: str):
    run, entry = proved(store)
    passed = {"another proof": {entry["plate"]: "f" * 64}, "another plate": {"x": entry["verdict"]["sha256"]}}
    held = passed.get(state, {entry["plate"]: entry["verdict"]["sha256"]})
    recorded(run, "approved" if state in passed else state, held)
    with pytest.raises(ApprovalVoid, match="did not let 20585 through"):
        delete(run, entry)
    assert store.of_plate("20585") == set(store.files)
    assert receipt(run, store).items[0]["state"] == "approval void"


def delete(run: Run, entry: dict[str, Any], kind: type[PlateDeleteOperator] = PlateDeleteOperator) -> dict[str, Any]:
    return run.execute(kind(task_id=kind.step, plate=entry), 0)


def dying(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException | None = None) -> list[str]:
    """Lets so many deletions through and then fails each. Returns, live, the keys that were asked for."""
    asked: list[str] = []
    real = Bucket.delete_one

    async def one(self: Bucket, key: str, **conditions: Any) -> Any:
        if not key.endswith("condition_probe"):
            asked.append(key)
            if len(asked) > after:
                raise error or Killed
        return await real(self, key, **conditions)

    monkeypatch.setattr(Bucket, "delete_one", one)
    return asked


def lines(store: Store) -> list[dict[str, Any]]:
    """The outcomes of every batch that lie beside the receipt."""
    found = []
    for path in sorted(store.receipts.glob("plate_backup/*/plates/*/*.jsonl")):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return found


def test_every_batch_is_one_submission_and_every_deletion_has_its_line(store: Store, ledger: Ledger):
    run, entry = proved(store)
    delete(run, entry)
    assert store.of_plate("20585") == set()
    rows = rows_of(ledger)
    assert {row.state for row in rows} == {State.DONE}
    assert len(rows) == -(-len(store.files) // BATCH)
    assert {line["key"] for line in lines(store)} == store.files.keys()
    assert {line["result"] for line in lines(store)} == {"deleted"}
    assert all(len(row.detail["outcomes"]["sha256"]) == 64 for row in rows)
    assert audit(ledger).problems == []
    told = receipt(run, store)
    assert (told.state, told.items[0]["state"]) == ("complete", "deleted")
    assert told.items[0]["guard"].startswith("by If-Match")


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_worker_killed_in_the_middle_is_followed_by_one_that_ends_it(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, after: int
):
    run, entry = proved(store)
    with monkeypatch.context() as dead:
        dying(dead, after)
        with pytest.raises(Killed):
            delete(run, entry)
    # Killed, it could not even say so: the row stays as it was when the worker died.
    assert len(store.of_plate("20585")) >= len(store.files) - after - 8
    delete(run, entry)
    assert store.of_plate("20585") == set()
    told = receipt(run, store)
    assert told.items[0]["delete"]["deleted"] == len(store.files)
    assert {row.state for row in rows_of(ledger)} <= {State.DONE, State.SUPERSEDED}
    assert audit(ledger).problems == []


def test_an_answer_that_the_ledger_has_and_the_journal_has_not_is_read_back_and_not_sent_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    run, entry = proved(store)
    with monkeypatch.context() as dead:
        dead.setattr("include.plates.delete_ledger.LedgeredBatches._closed", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            delete(run, entry)
    before = store.of_plate("20585")
    assert len(before) == len(store.files) - BATCH
    asked = dying(monkeypatch, 10_000)
    delete(run, entry)
    assert set(asked) == before, "what the first worker deleted was not asked for again"
    assert receipt(run, store).items[0]["state"] == "deleted"


def test_keys_that_fail_are_left_and_told_and_a_cleared_task_tries_them_again(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    run, entry = proved(store)
    with monkeypatch.context() as denied:
        dying(denied, 2, AuthError("no right to this key"))
        with pytest.raises(VerificationError, match="were left"):
            delete(run, entry)
    told = receipt(run, store)
    assert told.items[0]["state"] == "partly deleted"
    assert "then clear task delete" in told.remedy
    assert State.FAILED in {row.state for row in rows_of(ledger)}
    delete(run, entry)
    assert store.of_plate("20585") == set()
    assert receipt(run, store).state == "complete"
    assert max(row.generation for row in rows_of(ledger)) == 2
    assert audit(ledger).problems == []


def test_what_appears_before_the_first_deletion_voids_the_approval(store: Store, ledger: Ledger):
    run, entry = proved(store)
    late = next(key for key in store.files if "/images/" in key) + ".late"
    store.put(late, b"new")
    with pytest.raises(ApprovalVoid):
        delete(run, entry)
    assert store.files.keys() <= store.keys()
    assert rows_of(ledger) == []
    told = receipt(run, store)
    assert told.items[0]["state"] == "approval void"
    assert "late" in told.items[0]["why"]


def test_what_appears_or_changes_after_the_first_deletion_is_left_alone_and_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    run, entry = proved(store)
    with monkeypatch.context() as dead:
        dying(dead, BATCH)
        with pytest.raises(Killed):
            delete(run, entry)
    late, changed = "late.tiff", sorted(store.of_plate("20585"))[-1]
    store.put(f"{changed.rsplit('/', 1)[0]}/{late}", b"new")
    store.put(changed, b"changed")
    with pytest.raises(VerificationError, match="1 objects were left"):
        delete(run, entry)
    assert store.of_plate("20585") == {changed, f"{changed.rsplit('/', 1)[0]}/{late}"}
    told = receipt(run, store)
    assert told.items[0]["delete"]["changed"] == [changed]
    assert told.items[0]["delete"]["unknown"] == [f"{changed.rsplit('/', 1)[0]}/{late}"]


def test_a_tarball_that_is_another_by_now_voids_the_approval(store: Store):
    run, entry = proved(store)
    store.flip("20585")
    with pytest.raises(ApprovalVoid):
        delete(run, entry)
    assert store.files.keys() <= store.keys()


def test_retention_is_looked_at_again_right_before_deleting(store: Store):
    store.versioned(store.cold)
    run, entry = proved(store, retention="versioned")
    status = {"Status": "Suspended"}
    store.client.put_bucket_versioning(Bucket=store.cold, VersioningConfiguration=status)
    with pytest.raises(RetentionRefused):
        delete(run, entry)
    assert store.files.keys() <= store.keys()
    assert "not versioned" in receipt(run, store).items[0]["why"]


def test_only_the_named_parts_go(store: Store):
    run, entry = proved(store, delete_parts=["illum"])
    delete(run, entry)
    assert store.of_plate("20585") == {key for key in store.files if "/illum/" not in key}


def test_on_a_versioned_bucket_exactly_the_archived_version_goes(store: Store):
    store.versioned()
    run, entry = proved(store, retention="versioned")
    delete(run, entry)
    left = store.client.list_object_versions(Bucket=store.live)
    found = [row["Key"] for kind in ("Versions", "DeleteMarkers") for row in left.get(kind, [])]
    assert not [key for key in found if "/20585/" in key]
    assert receipt(run, store).items[0]["guard"].startswith("by version id")


def undo(store: Store, key: str) -> None:
    markers = store.client.list_object_versions(Bucket=store.live, Prefix=key)["DeleteMarkers"]
    store.client.delete_object(Bucket=store.live, Key=key, VersionId=markers[0]["VersionId"])


def test_a_marked_object_that_is_brought_back_stops_the_purge_of_its_plate(store: Store):
    store.versioned()
    run, entry = proved(store, undo_days=1 / 86_400, retention="versioned")
    delete(run, entry)
    assert store.of_plate("20585") == set()
    back = next(key for key in store.files if "/images/" in key)
    undo(store, back)
    time.sleep(1.1)  # the time to undo is over
    with pytest.raises(ApprovalVoid, match="brought back"):
        delete(run, entry, PlatePurgeOperator)
    assert store.of_plate("20585") == {back}
    told = receipt(run, store)
    assert told.items[0]["state"] == "not purged"
    assert not told.items[0]["good"]


def test_until_the_time_to_undo_is_over_the_purge_waits_without_a_worker(store: Store):
    store.versioned()
    run, entry = proved(store, undo_days=30, retention="versioned")
    delete(run, entry)
    deferred: list[Any] = []
    purge = PlatePurgeOperator(task_id="purge", plate=entry)

    def defer(**wait: Any) -> None:
        deferred.append(wait)
        raise Killed

    purge.defer = defer  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.execute(purge)
    assert deferred[0]["trigger"].deadline > 29 * 86_400
    so_far = Receipt.model_validate_json((store.receipts / run.dag_id / run.run_id / "receipt.json").read_text())
    assert so_far.state == "running" and so_far.items[0]["state"] == "marked"
    assert so_far.totals["objects deleted"] > 0 and "can be undone by removing them" in so_far.outcome
    assert "waiting" not in so_far.outcome.lower() and so_far.problems == []
    assert receipt(run, store).items[0]["state"] == "marked"


def test_a_deletion_that_is_asked_for_twice_at_once_is_made_once(
    store: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    """A killed worker's live copy (its supervisor died) and its successor."""
    run, entry = proved(store)
    delete(run, entry)
    asked = dying(monkeypatch, 0)
    delete(run, entry)
    assert asked == []
    assert {row.state for row in rows_of(ledger)} == {State.DONE}


def test_verify_cleared_after_a_deletion_has_begun_says_so_and_how_to_undo_it(store: Store):
    store.versioned()
    run, entry = proved(store, undo_days=30, retention="versioned")
    delete(run, entry)
    before = next(store.receipts.rglob("manual__1/plates/001_20585/plan.json"))
    document = {"uri": before.as_uri(), "sha256": hashlib.sha256(before.read_bytes()).hexdigest(), "size_bytes": 0}
    with pytest.raises(VerificationError, match="its deletion has begun"):
        verify(run, {**entry, "plan": document})
    told = receipt(run, store)
    item = told.items[0]
    assert (item["state"], item["good"]) == ("deletion begun", False)
    assert "by Waybill's own doing" in item["why"] and "vanished" in item["why"]
    assert (
        "remove the delete markers of this plate: `aws s3api list-object-versions --bucket live-bucket" in told.remedy
    )
    for key in sorted(store.files):
        undo(store, key)
    assert verify(run, {**entry, "plan": document})["verdict"], "all of it was undone: the source is what was archived"


def test_verify_cleared_after_a_permanent_deletion_points_to_the_restore(store: Store):
    run, entry = proved(store)
    delete(run, entry)
    path = next(store.receipts.rglob("plates/001_20585/plan.json"))
    document = {"uri": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": 0}
    with pytest.raises(VerificationError, match="plate_restore gives it back"):
        verify(run, {**entry, "plan": document})
    assert "plate_restore gives it back" in receipt(run, store).remedy
