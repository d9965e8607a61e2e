"""Has a plate changed since it was proved? One table for what the comparison gives and what its callers say."""

from __future__ import annotations

import pytest

from harness.plates.bench import Bench, run
from harness.plates.servers import plate
from harness.plates.source_changes import IDS, TABLE, SourceChange, lagging
from include.core.errors import WaybillError
from include.plates.compare import ArchivedObject, Differences, changes, compare
from include.plates.errors import ApprovalVoid
from include.plates.manifest import decode_manifest
from include.plates.models import Outcome, Verdict
from include.s3.bucket import Bucket
from tests.include.plates.test_archive import IMAGES
from tests.include.plates.test_delete import delete, plate_keys, proved

KEY = IMAGES + "Images/Index.idx.xml"


@pytest.fixture
def changed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[SourceChange, Bench, Verdict]:
    """A plate that was proved, and then one thing happened to one of its objects."""
    change, versioned = request.param
    bench: Bench = request.getfixturevalue("versioned" if versioned else "bench")
    verdict = proved(bench)
    change.happen(bench.client, bench.live, KEY)
    if change.hidden:
        for name, listing in lagging(KEY).items():
            monkeypatch.setattr(Bucket, name, listing)
    return change, bench, verdict


table = pytest.mark.parametrize("changed", TABLE, ids=IDS, indirect=True)


def compared(bench: Bench, verdict: Verdict) -> Differences:
    data = [bench.get(proof.manifest_key) for proof in verdict.volumes]
    rows = [m for one in data for m in decode_manifest(one).members if m.key is not None]
    archived = [ArchivedObject(m.key or "", m.etag, m.size, m.version_id) for m in rows]
    return run(compare(archived, verdict.plate, verdict.layout, bench.source))


@table
def test_the_comparison_names_what_differs_and_what_only_the_listing_lacks(
    changed: tuple[SourceChange, Bench, Verdict],
):
    change, bench, verdict = changed
    found = compared(bench, verdict)
    named = {name: getattr(found, name) for name in ("appeared", "vanished", "changed") if getattr(found, name)}
    assert named == ({change.says: (f"{KEY}.new" if change.says == "appeared" else KEY,)} if change.says else {})
    assert found.not_listed == ((KEY,) if change.listing_lags else ())
    assert (found.sentence is None) == (not change.says)


@table
def test_verify_says_it(changed: tuple[SourceChange, Bench, Verdict]):
    change, bench, _ = changed
    verdict = run(bench.verify(plate()))
    if change.same_bytes:
        told = next(check.detail for check in verdict.checks if check.name == "V1")
        assert verdict.outcome is Outcome.VERIFIED and "1 were written again with the same bytes" in told
    elif change.says:
        assert verdict.outcome is Outcome.MISMATCH
        assert [reason[:3] for reason in verdict.reasons] == ["V1:"] and f"1 objects {change.says}" in verdict.reasons[
            0
        ]
    elif change.listing_lags:
        assert verdict.outcome is Outcome.UNVERIFIABLE and "are not listed; try again later" in verdict.reasons[0]
    else:
        assert verdict.outcome is Outcome.VERIFIED


@table
def test_what_approval_and_gate_ask_says_it(changed: tuple[SourceChange, Bench, Verdict]):
    change, bench, verdict = changed
    said = run(changes(verdict, bench.source, bench.archive))
    assert (said is None) == (not change.says) and change.says in (said or "")


@table
def test_delete_says_it_and_deletes_nothing(changed: tuple[SourceChange, Bench, Verdict]):
    change, bench, verdict = changed
    before = plate_keys(bench)
    if change.says:
        with pytest.raises(ApprovalVoid, match=change.says):
            delete(bench, verdict)
        assert plate_keys(bench) == before
        return
    report = delete(bench, verdict)
    assert report.complete and plate_keys(bench) == set()


def test_a_store_that_refuses_to_be_asked_is_an_error_and_no_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    verdict = proved(bench)
    for name, listing in lagging(KEY).items():
        monkeypatch.setattr(Bucket, name, listing)

    async def refused(self: Bucket, key: str, version_id: str | None = None) -> None:
        raise WaybillError("403")

    monkeypatch.setattr(Bucket, "head", refused)
    with pytest.raises(WaybillError, match="403"):
        run(changes(verdict, bench.source, bench.archive))
