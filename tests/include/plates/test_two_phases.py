"""Deletion in two phases on a versioned bucket: markers that can be undone, and the purge of what stayed marked."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench
from harness.proxy import proxied
from include.core.errors import ConflictingRequest, RequestError
from include.plates.errors import ApprovalVoid
from include.s3.guarded_delete import DeleteBatch, DeleteGuard, Outcomes, SendBatch
from tests.include.plates.test_archive import IMAGES, through
from tests.include.plates.test_delete import crash_after_sending, delete, order, plate_keys, proved, versions


def markers(bench: Bench) -> int:
    left = bench.client.list_object_versions(Bucket=bench.live).get("DeleteMarkers", [])
    return len([row for row in left if "/workspace/backup/" not in row["Key"]])


def test_markers_first_and_the_purge_after_the_undo_time(versioned: Bench):
    verdict, clock = proved(versioned), [1000.0]
    first = delete(versioned, verdict, order(verdict, phase="marker", undo_days=2), clock=lambda: clock[0])
    assert first.complete and not plate_keys(versioned) and len(versions(versioned)) == len(versioned.files)
    purge = order(verdict, phase="purge", undo_days=2)
    with pytest.raises(ApprovalVoid, match="not over"):
        delete(versioned, verdict, purge, clock=lambda: clock[0] + 86_400)
    assert len(versions(versioned)) == len(versioned.files)
    done = delete(versioned, verdict, purge, clock=lambda: clock[0] + 2 * 86_400)
    assert done.complete and versions(versioned) == []
    assert markers(versioned) == 0


def test_a_purge_without_markers_or_without_versions_is_refused(bench: Bench, versioned: Bench):
    verdict = proved(versioned)
    with pytest.raises(ConflictingRequest):
        delete(versioned, verdict, order(verdict, phase="purge"))


def test_markers_on_a_bucket_without_versions_are_refused(bench: Bench):
    verdict = proved(bench)
    with pytest.raises(RequestError, match="not versioned"):
        delete(bench, verdict, order(verdict, phase="marker"))
    assert plate_keys(bench) == set(bench.files)


def test_an_object_restored_from_its_marker_and_changed_survives_the_purge(versioned: Bench):
    verdict = proved(versioned)
    delete(versioned, verdict, order(verdict, phase="marker"))
    key = IMAGES + "Images/Index.idx.xml"
    versioned.client.put_object(Bucket=versioned.live, Key=key, Body=b"<again/>")
    report = delete(versioned, verdict, order(verdict, phase="purge"))
    assert report.changed == (key,) and not report.complete
    assert versioned.get(key, versioned.live) == b"<again/>"
    # The archived version lies under the new object: whoever put it there may want to compare.
    assert [row["Key"] for row in versions(versioned)] == [key, key]


def undo(bench: Bench, key: str) -> None:
    """Somebody removes a delete marker, and so brings the object back."""
    markers = bench.client.list_object_versions(Bucket=bench.live, Prefix=key)["DeleteMarkers"]
    bench.client.delete_object(Bucket=bench.live, Key=key, VersionId=markers[0]["VersionId"])


def test_an_object_brought_back_before_the_purge_stops_it_and_after_its_start_is_left_and_listed(versioned: Bench):
    verdict = proved(versioned)
    delete(versioned, verdict, order(verdict, phase="marker"))
    first, last = sorted(versioned.files)[0], sorted(versioned.files)[-1]
    undo(versioned, first)
    purge = order(verdict, phase="purge")
    with pytest.raises(ApprovalVoid, match="1 marked objects were brought back"):
        delete(versioned, verdict, purge)
    assert len(versions(versioned)) == len(versioned.files)
    versioned.client.delete_object(Bucket=versioned.live, Key=first)  # thinks again, and marks it again

    async def meanwhile(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        if batch.number == batch.of:
            undo(versioned, last)
        return await send()

    report = delete(versioned, verdict, purge, around_batch=meanwhile)
    assert report.changed == (last,) and not report.complete
    assert plate_keys(versioned) == {last}


def test_markers_of_a_worker_that_died_before_it_wrote_them_down_are_found_and_purged(versioned: Bench):
    verdict = proved(versioned)
    with pytest.raises(ZeroDivisionError):
        delete(versioned, verdict, order(verdict, phase="marker"), around_batch=crash_after_sending(2))
    report = delete(versioned, verdict, order(verdict, phase="marker"))
    assert report.complete and report.deleted == len(versioned.files) and report.absent == 0
    assert len(report.inferred) == 4, "the receipt says for which keys nothing but the marker itself speaks"
    assert markers(versioned) == len(versioned.files)
    assert delete(versioned, verdict, order(verdict, phase="purge")).complete
    assert versions(versioned) == []
    assert markers(versioned) == 0


def test_a_marker_whose_answer_is_lost_is_found_and_not_set_twice(versioned: Bench):
    verdict = proved(versioned)
    with proxied(versioned.url) as front:
        front.add(proxy.lose_answer("DELETE", times=3))
        report = delete(through(versioned, front), verdict, order(verdict, phase="marker"))
    assert report.complete and len(report.inferred) >= 3
    assert markers(versioned) == len(versioned.files), "removing one marker brings each object back"
    assert delete(versioned, verdict, order(verdict, phase="purge")).complete and markers(versioned) == 0


@pytest.mark.parametrize("meanwhile", ["replaced and deleted", "deleted permanently"])
def test_a_marker_that_cannot_be_ours_is_not_taken_for_it(meanwhile: str, versioned: Bench):
    """Between the crash and the next worker somebody else was at the object."""
    verdict = proved(versioned)
    marking = order(verdict, phase="marker")

    async def crash(batch: DeleteBatch, _: SendBatch) -> Outcomes:
        raise ZeroDivisionError(batch.number)

    with pytest.raises(ZeroDivisionError):
        delete(versioned, verdict, marking, around_batch=crash)
    key = sorted(versioned.files)[0]
    archived = next(row["VersionId"] for row in versions(versioned) if row["Key"] == key)
    if meanwhile == "deleted permanently":
        versioned.client.delete_object(Bucket=versioned.live, Key=key, VersionId=archived)
    else:
        versioned.client.put_object(Bucket=versioned.live, Key=key, Body=b"new")
        versioned.client.delete_object(Bucket=versioned.live, Key=key)
    report = delete(versioned, verdict, marking)
    assert report.changed == ((key,) if meanwhile == "replaced and deleted" else ())
    assert report.absent == (1 if meanwhile == "deleted permanently" else 0)
    assert report.inferred == () and report.deleted == len(versioned.files) - 1
    delete(versioned, verdict, order(verdict, phase="purge"))
    assert [row["Key"] for row in versions(versioned)] == [key, key] * len(report.changed)


def test_a_purge_that_crashes_goes_on_and_still_leaves_what_is_brought_back(versioned: Bench):
    verdict = proved(versioned)
    delete(versioned, verdict, order(verdict, phase="marker"))
    purge: Any = order(verdict, phase="purge")
    with pytest.raises(ZeroDivisionError):
        delete(versioned, verdict, purge, around_batch=crash_after_sending(1))
    back = sorted(versioned.files)[-1]
    undo(versioned, back)
    report = delete(versioned, verdict, purge)
    assert report.changed == (back,) and report.guard == DeleteGuard.PURGE.value
    assert plate_keys(versioned) == {back} and markers(versioned) == 0


def says_deleted(request: proxy.Call, _: proxy.Forward) -> proxy.Answer | None:
    """A store that calls every version deleted, and deletes none."""
    if request.method == "DELETE" and "versionId" in request.query:
        return proxy.Answer(204)
    if request.method != "POST" or "delete" not in request.query or b"<VersionId>" not in request.body:
        return None
    rows = re.findall(rb"<Key>.*?</Key>\s*<VersionId>.*?</VersionId>", request.body)
    body = b"".join(b"<Deleted>" + row + b"</Deleted>" for row in rows)
    return proxy.Answer(200, b"<DeleteResult>" + body + b"</DeleteResult>", "application/xml")


def test_a_purge_that_the_store_only_says_is_done_is_not_done(versioned: Bench):
    verdict = proved(versioned)
    delete(versioned, verdict, order(verdict, phase="marker"))
    with proxied(versioned.url) as front:
        front.add(proxy.call(says_deleted))
        report = delete(through(versioned, front), verdict, order(verdict, phase="purge"))
    assert set(report.failed) == set(versioned.files) and not report.complete
    assert (report.deleted, report.freed_bytes) == (0, 0)
    assert len(versions(versioned)) == markers(versioned) == len(versioned.files)
    assert delete(versioned, verdict, order(verdict, phase="purge")).complete, "it is tried again"
    assert versions(versioned) == [] and markers(versioned) == 0


def test_a_marker_that_the_store_only_says_is_removed_is_named(versioned: Bench):
    verdict = proved(versioned)
    delete(versioned, verdict, order(verdict, phase="marker"))
    ids = {row["VersionId"] for row in versions(versioned)}

    def of_a_marker(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        return None if any(one.encode() in request.body for one in ids) else says_deleted(request, forward)

    with proxied(versioned.url) as front:
        front.add(proxy.call(of_a_marker))
        report = delete(through(versioned, front), verdict, order(verdict, phase="purge"))
    assert report.deleted == len(versioned.files) and versions(versioned) == []
    assert set(report.left_behind) == set(versioned.files)
