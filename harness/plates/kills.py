"""The engine's commands in processes of their own, killed with SIGKILL; for tests, and for the figures with many kills.

Most kills come at a random request, just before or just after the store has carried it out; the others at a random moment
of the command, since not every step is a request.

Invariant: what is right is read from the buckets, what was sent from the proxy's journal, and a kill counts only if it came
before the command had ended by itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from harness.plates import fault_judge, servers
from harness.plates.bench import Bench, run
from harness.plates.fault_table import ALL
from harness.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files
from harness.plates.simulated import simulated
from harness.proxy import Answer, Call, ConnectionDropped, Forward, Front, call, proxied
from include.plates.models import MIB, ArchiveSettings

ROOT = Path(__file__).parent.parent.parent
IMAGES = f"projects/{PROJECT}/{BATCH}/images/20586/Images/"
WAYS = ("plain", "versioned", "markers", "hidden", "older")
OLDER = {"hidden": "keep_hidden", "older": "delete"}  # what happens to a version below one of the objects


@dataclass
class Round:
    """What a round of kills came to.

    `different`: archives and deletions that did not end as an undisturbed one. `unproved`: objects that were gone, at any
    time, although no stored tarball held them. `resent`: parts sent although the journal called them finished. `lines`:
    deletions without a line of their own.
    """

    kills: int = 0
    different: int = 0
    unproved: int = 0
    resent: int = 0
    lines: int = 0

    def __add__(self, other: Round) -> Round:
        return Round(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(Round)))


def command(bench: Bench, name: str, *more: str) -> list[str]:
    ids = ["--project", PROJECT, "--batch", BATCH, "--plate-id", "20586", "--bucket", bench.live]
    place = ["--cold-bucket", bench.cold, "--endpoint-url", bench.url]
    return [sys.executable, "-m", "include.plates", name, *ids, *place, *more]


def environment(state: Path) -> dict[str, str]:
    """`state`: where the commands keep what must outlive them."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(state)}


