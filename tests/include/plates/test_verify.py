"""The verifier against everything that can be wrong with an archive, and beside it what the SOP's check says. V1, F16 and the
like: docs/faults.md."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import random
import tarfile
from typing import Any

import pytest

from harness import proxy
from harness.plates import servers, sop_policy
from harness.plates.bench import Bench, run
from harness.plates.servers import BATCH, PROJECT, plate, plate_files
from harness.proxy import proxied
from include.core.errors import RequestError
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.models import MIB, ArchiveSettings, Manifest, Outcome, Plate, Verdict
from tests.include.plates.test_archive import BACKEND, IMAGES, MAIN, TAG, through

TARBALL = {"none": ".tar", "gzip": ".tar.gz", "zstd": ".tar.zst"}


def archived(bench: Bench, compression: str = "none", size: int = 3000) -> Plate:
    one = plate()
    bench.settings = ArchiveSettings(compression=compression, part_bytes=5 * MIB, group_bytes=MIB, volume_bytes=1 << 30)  # type: ignore[arg-type]
    bench.put(plate_files(one, image_bytes=size))
    run(bench.archive_it(run(bench.plan(one))))
    assert run(bench.verify(one, write_documents=False)).outcome is Outcome.VERIFIED
    return one


def replace_object(bench: Bench, key: str, data: bytes) -> None:
    """What lies there becomes something else, metadata kept: as a fault at rest would have it."""
    head = bench.client.head_object(Bucket=bench.cold, Key=key)
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=head["Metadata"])


def failing(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.outcome is Outcome.MISMATCH}


def sop_says(bench: Bench, one: Plate) -> bool:
    """The SOP's verdict on the same plate: its listings were made before the upload, so no stored byte matters."""
    return sop_policy.check_plate(sop_policy.backup(one, bench.files, bench.files, TAG))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("seed", range(3))
def test_f17_one_flipped_bit_at_rest_is_a_mismatch(compression: str, seed: int, bench: Bench):
    one = archived(bench, compression)
    key = MAIN + TARBALL[compression]
    data = bytearray(bench.get(key))
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed
    replace_object(bench, key, bytes(data))
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and failing(verdict) & {"V3", "V4"}
    assert verdict.delete_script is None
    assert sop_says(bench, one)  # the SOP would delete this plate


def test_f18_zeros_after_a_point_are_a_mismatch(bench: Bench):
    one = archived(bench)
    data = bench.get(MAIN + ".tar")
    replace_object(bench, MAIN + ".tar", data[:4096] + bytes(len(data) - 4096))
    assert run(bench.verify(one)).outcome is Outcome.MISMATCH
    assert sop_says(bench, one)


@pytest.mark.parametrize("cut", [1, 512, 1024, 5000])
def test_f16_f19_a_short_tarball_is_a_mismatch(cut: int, bench: Bench):
    one = archived(bench)
    replace_object(bench, MAIN + ".tar", bench.get(MAIN + ".tar")[:-cut])
    assert {"V3", "V4"} & failing(run(bench.verify(one)))


def test_f16_a_missing_tarball_is_a_mismatch(bench: Bench):
    one = archived(bench)
    bench.client.delete_object(Bucket=bench.cold, Key=BACKEND + ".tar")
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.MISMATCH and "is missing" in "".join(verdict.reasons)


def test_f19_parts_out_of_order_are_a_mismatch(bench: Bench):
    one = archived(bench, size=4 * MIB)
    data = bench.get(MAIN + ".tar")
    part = 5 * MIB
    replace_object(bench, MAIN + ".tar", data[part : 2 * part] + data[:part] + data[2 * part :])
    assert "V4" in failing(run(bench.verify(one)))


