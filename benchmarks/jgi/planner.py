"""The planner of restores: days beside the bound, windows beside NMDC's loops, time and memory of a million files.

Invariant: judged by harness/jgi_plans.py, which shares nothing with the planner; the peers see the same files.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.jgi.earlier_loops import DAY_SECONDS, direct, later
from harness.jgi_plans import (
    NOW,
    Asked,
    Rules,
    Wanted,
    faults_of,
    file_id,
    fixture_shaped,
    random_before,
    random_files,
    window_faults,
)
from include.jgi.bound import Accepted
from include.jgi.models import Limits, StagedFile
from include.jgi.planner import Plan, plan

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
RULES = Rules()
JDPS = Rules(span_seconds=DAY_SECONDS, ids=751)  # the peers keep no margin: judged by JDP's own window
MOST_DAYS = 400
FAMILIES: dict[str, tuple[int, Callable[[random.Random], list[Wanted]]]] = {
    "shaped as JDP's files are": (400, lambda rng: fixture_shaped(rng, rng.choice((1, 5, 20, 60, 120, 400)))),
    "random, no large file": (250, lambda rng: random_files(rng, rng.choice((10, 100, 1000, 5000)), 0.0)),
    "random, 0.5 % of up to 0.9 of a window": (250, lambda rng: random_files(rng, rng.choice((10, 100, 1000)), 0.005)),
    "random, 3 % of up to 0.9 of a window": (250, lambda rng: random_files(rng, rng.choice((10, 100, 1000)), 0.03)),
}


def run(quick: bool = False) -> list[Row]:
    return [*_plans(quick), *_growth(quick)]


def _plans(quick: bool) -> list[Row]:
    rows = []
    total: Counter[str] = Counter()
    for family, (count, make) in FAMILIES.items():
        found: Counter[str] = Counter()
        for seed in range(count // 20 if quick else count):
            rng = random.Random(f"{family} {seed}")
            found += _instance(make(rng), random_before(rng, RULES))
        share = 100 * found["at the bound"] / found["plans"]
        rows.append(_row(f"days = lower bound, {family} ({found['plans']} plans)", share, "% of plans"))
        total += found
    share = 100 * total["at the bound"] / total["plans"]
    rows.append(
        _row(f"days = lower bound, all {total['plans']} plans", share, "% of plans", aim="≥ 99", met=share >= 99)
    )
    rows.append(
        _row(
            "plans with any fault (a window, the disk, an id twice or left out, more than 750 ids, an analysis split elsewhere)",
            total["faulty"],
            f"of {total['plans']}",
            aim=0,
            met=not total["faulty"],
        )
    )
    for name in ("direct", "later"):
        peer = f"NMDC's loop, {name} version"
        for what, key in (
            ("exceed a window of JDP's 24 h", "over"),
            ("ask for a file twice", "twice"),
            ("never ask for some file", "left"),
        ):
            count, theirs = total[key], total[f"{name} {key}"]
            rows.append(_row(f"plans that {what}", count, "plans", peer, theirs, aim=0, met=not count))
        figure = f"days of the {total[f'{name} same']} lists that both ask for whole"
        rows.append(_row(figure, total[f"{name} our days"], "days", peer, total[f"{name} days"]))
    return rows


def _instance(files: list[Wanted], before: list[Asked]) -> Counter[str]:
    found = _planned(files, before)
    asked = [
        Asked(one.send_at, one.size_bytes, tuple(file.jdp_file_id for file in one.files)) for one in found.requests
    ]
    counts = Counter({"plans": 1, "at the bound": found.days == found.lower_bound_days})
    counts["faulty"] += bool(faults_of(files, before, asked, RULES)) or bool(found.not_planned)
    for name, requests in (("", asked), ("direct ", direct(files, MOST_DAYS)), ("later ", later(files, MOST_DAYS))):
        ids = [one for request in requests for one in request.ids]
        counts[f"{name}over"] += bool(window_faults(before, requests, JDPS))
        counts[f"{name}twice"] += len(ids) > len(set(ids))
        whole = len(set(ids)) == len(files)
        counts[f"{name}left"] += not whole
        if name and whole:
            counts[f"{name}same"] += 1
            counts[f"{name}days"] += 1 + int((requests[-1].at - NOW) // DAY_SECONDS)
            counts[f"{name}our days"] += 1 + int((asked[-1].at - NOW) // DAY_SECONDS)
    return counts


def _planned(files: Sequence[Wanted], before: Sequence[Asked]) -> Plan:
    staged = [
        StagedFile(
            one.id,
            "a file",
            one.size,
            one.project,
            priority=one.priority,
            waiting_since=one.waiting_since,
            analyses=(one.analysis,) if one.analysis else (),
        )
        for one in files
    ]
    return plan(staged, [Accepted(one.at, one.size) for one in before], NOW, Limits())


# -- a million files --------------------------------------------------------------------------------------------------


def _growth(quick: bool) -> list[Row]:
    small, large = (2_000, 20_000) if quick else (100_000, 1_000_000)
    rows = []
    with tempfile.TemporaryDirectory(prefix="waybill-plans-") as folder:
        for name, analyses in (("with analyses", True), ("each file by itself", False)):
            cost = {count: _command(Path(folder), count, analyses) for count in (small, large)}
            seconds = {count: cpu for count, (cpu, _) in cost.items()}
            ratio = seconds[large] / seconds[small]
            rows += [
                _row(
                    f"CPU of `plan` of {large:,} files from CSV to JSON, {name}",
                    seconds[large],
                    "s",
                    f"{small:,} files",
                    seconds[small],
                    ratio=ratio,
                    aim="≤ 12 times",
                    met=ratio <= 12,
                ),
                _row(
                    f"memory of `plan` of {large:,} files, {name}",
                    cost[large][1] / 1e9,
                    "GB",
                    aim="≤ 1.5",
                    met=cost[large][1] <= 1.5e9,
                ),
            ]
    return rows


def _command(folder: Path, count: int, analyses: bool) -> tuple[float, int]:
    """CPU seconds and peak memory in bytes of the command on so many files."""
    rng = random.Random(count)
    path = folder / "files.csv"
    with path.open("w") as file:
        file.write("apGoldId,project_name,file_name,file_status,file_size,jdp_file_id,md5sum\n")
        for number in range(count):
            analysis = f"Ga{number // 80:07}" if analyses else ""
            size = int(rng.lognormvariate(18.0, 2.5)) % 10**12
            file.write(f"{analysis},grow,Ga_{number}.assembled.bam,PURGED,{size},{file_id(number)},{number:032x}\n")
    accepted = [{"at": time.strftime("%FT%TZ", time.gmtime(NOW - 600 * at)), "bytes": 10**11} for at in range(1, 91)]
    command = [sys.executable, "-m", "include.jgi", "plan", str(path), "--json", "--accepted", json.dumps(accepted)]
    with (folder / "plan.json").open("wb") as printed:
        process = subprocess.Popen([*command, "--now", "2026-11-26T00:00:00Z"], stdout=printed, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _row(
    figure: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    aim: object = None,
    met: bool | None = None,
) -> Row:
    names = ("figure", "value", "unit", "peer", "peer_value", "ratio", "aim", "met")
    return dict(zip(names, (figure, value, unit, peer, peer_value, ratio, aim, met), strict=True))
