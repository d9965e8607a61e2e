"""Archives and journals of before the multipart engine was shared still verify, restore and resume.

The files under tests/fixtures/plates/written_before were written by the code of that time: a small plate's two tarballs with
manifests and sidecars, and the journal of an upload in three parts.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from harness.plates.bench import Bench, run
from harness.plates.servers import PROJECT, plate
from include.core.journal import FileJournal
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.models import Outcome
from include.plates.restore import find_manifests, restore, select
from include.plates.restore_target import FolderSink
from include.plates.volume_upload import VolumePart, upload_of

FOLDER = Path(__file__).parents[2] / "fixtures" / "plates" / "written_before"
MANIFESTS = sorted(FOLDER.glob("*.manifest.jsonl.zst"))
JOURNAL = FOLDER / "multipart.journal.jsonl"


@pytest.fixture
def before(bench: Bench) -> Bench:
    """The archive on the cold bucket, and on the live one the files that the tarballs hold."""
    made = dataclasses.replace(bench, live="live-of-before", cold="cold-of-before")
    for name in (made.live, made.cold):
        made.client.create_bucket(Bucket=name)
    for path in sorted(FOLDER.glob(f"{PROJECT}*")):
        if path.suffix == ".json":
            continue
        notes = Path(f"{path}.metadata.json")
        metadata = json.loads(notes.read_text()) if notes.exists() else {}
        key = f"imaging_analysis/{PROJECT}/plates/{path.name}"
        made.client.put_object(Bucket=made.cold, Key=key, Body=path.read_bytes(), Metadata=metadata)
        if path.name.endswith(".tar.gz"):
            made.put(contents(path))
    return made


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        files = [(member.name, tar.extractfile(member)) for member in tar if member.isfile()]
        return {"projects/" + name.split("/", 1)[1]: body.read() for name, body in files if body is not None}


def test_an_archive_of_before_verifies_and_comes_back(before: Bench, tmp_path: Path):
    verdict = run(before.verify(plate()))
    assert verdict.outcome is Outcome.VERIFIED and verdict.objects == len(before.files)

    async def work() -> Any:
        manifests = await find_manifests(plate(), before.layout, before.archive)
        return await restore(select(manifests), FolderSink(tmp_path), archive=before.archive)

    assert run(work()).complete
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before.files


@pytest.mark.parametrize("path", MANIFESTS, ids=[path.name.split("20586_")[1] for path in MANIFESTS])
def test_a_manifest_is_written_as_before(path: Path):
    manifest = decode_manifest(path.read_bytes())
    written = encode_manifest(manifest.head, manifest.frames, manifest.members)
    assert text_of(written) == text_of(path.read_bytes())


def text_of(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(data).read()


def test_a_journal_of_before_is_taken_over_and_its_rows_are_written_as_before(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [json.loads(line) for line in JOURNAL.read_text().splitlines()]
    begun, parts = rows[0], [row["part"] for row in rows[1:]]
    shutil.copy(JOURNAL, tmp_path / "j")
    upload = upload_of(bench.archive, "k.tar.gz", begun["plan"], begun["settings"], FileJournal(tmp_path / "j"))

    async def stored() -> dict[int, tuple[str, int]]:
        return {part["number"]: (part["etag"], part["size"]) for part in parts}

    monkeypatch.setattr(upload, "_list_parts", stored)
    run(upload.load())
    assert upload.resumed == 3 and upload.upload_id == begun["upload"]
    assert (upload.checksummed, upload.md5_etags) == (begun["checksummed"], begun["md5_etags"])
    for part in parts:
        done = upload.done[part["number"]]
        assert isinstance(done, VolumePart)
        assert json.loads(json.dumps(done.row())) == part
