"""The engine's commands in processes of their own, killed with SIGKILL; for tests, and for the figures with many kills.

The thing to know before changing it: what is right is read from the buckets. A round first runs undisturbed, on the same
buckets, since a manifest names them; its bytes are what the killed one must end in.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.plates.models import MIB
from tests.plates import fault_table, servers
from tests.plates.conftest import Bench, run
from tests.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files

ROOT = Path(__file__).parent.parent.parent
IMAGES = f"projects/{PROJECT}/{BATCH}/images/20586/Images/"


@dataclass
class Round:
    """What a round of kills came to. `resent`: parts that the journal called finished and the last try sent again."""

    kills: int = 0
    wrong_bytes: int = 0
    unproved: int = 0
    resent: int = 0
    lines_missing: int = 0


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


def finished(bench: Bench, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The command's exit status and, with `--json`, what it printed. Raises AssertionError where it broke."""
    done = subprocess.run(command(bench, *arguments), env=environment(), cwd=ROOT, capture_output=True, check=False)
    if done.returncode not in (0, 1, 3):
        raise AssertionError(done.stderr.decode()[-2000:])
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()] if "--json" in arguments else []


def kill_archiving(bench: Bench, folder: Path, seed: int, kills: int) -> Round:
    """An archive that is killed again and again, and then let through."""
    rng, told = random.Random(seed), Round()
    bench.put(plate_files(plate()) | {f"{IMAGES}f{n}": servers.noise((seed, n), 3 * MIB) for n in range(9)})
    options = ("--compression", "none", "--part-mib", "5", "--volume-gib", "1", "--json", "--journal")
    began = time.monotonic()
    status, _ = finished(bench, "archive", *options, str(folder / "undisturbed"))
    normal = time.monotonic() - began
    told.wrong_bytes += status != 0
    run(bench.verify(plate()))  # writes the .md5, which a resumed archive cannot know
    expected = {key: bench.get(key) for key in bench.keys(bench.cold)}
    for key in expected:
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    for _ in range(kills):
        told.kills += (
            killed_after(bench, normal * rng.uniform(0.3, 1.0), "archive", *options, str(folder / "j")) is None
        )
    journaled = parts_done(folder / "j")
    status, results = finished(bench, "archive", *options, str(folder / "j"))
    kept = sum(volume["resumed_parts"] for result in results for volume in result["volumes"])
    told.resent = max(0, journaled - kept)
    told.wrong_bytes += status != 0 or run(bench.verify(plate())).outcome.value != "verified"
    told.wrong_bytes += {key: bench.get(key) for key in bench.keys(bench.cold)} != expected
    return told


def parts_done(folder: Path) -> int:
    """Parts that the journals call finished, of the upload that each journal speaks of last."""
    count = 0
    for path in folder.rglob("*.jsonl"):
        numbers: set[int] = set()
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by the kill
            numbers = set() if "upload" in row else numbers | ({row["part"]["number"]} if "part" in row else set())
        count += len(numbers)
    return count


def kill_verifying_and_deleting(bench: Bench, folder: Path, seed: int, kills: int) -> Round:
    """Half of the kills hit a verification, which must leave everything as it was, the others a deletion."""
    rng, told, one = random.Random(seed), Round(), plate()
    bench.put(plate_files(one, sites=60))
    run(bench.archive_it(run(bench.plan(one))))
    digest = run(bench.verify(one, write_documents=False)).manifests_sha256
    began = time.monotonic()
    finished(bench, "verify")
    normal = time.monotonic() - began
    for _ in range(kills // 2):
        told.kills += killed_after(bench, normal * rng.uniform(0.3, 1.0), "verify") is None
        told.unproved += len(bench.files.keys() - bench.keys(bench.live))
    parts = [word for part in fault_table.ALL for word in ("--part", part)]
    order = ("--approve", digest, "--retention", "none", "--journal", str(folder / "j"), *parts)
    for _ in range(kills - kills // 2):
        told.kills += killed_after(bench, normal * rng.uniform(0.7, 1.6), "delete", *order) is None
        told.unproved += unproved(bench)
    status, _ = finished(bench, "delete", *order)
    told.unproved += unproved(bench)
    told.wrong_bytes += status != 0 or bool(bench.files.keys() & bench.keys(bench.live))
    lines = [bench.get(key) for key in bench.keys(bench.cold) if ".deleted." in key]
    told.lines_missing = len(bench.files) - len(lines[0].splitlines()) if lines else len(bench.files)
    return told


def unproved(bench: Bench) -> int:
    """Objects that are gone although no stored tarball holds them."""
    return fault_table.lost(bench.files, bench.keys(bench.live), fault_table.stored(bench, plate()), plate())
