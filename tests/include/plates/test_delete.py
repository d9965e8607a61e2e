"""Deletion under every guard a store can offer, its refusals, and its resumption. F20, F34 and the like: docs/faults.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import PROJECT, plate, plate_files
from harness.proxy import proxied
from include.core.errors import ConflictingRequest, RequestError, TransientError, VerificationError
from include.core.journal import FileJournal
from include.plates.delete import delete_plate
from include.plates.delete_report import DeleteReport
from include.plates.errors import ApprovalVoid
from include.plates.models import DeleteOrder, Outcome, Plate, Verdict
from include.s3.condition_probe import Probed, detect_conditional_delete
from include.s3.guarded_delete import DeleteBatch, DeleteGuard, Outcomes, SendBatch
from tests.include.plates.test_archive import BACKEND, IMAGES, MAIN, TAG, through
from tests.include.plates.test_verify import failing

ALL = ("images", "illum", "analysis", "backend")
LATE = IMAGES + "Images/late.tiff"


def proved(bench: Bench, one: Plate | None = None) -> Verdict:
    one = one or plate()
    bench.put(plate_files(one))
    run(bench.archive_it(run(bench.plan(one))))
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.VERIFIED
    return verdict


def order(verdict: Verdict, **changes: Any) -> DeleteOrder:
    values: dict[str, Any] = {"parts": ALL, "retention": "none", "batch_size": 4}
    return DeleteOrder(**({"approved_sha256": verdict.manifests_sha256} | values | changes))


def delete(bench: Bench, verdict: Verdict, what: DeleteOrder | None = None, **options: Any) -> DeleteReport:
    journal = FileJournal(bench.journals / "delete")
    given: dict[str, Any] = {"source": bench.source, "archive": bench.archive, "journal": journal} | options
    return run(delete_plate(verdict, what or order(verdict), **given))


def plate_keys(bench: Bench) -> set[str]:
    return {key for key in bench.keys(bench.live) if "/workspace/backup/" not in key}


def versions(bench: Bench) -> list[dict[str, Any]]:
    answer = bench.client.list_object_versions(Bucket=bench.live)
    return [row for row in answer.get("Versions", []) if "/workspace/backup/" not in row["Key"]]


# Guards


def test_with_versions_exactly_the_archived_versions_go(versioned: Bench):
    verdict = proved(versioned)
    report = delete(versioned, verdict)
    assert report.complete and report.deleted == len(versioned.files) and DeleteGuard.VERSION.value == report.guard
    assert versions(versioned) == [] and report.batches == 3
    assert run(versioned.archive.read_all(report.outcomes_key)).count(b'"deleted"') == report.deleted


def test_where_if_match_is_honoured_one_by_one_it_is_the_guard(bench: Bench):
    """moto honours If-Match on DELETE and ignores ETags in DeleteObjects: both are found out, not assumed."""
    report = delete(bench, proved(bench))
    assert report.guard == DeleteGuard.SINGLE_ETAG.value and report.complete and not plate_keys(bench)


def test_where_batch_etags_are_honoured_they_are_the_guard(bench: Bench):
    verdict = proved(bench)
    with proxied(bench.url) as front:
        front.add(proxy.HONOUR_BATCH_ETAGS)
        report = delete(through(bench, front), verdict)
    assert report.guard == DeleteGuard.BATCH_ETAG.value and report.complete and not plate_keys(bench)


def test_where_conditions_are_ignored_head_before_each_is_the_guard(real: Bench):
    report = delete(real, proved(real))
    assert report.guard == DeleteGuard.HEAD.value and report.complete and not plate_keys(real)


def test_the_probe_leaves_nothing_behind(bench: Bench):
    assert run(detect_conditional_delete(bench.source, "x/probe", b"probe")) == Probed(DeleteGuard.SINGLE_ETAG)
    assert bench.keys(bench.live) == set()


def overwrite_at_first_delete(bench: Bench, key: str) -> proxy.RuleDict:
    """F20 at its worst: the object changes after every check, when the deletion is already on its way."""
    state: list[str] = []

    def overwrite(request: proxy.Call, _: proxy.Forward) -> None:
        deleting = request.method == "DELETE" or (request.method == "POST" and "delete" in request.query)
        if deleting and "probe" not in request.path and b"probe" not in request.body and not state:
            state.append("done")
            bench.client.put_object(Bucket=bench.live, Key=key, Body=b"<NEW/>")

    return proxy.call(overwrite)


@pytest.mark.parametrize("guard", ["versions", "batch", "single", "head"])
def test_f20_an_object_overwritten_between_check_and_delete_survives(guard: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue({"versions": "versioned", "head": "real"}.get(guard, "bench"))
    verdict = proved(bench)
    key = sorted(bench.files)[-1]
    with proxied(bench.url) as front:
        front.add(overwrite_at_first_delete(bench, key))
        if guard == "batch":
            front.add(proxy.HONOUR_BATCH_ETAGS)
        report = delete(through(bench, front), verdict)
    assert bench.get(key, bench.live) == b"<NEW/>"
    if guard != "versions":  # there the archived version went, and the new one is another
        assert report.changed == (key,) and not report.complete
    assert plate_keys(bench) == {key}


# Before the first deletion, any difference voids the approval


def test_f34_an_approval_of_other_manifests_is_void(bench: Bench):
    verdict = proved(bench)
    with pytest.raises(ApprovalVoid, match="ask again"):
        delete(bench, verdict, order(verdict, approved_sha256="0" * 64))
    assert plate_keys(bench) == set(bench.files)


@pytest.mark.parametrize("outcome", [Outcome.MISMATCH, Outcome.UNVERIFIABLE])
def test_what_is_not_verified_is_never_deleted(outcome: Outcome, bench: Bench):
    verdict = proved(bench)
    bad = verdict.model_copy(update={"outcome": outcome})
    with pytest.raises(VerificationError):
        delete(bench, bad)
    some = (verdict.checks[0].model_copy(update={"outcome": outcome}), *verdict.checks[1:])
    with pytest.raises(VerificationError):
        delete(bench, verdict.model_copy(update={"checks": some}))
    assert plate_keys(bench) == set(bench.files)


@pytest.mark.parametrize("parts", [(), ("images", "profiles")])
def test_nothing_is_deleted_by_default(parts: Sequence[str], bench: Bench):
    verdict = proved(bench)
    with pytest.raises(RequestError, match="by default"):
        delete(bench, verdict, order(verdict, parts=tuple(parts)))


@pytest.mark.parametrize("change", ["appeared", "changed", "vanished"])
def test_a_difference_after_the_approval_voids_it_and_nothing_is_deleted(change: str, bench: Bench):
    verdict = proved(bench)
    key = IMAGES + "Images/Index.idx.xml"
    if change == "appeared":
        bench.put({LATE: b"late"})
    elif change == "changed":
        bench.put({key: b"<XML/>"})
    else:
        bench.client.delete_object(Bucket=bench.live, Key=key)
    before = plate_keys(bench)
    with pytest.raises(ApprovalVoid, match=change):
        delete(bench, verdict)
    assert plate_keys(bench) == before


def test_f34_a_manifest_changed_after_the_approval_voids_it(bench: Bench):
    verdict = proved(bench)
    bench.client.put_object(Bucket=bench.cold, Key=BACKEND + ".manifest.jsonl.zst", Body=b"other")
    with pytest.raises(ApprovalVoid, match="not the manifest"):
        delete(bench, verdict)
    assert plate_keys(bench) == set(bench.files)


@pytest.mark.parametrize("fault", ["replaced", "gone", "same bytes, another time"])
def test_a_tarball_that_is_no_longer_the_one_verified_voids_the_approval(fault: str, versioned: Bench):
    bench = versioned
    verdict = proved(bench)
    key = MAIN + ".tar.gz"
    if fault == "gone":
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    else:
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=b"x" if fault == "replaced" else bench.get(key))
    with pytest.raises(ApprovalVoid, match="no longer the tarball"):
        delete(bench, verdict)
    assert plate_keys(bench) == set(bench.files)


# After the first deletion, what is not archived is left


def crash_after(batches: int) -> Any:
    seen: list[int] = []

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        if len(seen) == batches:
            raise ZeroDivisionError
        seen.append(batch.number)
        return await send()

    return around


def crash_after_sending(number: int) -> Any:
    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if batch.number == number:
            raise ZeroDivisionError
        return outcomes

    return around


def test_f21_a_key_that_appears_during_the_deletion_is_left_and_listed(bench: Bench):
    verdict = proved(bench)
    with pytest.raises(ZeroDivisionError):
        delete(bench, verdict, around_batch=crash_after(1))
    bench.put({LATE: b"late"})
    report = delete(bench, verdict)
    assert report.complete and report.unknown == (LATE,) and plate_keys(bench) == {LATE}


@pytest.mark.parametrize("fixture", ["bench", "versioned", "real"])
def test_f36_a_crash_in_the_middle_resumes_and_every_deletion_has_its_line(
    fixture: str, request: pytest.FixtureRequest
):
    bench: Bench = request.getfixturevalue(fixture)
    verdict = proved(bench)
    with pytest.raises(ZeroDivisionError):
        delete(bench, verdict, around_batch=crash_after_sending(2))
    report = delete(bench, verdict)
    assert report.resumed_batches == 1 and report.batches == 3
    assert report.deleted == len(bench.files) and report.absent == 0
    assert not plate_keys(bench)
    again = delete(bench, verdict)
    assert (again.deleted, again.resumed_batches) == (report.deleted, 3)


def test_a_key_that_somebody_else_deleted_meanwhile_is_absent_and_not_ours(bench: Bench):
    verdict = proved(bench)
    key = sorted(bench.files)[-1]
    with pytest.raises(ZeroDivisionError):
        delete(bench, verdict, around_batch=crash_after(1))
    bench.client.delete_object(Bucket=bench.live, Key=key)
    with proxied(bench.url) as front:
        # The store must be asked first whether the intent of this batch was ever journaled: it was not.
        report = delete(through(bench, front), verdict)
    assert report.absent == 1 and report.deleted == len(bench.files) - 1


def test_a_lost_answer_to_a_batch_is_safe_to_repeat(versioned: Bench):
    verdict = proved(versioned)
    with proxied(versioned.url) as front:
        front.add(proxy.lose_answer("POST", "^delete"))
        report = delete(through(versioned, front), verdict)
    assert report.complete and versions(versioned) == []


def test_errors_inside_a_200_are_read_key_by_key(versioned: Bench):
    verdict = proved(versioned)
    stuck = sorted(versioned.files)[0]
    rows = f"<Error><Key>{stuck}</Key><Code>AccessDenied</Code></Error>"
    partial = {"fault": "status", "code": 200, "body": f"<DeleteResult>{rows}</DeleteResult>", "times": None}
    with proxied(versioned.url) as front:
        front.add({**partial, "method": "POST", "query": "^delete", "contains": stuck})
        report = delete(through(versioned, front), verdict)
    assert not report.complete and stuck in report.failed
    assert len(report.failed) == 4  # keys that the answer does not mention are not taken as deleted
    assert stuck in plate_keys(versioned)


def test_a_transient_error_of_one_key_is_tried_again(versioned: Bench):
    verdict = proved(versioned)
    key = sorted(versioned.files)[0]

    def slow_down(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        rows = f"<Error><Key>{key}</Key><Code>InternalError</Code></Error>"
        answer = forward(request)
        answer.body = answer.content().replace(b"</DeleteResult>", rows.encode() + b"</DeleteResult>")
        return answer

    with proxied(versioned.url) as front:
        front.add(proxy.call(slow_down, method="POST", query="^delete", times=1))
        assert delete(through(versioned, front), verdict).complete


def test_only_the_parts_asked_for_are_deleted(bench: Bench):
    verdict = proved(bench)
    report = delete(bench, verdict, order(verdict, parts=("images",)))
    assert report.complete and plate_keys(bench) == {key for key in bench.files if not key.startswith(IMAGES)}


def test_another_order_on_the_same_journal_is_refused(bench: Bench):
    verdict = proved(bench)
    delete(bench, verdict, order(verdict, parts=("images",)))
    with pytest.raises(ConflictingRequest):
        delete(bench, verdict, order(verdict, parts=("illum",)))


def test_a_sibling_plate_loses_nothing(bench: Bench):
    sibling = plate_files(plate("205861"))
    verdict = proved(bench)
    for key, data in sibling.items():
        bench.client.put_object(Bucket=bench.live, Key=key, Body=data)
    assert delete(bench, verdict).complete
    assert plate_keys(bench) == set(sibling)


def test_folders_that_two_measurements_share_are_deleted_with_neither(bench: Bench):
    bench.put(plate_files(plate("P1", "P1__m2")))
    verdict = proved(bench, plate("P1", "P1__m1"))
    report = delete(bench, verdict)
    assert report.shared_parts == ("analysis", "backend", "illum")
    gone = set(bench.files) - plate_keys(bench)
    assert gone and all("/images/P1__m1/" in key for key in gone)


def test_folder_markers_are_archived_and_deleted_like_any_object(bench: Bench):
    bench.put({IMAGES: b"", IMAGES + "sub/": b""})
    verdict = proved(bench)
    assert delete(bench, verdict).complete and not plate_keys(bench)


def test_a_batch_with_failed_keys_is_sent_again_by_the_next_try(bench: Bench):
    verdict = proved(bench)
    stuck = sorted(bench.files)[0]
    with proxied(bench.url) as front:
        front.add(proxy.refuse("DELETE", stuck, 403, "AccessDenied"))
        report = delete(through(bench, front), verdict)
    assert report.failed == (stuck,) and plate_keys(bench) == {stuck}
    with proxied(bench.url) as front:
        report = delete(through(bench, front), verdict)
        sent = {request.key for request in front.requests if request.method == "DELETE"}
        assert {key for key in sent if not key.endswith("_condition_probe")} == {stuck}
    assert report.complete and not plate_keys(bench) and report.inferred == ()


def test_the_caller_wraps_each_batch_with_a_stable_key_and_digest(bench: Bench):
    verdict = proved(bench)
    seen: list[tuple[str, str, int]] = []

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        seen.append((batch.business_key, batch.digest, len(batch.targets)))
        return await send()

    delete(bench, verdict, around_batch=around)
    assert [key for key, _, _ in seen] == [f"{TAG}/{verdict.manifests_sha256[:16]}/delete/{n}" for n in (1, 2, 3)]
    assert sum(count for _, _, count in seen) == len(bench.files)


def test_a_store_out_of_reach_is_an_error_and_not_an_outcome(bench: Bench):
    verdict = proved(bench)
    with proxied(bench.url) as front:
        front.add(proxy.refuse("DELETE", "Images", 503, "SlowDown"))
        with pytest.raises(TransientError):
            delete(through(bench, front), verdict)
    assert delete(bench, verdict).complete


def test_after_deletion_a_new_verification_says_what_is_gone(bench: Bench):
    verdict = proved(bench)
    delete(bench, verdict, order(verdict, parts=("illum",)))
    assert failing(run(bench.verify(plate()))) == {"V1"}
    assert PROJECT in verdict.tag and asyncio.iscoroutinefunction(delete_plate)


def test_nobody_is_told_to_remove_the_only_copy(bench: Bench):
    """A plate that is archived and deleted, of which something is there again, is planned anew."""
    verdict = proved(bench)
    before = run(bench.plan(plate())).problems
    assert before == ()  # the same plan: its tarballs are recognised
    delete(bench, verdict)
    bench.put({LATE: b"one more image"})
    problems = run(bench.plan(plate())).problems
    assert problems and all("may be the only copy. Leave it where it is" in one for one in problems)
