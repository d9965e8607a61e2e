"""The archive's memory does not grow with the plate: measured in a process of its own. What is kept of each file is little."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.plates import servers
from harness.plates.bench import Bench
from harness.plates.kills import command
from harness.plates.servers import ENVIRONMENT
from include.core.packed import Packed
from include.plates.layout import BROAD2018
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.models import ArchiveSettings, ManifestMember, SourceObject, VolumePlan
from include.plates.plan import plan_volumes
from include.plates.restore import select
from include.plates.tar_format import PlacedMembers
from include.s3.guarded_delete import Batches, Target
from tests.docs import examples
from tests.include.plates.test_archive import IMAGES, TAG

ROOT = Path(__file__).parents[3]
LIMIT_KIB = 300 * 1000
# VmHWM, not getrusage: the latter counts what the parent held when it forked.
MEASURED = "import sys; from pathlib import Path; from include.plates.__main__ import main; s = main(sys.argv[1:]); "
MEASURED += "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); sys.exit(s)"


def test_archiving_stays_under_300_mb_whatever_the_plate_weighs(real: Bench, tmp_path: Path):
    data = servers.noise("image", 4 << 20)
    real.put({f"{IMAGES}f{n:03}": data for n in range(60)})
    arguments = command(real, "archive", "--compression", "none", "--json", "--journal", str(tmp_path))[3:]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) < LIMIT_KIB


# Rows: what a command keeps of each file

FILES = 5_000


def objects(count: int = FILES) -> Iterator[SourceObject]:
    for number in range(count):
        etag = hashlib.md5(str(number).encode()).hexdigest()
        yield SourceObject(f"{IMAGES}f{number:06}.tiff", 1024, etag, 1_532_088_000 + number % 60, "images")


def planned() -> VolumePlan:
    settings = ArchiveSettings(compression="none")
    return plan_volumes(servers.plate(), BROAD2018, settings, Packed(SourceObject, objects()))[0]


def stored_manifest() -> bytes:
    volume = planned()
    sha256, head = hashlib.sha256().hexdigest(), decode_manifest(examples.manifest()).head
    members = [
        ManifestMember(m.name, m.size, m.header_offset, m.data_offset, m.modified, m.name, "images", sha256=sha256)
        for m in PlacedMembers(BROAD2018, TAG, volume.folders, volume.objects)
    ]
    size = members[-1].data_offset + 1024
    facts = {"members": len(members), "compression": "none", "raw_bytes": size, "stored_bytes": size}
    return encode_manifest(head.model_copy(update=facts), (), members)


def kept_bytes(make: Callable[[], object]) -> float:
    """Of each file, once it is made."""
    make()  # what is imported or cached on the way is no row
    tracemalloc.start()
    try:
        kept = make()
        return tracemalloc.get_traced_memory()[0] / FILES if kept is not None else 0.0
    finally:
        tracemalloc.stop()


def test_a_plan_keeps_little_of_each_file():
    assert kept_bytes(planned) < 150


def test_a_manifest_keeps_little_of_each_file_and_so_do_a_selection_and_a_deletion():
    data = stored_manifest()
    assert kept_bytes(lambda: decode_manifest(data)) < 150
    manifest = decode_manifest(data)
    assert kept_bytes(lambda: select([manifest])) < 30
    assert kept_bytes(lambda: Batches([Target(m.name, "e", m.size, None) for m in manifest.members], 1000, "n")) < 60


def test_a_plan_comes_back_from_its_document_and_from_one_of_before():
    volume = planned()
    text = volume.model_dump_json()
    assert VolumePlan.model_validate_json(text) == volume and len(text) / FILES < 80
    of_before = json.loads(text) | {"objects": [dataclasses.asdict(one) for one in volume.objects]}
    assert VolumePlan.model_validate_json(json.dumps(of_before)) == volume
