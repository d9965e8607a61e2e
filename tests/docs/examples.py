"""The worked examples of docs/formats.md, made by the code that writes these formats.

Invariant: nothing here depends on clock, host or chance, so that the page can be compared with it word for word.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa
import zstandard
from sqlalchemy.engine import URL

from include.core.journal import FileJournal, ObjectJournal
from include.core.ledger import Intent, Ledger, Owner, init
from include.core.ledger.schema import events
from include.core.objects import Objects
from include.core.questions import APPROVE, Answer, People, Question, Record, asked, judge
from include.core.receipt import LedgerHead, Receipt, ReceiptStore
from include.core.steps import StepRecords
from include.icav2.models import Content, CopyPlan, Destination, Item
from include.plates import sop_files
from include.plates.approval import Proved, subject
from include.plates.approval import digest_of as approval_digest
from include.plates.delete_preview import PartPreview
from include.plates.layout import BROAD2018
from include.plates.manifest import encode_manifest
from include.plates.models import (
    ArchiveSettings,
    Check,
    Frame,
    ManifestHead,
    ManifestMember,
    Outcome,
    Plate,
    SourceObject,
    Verdict,
    VolumePlan,
    VolumeProof,
)
from include.plates.plan import plan_volumes
from include.plates.proof import OF_THE_TARBALL, encoded, proof_of
from include.plates.request import BackupRequest
from include.plates.tar_format import PlannedMember, folder_time, member_rows, place
from include.plates.volume_reader import VolumeReader
from include.plates.volume_upload import Learned, VolumePart
from include.s3 import checksums
from include.s3.guarded_delete import KeyOutcome, Result, Target, digest_of

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
PLATE = Plate(project="P", batch="B", plate_id="20585", plate_id_full="20585__2013-11-14")
KEY = "projects/P/B/images/20585__2013-11-14/r01c01.tiff"
CONTENT = b"hello"
SOURCE = SourceObject(KEY, len(CONTENT), hashlib.md5(CONTENT).hexdigest(), 1_700_000_000, "images")
TAG = "P_B_20585"
NOW = 1_764_150_000.0


class OneObject:
    """A bucket that holds the example's only object."""

    async def read(self, _key: str, start: int, length: int, **_condition: Any) -> bytes:
        return CONTENT[start : start + length]


def volume() -> VolumePlan:
    return plan_volumes(PLATE, BROAD2018, ArchiveSettings(compression="none"), [SOURCE])[0]


def members() -> list[PlannedMember]:
    planned = volume()
    rows = member_rows(BROAD2018, TAG, planned.folders, planned.objects)
    return list(place(rows, folder_time(planned.objects)))


def tarball() -> bytes:
    """The uncompressed bytes of the example's volume, as the archiver's reader gives them."""

    async def read() -> bytes:
        reader = VolumeReader(members(), OneObject())  # type: ignore[arg-type]
        return b"".join([bytes(piece) async for piece in reader.pieces(0, reader.total)])

    return asyncio.run(read())


def crc(data: bytes) -> str:
    return checksums.encode(checksums.crc64nvme(data))


def manifest(*, frames: tuple[Frame, ...] = ()) -> bytes:
    planned, data = volume(), tarball()
    head = ManifestHead(
        tag=TAG, project=PLATE.project, batch=PLATE.batch, plate_id=PLATE.plate_id, plate_id_full=PLATE.plate_id_full,
        bucket="live", archive_bucket="cold", key=planned.key, tarball=planned.tarball, number=1, of=1,
        compression="none", level=1, part_bytes=33_554_432, group_bytes=4_194_304, plan_digest=planned.digest,
        raw_bytes=planned.raw_bytes, stored_bytes=len(data), stored_crc64nvme=crc(data), members=len(members()),
        upload_parts=1, headers_unknown=0, tags_unknown=0,
    )  # fmt: skip
    return encode_manifest(head, frames, [_row(member) for member in members()])


def _row(member: PlannedMember) -> ManifestMember:
    place_of = (member.name, member.size, member.header_offset, member.data_offset, member.modified)
    if member.source is None:
        return ManifestMember(*place_of, parts=(1, 1))
    digests = (hashlib.sha256(CONTENT).hexdigest(), crc(CONTENT))
    return ManifestMember(
        *place_of, key=SOURCE.key, part=SOURCE.part, etag=SOURCE.etag, sha256=digests[0], crc64nvme=digests[1],
        etag_is_md5=True, parts=(1, 1), headers=(("content-type", "image/tiff"),),
    )  # fmt: skip


def manifests_sha256(sha256: str) -> str:
    """The digest that a person approves, for a plate with one tarball."""
    key = volume().key.removesuffix(".tar") + ".manifest.jsonl.zst"
    return hashlib.sha256(f"{key} {sha256}\n".encode()).hexdigest()


