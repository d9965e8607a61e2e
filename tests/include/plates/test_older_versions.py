"""Deletion where versions lie below the archived ones, or were written before the bucket had any: nothing comes back unsaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import plate, plate_files
from harness.plates.simulated import simulated
from harness.proxy import proxied
from include.core.errors import RequestError
from include.core.journal import FileJournal
from include.plates.delete_preview import preview
from include.plates.models import Outcome, Verdict
from include.plates.request import BackupRequest
from include.s3.guarded_delete import DeleteBatch, DeleteGuard, Outcomes, SendBatch
from tests.include.plates.test_archive import IMAGES, through
from tests.include.plates.test_delete import crash_after_sending, delete, order, plate_keys, proved, versions
from tests.include.plates.test_two_phases import markers, says_deleted, undo

KEY = IMAGES + "Images/Index.idx.xml"
OLD = b"<OLD/>"


def with_older(bench: Bench, count: int = 2) -> Verdict:
    """A proved plate, one of whose keys has older versions, of 6 bytes each."""
    for _ in range(count):
        bench.client.put_object(Bucket=bench.live, Key=KEY, Body=OLD)
    return proved(bench)


def enable(bench: Bench, status: str = "Enabled") -> None:
    for name in (bench.live, bench.cold):
        bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": status})


def size_of(bench: Bench) -> int:
    return sum(map(len, bench.files.values()))


# Older versions


def test_a_plan_counts_older_versions_and_says_what_they_do(versioned: Bench):
    with_older(versioned)
    plan = run(versioned.plan(plate()))
    assert (plan.older_versions, plan.older_bytes) == (2, 12) and not plan.problems
    assert any("would be current again" in warning for warning in plan.warnings)


def test_a_plan_counts_older_versions_part_by_part_and_a_request_minds_those_that_it_deletes(versioned: Bench):
    with_older(versioned)
    plan = run(versioned.plan(plate()))
    assert {part.name: part.older_versions for part in plan.parts if part.older_versions} == {"images": 2}
    conf: dict[str, Any] = {"project": "P", "batch": "B", "plates": [{"plate_id": "1", "plate_id_full": "1"}]}
    for parts, problems, notes in ((["images", "illum"], 1, 1), (["illum"], 0, 0), ([], 0, 0)):
        assert len(BackupRequest(**conf, delete_parts=parts).order_problems(plan)) == problems
        for answer in ("delete", "keep_hidden"):
            said = BackupRequest(**conf, delete_parts=parts, older_versions=answer)
            assert said.order_problems(plan) == [] and len(said.order_notes(plan)) == notes
    assert not any("older_versions" in warning for warning in plan.warnings), "what is set already is not asked for"


@pytest.mark.parametrize("phase", ["delete", "marker"])
def test_an_order_that_says_nothing_of_older_versions_is_refused(phase: Any, versioned: Bench):
    verdict = with_older(versioned)
    with pytest.raises(RequestError, match=r"2 older versions.*older_versions"):
        delete(versioned, verdict, order(verdict, phase=phase))
    assert plate_keys(versioned) == set(versioned.files) and markers(versioned) == 0
    assert delete(versioned, verdict, order(verdict, phase="delete", older_versions="delete")).complete, "asked anew"


def test_kept_hidden_older_versions_stay_under_a_marker_and_nothing_is_current(versioned: Bench):
    verdict = with_older(versioned)
    report = delete(versioned, verdict, order(verdict, older_versions="keep_hidden"))
    assert report.complete and report.guard == DeleteGuard.COVERED.value and not plate_keys(versioned)
    assert [row["Key"] for row in versions(versioned)] == [KEY, KEY] and markers(versioned) == 1
    assert (report.deleted, report.freed_bytes) == (len(versioned.files), size_of(versioned))
    assert report.current_again == () and report.older_versions == 2


def test_deleted_older_versions_have_their_lines_and_nothing_is_left(versioned: Bench):
    verdict = with_older(versioned)
    report = delete(versioned, verdict, order(verdict, older_versions="delete"))
    assert report.complete and versions(versioned) == [] and markers(versioned) == 0
    assert (report.deleted, report.older_deleted) == (len(versioned.files), 2)
    assert report.freed_bytes == size_of(versioned) + 12 and report.deleted_bytes == size_of(versioned)
    assert versioned.get(report.outcomes_key).count(b'"older": true') == 2


@pytest.mark.parametrize(("older", "left"), [("keep_hidden", 2), ("delete", 0)])
def test_in_two_phases_the_purge_leaves_nothing_current(older: Any, left: int, versioned: Bench):
    verdict = with_older(versioned)
    first = delete(versioned, verdict, order(verdict, phase="marker", older_versions=older))
    assert first.complete and first.freed_bytes == 0 and not plate_keys(versioned)
    assert len(versions(versioned)) == len(versioned.files) + 2
    done = delete(versioned, verdict, order(verdict, phase="purge", older_versions=older))
    assert done.complete and not plate_keys(versioned) and done.current_again == ()
    assert len(versions(versioned)) == left and markers(versioned) == (1 if left else 0)
    assert done.freed_bytes == size_of(versioned) + (0 if left else 12)


@pytest.mark.parametrize("older", ["keep_hidden", "delete"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_crash_after_any_batch_ends_the_same(older: Any, number: int, versioned: Bench):
    verdict = with_older(versioned)
    what = order(verdict, older_versions=older)
    with pytest.raises(ZeroDivisionError):
        delete(versioned, verdict, what, around_batch=crash_after_sending(number))
    assert plate_keys(versioned).isdisjoint({KEY}) or versioned.get(KEY, versioned.live) != OLD
    report = delete(versioned, verdict, what)
    assert report.complete and report.deleted == len(versioned.files) and not plate_keys(versioned)
    assert len(versions(versioned)) == (2 if older == "keep_hidden" else 0)
    assert markers(versioned) == (1 if older == "keep_hidden" else 0)
    assert report.older_deleted == (2 if older == "delete" else 0)


@pytest.mark.parametrize("older", ["keep_hidden", "delete"])
@pytest.mark.parametrize(("method", "query"), [("DELETE", None), ("POST", "^delete")])
def test_lost_answers_end_the_same(older: Any, method: str, query: str | None, versioned: Bench):
    verdict = with_older(versioned)
    with proxied(versioned.url) as front:
        front.add(proxy.lose_answer(method, query, times=2))
        report = delete(through(versioned, front), verdict, order(verdict, older_versions=older))
    assert report.complete and not plate_keys(versioned)
    assert markers(versioned) == (1 if older == "keep_hidden" else 0), "one marker, not two"


def test_archived_versions_that_the_store_only_says_are_gone_are_no_freed_bytes(versioned: Bench):
    """They lie under their markers, where no listing of current keys shows them."""
    verdict = with_older(versioned)
    what = order(verdict, older_versions="keep_hidden")
    with proxied(versioned.url) as front:
        front.add(proxy.call(says_deleted))
        report = delete(through(versioned, front), verdict, what)
    assert KEY in report.failed and not report.complete
    assert report.freed_bytes <= size_of(versioned) - len(versioned.files[KEY])
    assert delete(versioned, verdict, what).failed == ()
    assert sum(row["Key"] == KEY for row in versions(versioned)) == 2, "the archived version was ended by the next try"


def at_the_first(method: str, key: str, happens: Callable[[], None]) -> proxy.RuleDict:
    def hook(request: proxy.Call, _: proxy.Forward) -> None:
        if proxy.key_of(request) == key and not done:
            done.append(key)
            happens()

    done: list[str] = []
    return proxy.call(hook, method=method)


def test_an_object_written_right_before_its_marker_is_given_back(versioned: Bench):
    verdict = with_older(versioned)
    with proxied(versioned.url) as front:
        front.add(
            at_the_first(
                "DELETE", KEY, lambda: versioned.client.put_object(Bucket=versioned.live, Key=KEY, Body=b"<NEW/>")
            )
        )
        report = delete(through(versioned, front), verdict, order(verdict, older_versions="keep_hidden"))
    assert versioned.get(KEY, versioned.live) == b"<NEW/>" and report.changed == (KEY,)
    assert len(versions(versioned)) == 4, "the archived version is kept as well"


def test_an_archived_version_is_kept_where_an_older_one_could_not_be_deleted(versioned: Bench):
    verdict = with_older(versioned)
    older = versions(versioned)
    ids = [row["VersionId"] for row in older if row["Key"] == KEY and not row["IsLatest"]]

    def stuck(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        if ids[0].encode() not in request.body:
            return None
        row = f"<Error><Key>{KEY}</Key><VersionId>{ids[0]}</VersionId><Code>AccessDenied</Code></Error>"
        return proxy.Answer(200, f"<DeleteResult>{row}</DeleteResult>".encode(), "application/xml")

    with proxied(versioned.url) as front:
        front.add(proxy.call(stuck, method="POST", query="^delete"))
        report = delete(through(versioned, front), verdict, order(verdict, older_versions="delete"))
    assert report.failed == (KEY,) and plate_keys(versioned) == {KEY}
    assert versioned.get(KEY, versioned.live) == versioned.files[KEY]
    assert delete(versioned, verdict, order(verdict, older_versions="delete")).complete
    assert versions(versioned) == []


def test_what_is_current_again_is_said_and_the_deletion_is_not_complete(
    versioned: Bench, monkeypatch: pytest.MonkeyPatch
):
    """The older version was not in the listing before; after the deletion it is the current object."""
    verdict = with_older(versioned, 1)

    async def none(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr("include.plates.delete.older_versions", none)
    for row in versions(versioned):  # S3 keeps times of its own; here all were written in one second
        assert row["LastModified"]
    monkeypatch.setattr("include.plates.delete_report.is_not_newer", lambda one, archived: one.size == len(OLD))
    report = delete(versioned, verdict)
    assert report.current_again == (KEY,) and not report.complete and report.unknown == ()


def test_an_older_version_of_the_same_second_is_current_again_and_no_new_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stores give times in seconds; the listing before the deletion did not show the older version."""

    async def none(*_: Any) -> list[Any]:
        return []

    with simulated(tmp_path, versioned=True) as store:
        verdict = with_older(store.bench, 1)
        monkeypatch.setattr("include.plates.delete.older_versions", none)
        report = delete(store.bench, verdict)
    assert report.current_again == (KEY,) and report.unknown == () and not report.complete