@dataclass
class Target:
    """A command behind a proxy, to be killed. `normal` and `requests`: what it takes undisturbed."""

    bench: Bench
    front: Front
    rng: random.Random
    normal: float = 3.0
    requests: int = 60

    def finish(self, *arguments: str) -> bool:
        """Lets it end; whether with status 0. Raises AssertionError where it broke."""
        began, before = time.monotonic(), len(self.front.requests)
        done = subprocess.run(
            command(self.bench, *arguments),
            env=environment(self.bench.journals),
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if done.returncode not in (0, 1, 3):
            raise AssertionError(done.stderr.decode()[-2000:])
        self.normal, self.requests = time.monotonic() - began, len(self.front.requests) - before
        return done.returncode == 0

    def kill(self, *arguments: str) -> bool:
        """Starts it and kills it at a random instant; whether it was killed before it had ended."""
        at, carried_out = self.rng.randint(1, max(2, self.requests)), self.rng.random() < 0.5
        by_time = self.rng.random() < 0.3
        process = subprocess.Popen(
            command(self.bench, *arguments), env=environment(self.bench.journals), cwd=ROOT, stdout=-3, stderr=-3
        )

        def kill(request: Call, forward: Forward) -> Answer:
            if carried_out:
                forward(request)
            process.kill()
            raise ConnectionDropped("the client was killed")

        if not by_time:
            self.front.add(call(kill, after=at - 1, times=1))
        try:
            process.wait(self.normal * self.rng.uniform(0.3, 1.0) if by_time else 120)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            self.front.clear()
        return process.wait() == -9


@contextmanager
def target(bench: Bench, rng: random.Random) -> Iterator[Target]:
    with proxied(bench.url) as front:
        yield Target(replace(bench, url=front.url), front, rng)


def kill_archiving(bench: Bench, folder: Path, seed: int, kills: int, *, copy_by: str = "worker") -> Round:
    """An archive that is killed again and again, and then let through; on the same buckets as an undisturbed one before."""
    told, rng = Round(), random.Random(seed)
    size = 3 * MIB if copy_by == "worker" else 6 * MIB
    bench.put(plate_files(plate()) | {f"{IMAGES}f{n}": servers.noise((seed, n), size) for n in range(9)})
    options = ("--compression", "none", "--copy-by", copy_by, "--part-mib", "5", "--volume-gib", "1", "--journal")
    with target(bench, rng) as one:
        told.different += not one.finish("archive", *options, str(folder / "undisturbed"))
        run(bench.verify(plate()))  # writes the .md5
        expected = contents(bench)
        for key in expected:
            bench.client.delete_object(Bucket=bench.cold, Key=key)
        killed = ("archive", *options, str(folder / "killed"))
        for _ in range(kills):
            told.resent += resent(one.front, folder / "killed", lambda: told_kill(told, one, *killed))
        told.resent += resent(one.front, folder / "killed", lambda: told_end(told, one, *killed))
    told.different += run(bench.verify(plate())).outcome.value != "verified"
    told.different += contents(bench) != expected
    told.different += bool(
        bench.client.list_multipart_uploads(Bucket=bench.cold, Prefix="waybill-staging/").get("Uploads")
    )
    told.unproved += len(bench.files.keys() - bench.keys(bench.live))
    return told


def kill_copying(_bench: Bench, folder: Path, seed: int, kills: int) -> Round:
    """The same of an archive that the store puts together itself, which leaves no pieces either; on the S3 simulator."""
    with simulated(folder / "journals") as store:
        return kill_archiving(store.bench, folder, seed, kills, copy_by="server")


def told_kill(told: Round, one: Target, *arguments: str) -> None:
    told.kills += one.kill(*arguments)


def told_end(told: Round, one: Target, *arguments: str) -> None:
    told.different += not one.finish(*arguments)


def contents(bench: Bench) -> dict[str, bytes]:
    """All of it but the proof documents, which say when they were made."""
    return {key: bench.get(key) for key in bench.keys(bench.cold) if not key.endswith(".proof.json")}


def resent(front: Front, journals: Path, act: Callable[[], None]) -> int:
    """Parts that are sent during `act` although the journals called them finished before."""
    finished, before = finished_parts(journals), len(front.requests)
    act()
    sent = [
        (request.key.rsplit("/", 1)[-1], int(request.query["partNumber"][0]))
        for request in front.requests[before:]
        if request.method == "PUT" and "partNumber" in request.query
    ]
    return sum(part in finished for part in sent)


def finished_parts(folder: Path) -> set[tuple[str, int]]:
    """Volume and number of the parts that the journals call finished, of the upload that each speaks of last."""
    found: set[tuple[str, int]] = set()
    for path in folder.rglob("*.journal.jsonl"):
        numbers: set[int] = set()
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                continue  # torn by the kill
            row = json.loads(line)
            numbers = set() if "upload" in row else numbers | ({row["part"]["number"]} if "part" in row else set())
        found |= {(path.name.removesuffix(".journal.jsonl"), number) for number in numbers}
    return found


def kill_verifying(bench: Bench, _folder: Path, seed: int, kills: int) -> Round:
    """A verification that is killed leaves everything as it was, and the next one says the same."""
    told, rng = Round(), random.Random(seed)
    bench.put(plate_files(plate(), sites=20))
    run(bench.archive_it(run(bench.plan(plate()))))
    before = contents(bench)
    with target(bench, rng) as one:
        told.different += not one.finish("verify")
        for _ in range(kills):
            told_kill(told, one, "verify")
            told.unproved += unproved(bench)
            told.different += not before.items() <= contents(bench).items()
        told_end(told, one, "verify")
    told.different += len(bench.files.keys() - bench.keys(bench.live))
    return told


def kill_deleting(bench: Bench, folder: Path, seed: int, kills: int) -> Round:
    """A deletion that is killed again and again, in one of these ways, and then let through."""
    told, rng, way = Round(), random.Random(seed), WAYS[seed % len(WAYS)]
    if way != "plain":
        for name in (bench.live, bench.cold):
            bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    files = plate_files(plate(), sites=20)
    below = sorted(files)[seed % len(files)]
    if way in OLDER:
        bench.client.put_object(Bucket=bench.live, Key=below, Body=b"older")
    bench.put(files)
    run(bench.archive_it(run(bench.plan(plate()))))
    digest = run(bench.verify(plate(), write_documents=False)).manifests_sha256
    parts = [word for part in ALL for word in ("--part", part)]
    order = ("delete", "--approve", digest, "--retention", "none", "--journal", str(folder / "j"), *parts)
    order += ("--older-versions", OLDER.get(way, "refuse"))
    phases = ("marker", "purge") if way == "markers" else ("delete",)
    with target(bench, rng) as one:
        one.requests = 40 + len(bench.files)
        for phase in phases:
            for _ in range(-(-kills // len(phases))):
                told_kill(told, one, *order, "--phase", phase)
                told.unproved += unproved(bench)
                told.different += came_to_light(bench, below)
            told_end(told, one, *order, "--phase", phase)
            told.unproved += unproved(bench)
            told.lines += unlined(bench, phase)
    left = bench.files.keys() & (bench.keys(bench.live) if way == "hidden" else all_keys(bench))
    told.different += bool(left) or (way == "hidden" and below not in all_keys(bench))
    return told


def kill_restoring(bench: Bench, folder: Path, seed: int, kills: int) -> Round:
    """A restore into a bucket and one into a folder, killed again and again, and then let through: nothing is left of them.

    `different` counts restores that did not end complete, files with other bytes, partial files, and uploads with parts.
    """
    told, rng = Round(), random.Random(seed)
    sizes = {"large": 17 * MIB, "small": MIB // 4, "empty": 0}
    files = {f"{IMAGES}{name}": servers.noise((seed, name), size) for name, size in sizes.items()}
    bench.settings = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30)
    bench.put(files)
    run(bench.archive_it(run(bench.plan(plate()))))
    for to in (f"s3://{bench.live}/back", str(folder / "back")):
        with target(bench, rng) as one:
            told.different += not one.finish("restore", "--to", f"{to}-undisturbed")
            for _ in range(-(-kills // 2)):
                told_kill(told, one, "restore", "--to", to)
                told.different += wrongly_there(bench, folder, files)
            told_end(told, one, "restore", "--to", to)
    there = restored_in(bench, folder)
    told.different += sum(
        there.get(f"{place}/{key}") != data for key, data in files.items() for place in ("s3", "folder")
    )
    told.different += len(list((folder / "back").rglob(".waybill-*"))) + uploads_with_parts(bench)
    return told


def restored_in(bench: Bench, folder: Path) -> dict[str, bytes]:
    """What lies at both targets, under the names that it is to have."""
    keys = [key for key in bench.keys(bench.live) if key.startswith("back/")]
    found = {f"s3/{key.removeprefix('back/')}": bench.get(key, bench.live) for key in keys}
    paths = [path for path in (folder / "back").rglob("*") if path.is_file() and not path.name.startswith(".waybill-")]
    return found | {f"folder/{path.relative_to(folder / 'back')}": path.read_bytes() for path in paths}


def wrongly_there(bench: Bench, folder: Path, files: Mapping[str, bytes]) -> int:
    """Files that are visible under their name, and do not hold their bytes."""
    return sum(data != files[name.split("/", 1)[1]] for name, data in restored_in(bench, folder).items())


def uploads_with_parts(bench: Bench) -> int:
    """Multipart uploads whose parts would be paid for: one that was killed before its first part holds nothing."""
    uploads = bench.client.list_multipart_uploads(Bucket=bench.live).get("Uploads", [])
    where = [{"Bucket": bench.live, "Key": row["Key"], "UploadId": row["UploadId"]} for row in uploads]
    return sum(bool(bench.client.list_parts(**one).get("Parts")) for one in where)


def came_to_light(bench: Bench, key: str) -> bool:
    """Whether a key is current with the content of its older version."""
    return key in bench.keys(bench.live) and bench.get(key, bench.live) == b"older"


def all_keys(bench: Bench) -> set[str]:
    """Keys of which anything is left: objects, versions, markers."""
    answer = bench.client.list_object_versions(Bucket=bench.live)
    return {row["Key"] for kind in ("Versions", "DeleteMarkers") for row in answer.get(kind, [])}


def unlined(bench: Bench, phase: str) -> int:
    name = {"delete": ".deleted.", "marker": ".marked.", "purge": ".purged."}[phase]
    documents = [bench.get(key) for key in bench.keys(bench.cold) if name in key]
    lines = [json.loads(line) for data in documents for line in data.splitlines()]
    return len(bench.files.keys() - {line["key"] for line in lines if line["result"] == "deleted"})


def unproved(bench: Bench) -> int:
    """Objects that are gone although no stored tarball holds them."""
    return fault_judge.lost(bench.files, bench.keys(bench.live), fault_judge.stored(bench), plate())