def listings() -> list[str]:
    raw = sop_files.untrimmed_s3([SOURCE])
    tar = sop_files.trimmed_tar([(m.name, m.size) for m in members()], TAG)
    script = sop_files.delete_script("live", [(SOURCE.key, None, SOURCE.etag), (SOURCE.key, "v1", SOURCE.etag)])
    return [raw, sop_files.trimmed_s3(raw), tar, script.decode()]


def upload_journal(folder: Path) -> str:
    """The lines of an upload of one part, as the file journal keeps them."""
    journal = FileJournal(folder / "upload.jsonl")
    data = tarball()
    settings = {"codec": "none", "copy_from": None}
    begin = {"upload": "2~abc", "plan": volume().digest, "settings": settings, "checksummed": True, "md5_etags": True}
    digests = (hashlib.sha256(CONTENT).hexdigest(), crc(CONTENT), True)
    index = next(number for number, member in enumerate(members()) if member.source is not None)
    etag = hashlib.md5(data).hexdigest()
    part = VolumePart(
        number=1,
        start=0,
        end=len(data),
        size=len(data),
        etag=etag,
        crc64nvme=crc(data),
        members=(Learned(index, *digests),),
    )
    for row in (begin, {"part": part.row()}):
        journal.append(row)
    return journal.path.read_text()


TARGET = Target(SOURCE.key, SOURCE.etag, SOURCE.size, None)


def deletion_journal(folder: Path) -> str:
    journal = FileJournal(folder / "delete.jsonl")
    outcome = KeyOutcome(TARGET.key, TARGET.version_id, Result.DELETED)
    for row in (
        {"order": {"manifests": manifests_sha256("0" * 64), "parts": ["images"]}, "phase": "delete"},
        {"guard": "BATCH_ETAG"},
        {"intent": 1, "digest": digest_of([TARGET]), "keys": [TARGET.key]},
        {"batch": 1, "at": NOW, "outcomes": [asdict(outcome)]},
    ):
        journal.append(row)
    return journal.path.read_text()


def outcome_line() -> str:
    return json.dumps(asdict(KeyOutcome(TARGET.key, TARGET.version_id, Result.DELETED)), ensure_ascii=False)


def object_journal_names(folder: Path) -> list[str]:
    objects = Objects(folder.as_uri())
    with fixed_ids():
        ObjectJournal(objects).append({"part": 1})
    return asyncio.run(objects.names(".json"))


@contextmanager
def fixed_ids() -> Iterator[None]:
    """UUIDs that count up from 1."""
    numbers = itertools.count(1)
    with mock.patch.object(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers))):
        yield


OWNER = Owner("icav2_copy_batch", "L2301368-20261121", "copy")
INTENT = Intent(
    system="icav2",
    kind="copy_batch",
    business_key="icav2://7595e8f2-32d3-4c76-a324-c6a85dae87b5/cache/",
    payload={"project": "7595e8f2-32d3-4c76-a324-c6a85dae87b5", "folder": "fol.1", "items": ["fil.1"]},
    owner=OWNER,
    size_bytes=57_934,
    detail={"names": ["Größe.txt"]},
)


def ledger_events(folder: Path) -> list[dict[str, Any]]:
    """The rows of the events table after an intent and the start of its sending."""
    url = URL.create("sqlite", database=str(folder / "ledger.db"))
    with fixed_ids():
        init(url)
        ledger = Ledger(url, clock=lambda: NOW)
        ledger.begin(ledger.open(INTENT), response_deadline=120.0)
    with ledger.reading() as conn:
        return [dict(row) for row in conn.execute(sa.select(events).order_by(events.c.number)).mappings()]


def receipt(folder: Path) -> str:
    store = ReceiptStore.at(folder.as_uri())
    head = LedgerHead(id=str(uuid.UUID(int=1)), number=2, sha256="0" * 64)
    document = {"uri": "file:///r/plan.json", "sha256": "0" * 64, "size_bytes": 5}
    made = Receipt(
        dag_id=OWNER.dag_id, run_id=OWNER.run_id, state="complete", outcome="All 1 file is there.",
        totals={"files": 1}, documents={"plan": document}, ledger=head,
    )  # fmt: skip
    asyncio.run(store.write(made))
    return next(folder.rglob("receipt.json")).read_text()


def step_records(folder: Path) -> dict[str, str]:
    """What lies in the folder of an item after `archive` is done and `verify` has begun."""
    records = StepRecords(Objects(folder.as_uri()), "plates/001_20585", ("archive", "verify", "delete"))

    async def work() -> None:
        await records.begin("archive")
        await records.write("archive", "done", stored_bytes=4096)
        await records.begin("verify")

    asyncio.run(work())
    return {path.name: path.read_text() for path in sorted((folder / "plates/001_20585").iterdir())}


