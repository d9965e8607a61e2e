"""What a deletion may rest on: a proof of this plate, young enough, and of the objects that are there now; a whole listing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import ENVIRONMENT, plate, plate_files
from harness.proxy import proxied
from include.core.errors import VerificationError, WaybillError
from include.plates.compare import changes
from include.plates.errors import ApprovalVoid
from include.plates.models import PROOF_DAYS, Outcome
from tests.include.plates.test_archive import IMAGES, through
from tests.include.plates.test_cli import call
from tests.include.plates.test_delete import delete, order, plate_keys, proved

VERSIONS = {"method": "GET", "query": "^versions"}
DAY = 86_400.0


@pytest.fixture(autouse=True)
def _usual_aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def deleting(bench: Bench, digest: str, *more: str, part: str = "images") -> int:
    return call(bench, "delete", "--approve", digest, "--part", part, "--retention", "none", *more)


# Of which plate


def test_the_digest_of_another_plate_deletes_neither(bench: Bench, capsys: pytest.CaptureFixture[str]):
    mine, other = proved(bench), plate("20999")
    bench.put(plate_files(other))
    run(bench.archive_it(run(bench.plan(other))))
    assert deleting(bench, mine.manifests_sha256, part="illum") == 0  # a proof of it is kept from here on
    before = plate_keys(bench)
    ids = [
        "--project",
        mine.plate.project,
        "--batch",
        mine.plate.batch,
        "--plate-id",
        "20999",
        "--endpoint-url",
        bench.url,
    ]
    from include.plates.__main__ import main

    place = ["--bucket", bench.live, "--cold-bucket", bench.cold, "--approve", mine.manifests_sha256, "--part", "illum"]
    assert main(["delete", *ids, *place, "--retention", "none"]) == 2
    assert "is of plate 20586" in "".join(capsys.readouterr()) and plate_keys(bench) == before


@pytest.mark.parametrize("which", ["source", "archive"])
def test_a_proof_of_other_buckets_allows_nothing(which: str, bench: Bench):
    verdict = proved(bench)
    with pytest.raises(ApprovalVoid, match="verify there"):
        delete(bench, verdict, **{which: bench.access.bucket("elsewhere")})
    assert plate_keys(bench) == set(bench.files)


# How old


@pytest.mark.parametrize(("days", "voids"), [(PROOF_DAYS - 1, False), (PROOF_DAYS + 1, True), (None, True)])
def test_a_proof_counts_for_a_time(days: float | None, voids: bool, bench: Bench):
    verdict = proved(bench)
    at = None if days is None else time.time() - days * DAY
    old = verdict.model_copy(update={"verified_at": at})
    if voids:
        with pytest.raises(ApprovalVoid, match="verify again"):
            delete(bench, old)
        assert plate_keys(bench) == set(bench.files)
    else:
        assert round(delete(bench, old).proof_age_days or 0) == round(days or 0)


def test_the_time_to_undo_is_no_age(versioned: Bench):
    verdict, days = proved(versioned), 100.0
    delete(versioned, verdict, order(verdict, phase="marker", undo_days=days))
    purge = order(verdict, phase="purge", undo_days=days)
    with pytest.raises(ApprovalVoid, match="a proof counts"):
        delete(versioned, verdict, purge, clock=lambda: time.time() + (days + PROOF_DAYS + 1) * DAY)
    assert delete(versioned, verdict, purge, clock=lambda: time.time() + (days + 1) * DAY).complete


# There again


def test_a_second_delete_after_a_restore_asks_for_a_new_proof_and_is_another_deletion(bench: Bench):
    verdict = proved(bench)
    first = delete(bench, verdict)
    for key, data in bench.files.items():
        bench.client.put_object(Bucket=bench.live, Key=key, Body=data)
    with pytest.raises(ApprovalVoid, match="are there again"):
        delete(bench, verdict)
    assert plate_keys(bench) == set(bench.files)
    seen: list[str] = []

    async def around(batch: Any, send: Any) -> Any:
        seen.append(batch.business_key)
        return await send()

    again = delete(bench, run(bench.verify(plate())), around_batch=around)
    assert again.complete and again.deleted == first.deleted and again.resumed_batches == 0 and not plate_keys(bench)
    assert all("/again-1/" in name for name in seen) and len(seen) == 3
    assert delete(bench, verdict).resumed_batches == 3, "and once more it finds nothing to do"


def test_a_plate_that_was_restored_in_part_is_not_called_deleted(bench: Bench):
    verdict = proved(bench)
    delete(bench, verdict)
    key = sorted(bench.files)[0]
    bench.client.put_object(Bucket=bench.live, Key=key, Body=bench.files[key])
    with pytest.raises(ApprovalVoid, match="1 objects are there again"):
        delete(bench, verdict)
    assert plate_keys(bench) == {key}


def test_the_command_verifies_again_after_a_restore(bench: Bench):
    verdict = proved(bench)
    assert deleting(bench, verdict.manifests_sha256) == 0
    gone = set(bench.files) - plate_keys(bench)
    assert gone
    for key in gone:
        bench.client.put_object(Bucket=bench.live, Key=key, Body=bench.files[key])
    assert deleting(bench, verdict.manifests_sha256) == 0
    assert plate_keys(bench).isdisjoint(gone)


def test_an_old_proof_of_a_begun_deletion_is_read_again(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    verdict = proved(bench)
    stuck = sorted(key for key in bench.files if key.startswith(IMAGES))[0]
    with proxied(bench.url) as front:
        front.add(proxy.refuse("DELETE", stuck, 403, "AccessDenied"))
        assert deleting(through(bench, front), verdict.manifests_sha256, "--journal", str(tmp_path)) == 1
    assert stuck in plate_keys(bench)
    kept = tmp_path / f"{verdict.manifests_sha256}.verdict.json"
    kept.write_text(verdict.model_copy(update={"verified_at": time.time() - 99 * DAY}).model_dump_json())
    tarball = verdict.volumes[0].key
    whole = bench.get(tarball)
    metadata = bench.client.head_object(Bucket=bench.cold, Key=tarball)["Metadata"]
    rotten = whole[:-1] + bytes([whole[-1] ^ 1])
    bench.client.put_object(Bucket=bench.cold, Key=tarball, Body=rotten, Metadata=metadata)
    assert deleting(bench, verdict.manifests_sha256, "--journal", str(tmp_path)) == 1
    assert stuck in plate_keys(bench)
    bench.client.put_object(Bucket=bench.cold, Key=tarball, Body=whole, Metadata=metadata)
    assert deleting(bench, verdict.manifests_sha256, "--journal", str(tmp_path)) == 0
    assert stuck not in plate_keys(bench)


# Whole listings


CUT: dict[bool, dict[str, Any]] = {  # the listing that says what is current, by whether the bucket has versions
    True: {**VERSIONS, "element": "Version"},
    False: {
        "method": "GET",
        "query": "list-type=2.*images(%2F|/)",
        "element": "Contents",
    },
}


@pytest.fixture(params=[True, False], ids=["versioned", "unversioned"])
def cut(request: pytest.FixtureRequest) -> tuple[Bench, proxy.RuleDict]:
    """A bucket, and what its store does to one of its two listings: it gives one row, and says that this is all."""
    bench: Bench = request.getfixturevalue("versioned" if request.param else "bench")
    return bench, proxy.peculiarity("cut_listing", **CUT[request.param], keep=1)


def test_a_listing_cut_short_without_a_word_is_unverifiable_and_deletes_nothing(cut: tuple[Bench, proxy.RuleDict]):
    bench, rule = cut
    bench.put(plate_files(plate()))
    with proxied(bench.url) as front:
        front.add(rule)
        short = through(bench, front)
        assert any("do not agree" in problem for problem in run(short.plan(plate())).problems)
        verdict = proved(bench)
        assert run(short.verify(plate())).outcome is Outcome.UNVERIFIABLE
        assert "do not agree" in (run(changes(verdict, short.source, short.archive)) or "")
        with pytest.raises(ApprovalVoid, match="do not agree"):
            delete(short, verdict)
    assert plate_keys(bench) == set(bench.files)


def test_an_archive_of_a_cut_listing_is_not_verified_by_the_same_cut_listing(
    cut: tuple[Bench, proxy.RuleDict], monkeypatch: pytest.MonkeyPatch
):
    """The plan of before took the short listing for the plate."""

    async def unseen(*_: Any, **__: Any) -> Any:
        return [], ""

    monkeypatch.setattr("include.plates.plan._listed_again", unseen)
    bench, rule = cut
    bench.put(plate_files(plate()))
    with proxied(bench.url) as front:
        front.add(rule)
        short = through(bench, front)
        run(short.archive_it(run(short.plan(plate()))))
        verdict = run(short.verify(plate()))
    assert verdict.outcome is Outcome.UNVERIFIABLE and "do not agree" in verdict.reasons[0]


def test_the_second_listing_of_a_bucket_without_versions_does_not_believe_the_end_that_a_store_names(bench: Bench):
    bench.put({f"x/{n}": b"" for n in range(5)})

    async def again(bench: Bench) -> list[str]:
        return [key async for key in bench.source.objects_again("x/")]

    with proxied(bench.url) as front:
        front.add(proxy.peculiarity("cut_listing", method="GET", query="marker=", element="Contents", keep=2))
        assert run(again(through(bench, front))) == [f"x/{n}" for n in range(5)]


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
@pytest.mark.parametrize("has_versions", [True, False])
def test_where_a_second_listing_is_not_to_be_had_nothing_is_planned_proved_or_deleted(
    has_versions: bool, status: int, code: str, request: pytest.FixtureRequest
):
    bench: Bench = request.getfixturevalue("versioned" if has_versions else "bench")
    verdict = proved(bench)
    query = "^versions" if has_versions else "marker="
    refused = {"fault": "status", "code": status, "problem": {"code": code}, "times": None, "method": "GET"}
    needed = "ListObjectVersions" if has_versions else "ListObjects is asked beside"
    with proxied(bench.url) as front:
        front.add({**refused, "query": query})
        blind = through(bench, front)
        with pytest.raises(WaybillError, match=needed):
            run(blind.plan(plate()))
        again = run(blind.verify(plate()))
        assert again.outcome is Outcome.UNVERIFIABLE and any(needed in reason for reason in again.reasons)
        with pytest.raises(WaybillError, match=needed):
            delete(blind, verdict)
    assert plate_keys(bench) == set(bench.files)


@pytest.mark.parametrize(
    ("versions", "element"),
    [(True, "NextVersionIdMarker"), (True, "NextKeyMarker"), (False, "NextContinuationToken")],
)
def test_a_list_that_goes_on_without_saying_where_is_an_error_that_names_the_store(
    versions: bool, element: str, versioned: Bench
):
    versioned.put({f"x/{n}": b"" for n in range(3)})

    def truncated(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        answer = forward(request)
        more = b"<IsTruncated>true</IsTruncated><NextKeyMarker>x</NextKeyMarker><NextVersionIdMarker>1</NextVersionIdMarker>"
        more += b"<NextContinuationToken>x</NextContinuationToken>"
        more = more.replace(more[more.index(f"<{element}>".encode()) : more.index(f"</{element}>".encode())], b"", 1)
        more = more.replace(f"</{element}>".encode(), b"")
        answer.body = answer.content().replace(b"<IsTruncated>false</IsTruncated>", more)
        return answer

    async def listed(bench: Bench) -> list[str]:
        return [one.key async for one in bench.source.objects_under("x/", versions=versions)]

    with proxied(versioned.url) as front:
        front.add(proxy.call(truncated, method="GET"))
        with pytest.raises(VerificationError, match=f"{front.url}.*{element}"):
            run(listed(through(versioned, front)))


def test_a_list_that_says_the_same_again_ends(bench: Bench):
    bench.put({f"x/{n}": b"" for n in range(3)})

    first: list[proxy.Answer] = []

    def repeated(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        if not first:
            answer = forward(request)
            more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>"
            answer.body = answer.content().replace(b"<IsTruncated>false</IsTruncated>", more)
            first.append(answer)
        return first[0]

    async def listed(bench: Bench) -> list[str]:
        return [one.key async for one in bench.source.objects_under("x/", versions=False)]

    with proxied(bench.url) as front:
        front.add(proxy.call(repeated, method="GET", query="list-type"))
        with pytest.raises(VerificationError, match="same page again"):
            run(listed(through(bench, front)))