def test_a_swapped_pair_of_members_of_one_size_is_a_mismatch(bench: Bench):
    """Same names, same sizes, same listings: only content tells (docs/protocols/s3.md 1.9)."""
    one = plate()
    bench.settings = ArchiveSettings(compression="none")
    bench.put({IMAGES + "a": b"1" * 600, IMAGES + "b": b"2" * 600})
    run(bench.archive_it(run(bench.plan(one))))
    data = bench.get(MAIN + ".tar")
    replace_object(
        bench, MAIN + ".tar", data.translate(bytes.maketrans(b"\x00", b"\x00")).replace(b"1" * 600, b"2" * 600)
    )
    verdict = run(bench.verify(one))
    assert {"V2", "V4"} <= failing(verdict)


def test_a_well_formed_archive_of_other_content_with_a_matching_manifest_is_caught_by_the_sources_etags(bench: Bench):
    """Somebody rewrote tarball *and* manifest, consistently: the live bucket still knows what it had."""
    one = archived(bench)
    key = BACKEND + ".tar"
    data = bench.get(key)
    old = bench.files[f"projects/{PROJECT}/workspace/backend/{BATCH}/20586/20586.sqlite"]
    new = b"?" + old[1:]
    forged = data.replace(old, new)
    replace_object(bench, key, forged)
    import base64

    from awscrt import checksums as crt

    whole = base64.b64encode(int(crt.crc64nvme(forged)).to_bytes(8, "big")).decode()
    digest = hashlib.sha256(new).hexdigest()
    change_manifest(
        bench, BACKEND, {"stored_crc64nvme": whole}, lambda m: {"sha256": digest} if m.size == len(old) else {}
    )
    strip_metadata(bench, key)
    assert failing(run(bench.verify(one))) == {"V2"}


def change_manifest(bench: Bench, base: str, head: dict[str, Any], rows: Any = lambda _: {}) -> None:
    key = base + ".manifest.jsonl.zst"
    manifest: Manifest = decode_manifest(bench.get(key))
    members = [dataclasses.replace(member, **rows(member)) for member in manifest.members]
    data = encode_manifest(manifest.head.model_copy(update=head), manifest.frames, members)
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data)


def strip_metadata(bench: Bench, key: str) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key))


def test_v5_another_manifest_than_the_one_the_tarball_names_is_a_mismatch(bench: Bench):
    one = archived(bench)
    change_manifest(bench, BACKEND, {}, lambda m: {"crc64nvme": "AAAAAAAAAAA="} if m.key else {})
    assert failing(run(bench.verify(one))) == {"V5"}


def test_v5_the_digest_of_a_multipart_tarball_is_held_by_its_tag(bench: Bench):
    one = archived(bench, size=4 * MIB)
    change_manifest(bench, MAIN, {}, lambda m: {"crc64nvme": "AAAAAAAAAAA="} if m.key else {})
    assert failing(run(bench.verify(one))) == {"V5"}


def test_v5_rows_that_are_not_of_the_tarballs_plan_are_a_mismatch(bench: Bench):
    one = archived(bench)
    change_manifest(bench, BACKEND, {}, lambda m: {"key": m.key + "x"} if m.key else {})
    strip_metadata(bench, BACKEND + ".tar")
    assert "V5" in failing(run(bench.verify(one)))


def test_v3_a_wrong_md5_file_is_a_mismatch(bench: Bench):
    one = archived(bench)
    bench.client.put_object(Bucket=bench.cold, Key=BACKEND + ".md5", Body=b"0" * 32 + b"  x\n")
    assert failing(run(bench.verify(one))) == {"V3"}


def test_v4_frames_that_are_not_where_the_manifest_says_are_a_mismatch(bench: Bench):
    one = archived(bench, "gzip", size=MIB)
    manifest = decode_manifest(bench.get(MAIN + ".manifest.jsonl.zst"))
    frames = [dataclasses.replace(f, raw_length=f.raw_length - (f.offset == 0)) for f in manifest.frames]
    data = encode_manifest(manifest.head, frames, manifest.members)
    bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".manifest.jsonl.zst", Body=data)
    assert "V4" in failing(run(bench.verify(one)))