def plan_document() -> str:
    item = Item(
        source_uri="icav2://b23fb516-d852-4985-adcc-831c12e8cd22/run/a.txt", data_id="fil.1", name="a.txt",
        files=[Content(path="a.txt", size_bytes=5, etag=SOURCE.etag)],
    )  # fmt: skip
    project = "7595e8f2-32d3-4c76-a324-c6a85dae87b5"
    uri = f"icav2://{project}/cache/"
    return CopyPlan(
        destinations=[Destination(dest_uri=uri, project_id=project, path="/cache/", items=[item])]
    ).model_dump_json()


def question() -> str:
    """The record after the gate has let one plate through."""
    parts = (PartPreview("images", 1, len(CONTENT)),)
    plates = [Proved("001_20585", verdict(), {}, parts)]
    digest = approval_digest(BackupRequest(**REQUEST), plates)
    user = {"id": "amy", "name": "amy"}
    about = {"plates": ["001_20585"], "parts": {"001_20585": [["images", 1, len(CONTENT), False, 0, 0, ""]]}}
    put = Question(subject(BackupRequest(**REQUEST), plates), "…", digest, days=14, about=about)
    before = Record(task_id="approval", request_sha256="0" * 64)
    where = "https://airflow.example.org/dags/plate_backup/runs/B-1/tasks/approval/required_actions"
    record = asked(put, before, ("amy",), "uli", where, NOW)
    answer = Answer(chosen_options=[APPROVE], responded_by_user=user, responded_at="2025-11-26T09:45:00+00:00")
    decided = judge(record.changed("answered", answer=answer), digest, People(("amy",)))
    passed = {"001_20585": hashlib.sha256(verdict().model_dump_json().encode()).hexdigest()}
    return decided.changed("approved", passed=passed).model_dump_json(indent=2)


REQUEST: dict[str, Any] = {
    "project": "P",
    "batch": "B",
    "plates": [{"plate_id": PLATE.plate_id, "plate_id_full": PLATE.plate_id_full}],
    "bucket": "live",
    "archive_bucket": "cold",
    "delete_parts": ["images"],
}


def proof() -> str:
    volume = VolumeProof(
        key=f"imaging_analysis/P/plates/{TAG}_images_illum_analysis.tar", etag="d769692d73e815223d2a602db977048e",
        version_id=None, stored_bytes=3584, md5="d769692d73e815223d2a602db977048e",
        manifest_key=f"imaging_analysis/P/plates/{TAG}_images_illum_analysis.manifest.jsonl.zst",
        manifest_sha256="0" * 64, members=4,
    )  # fmt: skip
    checks = [Check(name=name, outcome=Outcome.VERIFIED, detail="") for name in OF_THE_TARBALL]
    made = proof_of(volume, checks, by="verify", now=1764150000.0)
    assert made is not None
    return encoded(made).decode().rstrip("\n")


def verdict() -> Verdict:
    return Verdict(
        plate=PLATE, layout=BROAD2018, tag=TAG, bucket="live", archive_bucket="cold", outcome=Outcome.VERIFIED,
        checks=(), manifests_sha256=manifests_sha256("0" * 64),
    )  # fmt: skip


def _tarball_text() -> str:
    data = tarball()
    rows = [f"{m.header_offset:>6} {m.data_offset:>6} {m.size:>3} {m.name}" for m in members()]
    return "\n".join(
        [f"key         {volume().key}", f"plan digest {volume().digest}", f"bytes       {len(data)}",
         f"sha256      {hashlib.sha256(data).hexdigest()}", *rows]
    )  # fmt: skip


def _manifest_text() -> str:
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(manifest())
    return f"{lines.decode()}sha256 of these lines: {hashlib.sha256(lines).hexdigest()}"


def _ledger_text(folder: Path) -> str:
    return "\n".join(f"{row['number']} {row['body']}\n{row['sha256']}" for row in ledger_events(folder))


def _step_text(folder: Path) -> str:
    return "\n".join(f"{name} {content}" for name, content in step_records(folder).items())


def examples(folder: Path) -> dict[str, str]:
    """The text of each example of the page, by name. `folder` must be empty."""
    return {
        "tarball": _tarball_text(),
        "listings": "".join(listings()).rstrip("\n"),
        "proof": proof(),
        "manifest": _manifest_text(),
        "upload_journal": upload_journal(folder).rstrip("\n"),
        "deletion_journal": deletion_journal(folder).rstrip("\n"),
        "outcome": outcome_line(),
        "ledger": _ledger_text(folder),
        "receipt": receipt(folder),
        "step_records": _step_text(folder),
        "question": question(),
        "plan": json.dumps(json.loads(plan_document()), indent=2, ensure_ascii=False),
    }


BLOCK = re.compile(r"(<!-- example (\w+) -->\n```\w+\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def with_examples(page: str, texts: Mapping[str, str]) -> str:
    """The page with these texts in its example blocks."""
    return BLOCK.sub(lambda found: f"{found[1]}{texts[found[2]]}\n{found[4]}", page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        fresh = with_examples(PAGE.read_text("utf-8"), examples(Path(empty)))
    PAGE.write_text(fresh, "utf-8")
