"""How far it goes: memory on a 20 GB plate, memory of every command on very many files, and what reading one file back costs.

The big plate is made up by a server that throws uploads away (generating.py), the many files by one that keeps all in memory
(many_files.py): neither side needs a disk, but for what restore gives back. A million files take long, so they are measured only
with `WAYBILL_MILLION` set, and without what asks the store for each file by itself beside its archive: the look of plan,
store-proved, and restoring all of them.
Server and client share the machine, so seconds are no speeds of S3.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plates import peers
from benchmarks.plates.chains import TAG, Place, Step, ours
from benchmarks.plates.check import WrongArchive
from benchmarks.plates.counting import counting
from benchmarks.plates.laps import launch
from benchmarks.plates.workloads import BATCH, IMAGE_BYTES, PLATE, PROJECT, ROOT, Workload, workloads, write

HERE = Path(__file__).resolve().parents[2]
BUDGET_SECONDS = 1_800
MEMORY_LIMIT = 300_000_000
BIG_BYTES = 20_000_000_000
COUNTS = (1_000, 10_000, 100_000)
MILLION = 1_000_000
LIMITS = {100_000: MEMORY_LIMIT, MILLION: 1_000_000_000}
PATIENCE_SECONDS = 3_600
TINY_BYTES = 1024
CP = "aws s3 cp, tar x"
IMAGES = f"{ROOT}/{BATCH}/images/{PLATE}/Images/"
WAYBILL = (sys.executable, "-m", "include.plates")
Row = dict[str, Any]


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: a hundredth of the bytes, a tenth of the files."""
    big, counts = (BIG_BYTES // 100, (100, 1_000)) if quick else (BIG_BYTES, COUNTS)
    if os.environ.get("WAYBILL_MILLION") and not quick:
        counts = (*counts, MILLION)
    print(f"plates_size: {big / 1e9:g} GB twice, {counts} files, time budget {BUDGET_SECONDS} s", flush=True)
    (HERE / ".bench").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="plates-", dir=HERE / ".bench"))
    try:
        return [*_generated(folder, big, counts), *_read_back(folder, quick)]
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _serving(folder: Path, server: str, plates: dict[str, Row]) -> Iterator[str]:
    from harness.plates import servers

    described = folder / f"{server}.json"
    described.write_text(json.dumps(plates))
    port = servers.free_port()
    command = [sys.executable, "-m", f"benchmarks.plates.{server}", str(port), str(described)]
    with servers.serving(command, port, {"PYTHONPATH": str(HERE)}) as url:
        yield url


