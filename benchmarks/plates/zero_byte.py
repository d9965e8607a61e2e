"""An archive that the store puts together itself, beside one that passes through the client, behind a link of 1 Gbit/s.

Both sides go through the same relay (slow_link.py), which counts what passes. The store keeps everything in memory and copies
byte for byte (memory_store.py). Ours is measured as documented: with its look at each object, and with its verification.

Invariant: a lap counts only if the tarball, read from the store past the link, holds every file.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plates import chains, stores
from benchmarks.plates.chains import Pipeline, Place, Step
from benchmarks.plates.laps import Course, Lap
from benchmarks.plates.speed import race_course
from benchmarks.plates.stores import Store
from benchmarks.plates.workloads import Workload, workloads, write

LINK = 125_000_000  # bytes a second, each way
ROUNDS = 5
HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


def _archive(place: Place) -> list[Step]:
    options = ("--compression", "none", "--copy-by", "server")
    return [chains.ours("archive", place, "--journal", str(place.scratch / "journal"), *options)]


def _verify(place: Place) -> list[Step]:
    return [chains.ours("verify", place, "--proof", "store_proved")]


OURS = Pipeline("ours, copied inside the store", _archive, False, check=_verify)
PEER = next(one for one in chains.PIPELINES if one.name == chains.S5CMD)


@dataclass(frozen=True)
class Passed:
    """A lap, and what passed through the link in it, both ways."""

    lap: Lap
    link_bytes: int


def run(*, quick: bool) -> list[Row]:
    plate = next(one for one in workloads(quick) if one.name == "tiff")
    found: dict[str, list[Passed]] = {OURS.name: [], PEER.name: []}
    rounds = 1 if quick else ROUNDS
    with race_course() as course, _store(plate) as store:
        if not chains.present(PEER, course.programs):
            print("plates_zero_byte: s5cmd could not be installed, so nothing is measured", flush=True)
            return []
        for number in range(rounds + 1):
            for pipeline in (OURS, PEER) if number % 2 else (PEER, OURS):
                passed = _lap(course, pipeline, plate, store)
                if number:  # the first is for warming up
                    found[pipeline.name].append(passed)
            print(
                f"  round {number}: " + ", ".join(_told(name, laps) for name, laps in found.items() if laps), flush=True
            )
    return _rows(plate, found[OURS.name], found[PEER.name], rounds)


@contextlib.contextmanager
def _store(plate: Workload) -> Iterator[Store]:
    from harness.plates import servers

    folder = stores.memory_folder()
    try:
        write(plate, folder / plate.name)
        port = servers.free_port()
        with servers.serving(
            [sys.executable, "-m", "benchmarks.plates.memory_store", str(port), str(folder)], port
        ) as url:
            yield Store(url, stores.client_of(url), folder, None)
    finally:
        shutil.rmtree(folder)


def _lap(course: Course, pipeline: Pipeline, plate: Workload, store: Store) -> Passed:
    from harness.plates import servers

    port, counts = servers.free_port(), course.folder / "link.json"
    behind = store.url.rsplit(":", 1)[1]
    command = [sys.executable, "-I", "-S", str(HERE / "slow_link.py"), str(port), behind, str(LINK), str(counts)]
    with subprocess.Popen(command) as link:
        try:
            servers.wait_for(port, link)
            lap = course.run(pipeline, plate, store, f"http://127.0.0.1:{port}")
        finally:
            link.send_signal(signal.SIGTERM)
            link.wait(10)
    return Passed(lap, sum(json.loads(counts.read_text()).values()))


def _told(name: str, laps: list[Passed]) -> str:
    return f"{name} {laps[-1].lap.wall:.2f} s, {laps[-1].link_bytes / 1e6:.1f} MB"


def _rows(plate: Workload, ours: list[Passed], peer: list[Passed], rounds: int) -> list[Row]:
    of = f"{plate.title} ({plate.size_bytes / 1e6:.0f} MB, median of {rounds})"
    wall = statistics.median(one.lap.wall for one in ours)
    proved = statistics.median(one.lap.wall + sum(one.lap.checks) for one in ours)
    theirs = statistics.median(one.lap.wall for one in peer)
    through = max(one.link_bytes for one in ours)  # archive and verification
    share = 100 * through / plate.size_bytes
    return [
        _row(f"archive copied inside the store, link of 1 Gbit/s, {of}", wall, theirs, "ratio ≤ 0.2", 0.2),
        _row(f"the same with its verification by checksums, {of}", proved, theirs, None, None),
        {
            "figure": f"bytes through the client, archive and verification, of the payload, {of}",
            "value": round(share, 3),
            "unit": "%",
            "peer": PEER.name,
            "peer_value": round(100 * max(one.link_bytes for one in peer) / plate.size_bytes, 1),
            "aim": "≤ 1 %",
            "met": share <= 1,
        },
    ]


def _row(figure: str, value: float, theirs: float, aim: str | None, limit: float | None) -> Row:
    ratio = round(value / theirs, 3)
    row: Row = {
        "figure": figure,
        "value": round(value, 2),
        "unit": "s",
        "peer": PEER.name,
        "peer_value": round(theirs, 2),
    }
    row["ratio"] = ratio
    return row | ({"aim": aim, "met": ratio <= limit} if limit is not None else {})
