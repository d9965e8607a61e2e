"""SIGKILL at random moments of archive, verify and delete, through the command line, in processes of their own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from include.plates.models import MIB, ArchiveSettings, Outcome
from tests.plates import servers
from tests.plates.conftest import Bench, run
from tests.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files
from tests.plates.test_archiving import IMAGES, MAIN
from tests.plates.test_deleting import plate_keys

ROOT = Path(__file__).parent.parent.parent
KILLS = 4


def command(bench: Bench, name: str, *more: str) -> list[str]:
    ids = ["--project", PROJECT, "--batch", BATCH, "--plate-id", "20586", "--bucket", bench.live]
    place = ["--cold-bucket", bench.cold, "--endpoint-url", bench.url]
    return [sys.executable, "-m", "include.plates", name, *ids, *place, *more]


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}


def killed_after(bench: Bench, seconds: float, *arguments: str) -> int | None:
    """The command's exit status, or None where SIGKILL came first."""
    with subprocess.Popen(command(bench, *arguments), env=environment(), cwd=ROOT, stdout=-3, stderr=-3) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return None


def finished(bench: Bench, *arguments: str) -> int:
    done = subprocess.run(command(bench, *arguments), env=environment(), cwd=ROOT, capture_output=True, check=False)
    assert done.returncode in (0, 1, 3), done.stderr.decode()[-2000:]
    return done.returncode


@pytest.mark.parametrize("seed", [1])
def test_a_killed_archive_ends_in_the_same_bytes(seed: int, bench: Bench, tmp_path: Path):
    rng = random.Random(seed)
    one = plate()
    bench.put(plate_files(one) | {f"{IMAGES}f{n}": servers.noise(n, 3 * MIB) for n in range(9)})
    options = ("--compression", "none", "--part-mib", "5", "--volume-gib", "1", "--journal", str(tmp_path / "j"))
    began = time.monotonic()
    assert finished(bench, "archive", *options) == 0
    normal = time.monotonic() - began
    expected = {key: bench.get(key) for key in bench.keys(bench.cold)}
    for key in expected:
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    again = (*options[:-1], str(tmp_path / "k"))
    for _ in range(KILLS):
        killed_after(bench, normal * rng.uniform(0.3, 1.0), "archive", *again)
    assert finished(bench, "archive", *again) == 0
    assert (
        run(bench.verify(one)).outcome is Outcome.VERIFIED
    )  # and writes the .md5, which a resumed archive cannot know
    assert {key: bench.get(key) for key in bench.keys(bench.cold)} == expected


def test_a_killed_verification_leaves_nothing_and_a_killed_deletion_ends(bench: Bench, tmp_path: Path):
    rng = random.Random(2)
    one = plate()
    bench.settings = ArchiveSettings(compression="gzip")
    bench.put(plate_files(one, sites=60))
    run(bench.archive_it(run(bench.plan(one))))
    digest = run(bench.verify(one, write_documents=False)).manifests_sha256
    began = time.monotonic()
    assert finished(bench, "verify") == 0
    normal = time.monotonic() - began
    killed_after(bench, normal * 0.7, "verify")
    assert plate_keys(bench) == set(bench.files)
    parts = [word for part in ("images", "illum", "analysis", "backend") for word in ("--part", part)]
    order = ("--approve", digest, "--retention", "none", "--journal", str(tmp_path / "j"), *parts)
    for _ in range(KILLS):
        killed_after(bench, normal * rng.uniform(0.7, 1.6), "delete", *order)
        assert MAIN + ".tar.gz" in bench.keys(bench.cold)
    assert finished(bench, "delete", *order) == 0
    assert not plate_keys(bench)
    lines = next(key for key in bench.keys(bench.cold) if ".deleted." in key)
    assert len(bench.get(lines).splitlines()) == len(bench.files)
