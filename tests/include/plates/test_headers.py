"""What objects carry beside their bytes: kept in the manifest, told where it is not, and given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import proxy
from harness.plates.bench import Bench, run
from harness.plates.servers import noise, plate, plate_files
from harness.plates.simulated import simulated
from harness.proxy import proxied
from include.plates.models import MIB, ArchiveSettings, Manifest, ManifestMember, Outcome
from include.plates.restore import find_manifests
from include.s3 import headers as forms
from tests.include.plates.test_archive import IMAGES, through

DRESS: dict[str, Any] = {
    "ContentType": "image/tiff",
    "CacheControl": "max-age=60",
    "ContentDisposition": "attachment",
    "ContentEncoding": "identity",
    "ContentLanguage": "en",
    "Metadata": {"instrument": "Opera Phenix", "operator": "amy"},
    "Tagging": "study=BBBC022&kind=raw",
    "StorageClass": "STANDARD_IA",
}
KEPT = {
    "content-type": "image/tiff",
    "cache-control": "max-age=60",
    "content-disposition": "attachment",
    "content-encoding": "identity",
    "content-language": "en",
    "x-amz-meta-instrument": "Opera Phenix",
    "x-amz-meta-operator": "amy",
    "x-amz-tagging": "study=BBBC022&kind=raw",
    "x-amz-storage-class": "STANDARD_IA",
}
SIZES = {"small.tiff": 5000, "empty.tiff": 0, "two fetches.tiff": 13 * MIB}


def dressed(bench: Bench, sizes: dict[str, int] = SIZES, **settings: Any) -> dict[str, bytes]:
    """A plate in which some objects carry all that is kept."""
    values: dict[str, Any] = {"part_bytes": 5 * MIB, "volume_bytes": 1 << 30, "group_bytes": 256 * 1024} | settings
    bench.settings = ArchiveSettings(**values)
    bench.put(plate_files(plate()))
    files = {IMAGES + name: noise(name, size) for name, size in sizes.items()}
    for key, data in files.items():
        bench.client.put_object(Bucket=bench.live, Key=key, Body=data, **DRESS)
    bench.files |= files
    return files


def manifests(bench: Bench) -> list[Manifest]:
    return run(find_manifests(plate(), bench.layout, bench.archive))


def members(bench: Bench) -> dict[str, ManifestMember]:
    return {member.key: member for manifest in manifests(bench) for member in manifest.members if member.key}


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_manifest_keeps_what_is_not_the_default(compression: str, bench: Bench):
    files = dressed(bench, compression=compression)
    run(bench.archive_it(run(bench.plan(plate()))))
    found = members(bench)
    assert {key: dict(found[key].headers) for key in files} == dict.fromkeys(files, KEPT)
    assert not any(found[key].headers for key in bench.files.keys() - files.keys())
    assert {(m.head.waybill_manifest, m.head.headers_unknown, m.head.tags_unknown) for m in manifests(bench)} == {
        (2, 0, 0)
    }


def test_headers_survive_an_archive_that_is_resumed(bench: Bench):
    files = dressed(bench, {f"{n}.tiff": 6 * MIB for n in range(3)}, compression="none")
    plan = run(bench.plan(plate()))
    with proxied(bench.url) as front:
        front.add(proxy.refuse("PUT", None, 403, "AccessDenied", query="partNumber=3"))
        with pytest.raises(Exception, match="part 3"):
            run(through(bench, front).archive_it(plan))
    assert any(volume.resumed_parts for volume in run(bench.archive_it(plan)).volumes)
    assert {key: dict(members(bench)[key].headers) for key in files} == dict.fromkeys(files, KEPT)


def test_copied_members_are_asked_for_their_headers(tmp_path: Path):
    with simulated(tmp_path) as store:
        bench = store.bench
        files = dressed(bench, {"huge.tiff": 6 * MIB}, compression="none", copy_by="server")
        run(bench.archive_it(run(bench.plan(plate()))))
        found = members(bench)
        assert all(found[key].sha256 is None for key in files)  # it was not read
        assert {key: dict(found[key].headers) for key in files} == dict.fromkeys(files, KEPT)


def test_tags_that_may_not_be_read_are_told_and_stop_nothing(bench: Bench):
    dressed(bench, {"small.tiff": 5000})
    with proxied(bench.url) as front:
        front.add(proxy.refuse("GET", None, 403, "AccessDenied", query="tagging"))
        denied = through(bench, front)
        run(denied.archive_it(run(denied.plan(plate()))))
    verdict = run(bench.verify(plate()))
    told = next(check.detail for check in verdict.checks if check.name == "V5")
    assert verdict.outcome is Outcome.VERIFIED and "the tags of 1 objects could not be read" in told


def test_tags_of_one_object_in_the_sample_make_all_be_looked_at(bench: Bench):
    one = plate()
    bench.put({f"{IMAGES}{n:03}.tiff": noise(n, 50) for n in range(40)})
    for n in (0, 17):
        bench.client.put_object_tagging(
            Bucket=bench.live,
            Key=f"{IMAGES}{n:03}.tiff",
            Tagging={"TagSet": [{"Key": "kind", "Value": "raw"}]},
        )
    objects = [o for volume in run(bench.plan(one)).volumes for o in volume.objects]
    assert [o.key[-8:] for o in objects if o.tags] == ["000.tiff", "017.tiff"]
    assert all(o.tags is not None for o in objects)


def test_headers_of_both_clients_have_one_form():
    answer = {"ContentType": "image/tiff", "Metadata": {"A": "1"}, "StorageClass": "STANDARD_IA"}
    attributes = {"Content-Type": "image/tiff", "a": "1"}
    listed = forms.joined(forms.of_attributes(attributes), tags=None, storage_class="STANDARD_IA")
    assert forms.of_answer(answer) == listed
    assert forms.of_answer({"ContentType": "binary/octet-stream", "StorageClass": "STANDARD"}) == ()
    assert forms.of_answer({"ContentEncoding": "aws-chunked,gzip"}) == (("content-encoding", "gzip"),)
    assert forms.of_answer({"Metadata": {forms.SHA256_METADATA: "00"}}) == ()
    given = forms.put_parameters(forms.joined(listed, tags="a=1", storage_class=None))
    assert given == answer | {"Metadata": {"a": "1"}, "Tagging": "a=1"}


def test_metadata_beyond_ascii_is_sent_as_s3_gives_it():
    given = forms.put_parameters([("x-amz-meta-who", "Grüße")])
    assert given["Metadata"]["who"].isascii() and "=?utf-8?" in given["Metadata"]["who"]


def test_before_a_deletion_every_object_is_looked_at_for_tags(bench: Bench):
    """One tagged object of forty is in no sample, and after the deletion nothing would know of its tags."""
    one = plate()
    bench.put({f"{IMAGES}{n:03}.tiff": noise(n, 50) for n in range(40)})
    where = {"Bucket": bench.live, "Key": f"{IMAGES}017.tiff"}
    bench.client.put_object_tagging(**where, Tagging={"TagSet": [{"Key": "kind", "Value": "raw"}]})
    for all_tags, found in ((False, []), (True, ["017.tiff"])):
        objects = [o for volume in run(bench.plan(one, all_tags=all_tags)).volumes for o in volume.objects]
        assert [o.key[-8:] for o in objects if o.tags] == found
        assert all(o.tags is not None for o in objects) == all_tags
