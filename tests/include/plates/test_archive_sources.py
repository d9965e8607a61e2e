"""What an archive does about names that are taken, and about sources that change or contradict themselves (F23)."""

from __future__ import annotations

import hashlib
import re

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import plate
from harness.proxy import proxied
from harness.store_faults import without_headers
from include.core.errors import VerificationError, WaybillError
from include.core.journal import FileJournal
from include.plates.manifest import read_manifest
from include.plates.models import MIB, Outcome
from include.s3.errors import ConcurrentWriter, ObjectExists, SourceChanged
from tests.include.plates.test_archive import IMAGES, MAIN, SETTINGS, full_plate, through, with_tarfile

# Overwriting


def test_a_foreign_tarball_is_a_problem_of_the_plan_and_is_never_overwritten(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar.gz", Body=b"theirs")
    with pytest.raises(ObjectExists):
        run(bench.archive_it(plan))
    assert bench.get(MAIN + ".tar.gz") == b"theirs"
    assert any("nothing says that Waybill made it" in problem for problem in run(bench.plan(one)).problems)


@pytest.mark.parametrize("size", [1000, 11 * MIB], ids=["one part", "multipart"])
@pytest.mark.parametrize("honoured", [True, False])
def test_a_tarball_that_appears_meanwhile_is_not_overwritten(size: int, honoured: bool, bench: Bench):
    """If-None-Match where the store has it; where it ignores it, the HEAD just before. The race is between the two."""
    one = plate()
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "a": servers.noise("a", size)})
    plan = run(bench.plan(one))
    appeared: list[str] = []
    heads: list[str] = []

    def appear(request: proxy.Call, _: proxy.Forward) -> None:
        ours = request.path.endswith("analysis.tar")
        last = request.method == "PUT" and ours and "partNumber" not in request.query
        joining = request.method == "POST" and "uploadId" in request.query
        before = joining or last if honoured else request.method == "HEAD" and ours
        heads.extend("x" if request.method == "HEAD" and ours else "")
        if before and not appeared and (honoured or len(heads) == 2):
            appeared.append("x")
            bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar", Body=b"theirs")

    with proxied(bench.url) as front:
        front.add(appear)
        if not honoured:
            front.add(proxy.ignore_headers("if-none-match"))
        with pytest.raises((ObjectExists, ConcurrentWriter)):
            run(through(bench, front).archive_it(plan))
    assert appeared and bench.get(MAIN + ".tar") == b"theirs"


def test_archiving_again_finds_everything_done_and_sends_nothing(bench: Bench):
    one = full_plate(bench)
    bench.settings = SETTINGS["none"]
    bench.put({IMAGES + "a": servers.noise("a", 12 * MIB)})
    plan = run(bench.plan(one))
    first = run(bench.archive_it(plan))
    again = run(bench.archive_it(run(bench.plan(one)), journal_for=lambda name: FileJournal(bench.journals / "none")))
    assert [v.manifest_sha256 for v in again.volumes] == [v.manifest_sha256 for v in first.volumes]
    assert all(v.sent_parts == 0 for v in again.volumes)


# Sources that change (docs/faults.md, F23)


