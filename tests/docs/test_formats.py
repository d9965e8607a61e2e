"""docs/formats.md says what the code writes: its examples are made anew, its tables hold every field."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path

import pytest
import zstandard

from include.core.ledger.rows import canonical
from include.core.ledger.schema import SCHEMA_VERSION, events, submissions
from include.core.ledger.transaction import GENESIS, chain_sha256
from include.core.receipt import Receipt
from include.plates.manifest import decode_manifest
from include.plates.models import ArchiveSettings, ManifestHead, ManifestMember
from include.plates.volume_parts import codec
from include.plates.volume_upload import VolumePart
from include.s3.guarded_delete import KeyOutcome
from tests.docs import examples

TEXT = examples.PAGE.read_text("utf-8")
FIELDS = {
    "The manifest": [*ManifestHead.model_fields, *(field.name for field in dataclasses.fields(ManifestMember))],
    "Journals": [field.name for field in dataclasses.fields(VolumePart)],
    "Deletion outcomes": [field.name for field in dataclasses.fields(KeyOutcome)],
    "The ledger": [*submissions.columns.keys(), *events.columns.keys()],
    "receipt.json": list(Receipt.model_fields),
}


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return examples.examples(tmp_path_factory.mktemp("formats"))


def test_every_example_of_the_page_is_what_the_code_makes(texts: dict[str, str]):
    shown = {found[2]: found[3].removesuffix("\n") for found in examples.BLOCK.finditer(TEXT)}
    assert shown == texts


@pytest.mark.parametrize(("heading", "fields"), FIELDS.items())
def test_every_stored_field_is_explained(heading: str, fields: list[str]):
    missing = [name for name in fields if f"`{name}`" not in section(heading)]
    assert not missing


def test_the_page_names_the_ledgers_schema():
    assert f"| ledger | {SCHEMA_VERSION} |" in TEXT


def test_the_ledger_example_is_a_chain_of_canonical_bodies(tmp_path: Path):
    previous = GENESIS
    for row in examples.ledger_events(tmp_path):
        assert canonical(json.loads(row["body"])) == row["body"]
        assert row["sha256"] == chain_sha256(previous, row["body"])
        previous = row["sha256"]


def test_the_manifest_example_is_read_back():
    manifest = decode_manifest(examples.manifest())
    assert [member.name for member in manifest.members] == [member.name for member in examples.members()]


def test_a_row_of_an_object_journal_is_named_by_number_and_chance(tmp_path: Path):
    (name,) = examples.object_journal_names(tmp_path)
    assert re.fullmatch(r"\d{8}\.[0-9a-f]{8}\.json", name)


@pytest.mark.parametrize("level", [1, 6])
def test_gzip_groups_have_neither_name_nor_time_and_read_as_one_stream(level: int):
    pack = codec(ArchiveSettings(compression="gzip", level=level))
    data = examples.tarball()
    assert pack is not None
    groups = [pack(memoryview(data)[:1000]), pack(memoryview(data)[1000:])]
    for group in groups:
        assert group[:3] == b"\x1f\x8b\x08" and group[3] == 0 and group[4:8] == bytes(4)
    assert gzip.decompress(b"".join(groups)) == data


def test_a_zstd_group_names_its_size_and_holds_a_checksum():
    pack = codec(ArchiveSettings(compression="zstd", level=3))
    assert pack is not None
    frame = zstandard.get_frame_parameters(pack(memoryview(examples.tarball())))
    assert (frame.content_size, frame.has_checksum) == (len(examples.tarball()), True)


def test_a_header_is_ustar_of_nobody(tmp_path: Path):
    data = examples.tarball()
    file = next(member for member in examples.members() if member.source is not None)
    header = data[file.header_offset : file.data_offset]
    assert header[100:124] == b"0000644\x000000000\x000000000\x00"
    assert header[156:157] == b"0" and header[257:265] == b"ustar\x0000"
    assert header[265:329] == bytes(64)  # no names of owner and group
    assert data[:512][100:108] == b"0000755\x00" and data[:512][156:157] == b"5"
    assert data[-1024:] == bytes(1024)
