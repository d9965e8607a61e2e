"""plate_restore step by step: what is cold is asked for and waited for, what is there is never replaced unasked."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hooks.waybill import journals
from operators.common.load_request import LoadRequestOperator
from operators.plates.base import read_plates
from operators.plates.restore import PlateRestoreOperator
from operators.plates.restore_plan import PlateRestorePlanOperator
from operators.plates.restore_receipt import PlateRestoreReceiptOperator
from operators.plates.thaw import PlateThawOperator
from triggers.plates import PlateThawTrigger, PlateUndoTrigger, PlateWarmTrigger
from triggers.until import UntilTrigger

from harness.plates import servers
from harness.plates.fault_judge import pack
from include.core.errors import DeadlinePassed, NotFound, VerificationError
from include.core.ledger import Ledger
from include.core.receipt import Receipt
from include.plates.request import RestoreRequest
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan


class Deferred(Exception):
    """Stands for Airflow's TaskDeferred."""


@pytest.fixture
def archived(store: Store) -> Store:
    """A plate in its tarballs, and nothing of it left in the live bucket."""
    store.seed("20585", sites=2)
    run = store.run("20585")
    archive(run, plan(run)[0])
    for key in store.files:
        store.client.delete_object(Bucket=store.live, Key=key)
    return store


def request(store: Store, **options: Any) -> Run:
    conf = {key: value for key, value in store.conf("20585").items() if key != "retention"}
    return Run("plate_restore", {**conf, **options}, "manual__restore")


def found(run: Run) -> list[dict[str, Any]]:
    run.execute(LoadRequestOperator(task_id="load_request", model=RestoreRequest, check=read_plates))
    return run.execute(PlateRestorePlanOperator(task_id="plan"))


def restored(run: Run) -> None:
    for entry in found(run):
        thaw = PlateThawOperator(task_id="thaw", plate=entry)
        run.execute(PlateRestoreOperator(task_id="restore", plate=run.execute(thaw)))


def receipt(run: Run, store: Store) -> Receipt:
    try:
        run.execute(PlateRestoreReceiptOperator(task_id="receipt"))
    except VerificationError:
        pass
    return Receipt.model_validate_json((store.receipts / "plate_restore" / run.run_id / "receipt.json").read_text())


def there(store: Store) -> dict[str, bytes]:
    return {k: store.client.get_object(Bucket=store.live, Key=k)["Body"].read() for k in store.of_plate("20585")}


def test_a_whole_plate_comes_back_byte_for_byte_and_again_is_harmless(archived: Store):
    for _ in range(2):
        run = request(archived)
        restored(run)
        told = receipt(run, archived)
        assert told.state == "complete"
        assert told.totals["files proved"] == len(archived.files)
    assert there(archived) == archived.files
    assert "identical" in told.items[0]["why"]


def test_the_upload_of_a_worker_that_was_killed_is_aborted_by_the_next_run_and_no_other(archived: Store):
    key = next(key for key in archived.files if key.endswith(".sqlite"))
    ids = [archived.client.create_multipart_upload(Bucket=archived.live, Key=key)["UploadId"] for _ in range(2)]
    run = request(archived)
    (entry,) = found(run)
    journals("restore", archived.live)(entry["plate"]).append({"upload": ids[0], "key": key})
    restored(run)
    left = archived.client.list_multipart_uploads(Bucket=archived.live).get("Uploads", [])
    assert [row["UploadId"] for row in left] == ids[1:] and there(archived) == archived.files


@pytest.mark.parametrize(
    ("wish", "match"),
    [
        ({"parts": ["illum"]}, "/illum/"),
        ({"files": ["20585.sqlite"]}, ".sqlite"),
        ({"files": ["*/Images/*"]}, "/Images/"),
    ],
)
def test_one_part_or_single_files_come_back_alone(archived: Store, wish: dict[str, Any], match: str):
    run = request(archived, **wish)
    restored(run)
    assert there(archived) == {key: data for key, data in archived.files.items() if match in key}


