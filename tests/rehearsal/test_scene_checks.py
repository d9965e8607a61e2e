"""The plates' scenario tells what is wrong by the store's content and journal, also after a run that failed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from rehearsal.api import Run
from rehearsal.scenes import plates


class Store:
    """Objects by bucket and key, for the few calls that the check makes."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {plates.LIVE: {}, plates.COLD: {}}

    def get_paginator(self, _operation: str) -> Store:
        return self

    def paginate(self, Bucket: str) -> list[dict[str, Any]]:
        return [{"Contents": [{"Key": key} for key in self.buckets[Bucket]]}]

    def get_object(self, Bucket: str, Key: str) -> dict[str, io.BytesIO]:
        return {"Body": io.BytesIO(self.buckets[Bucket][Key])}


class FakeStack:
    api = None
    addresses: Mapping[str, str] = {"s3": "http://127.0.0.1:1"}


def tarball(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for key, data in files.items():
            member = tarfile.TarInfo("any/" + key.removeprefix("projects/"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def receipt(run: Run, state: str) -> dict[str, Any]:
    return {
        "dag_id": run.dag_id,
        "run_id": run.run_id,
        "items": [{"plate": "p", "state": state, "why": "so it was"}],
        "questions": [{"by": plates.APPROVER}],
    }


class After:
    """The scenario after runs that did all they should: one plate deleted but for the file given back, one kept.

    `whole`: and one that was deleted and given back whole, by a restore that was interrupted and one after it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, whole: bool = False) -> None:
        stack: Any = FakeStack()
        ledger: Any = None
        self.scene = plates.PlatesScene(stack, ledger, approved=1 + whole, rejected=1)
        self.store = Store()
        self.scene.client = self.store
        runs = {answer: Run(plates.BACKUP, answer.lower(), "success", {}) for answer in ("Approve", "Reject")}
        self.scene._backups = runs
        self.receipts = [receipt(runs["Approve"], "deleted"), receipt(runs["Reject"], "rejected")]
        self.gone, *back, self.kept = plates.plate_ids(2 + whole)
        self.live, self.cold = self.store.buckets[plates.LIVE], self.store.buckets[plates.COLD]
        self.live |= self.scene.files[self.kept]
        self.live[self.scene.wanted] = self.scene.files[self.gone][self.scene.wanted]
        self.back = [key for plate_id in back for key in self.scene.files[plate_id]]
        self.live |= {key: self.scene.files[back[0]][key] for key in self.back}
        self.scene._interrupted = "failed"
        for plate_id, files in self.scene.files.items():
            self.cold[f"backup_{plate_id}_all.tar.gz"] = tarball(files)
        self.journal = [
            {"method": "DELETE", "path": f"/{plates.LIVE}/{key}", "query": "", "status": 204}
            for key in (*self.scene.files[self.gone], *self.back)
        ]
        put = [{"method": "PUT", "path": f"/{plates.LIVE}/{key}", "query": "", "status": 200} for key in self.back]
        self.journal += put * 2
        monkeypatch.setattr(plates, "journal_requests", lambda address: self.journal)

    def problems(self) -> list[str]:
        return self.scene.check(self.receipts)


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> After:
    return After(monkeypatch)


def test_nothing_is_wrong_when_all_went_well(after: After) -> None:
    assert after.problems() == []


def test_a_restore_that_wrote_a_file_twice_or_never_or_was_not_interrupted_is_wrong(monkeypatch: pytest.MonkeyPatch):
    after = After(monkeypatch, whole=True)
    assert after.problems() == []
    first, second = after.back[:2]
    again = next(row for row in after.journal if row["method"] == "PUT" and row["path"].endswith(first))
    once = next(row for row in after.journal if row["method"] == "PUT" and row["path"].endswith(second))
    after.journal.append(again)
    after.journal.remove(once)
    after.scene._interrupted = "success"
    del after.live[second]
    assert sorted(after.problems()) == sorted(
        [
            "the restore that was to be interrupted was success",
            f"{first} was written 2 times by restores",
            f"{second} was written 0 times by restores",
            f"{second} should be there",
        ]
    )


def test_a_drill_that_found_damage_or_an_index_that_knows_nothing_is_wrong(after: After) -> None:
    after.scene._drill = drill = Run(plates.DRILL, "drill", "success", {})
    after.scene._where = f"{after.scene.wanted} lies in P_{after.gone}_backend.tar.gz"
    sound = receipt(drill, "sound")
    after.receipts.append({**sound, "items": sound["items"] * plates.DRILLED})
    assert after.problems() == []
    after.receipts[-1] = receipt(drill, "damaged")
    after.scene._where = "No file of this name"
    assert len(after.problems()) == 2


def test_requests_that_delete_nothing_of_a_plate_do_not_count(after: After) -> None:
    path = f"/{plates.LIVE}/projects/x"
    after.journal += [
        {"method": "GET", "path": path, "query": "", "status": 200},
        {"method": "DELETE", "path": path, "query": "", "status": 412},
        {"method": "DELETE", "path": f"/{plates.LIVE}/a_condition_probe", "query": "", "status": 204},
        {"method": "DELETE", "path": f"/{plates.COLD}/old", "query": "", "status": 204},
    ]
    assert after.problems() == []


def test_an_object_that_was_deleted_and_not_approved_is_wrong(after: After) -> None:
    after.journal.append({"method": "DELETE", "path": f"/{plates.LIVE}/projects/x", "query": "", "status": 204})
    assert after.problems() == ["19 objects were deleted by the store's journal, 18 were approved"]


def test_what_is_in_the_buckets_is_compared_file_by_file(after: After) -> None:
    first, second = sorted(after.scene.files[after.kept])[:2]
    left = min(key for key in after.scene.files[after.gone] if key != after.scene.wanted)
    del after.live[first]
    after.live[second] += b"!"
    after.live[left] = b""
    after.cold[f"backup_{after.gone}_all.tar.gz"] = tarball({left: b"other"})
    assert sorted(after.problems()) == sorted(
        [
            f"{left} should be gone",
            f"{first} should be there",
            f"{second} has other bytes",
            f"the tarballs of {after.gone} do not hold what the plate held",
        ]
    )


def test_a_receipt_that_says_something_else_is_wrong(after: After) -> None:
    after.receipts[0]["items"][0]["state"] = "kept"
    after.receipts[1]["questions"] = []
    assert after.problems() == ["plate p is kept (so it was)", "the receipt of reject does not say who answered"]


def test_after_a_failed_run_the_rest_is_checked_all_the_same(after: After) -> None:
    after.receipts.pop()
    after.cold.clear()
    assert after.problems() == [
        f"no tarball of plate {plate_id} lies in {plates.COLD}" for plate_id in (after.gone, after.kept)
    ]