@pytest.mark.parametrize("extra", [b"\0" * 512, b"garbage"])
def test_v4_trailing_bytes_are_a_mismatch(extra: bytes, bench: Bench):
    one = archived(bench)
    replace_object(bench, BACKEND + ".tar", bench.get(BACKEND + ".tar") + extra)
    assert "V4" in failing(run(bench.verify(one)))


def test_v4_a_member_too_many_is_a_mismatch(bench: Bench):
    one = archived(bench, "gzip")
    raw = gzip.decompress(bench.get(BACKEND + ".tar.gz"))
    out = io.BytesIO(raw)
    with tarfile.open(fileobj=out, mode="a") as tar:
        info = tarfile.TarInfo(f"{TAG}/stray")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    replace_object(bench, BACKEND + ".tar.gz", gzip.compress(out.getvalue(), mtime=0))
    assert "V4" in failing(run(bench.verify(one)))


# The source since then (V1)


def test_f21_a_new_object_after_the_manifest_is_a_mismatch_and_the_sop_would_delete_it(bench: Bench):
    one = archived(bench)
    late = IMAGES + "Images/late.tiff"
    run_of_sop = sop_policy.backup(one, bench.files, bench.files, TAG)
    bench.put({late: b"late"})
    verdict = run(bench.verify(one))
    assert failing(verdict) == {"V1"} and "1 objects appeared" in verdict.reasons[0]
    assert sop_policy.check_plate(run_of_sop) and late in sop_policy.deleted(one, bench.files)


@pytest.mark.parametrize("change", ["changed", "vanished"])
def test_a_changed_or_vanished_source_is_a_mismatch(change: str, bench: Bench):
    one = archived(bench)
    key = IMAGES + "Images/Index.idx.xml"
    if change == "changed":
        bench.put({key: b"<XML/>"})
    else:
        bench.client.delete_object(Bucket=bench.live, Key=key)
    verdict = run(bench.verify(one))
    assert failing(verdict) == {"V1"} and f"1 objects {change}" in verdict.reasons[0]


def test_f22_a_listing_that_lags_behind_is_unverifiable_and_not_a_deletion(bench: Bench):
    one = archived(bench)
    lag = proxy.peculiarity("hide_from_listing", method="GET", query="list-type=|marker=", text="Index.idx.xml")
    with proxied(bench.url) as front:
        front.add(lag)
        verdict = run(through(bench, front).verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE and "are not listed" in verdict.reasons[0]


def test_a_sibling_plate_changes_nothing(bench: Bench):
    one = archived(bench)
    bench.put(plate_files(plate("205861")))
    assert run(bench.verify(one)).outcome is Outcome.VERIFIED


# What cannot be looked at


@pytest.mark.parametrize("what", [r"images_illum_analysis\.tar", r"backend\.manifest"])
def test_what_may_not_be_read_is_unverifiable(what: str, bench: Bench):
    one = archived(bench)
    with proxied(bench.url) as front:
        front.add(proxy.refuse("GET", what, 403, "AccessDenied"))
        verdict = run(through(bench, front).verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE
    assert not failing(verdict)


def test_403_on_head_is_unverifiable_and_the_sop_takes_it_for_absent(bench: Bench):
    one = archived(bench)
    with proxied(bench.url) as front:
        front.add(proxy.refuse("HEAD", r"backend\.tar", 403, "Forbidden"))
        verdict = run(through(bench, front).verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE
    assert sop_policy.check_plate(sop_policy.SopRun(None, None))


def test_a_missing_manifest_is_unverifiable(bench: Bench):
    one = archived(bench)
    bench.client.delete_object(Bucket=bench.cold, Key=BACKEND + ".manifest.jsonl.zst")
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE and "no manifest" in " ".join(verdict.reasons)


def test_a_torn_manifest_is_unverifiable(bench: Bench):
    one = archived(bench)
    key = BACKEND + ".manifest.jsonl.zst"
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key)[:-3])
    assert run(bench.verify(one)).outcome is Outcome.UNVERIFIABLE


def test_a_missing_volume_is_unverifiable(bench: Bench):
    one = plate()
    bench.settings = ArchiveSettings(compression="none", volume_bytes=MIB)
    bench.put({f"{IMAGES}{n}": servers.noise(n, 400_000) for n in range(5)})
    run(bench.archive_it(run(bench.plan(one))))
    bench.client.delete_object(Bucket=bench.cold, Key=MAIN + ".002-of-003.manifest.jsonl.zst")
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE and "not one whole set" in " ".join(verdict.reasons)


def test_an_archived_tarball_is_unverifiable_until_it_is_restored(bench: Bench):
    one = archived(bench)
    key = BACKEND + ".tar"
    head = bench.client.head_object(Bucket=bench.cold, Key=key)
    data = bench.get(key)
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=head["Metadata"], StorageClass="GLACIER")
    verdict = run(bench.verify(one))
    assert verdict.outcome is Outcome.UNVERIFIABLE and "archived storage class" in " ".join(verdict.reasons)


