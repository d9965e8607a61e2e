"""This code beside another checkout of it: archive and verify, in turns, on one server.

`WAYBILL_BEFORE` names the folder of the other checkout.

For whoever changes how plates are read, packed or sent: what a change costs or saves is seen only in turns with the code of
before, on the same plates and the same machine. Both run in this environment, with the command line as documented.
Invariant: both are given the same options, and neither finds bytecode, buckets or journals of the other.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plates import stores
from benchmarks.plates.chains import NONE, PIPELINES, Pipeline
from benchmarks.plates.laps import Course, Lap
from benchmarks.plates.speed import GZIP, race_course
from benchmarks.plates.workloads import Workload, workloads

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 5
LIMIT = 1.03
Row = dict[str, Any]
VALUES: dict[str, tuple[str, Callable[[Lap], float]]] = {
    "time": ("s", lambda lap: lap.wall),
    "client CPU": ("s", lambda lap: lap.cpu),
    "peak memory": ("MB", lambda lap: lap.peak_bytes / 1e6),
    "time of verifying": ("s", lambda lap: lap.checks[-1]),
    "peak memory of verifying": ("MB", lambda lap: lap.check_peak_bytes / 1e6),
}


@dataclass
class Pair:
    """The laps of one pipeline on one plate, by checkout."""

    plate: Workload
    pipeline: Pipeline
    laps: dict[Path, list[Lap]] = field(default_factory=dict)


def run(quick: bool = False) -> list[Row]:
    """All rows; none without `WAYBILL_BEFORE`. `quick`: a twentieth of the size and one round."""
    before = os.environ.get("WAYBILL_BEFORE")
    if not before:
        print("plates.before: WAYBILL_BEFORE=/path/to/another/checkout is not set; nothing is measured", flush=True)
        return []
    checkouts, rounds = (ROOT, Path(before).resolve()), 1 if quick else ROUNDS
    pipelines = [one for one in PIPELINES if one.name in (NONE, GZIP)]
    plates = workloads(quick)
    rows: list[Row] = []
    with race_course() as course, stores.rclone(plates) as store:
        for plate in plates:
            pairs = [Pair(plate, pipeline, {checkout: [] for checkout in checkouts}) for pipeline in pipelines]
            for number in range(rounds + 1):
                for pair in pairs:
                    one_round(course, pair, store, checkouts if number % 2 else checkouts[::-1], keep=number > 0)
            found = [row for pair in pairs for row in rows_of(pair, checkouts, rounds)]
            for row in found:
                print(f"  {row['figure']}: {row['value']} {row['unit']}, ratio {row['ratio']}", flush=True)
            rows += found
    return rows


def one_round(course: Course, pair: Pair, store: stores.Store, checkouts: tuple[Path, ...], *, keep: bool) -> None:
    """A lap of each; the first round warms both up and is not kept."""
    for checkout in checkouts:
        lap = course.run(pair.pipeline, pair.plate, store, checkout=checkout)
        if keep:
            pair.laps[checkout].append(lap)


def rows_of(pair: Pair, checkouts: tuple[Path, ...], rounds: int) -> list[Row]:
    rows = []
    for name, (unit, value) in VALUES.items():
        ours, theirs = (statistics.median(map(value, pair.laps[checkout])) for checkout in checkouts)
        ratio = round(ours / theirs, 3)
        rows.append(
            {
                "figure": f"{name}, {pair.pipeline.name}, {pair.plate.title} (median of {rounds})",
                "value": round(ours, 3),
                "unit": unit,
                "peer": "the code of before",
                "peer_value": round(theirs, 3),
                "ratio": ratio,
                "aim": f"ratio ≤ {LIMIT:g}",
                "met": ratio <= LIMIT,
            }
        )
    return rows
