"""What a restore into a bucket has under way is written down: the next one aborts what a killed one left, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import noise, plate, plate_files
from harness.proxy import proxied
from include.core.journal import FileJournal
from include.plates.models import MIB, ArchiveSettings
from include.plates.restore_target import BucketSink
from include.plates.restore_uploads import RestoreUploads, uploads_in
from include.s3.multipart import Upload
from tests.include.plates.test_archive import IMAGES, through
from tests.include.plates.test_restore import back, wipe

HUGE = f"{IMAGES}huge.tiff"
Ids = Callable[[], set[str]]


class Killed(BaseException):
    """The process ends here: nothing of it runs any more."""


@pytest.fixture
def ids(bench: Bench) -> Iterator[Ids]:
    """A plate that is archived and gone, and the ids of the uploads that lie in its bucket."""
    bench.settings = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30)
    bench.put(plate_files(plate()) | {HUGE: noise("huge", 17 * MIB)})
    run(bench.archive_it(run(bench.plan(plate()))))
    wipe(bench)
    yield lambda: {row["UploadId"] for row in bench.client.list_multipart_uploads(Bucket=bench.live).get("Uploads", [])}


def kill_one(bench: Bench, uploads: RestoreUploads) -> None:
    """A restore that dies when all parts are sent."""

    async def dies(_: Upload) -> None:
        raise Killed

    async def nothing(_: Upload) -> None:
        return None

    with (
        mock.patch.object(Upload, "complete", dies),
        mock.patch.object(Upload, "abort", nothing),
        pytest.raises(Killed),
    ):
        back(bench, plate(), BucketSink(bench.source, uploads=uploads), files=[HUGE])


def test_the_next_restore_aborts_what_a_killed_one_left_and_not_what_others_have_begun(
    bench: Bench, ids: Ids, tmp_path: Path
):
    theirs = bench.client.create_multipart_upload(Bucket=bench.live, Key=HUGE)["UploadId"]
    where = {"Bucket": bench.live, "Key": HUGE, "UploadId": theirs}
    bench.client.upload_part(**where, PartNumber=1, Body=bench.files[HUGE][: 16 * MIB])
    journal = FileJournal(tmp_path / "restore.jsonl")
    kill_one(bench, RestoreUploads(journal, [journal]))
    assert len(ids()) == 2
    again = RestoreUploads(journal, [journal])
    assert back(bench, plate(), BucketSink(bench.source, uploads=again), files=["20586.sqlite"]).complete
    assert ids() == {theirs}, "also where this time another file is wanted"
    assert back(bench, plate(), BucketSink(bench.source, uploads=again)).complete and ids() == {theirs}


def test_on_the_command_line_a_living_restore_keeps_its_uploads(bench: Bench, ids: Ids, tmp_path: Path):
    with ExitStack() as living:
        kill_one(bench, living.enter_context(uploads_in(tmp_path)))
        with uploads_in(tmp_path) as other:
            assert back(bench, plate(), BucketSink(bench.source, uploads=other), files=["20586.sqlite"]).complete
        assert len(ids()) == 1
    assert len(list(tmp_path.iterdir())) == 1, "the journal of the dead one alone"
    with uploads_in(tmp_path) as other:
        assert back(bench, plate(), BucketSink(bench.source, uploads=other)).complete
    assert not ids() and not list(tmp_path.iterdir())


def test_an_abort_that_is_refused_stops_nothing_and_is_tried_again(bench: Bench, ids: Ids, tmp_path: Path):
    journal = FileJournal(tmp_path / "restore.jsonl")
    kill_one(bench, RestoreUploads(journal, [journal]))
    with proxied(bench.url) as front:
        front.add(proxy.refuse("DELETE", "huge", 403, "AccessDenied"))
        sink = BucketSink(through(bench, front).source, uploads=RestoreUploads(journal, [journal]))
        assert back(bench, plate(), sink).complete and len(ids()) == 1
    assert back(bench, plate(), BucketSink(bench.source, uploads=RestoreUploads(journal, [journal]))).complete
    assert not ids()