def _generated(folder: Path, big: int, counts: Sequence[int]) -> list[Row]:
    plates = {"big": {"folder": IMAGES, "count": big // IMAGE_BYTES, "size_bytes": IMAGE_BYTES}}
    rows: list[Row] = []
    with _serving(folder, "generating", plates) as url:
        for name, options in (("uncompressed", ("--compression", "none")), ("gzip", ())):
            measured = _archive(folder, url, "big", f"cold-big-{name}", options)
            rows += _big_rows(f"{big / 1e9:g} GB plate, {name}", measured)
    lines = []
    for count in counts:
        live, cold = f"tiny-{count}", f"cold-{count}"
        plate = {"folder": IMAGES, "count": count, "size_bytes": TINY_BYTES}
        with _serving(folder, "many_files", {live: plate}) as url:
            lines.append((count, _archive(folder, url, live, cold, ("--compression", "none"), new=True)))
            if count == counts[-1] or count in LIMITS:
                rows += _every_command(folder, url, count, live, cold)
    return rows + _growth_rows(lines)


def _every_command(folder: Path, url: str, count: int, live: str, cold: str) -> list[Row]:
    """Peak memory and time of each command on a plate of so many files that is archived already."""
    place = Place(url, live, cold, folder / f"commands-{count}", Path())
    place.scratch.mkdir()
    verdict, key = place.scratch / "verdict.json", f"{IMAGES}f{count // 2:07}.tiff"
    every = count < MILLION
    keeping, index = (
        ("--journal", str(folder / cold / "journal")),
        ("--index", str(place.scratch / "index.sqlite")),
    )
    store = ("--endpoint-url", url, "--json", *index)
    prefix = f"s3://{cold}/imaging_analysis/{PROJECT}/plates/"
    back = ("--to", str(place.scratch / "back"))
    steps: dict[str, Step | None] = {
        "plan": ours("plan", place, "--compression", "none", *(() if every else ("--no-probe",))),
        "verify": (ours("verify", place)[0], str(verdict)),
        "verify, store-proved": ours("verify", place, "--proof", "store_proved") if every else None,
        "ls": ours("ls", place),
        "index": ([*WAYBILL, "index", "--prefix", prefix, *store], None),
        "where": ([*WAYBILL, "where", key, *store], None),
        "restore of one file": ours("restore", place, "--file", key, *back),
        "restore of all": ours("restore", place, *back) if every else None,
        "delete": None,
    }
    rows: list[Row] = []
    for name, step in steps.items():
        if name == "delete":
            digest = json.loads(verdict.read_text())["manifests_sha256"]
            step = ours("delete", place, "--approve", digest, "--part", "images", "--retention", "none", *keeping)
        if step is None:
            continue
        measured = launch([step], place, limit=PATIENCE_SECONDS)
        peak = measured["peak_bytes"]
        print(f"  {name}, {count} files: {measured['wall']:.0f} s, peak {peak / 1e6:.0f} MB", flush=True)
        what = f"{name}, {count:,} files of {TINY_BYTES} bytes"
        limit = LIMITS.get(count)
        aim = {"aim": f"< {limit / 1e6:,.0f} MB", "met": peak < limit} if limit else {}
        rows.append(_row(f"peak memory, {what}", peak / 1e6, "MB") | aim)
        rows.append(_row(f"time, {what}", measured["wall"], "s"))
    return rows


def _archive(folder: Path, url: str, live: str, cold: str, options: Sequence[str], *, new: bool = False) -> Row:
    scratch = folder / cold
    scratch.mkdir()
    if new:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{cold}", method="PUT")).close()
    place = Place(url, live, cold, scratch, Path())
    journal = scratch / "journal"
    measured = launch(
        [ours("archive", place, "--no-probe", "--journal", str(journal), *options)], place, limit=PATIENCE_SECONDS
    )
    files = [path for path in scratch.rglob("*") if path.is_file()]
    inside = {path for path in files if journal in path.parents}
    measured["journals"] = sum(path.stat().st_size for path in inside)
    measured["scratch"] = sum(path.stat().st_size for path in files) - measured["journals"]
    print(f"  {live} to {cold}: {measured['wall']:.0f} s, peak {measured['peak_bytes'] / 1e6:.0f} MB", flush=True)
    return measured


def _big_rows(what: str, measured: Row) -> list[Row]:
    peak = measured["peak_bytes"]
    noted = f" (its journals hold {measured['journals'] / 1e6:.2f} MB)"
    return [
        _row(f"client's peak memory, {what}", peak / 1e6, "MB") | {"aim": "< 300 MB", "met": peak < MEMORY_LIMIT},
        _row(f"scratch left on disk, {what}{noted}", measured["scratch"], "bytes")
        | {"aim": 0, "met": measured["scratch"] == 0},
        _row(f"written to any disk by the client, journals included, {what}", measured["written_bytes"] / 1e6, "MB"),
        _row(f"time, {what}", measured["wall"], "s"),
        _row(f"client CPU, {what}", measured["cpu"], "s"),
    ]


def _growth_rows(lines: Sequence[tuple[int, Row]]) -> list[Row]:
    """Each size beside the one before it: ten times the files, how many times the seconds and bytes."""
    rows = []
    before: tuple[int, Row] | None = None
    for count, measured in lines:
        what = f"{count:,} files of {TINY_BYTES} bytes"
        peer = f"{before[0]:,} files" if before else None
        for figure, key, unit, scale in (("time", "wall", "s", 1.0), ("peak memory", "peak_bytes", "MB", 1e6)):
            old = before[1][key] / scale if before else None
            row = _row(f"{figure}, archive of {what}", measured[key] / scale, unit, peer, old)
            limit = LIMITS.get(count) if key == "peak_bytes" else None
            if limit:
                row |= {"aim": f"< {limit / 1e6:,.0f} MB", "met": measured[key] < limit}
            rows.append(row)
        before = (count, measured)
    return rows


# -- one file out of an archive ---------------------------------------------------------------------------------------


def _read_back(folder: Path, quick: bool) -> list[Row]:
    """Bytes that the store answers with for one file, headers and manifest included."""
    from harness.plates import servers

    programs = peers.install()
    plate = next(one for one in workloads(quick) if one.name == "medium")
    wanted, size, _ = plate.files[len(plate.files) // 2]
    rows = []
    served = folder / "served"
    write(plate, served / plate.name)
    variants = {"uncompressed": ("--compression", "none"), "gzip": ()}
    for name in variants:
        (served / f"cold-{name}").mkdir()
    with servers.rclone(served) as url:
        for name, options in variants.items():
            place = Place(url, plate.name, f"cold-{name}", folder / f"read-{name}", programs)
            place.scratch.mkdir()
            launch([ours("archive", place, "--no-probe", "--journal", str(place.scratch / "journal"), *options)], place)
            mine = _answered(place, [ours("restore", place, "--file", wanted, "--to", str(place.scratch / "ours"))])
            _same(place.scratch / "ours" / wanted, served / plate.name / wanted)
            theirs, peer = None, f"{CP}: aws could not be installed"
            if (programs / "aws").exists():
                theirs, peer = _answered(place, _whole(place, wanted, gzip=name == "gzip")), CP
                _same(place.scratch / "theirs" / TAG / wanted.removeprefix("projects/"), served / plate.name / wanted)
            figure = f"bytes read for one file of {size:,} bytes out of {_weight(plate)}, {name}"
            rows.append(_row(figure, mine, "bytes", peer, theirs))
    return rows


def _weight(plate: Workload) -> str:
    return f"{len(plate.files)} files, {plate.size_bytes / 1e6:.0f} MB"


def _whole(place: Place, key: str, *, gzip: bool) -> list[Step]:
    """The whole tarball, of which tar keeps one member.

    By way of a file and in one request: with rclone's server, aws of this version waits for ever when it writes a large
    object to a pipe. The bytes asked for are the same.
    """
    target, config, tarball = place.scratch / "theirs", place.scratch / "aws.ini", place.scratch / "whole"
    target.mkdir()
    config.write_text("[default]\ns3 =\n  multipart_threshold = 1TB\n")
    archive = f"imaging_analysis/{PROJECT}/plates/{TAG}_images_illum_analysis.tar{'.gz' if gzip else ''}"
    fetch = [str(place.programs / "aws"), "s3", "cp", f"s3://{place.cold}/{archive}", str(tarball), "--quiet"]
    member = f"{TAG}/{key.removeprefix('projects/')}"
    return [
        (["env", f"AWS_CONFIG_FILE={config}", *fetch], None),
        (["tar", "-xzf" if gzip else "-xf", str(tarball), "-C", str(target), member], None),
    ]


def _answered(place: Place, steps: Sequence[Step]) -> int:
    with counting(place.url) as counter:
        through = Place(counter.url, place.live, place.cold, place.scratch, place.programs)
        launch([([word.replace(place.url, counter.url) for word in argv], out) for argv, out in steps], through)
    return counter.answered_bytes


def _same(one: Path, other: Path) -> None:
    if one.read_bytes() != other.read_bytes():
        raise WrongArchive(f"{one.name} came back otherwise than it was")


def _row(figure: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None) -> Row:
    return {
        "figure": figure,
        "value": round(value, 3) if isinstance(value, float) else value,
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 3) if isinstance(peer_value, float) else peer_value,
        "ratio": round(value / peer_value, 5) if peer_value else None,
        "aim": None,
        "met": None,
    }