def test_files_may_be_put_below_another_prefix(archived: Store):
    run = request(archived, files=["20585.sqlite"], to_prefix="restored/")
    restored(run)
    wanted = next(key for key in archived.files if key.endswith(".sqlite"))
    assert archived.keys(prefix="restored/") == {f"restored/{wanted}"}


def test_what_is_there_and_differs_is_refused_and_told_and_replaced_only_when_asked(archived: Store):
    key = next(key for key in archived.files if key.endswith(".sqlite"))
    archived.client.put_object(Bucket=archived.live, Key=key, Body=b"newer work")
    run = request(archived)
    with pytest.raises(VerificationError, match="1 of"):
        restored(run)
    assert there(archived)[key] == b"newer work"
    told = receipt(run, archived)
    assert told.state == "incomplete"
    assert key in told.items[0]["why"]
    restored(request(archived, overwrite=True))
    assert there(archived) == archived.files


def test_what_is_not_in_the_archive_is_told_and_nothing_is_started(archived: Store):
    run = request(archived, files=["no-such-file"])
    assert found(run) == []
    told = receipt(run, archived)
    assert "no-such-file" in told.items[0]["why"]
    assert told.outcome.startswith("Nothing was restored: plate 20585: ") and "no-such-file" in told.outcome


def test_a_dry_run_says_what_would_come_back_and_how_cold_it_lies(archived: Store):
    run = request(archived, dry_run=True)
    assert found(run) == []
    told = receipt(run, archived)
    assert told.state == "complete"
    assert told.outcome == f"Dry run, nothing was restored: {len(archived.files)} files of 1 of 1 plate."
    assert set(told.items[0]["tarballs"].values()) == {"ready"}
    assert there(archived) == {}


def freeze(store: Store) -> list[str]:
    """Puts every tarball into cold storage."""
    keys = [key for key in store.keys(store.cold) if key.endswith(".tar.gz")]
    for key in keys:
        head = store.client.head_object(Bucket=store.cold, Key=key)
        body = store.client.get_object(Bucket=store.cold, Key=key)["Body"].read()
        store.client.put_object(
            Bucket=store.cold, Key=key, Body=body, Metadata=head["Metadata"], StorageClass="GLACIER"
        )
    return keys