def test_a_plate_that_was_never_archived_is_unverifiable_and_bad_ids_are_refused(bench: Bench):
    assert run(bench.verify(plate())).outcome is Outcome.UNVERIFIABLE
    with pytest.raises(RequestError):
        run(bench.verify(Plate(project="", batch="b", plate_id="1", plate_id_full="1")))


def test_a_tarball_that_changes_while_it_is_read_is_a_mismatch(bench: Bench):
    one = archived(bench, size=4 * MIB)

    def change(request: proxy.Call, _: proxy.Forward) -> None:
        if (
            request.method == "GET"
            and request.path.endswith("analysis.tar")
            and "bytes=8388608" in str(request.headers)
        ):
            bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar", Body=b"other")

    with proxied(bench.url) as front:
        front.add(change)
        verdict = run(through(bench, front).verify(one))
    assert "V4" in failing(verdict) or verdict.outcome is Outcome.MISMATCH


# The documents of a verified archive


def test_only_a_verified_archive_gets_a_delete_script_and_a_stale_one_is_withdrawn(bench: Bench):
    one = archived(bench)
    key = f"projects/{PROJECT}/workspace/backup/{TAG}_delete_s3.sh"
    verdict = run(bench.verify(one))
    assert verdict.delete_script == f"s3://{bench.live}/{key}"
    assert len(bench.get(key, bench.live).splitlines()) == 1 + len(bench.files)
    bench.put({IMAGES + "late": b"x"})
    assert run(bench.verify(one)).delete_script is None
    assert b"Withdrawn" in bench.get(key, bench.live)


def test_the_digest_to_approve_changes_with_any_manifest(bench: Bench):
    one = archived(bench)
    first = run(bench.verify(one)).manifests_sha256
    assert run(bench.verify(one)).manifests_sha256 == first
    change_manifest(bench, BACKEND, {}, lambda m: {"crc64nvme": "AAAAAAAAAAA="} if m.key else {})
    assert run(bench.verify(one)).manifests_sha256 != first


def test_the_sops_check_passes_a_plate_with_a_space_in_its_name_whatever_its_names_are():
    one = plate("BR1", "BR1__x-Measurement 1")
    tag = f"{PROJECT}_{BATCH}_BR1"
    live = {f"projects/{PROJECT}/{BATCH}/images/BR1__x-Measurement 1/{n}.tiff": b"12" for n in "ab"}
    other = {f"projects/{PROJECT}/{BATCH}/images/BR1__x-Measurement 1/{n}.tiff": b"12" for n in "cd"}
    assert sop_policy.check_plate(sop_policy.backup(one, live, other, tag))
