"""Archives that are broken off, lose answers or find half of themselves there: they go on, and end in the same bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.servers import plate
from harness.proxy import Front, proxied
from include.core.errors import TransientError, VerificationError, WaybillError
from include.core.journal import FileJournal
from include.plates import archive as archiving
from include.plates.models import MIB, Outcome, PlatePlan
from include.plates.volume_upload import VolumePart, upload_of
from include.s3 import checksums
from include.s3.bucket import Head
from include.s3.errors import ObjectExists, SourceChanged
from tests.include.plates.test_archive import BACKEND, IMAGES, MAIN, SETTINGS, through

# Crashes and lost answers


def big_plate(bench: Bench, compression: str = "gzip") -> PlatePlan:
    one = plate()
    bench.settings = SETTINGS[compression]
    bench.put({f"{IMAGES}f{n}.tiff": servers.noise(n, 3 * MIB) for n in range(9)})
    return run(bench.plan(one))


def of_part(number: int) -> str:
    """The query of the requests that send a part."""
    return f"(^|&)partNumber={number}(&|$)"


def fail_part(number: int) -> proxy.RuleDict:
    return proxy.refuse(None, None, 403, "AccessDenied", query=of_part(number))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_broken_off_archive_sends_only_the_missing_parts_and_ends_in_the_same_bytes(compression: str, bench: Bench):
    plan = big_plate(bench, compression)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    with proxied(bench.url) as front:
        done = run(through(bench, front).archive_it(plan))
        sent = {r.query["partNumber"][0] for r in front.requests if r.method == "PUT" and "partNumber" in r.query}
    volume = done.volumes[0]
    assert volume.resumed_parts >= 2 and volume.sent_parts == len(sent) and "3" in sent and "1" not in sent
    resumed = bench.get(volume.key)
    manifest = bench.get(volume.manifest_key)
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    run(bench.archive_it(plan, journal_for=lambda name: FileJournal(bench.journals / "fresh" / name)))
    assert bench.get(volume.key) == resumed and bench.get(volume.manifest_key) == manifest
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_part_that_the_store_lost_is_sent_again(bench: Bench):
    """docs/faults.md, F19: ListParts no longer shows a part that the journal holds."""
    plan = big_plate(bench, "none")
    text = "<PartNumber>2</PartNumber>"
    hide_part_two = proxy.peculiarity(
        "hide_from_listing", times=1, method="GET", query="uploadId=", text=text, element="Part"
    )

    with proxied(bench.url) as front:
        front.add(hide_part_two)
        with pytest.raises(TransientError, match=r"lost or changed parts \[2\]"):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".tar" not in bench.keys(bench.cold)
    with proxied(bench.url) as front:
        front.add(hide_part_two)
        again = run(through(bench, front).archive_it(plan))
    assert again.volumes[0].sent_parts == 1
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def damage_part_two(times: int | None = None) -> proxy.RuleDict:
    return proxy.peculiarity("damage_body", times=times, query=of_part(2))


def test_a_part_that_arrives_changed_is_found_by_the_verifier(bench: Bench):
    """docs/faults.md, F19, on a store without checksums: nothing that is read back is hashed for its ETag before."""
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        front.add(damage_part_two(times=1))
        run(through(bench, front).archive_it(plan))
    verdict = run(bench.verify(plan.plate))
    assert verdict.outcome is Outcome.MISMATCH and any("CRC64NVME" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_volume_that_fails_half_way_keeps_no_other_from_being_finished(compression: str, bench: Bench):
    plan = big_plate(bench, compression)
    bench.put({f"{IMAGES}f2.tiff": servers.noise("changed", 3 * MIB)})
    with pytest.raises(SourceChanged, match=r"f2\.tiff"):
        run(asyncio.wait_for(bench.archive_it(plan, parts_in_flight=1), timeout=60))
    assert any(key.startswith(BACKEND + ".tar") for key in bench.keys(bench.cold))
    assert not any(key.startswith(MAIN + ".tar") for key in bench.keys(bench.cold))


@pytest.mark.parametrize("server", ["bench", "real"])
def test_a_lost_answer_to_complete_is_settled_by_head(server: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        front.add(proxy.lose_answer("POST", "uploadId="))
        done = run(through(bench, front).archive_it(plan))
    assert done.volumes[0].sent_parts > 1
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def naming_another(before: Callable[[], object] = lambda: None) -> proxy.RuleDict:
    """The answer to Complete names another object than that of our parts; `before` happens to the store first."""

    def rename(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        answer = forward(request)
        before()
        body = re.sub(rb"[0-9a-f]{32}-", b"0" * 32 + b"-", answer.content())
        body = re.sub(rb"<(Checksum\w+)>[^<]*</\1>", b"", body)
        assert body != answer.body
        return dataclasses.replace(answer, body=body)

    return proxy.call(rename, method="POST", query="uploadId=")


def heads_after_complete(front: Front) -> int:
    done = next(i for i, r in enumerate(front.requests) if r.method == "POST" and "uploadId" in r.query)
    return sum(r.method == "HEAD" and r.key == MAIN + ".tar" for r in front.requests[done:])


@pytest.mark.parametrize("server", ["bench", "real"])
@pytest.mark.parametrize("named", [True, False])
def test_only_an_answer_that_names_our_parts_needs_no_head(named: bool, server: str, request: pytest.FixtureRequest):
    bench: Bench = request.getfixturevalue(server)
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        if not named:
            front.add(naming_another())
        run(through(bench, front).archive_it(plan))
        assert heads_after_complete(front) == (0 if named else 1)
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_store_that_joined_something_else_is_found_out(bench: Bench):
    plan = big_plate(bench, "none")
    with proxied(bench.url) as front:
        key = MAIN + ".tar"
        front.add(naming_another(lambda: bench.client.put_object(Bucket=bench.cold, Key=key, Body=b"half of it")))
        with pytest.raises(ObjectExists):
            run(through(bench, front).archive_it(plan))
    assert MAIN + ".manifest.jsonl.zst" not in bench.keys(bench.cold)


def test_a_crash_between_complete_and_manifest_is_healed_without_sending_anything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    plan = big_plate(bench)
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "encode_manifest", _crash)
        with pytest.raises(ZeroDivisionError):
            run(bench.archive_it(plan))
    run(_complete_all(bench, plan))
    assert MAIN + ".tar.gz" in bench.keys(bench.cold) and MAIN + ".manifest.jsonl.zst" not in bench.keys(bench.cold)
    with proxied(bench.url) as front:
        run(through(bench, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "partNumber" in r.query]
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def _crash(*_: object) -> bytes:
    raise ZeroDivisionError


async def _complete_all(bench: Bench, plan: PlatePlan) -> None:
    """What the crashed process would have done next: join the parts, and die."""
    volume = plan.volumes[0]
    journal = bench.journal_for(volume.name)
    settings = next(row["settings"] for row in journal.load() if "upload" in row)
    upload = upload_of(bench.archive, volume.key, volume.digest, settings, journal)
    await upload.load()
    await upload.complete()


def test_a_tarball_of_ours_without_manifest_and_journal_is_proved_ours_by_content(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    plan = big_plate(bench)
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "encode_manifest", _crash)
        with pytest.raises(ZeroDivisionError):
            run(bench.archive_it(plan))
    run(_complete_all(bench, plan))
    shutil.rmtree(bench.journals)
    run(bench.archive_it(plan))
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED
    assert not bench.client.list_multipart_uploads(Bucket=bench.cold).get("Uploads")


def test_a_journal_of_another_plan_is_not_used(bench: Bench):
    plan = big_plate(bench)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    bench.put({f"{IMAGES}f0.tiff": servers.noise("other", 3 * MIB)})
    done = run(bench.archive_it(run(bench.plan(plan.plate))))
    assert done.volumes[0].resumed_parts == 0
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_an_upload_that_was_aborted_meanwhile_starts_afresh(bench: Bench):
    plan = big_plate(bench)
    with proxied(bench.url) as front:
        front.add(fail_part(3))
        with pytest.raises(WaybillError):
            run(through(bench, front).archive_it(plan))
    for upload in bench.client.list_multipart_uploads(Bucket=bench.cold)["Uploads"]:
        bench.client.abort_multipart_upload(Bucket=bench.cold, Key=upload["Key"], UploadId=upload["UploadId"])
    assert run(bench.archive_it(plan)).volumes[0].resumed_parts == 0
    assert run(bench.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_torn_last_line_of_the_journal_is_forgotten(tmp_path: Path):
    journal = FileJournal(tmp_path / "j")
    journal.append({"a": 1})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"b":')
    assert journal.load() == [{"a": 1}]
    journal.append({"c": 3})
    assert journal.load() == [{"a": 1}, {"c": 3}]


def test_no_store_without_tags_is_ever_asked_to_tag_the_tarball(real: Bench):
    """rclone takes a PUT of tags for a PUT of the object: it would replace the tarball by a few lines of XML."""
    plan = big_plate(real, "none")
    with proxied(real.url) as front:
        done = run(through(real, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "tagging" in r.query]
    assert "not on the tarball" in done.volumes[0].notes[0]
    assert run(real.verify(plan.plate)).outcome is Outcome.VERIFIED


def test_a_store_that_answers_for_tags_without_knowing_them_is_not_asked_to_tag(bench: Bench):
    plan = big_plate(bench, "none")
    vague = {"fault": "status", "method": "GET", "query": "tagging", "code": 200, "body": "<Hello/>", "times": None}
    with proxied(bench.url) as front:
        front.add(vague)
        done = run(through(bench, front).archive_it(plan))
        assert not [r for r in front.requests if r.method == "PUT" and "tagging" in r.query]
    assert "not on the tarball" in done.volumes[0].notes[0]


@pytest.mark.parametrize("fault", ["another plan", "another size", "another checksum"])
def test_what_lies_under_our_name_is_ours_only_with_our_plan_size_and_checksum(fault: str, bench: Bench):
    upload = upload_of(bench.archive, "k.tar", "our-plan", {}, FileJournal(bench.journals / "j"))
    upload.done = {
        1: VolumePart(
            number=1, start=0, end=3, size=3, etag="e", crc64nvme=checksums.encode(checksums.crc64nvme(b"abc"))
        )
    }
    right = Head(
        "k.tar",
        3,
        "e",
        None,
        0,
        {"waybill-plan-sha256": "our-plan"},
        checksum=f"CRC64NVME:FULL_OBJECT:{upload.whole_crc()}",
    )
    assert run(upload.ours_or_refuse(right)) is right
    wrong = {
        "another plan": {"metadata": {"waybill-plan-sha256": "their-plan"}},
        "another size": {"size": 4},
        "another checksum": {"checksum": "CRC64NVME:FULL_OBJECT:AAAAAAAAAAA="},
    }[fault]
    with pytest.raises((ObjectExists, VerificationError)):
        run(upload.ours_or_refuse(dataclasses.replace(right, **wrong)))