def waiting(run: Run, entry: dict[str, Any], event: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a warm task defers with."""
    task, waits = PlateThawOperator(task_id="thaw", plate=entry), list[dict[str, Any]]()

    def defer(**wait: Any) -> None:
        waits.append(wait)
        raise Deferred

    task.defer = defer  # type: ignore[method-assign]
    with pytest.raises(Deferred):
        task.resume(run.context("thaw"), event)
    return waits[0]


def test_cold_tarballs_are_asked_for_and_waited_for_without_a_worker(
    archived: Store, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    keys = freeze(archived)
    run = request(archived)
    (entry,) = found(run)
    assert set(run_states(run, archived)) == {"cold"}
    cold = ["cold"]  # moto warms at once; a real store takes hours
    monkeypatch.setattr("include.s3.bucket.Head.cold", property(lambda self: bool(cold)))
    trigger = waiting(run, entry)["trigger"]
    assert isinstance(trigger, PlateThawTrigger)
    assert sorted(trigger.options["keys"]) == sorted(keys)

    async def looks() -> list[str | None]:
        async with trigger.observer() as observe:
            first = await observe()
            cold.clear()
            return [first.wake, (await observe()).wake]

    assert asyncio.run(looks()) == [None, "no tarballs are cold any more"]
    monkeypatch.undo()


def run_states(run: Run, store: Store) -> list[str]:
    path = store.receipts / "plate_restore" / run.run_id / "plan.json"
    return list(json.loads(path.read_text())[0]["tarballs"].values())


def test_a_wait_that_is_over_fails_with_what_to_do_and_a_lost_tarball_at_once(
    archived: Store, monkeypatch: pytest.MonkeyPatch
):
    freeze(archived)
    run = request(archived)
    (entry,) = found(run)
    with monkeypatch.context() as frozen:
        frozen.setattr("include.s3.bucket.Head.cold", property(lambda self: True))
        with pytest.raises(
            DeadlinePassed, match=r"still in cold storage: 2 tarballs.* the time for it was over .* Clear this task"
        ):
            PlateThawOperator(task_id="thaw", plate=entry).resume(
                run.context("thaw"), {"kind": "deadline", "why": ""}, began=time.time() - 72 * 3600
            )
    told = receipt(run, archived)
    assert "still in cold storage: 2 tarballs" in told.items[0]["why"]
    assert "Clear" in told.remedy or "clear" in told.remedy
    for key in archived.keys(archived.cold):
        if key.endswith(".tar.gz"):
            archived.client.delete_object(Bucket=archived.cold, Key=key)
    with pytest.raises(NotFound, match="is missing from"):
        PlateThawOperator(task_id="thaw", plate=entry).resume(run.context("thaw"))
    assert "is missing from" in receipt(run, archived).problems[0]


def test_triggers_survive_a_move_to_another_triggerer():
    owner = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": 3}
    facts = {"conn_id": "c", "owner": owner, "deadline": 1.0, "since": 0.0, "poll_seconds": 5.0}
    for kind, module in (
        (PlateThawTrigger, "plates"),
        (UntilTrigger, "until"),
        (PlateUndoTrigger, "plates"),
        (PlateWarmTrigger, "plates"),
    ):
        path, kept = kind(**facts, options={"keys": ["k"]}).serialize()
        assert path == f"triggers.{module}.{kind.__name__}"
        assert kept == {**facts, "owner": kept["owner"], "options": {"keys": ["k"]}, "ledger_conn_id": "waybill_ledger"}
        assert kept["owner"].items() >= owner.items()


def by_script(store: Store, plate_id: str) -> dict[str, bytes]:
    """A plate in tarballs as aws_backup.sh wrote them, and nothing of it left in the live bucket."""
    files = servers.plate_files(servers.plate(plate_id), sites=2)
    tag = f"{servers.PROJECT}_{servers.BATCH}_{plate_id}"
    for name, backend in (("images_illum_analysis", False), ("backend", True)):
        held = {key: data for key, data in files.items() if ("/backend/" in key) == backend}
        key = f"imaging_analysis/{servers.PROJECT}/plates/{tag}_{name}.tar.gz"
        store.put(key, pack(held, tag), store.cold)
    return files


def test_tarballs_without_a_manifest_come_back(store: Store):
    files = by_script(store, "20585")
    run = request(store)
    restored(run)
    assert there(store) == files
    told = receipt(run, store)
    assert "2 tarballs without a manifest" in told.items[0]["why"] and told.items[0]["files"] == len(files)
    assert "as they lie in tarballs without a manifest; nothing says what these should be" in told.outcome
    assert "right checksums" not in told.outcome and told.totals["files proved"] == 0
    run = request(store, files=["20585.sqlite"], to_prefix="one/")
    restored(run)
    assert len(store.keys(prefix="one/")) == 1


def test_a_member_that_leads_elsewhere_is_in_the_receipt(store: Store):
    by_script(store, "20585")
    tag = f"{servers.PROJECT}_{servers.BATCH}_20585"
    key = f"imaging_analysis/{servers.PROJECT}/plates/{tag}_backend.tar.gz"
    store.put(key, pack({"projects/../../evil": b"x"}, tag), store.cold)
    run = request(store)
    with pytest.raises(VerificationError, match="does not name a file below"):
        restored(run)
    assert "does not name a file below" in receipt(run, store).items[0]["why"]
    assert not any("evil" in one for one in sorted(store.keys()))


def test_one_plate_without_an_archive_stops_no_other_and_stands_in_the_receipt(archived: Store):
    rows = [{"plate_id": one, "plate_id_full": one} for one in ("20586", "20585")]
    run = request(archived, plates=rows)
    restored(run)
    assert there(archived) == {key: data for key, data in archived.files.items() if "/20585/" in key}
    told = receipt(run, archived)
    assert [item["state"] for item in told.items] == ["not restored", "restored"]
    assert "20586" in str(told.problems) and "no manifest lies under" in told.items[0]["why"]
