"""Stores that say something else than S3: another ETag at HEAD than when an upload is completed, times far from today."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import plate, plate_files
from harness.proxy import Answer, Call, Forward, key_of, proxied
from include.plates.archive import archive_plate
from include.plates.models import ArchiveSettings, Outcome
from include.plates.restore import find_manifests, restore, select
from include.plates.restore_target import FolderSink
from include.s3.errors import ObjectExists

PLAIN = ArchiveSettings(compression="none", part_bytes=5 * 1024 * 1024, volume_bytes=1 << 30)


def another_etag_when_completed(request: Call, forward: Forward) -> Answer | None:
    """The answer to CompleteMultipartUpload names an ETag that HEAD never gives."""
    if request.method != "POST" or "uploadId" not in request.target:
        return None
    answer = forward(request)
    body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>&quot;another-2&quot;</ETag>", answer.content())
    answer.body = body
    return answer


def test_an_archive_run_again_recognises_itself_whatever_the_etags(bench: Bench):
    bench.settings = PLAIN
    bench.put(plate_files(plate(), image_bytes=3_000_000))
    run(bench.archive_it(run(bench.plan(plate()))))
    etag = next(key for key in bench.keys(bench.cold) if key.endswith("analysis.etag"))
    bench.client.put_object(Bucket=bench.cold, Key=etag, Body=b"another-2\n")  # as the store told when it was completed
    again = run(bench.archive_it(run(bench.plan(plate()))))
    notes = [note for volume in again.volumes for note in volume.notes]
    assert [volume.sent_parts for volume in again.volumes] == [0, 0]
    assert any("is not the ETag that the store gives now" in note for note in notes)
    assert run(bench.verify(plate())).outcome is Outcome.VERIFIED


def test_on_such_a_store_archive_runs_twice(bench: Bench):
    bench.settings = PLAIN
    bench.put(plate_files(plate(), image_bytes=3_000_000))
    plan = run(bench.plan(plate()))
    with proxied(bench.url) as front:
        front.add(another_etag_when_completed)
        for _ in range(2):
            access = servers.access(front.url)
            cold = access.bucket(bench.cold)
            run(archive_plate(plan, source=bench.source, archive=cold, journal_for=bench.journal_for))
            access.close()
    assert run(bench.verify(plate())).outcome is Outcome.VERIFIED


def test_the_etag_file_of_another_tarball_still_stands_in_the_way(bench: Bench):
    """A new tarball beside it is not what it is about."""
    bench.put(plate_files(plate()))
    plan = run(bench.plan(plate()))
    base = plan.volumes[0].key.removesuffix(".tar.gz")
    bench.client.put_object(Bucket=bench.cold, Key=base + ".etag", Body=b"of-another\n")
    with pytest.raises(ObjectExists):
        run(bench.archive_it(plan))


TIMES = {"1910-01-01": datetime(1910, 1, 1, tzinfo=UTC), "2300-01-01": datetime(2300, 1, 1, tzinfo=UTC)}


@pytest.mark.parametrize("day", TIMES)
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_times_before_1970_and_after_2242_come_back(bench: Bench, tmp_path: Path, day: str, compression: str):
    """A tar's plain header cannot hold them."""
    bench.put(plate_files(plate()))
    bench.settings = bench.settings.model_copy(update={"compression": compression})
    seconds = int(TIMES[day].timestamp())

    def dated(request: Call, forward: Forward) -> Answer | None:
        if request.method != "GET" or key_of(request):
            return None
        answer = forward(request)
        row = rb"(<Key>[^<]*(?:Index.idx.xml|sqlite)</Key>\s*<LastModified>)[^<]*"
        answer.body = re.sub(row, rb"\g<1>" + day.encode() + b"T00:00:00.000Z", answer.content())
        return answer

    with proxied(bench.url) as front:
        front.add(dated)
        source = servers.access(front.url).bucket(bench.live)
        plan = run(bench.plan(plate(), source=source))
        assert {one.modified for volume in plan.volumes for one in volume.objects} > {seconds}
        run(bench.archive_it(plan))
        verdict = run(bench.verify(plate(), source=bench.source))
    assert verdict.outcome is Outcome.VERIFIED, verdict.reasons
    manifests = run(find_manifests(plate(), bench.layout, bench.archive))
    done = run(restore(select(manifests), FolderSink(tmp_path), archive=bench.archive))
    assert done.complete
    old = [path for path in tmp_path.rglob("*") if path.name.endswith((".sqlite", ".idx.xml"))]
    assert [int(path.stat().st_mtime) for path in old] == [seconds, seconds]


def test_a_volume_of_old_files_keeps_to_its_size(bench: Bench):
    """Their headers are longer, and those of their folders too."""
    bench.put(plate_files(plate()))
    plan = run(bench.plan(plate()))
    from include.plates.plan import plan_volumes

    objects = [dataclasses.replace(one, modified=-1) for volume in plan.volumes for one in volume.objects]
    limit = ArchiveSettings(compression="none", volume_bytes=1024 * 1024)
    big = [dataclasses.replace(one, size=100_000) for one in objects]
    for volume in plan_volumes(plate(), bench.layout, limit, big):
        assert volume.raw_bytes <= limit.volume_bytes
