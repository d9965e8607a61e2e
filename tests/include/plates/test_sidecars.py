"""When the documents beside the tarballs are written, and what a crash between two of them leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.plates.bench import Bench, run
from harness.plates.servers import plate, plate_files
from include.plates.models import Outcome
from include.s3.bucket import Bucket
from tests.include.plates.test_archive import BACKEND, MAIN


def test_sidecars_and_listings_wait_neither_for_each_other_nor_for_the_next_tarball(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    bench.put(plate_files(plate()))
    plan = run(bench.plan(plate()))
    held = MAIN + ".manifest.jsonl.zst"
    before = {MAIN + ".etag", BACKEND + ".tar.gz", BACKEND + ".manifest.jsonl.zst", BACKEND + ".etag", "listing"}
    put, put_new = Bucket.put, Bucket.put_new
    all_seen: list[asyncio.Event] = []

    def seen(name: str) -> None:
        before.discard(name)
        if not before and all_seen:
            all_seen[0].set()

    async def listed(bucket: Bucket, key: str, *arguments: Any, **options: Any) -> None:
        await put(bucket, key, *arguments, **options)
        seen("listing")

    async def written(bucket: Bucket, key: str, *arguments: Any, **options: Any) -> Any:
        if key == held:
            all_seen.append(asyncio.Event())
            seen("")
            await asyncio.wait_for(all_seen[0].wait(), timeout=120)
        result = await put_new(bucket, key, *arguments, **options)
        seen(key)
        return result

    monkeypatch.setattr(Bucket, "put", listed)
    monkeypatch.setattr(Bucket, "put_new", written)
    run(bench.archive_it(plan))
    assert not before and run(bench.verify(plate())).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("left", [".etag", ".manifest.jsonl.zst", None])
def test_whatever_sidecar_a_crash_leaves_the_next_run_writes_the_others(left: str | None, bench: Bench):
    """Also where the store named another ETag when the upload was completed than it does at HEAD."""
    bench.put(plate_files(plate()))
    plan = run(bench.plan(plate()))
    run(bench.archive_it(plan))
    whole = {key: bench.get(key) for key in bench.keys(bench.cold)}
    for sidecar in {".etag", ".manifest.jsonl.zst"} - {left}:
        bench.client.delete_object(Bucket=bench.cold, Key=MAIN + sidecar)
    if left == ".etag":
        bench.client.put_object(Bucket=bench.cold, Key=MAIN + left, Body=b"another\n")
        whole[MAIN + left] = b"another\n"
    done = run(bench.archive_it(plan))
    assert {key: bench.get(key) for key in bench.keys(bench.cold)} == whole
    assert any("is not the ETag" in note for note in done.volumes[0].notes) is (left == ".etag")
    assert run(bench.verify(plate())).outcome is Outcome.VERIFIED


def test_the_archive_fails_where_a_sidecar_cannot_be_written(bench: Bench):
    bench.put(plate_files(plate()))
    bench.client.put_object(Bucket=bench.cold, Key=BACKEND + ".etag", Body=b"somebody else's\n")
    with pytest.raises(Exception, match="etag exists already"):
        run(bench.archive_it(run(bench.plan(plate()))))
    assert MAIN + ".etag" in bench.keys(bench.cold)  # what had begun was brought to its end