@pytest.mark.parametrize("same_bytes", [False, True])
def test_by_the_store_s_times_old_content_is_current_again_and_new_content_is_not(
    same_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An hour before the archived object an older version was written, and an hour after it another object, over a second key."""

    async def none(*_: Any) -> list[Any]:
        return []

    with simulated(tmp_path, versioned=True) as store:
        bench = store.bench
        bench.client.put_object(Bucket=bench.live, Key=KEY, Body=OLD)
        store.advance(3600)
        verdict = proved(bench)
        store.advance(3600)
        new = min(key for key in bench.files if key != KEY and not key.endswith("/"))
        body = bench.files[new] if same_bytes else b"<NEW/>"

        async def then_written_anew(batch: DeleteBatch, send: SendBatch) -> Outcomes:
            outcomes = await send()
            if any(target.key == new for target in batch.targets):
                bench.client.put_object(Bucket=bench.live, Key=new, Body=body)
            return outcomes

        monkeypatch.setattr("include.plates.delete.older_versions", none)  # as where a store did not show it
        report = delete(bench, verdict, around_batch=then_written_anew)
    assert report.current_again == (KEY,) and report.unknown == (new,) and not report.complete


def test_the_preview_names_each_older_version(versioned: Bench):
    verdict = with_older(versioned)
    options: dict[str, Any] = {"source": versioned.source, "archive": versioned.archive}
    journal = FileJournal(versioned.journals / "delete")
    found = run(preview(verdict, order(verdict, older_versions="delete"), journal=journal, **options))
    images = next(part for part in found.parts if part.part == "images")
    assert (images.older, images.older_bytes) == (2, 12) and [one.key for one in found.older] == [KEY, KEY]
    versioned.client.delete_object(Bucket=versioned.live, Key=KEY, VersionId=found.older[0].version_id)
    again = run(preview(verdict, order(verdict, older_versions="delete"), journal=journal, **options))
    assert next(part for part in again.parts if part.part == "images").older_sha256 != images.older_sha256


# A bucket versioned after the upload


def test_null_versions_are_deleted_by_that_id_and_the_bytes_are_freed(bench: Bench):
    bench.put(plate_files(plate()))
    enable(bench)
    verdict = proved_as_it_is(bench)
    report = delete(bench, verdict)
    assert report.complete and versions(bench) == [] and markers(bench) == 0
    assert report.freed_bytes == report.deleted_bytes == size_of(bench)


def test_a_bucket_versioned_between_proof_and_deletion_is_deleted_by_null_versions(bench: Bench):
    verdict = proved(bench)
    bench.client.put_bucket_versioning(Bucket=bench.live, VersioningConfiguration={"Status": "Enabled"})
    report = delete(bench, verdict)
    assert report.complete and versions(bench) == [] and markers(bench) == 0


def test_null_versions_can_be_marked_undone_and_purged(bench: Bench):
    bench.put(plate_files(plate()))
    enable(bench)
    verdict = proved_as_it_is(bench)
    first = delete(bench, verdict, order(verdict, phase="marker"))
    assert first.complete and first.freed_bytes == 0 and len(versions(bench)) == len(bench.files)
    undo(bench, KEY)
    assert bench.get(KEY, bench.live) == bench.files[KEY]
    bench.client.delete_object(Bucket=bench.live, Key=KEY)
    done = delete(bench, verdict, order(verdict, phase="purge"))
    assert done.complete and versions(bench) == [] and done.freed_bytes == size_of(bench)
    assert markers(bench) == 1, "the one that somebody else set"


def test_markers_where_versioning_is_suspended_are_refused_since_they_would_end_null_versions(bench: Bench):
    bench.put(plate_files(plate()))
    enable(bench)
    verdict = proved_as_it_is(bench)
    bench.client.put_bucket_versioning(Bucket=bench.live, VersioningConfiguration={"Status": "Suspended"})
    with pytest.raises(RequestError, match="suspended"):
        delete(bench, verdict, order(verdict, phase="marker"))
    assert plate_keys(bench) == set(bench.files)


def test_a_marker_set_on_a_bucket_versioned_meanwhile_is_told_and_frees_nothing(bench: Bench):
    verdict = proved(bench)
    done: list[str] = []

    def enabled(request: proxy.Call, _: proxy.Forward) -> None:
        if not done and proxy.key_of(request) in bench.files:
            done.append("enabled")
            bench.client.put_bucket_versioning(Bucket=bench.live, VersioningConfiguration={"Status": "Enabled"})

    with proxied(bench.url) as front:
        front.add(proxy.call(enabled, method="DELETE"))
        report = delete(through(bench, front), verdict)
    hidden = {row["Key"] for row in versions(bench)}
    assert hidden and report.freed_bytes == sum(len(data) for key, data in bench.files.items() if key not in hidden)


def proved_as_it_is(bench: Bench) -> Verdict:
    """What lies there, archived and proved, nothing written anew."""
    run(bench.archive_it(run(bench.plan(plate()))))
    verdict = run(bench.verify(plate()))
    assert verdict.outcome is Outcome.VERIFIED
    return verdict


# Stores without batches


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "MissingContentMD5"), (400, "MalformedXML")]
)
@pytest.mark.parametrize("way", ["versions", "purge", "older"])
def test_versions_markers_and_older_versions_are_deleted_one_by_one(way: str, status: int, code: str, versioned: Bench):
    verdict = with_older(versioned) if way == "older" else proved(versioned)
    older = "delete" if way == "older" else "refuse"
    if way == "purge":
        delete(versioned, verdict, order(verdict, phase="marker"))
    with proxied(versioned.url) as front:
        front.add(
            {
                "fault": "status",
                "code": status,
                "problem": {"code": code},
                "times": None,
                "method": "POST",
                "query": "^delete",
            }
        )
        what = order(verdict, phase="purge" if way == "purge" else "delete", older_versions=older)
        report = delete(through(versioned, front), verdict, what)
    assert report.complete and versions(versioned) == [] and markers(versioned) == 0