def test_a_source_that_changes_after_the_plan_stops_the_archive(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.put({IMAGES + "Images/Index.idx.xml": b"<new/>"})
    with pytest.raises(SourceChanged, match=r"Index\.idx\.xml"):
        run(bench.archive_it(plan))
    assert MAIN + ".tar.gz" not in bench.keys(bench.cold)


def test_a_changed_source_is_seen_where_the_store_ignores_if_match(real: Bench):
    one = full_plate(real)
    plan = run(real.plan(one))
    real.put({IMAGES + "Images/Index.idx.xml": b"<NEW/>"})  # same size: only the ETag tells
    with pytest.raises(SourceChanged):
        run(real.archive_it(plan))


def test_a_source_that_vanishes_stops_the_archive(bench: Bench):
    one = full_plate(bench)
    plan = run(bench.plan(one))
    bench.client.delete_object(Bucket=bench.live, Key=IMAGES + "Images/Index.idx.xml")
    with pytest.raises(WaybillError, match=r"Index\.idx\.xml"):
        run(bench.archive_it(plan))


def test_an_archived_version_is_read_although_a_newer_one_came(versioned: Bench):
    one = full_plate(versioned)
    plan = run(versioned.plan(one))
    assert all(o.version_id for v in plan.volumes for o in v.objects)
    versioned.client.put_object(Bucket=versioned.live, Key=IMAGES + "Images/Index.idx.xml", Body=b"<new/>")
    run(versioned.archive_it(plan))
    assert with_tarfile(versioned.get(MAIN + ".tar.gz"), "gzip")[IMAGES + "Images/Index.idx.xml"] == b"<xml/>"
    verdict = run(versioned.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "1 objects changed" in verdict.reasons[0]


def flip_body(key: str, times: int | None = None) -> proxy.RuleDict:
    return proxy.peculiarity("flip_answer", times=times, method="GET", path=f"/{re.escape(key)}$")


def put_with_checksum(bench: Bench, size: int) -> None:
    bench.put({IMAGES + "x": servers.noise("x", size)})
    bench.client.put_object(
        Bucket=bench.live, Key=IMAGES + "x", Body=servers.noise("x", size), ChecksumAlgorithm="SHA256"
    )


@pytest.mark.parametrize("size", [6, 17 * MIB], ids=["small", "in ranges"])
def test_bytes_that_contradict_the_checksum_of_the_store_are_not_archived(size: int, bench: Bench):
    one = plate()
    put_with_checksum(bench, size)
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x"))
        with pytest.raises(VerificationError, match="SHA256"):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".tar.gz" not in bench.keys(bench.cold)


@pytest.mark.parametrize("size", [6, 17 * MIB], ids=["small", "in ranges"])
def test_bytes_that_contradict_the_etag_alone_are_found_by_the_verifier(size: int, bench: Bench):
    """The archiver makes no MD5: the verifier makes it, of what is stored."""
    one = plate()
    bench.put({IMAGES + "x": servers.noise("x", size)})
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x"))
        run(through(bench, front).archive_it(plan))
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "MD5 of the archived bytes" in verdict.reasons[0]


def test_a_bit_lost_once_on_the_way_is_read_again(bench: Bench):
    one = plate()
    put_with_checksum(bench, 6)
    plan = run(bench.plan(one))
    with proxied(bench.url) as front:
        front.add(flip_body(IMAGES + "x", times=1))
        run(through(bench, front).archive_it(plan))
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


def test_with_kms_an_etag_is_no_md5_and_is_not_taken_for_one(bench: Bench):
    one = plate()
    bench.put({IMAGES + "x": b"abcdef"})

    def kms(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer | None:
        """As S3 shows an SSE-KMS object: an ETag of 32 digits that is not the MD5, everywhere the same."""
        ours = proxy.key_of(request) == IMAGES + "x" or "list-type" in request.query
        if request.method not in ("GET", "HEAD") or not ours:
            return None
        answer = forward(without_headers(request, "if-match"))
        true, shown = hashlib.md5(b"abcdef").hexdigest(), "f" * 32
        answer.body = answer.content().replace(true.encode(), shown.encode())
        answer.headers = {n: v.replace(true, shown) for n, v in answer.headers.items()}
        answer.headers["x-amz-server-side-encryption"] = "aws:kms"
        return answer

    with proxied(bench.url) as front:
        front.add(kms)
        secret = through(bench, front)
        run(secret.archive_it(run(secret.plan(one))))
        manifest = run(read_manifest(bench.archive, MAIN + ".tar.gz"))
        assert [m.etag_is_md5 for m in manifest.members if m.key] == [False]
        assert run(secret.verify(one)).outcome is Outcome.VERIFIED
