"""Archiving a plate against the SOP's chain and other tools: one S3 server, turns interleaved, medians.

Each lap has a fresh bucket and scratch folder, and its tarball is compared with the plate, member by member, before its
time counts. Ours is measured twice: the command as documented, and with `--no-probe`. It contains listing, sha256 and CRC64NVME
of each member, manifest and sidecars; the plan with its look at each object and the verification, which makes the MD5s, are
steps of their own, here as in the DAG, and shown apart. The floor (floor.py) passes the same bytes on and does nothing else.

Invariant: server and client share the machine's cores, so ratios mean something and speeds do not. A first lap of each,
through a relay that counts its requests, warms all up and is not timed.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plates import chains, peers, stores
from benchmarks.plates.chains import (
    FLOOR,
    FLOOR_GZIP,
    GZIP,
    GZIP_BARE,
    NONE,
    NONE_BARE,
    PIPELINES,
    SIX,
    SOP,
    SOP_GZIP,
    Pipeline,
)
from benchmarks.plates.check import WrongArchive
from benchmarks.plates.counting import counting
from benchmarks.plates.laps import Course, Failed, Lap
from benchmarks.plates.stores import Store
from benchmarks.plates.workloads import Workload, workloads

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, SLOW_ROUNDS = 5, 3
BUDGET_SECONDS = 1_500
OF_PEER, OF_FLOOR = 0.95, 1.35  # what our time should be at most, of theirs
UNCOUNTED = (NONE_BARE, GZIP_BARE, SOP_GZIP, SIX)  # the requests of their siblings, or nearly
MEMORY_LIMIT = 300_000_000
Row = dict[str, Any]


@dataclass
class Entry:
    """One pipeline on one workload: its laps, its requests, or why there are none."""

    pipeline: Pipeline
    laps: list[Lap] = field(default_factory=list)
    requests: int | None = None
    missing: str = ""

    def median(self, value: Callable[[Lap], float]) -> float | None:
        return statistics.median(map(value, self.laps)) if self.laps and not self.missing else None

    @property
    def wall(self) -> float | None:
        return self.median(lambda lap: lap.wall)


Table = dict[str, Entry]  # by the pipeline's name


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: a twentieth of the size and one round."""
    rounds = 1 if quick else ROUNDS
    print(f"plates_speed: {rounds} rounds of {len(PIPELINES)} pipelines, time budget {BUDGET_SECONDS} s", flush=True)
    plates = workloads(quick)
    rows: list[Row] = []
    with race_course() as course, stores.rclone(plates) as store:
        for plate in plates:
            table = table_of(plate, course)
            warm(course, table, plate, store)
            for number in range(rounds):
                one_round(course, table, plate, store, number)
            rows += rows_of(plate, table, rounds)
    return rows


@contextlib.contextmanager
def race_course() -> Iterator[Course]:
    """With the peers' programs, and a folder on disk that is gone afterwards."""
    programs = peers.install()
    (ROOT / ".bench").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="plates-", dir=ROOT / ".bench"))
    try:
        yield Course(folder, programs)
    finally:
        shutil.rmtree(folder)


def table_of(plate: Workload, course: Course) -> Table:
    table = {one.name: Entry(one) for one in PIPELINES if not one.only or plate.name in one.only}
    for entry in table.values():
        if not chains.present(entry.pipeline, course.programs):
            entry.missing = f"{entry.pipeline.needs} could not be installed"
    return table


def warm(course: Course, table: Table, plate: Workload, store: Store) -> None:
    """A lap of each that counts its requests, and no time."""
    for entry in table.values():
        if not entry.missing and entry.pipeline.name not in UNCOUNTED:
            with counting(store.url) as counter:
                _lap(course, entry, plate, store, counter.url, keep=False)
            entry.requests = sum(counter.methods.values())
    if SOP in table and SOP_GZIP in table:
        table[SOP_GZIP].requests = table[SOP].requests


def one_round(course: Course, table: Table, plate: Workload, store: Store, number: int) -> None:
    """A lap of each, another one first in each round. What takes long runs in the first rounds only."""
    entries = [entry for entry in table.values() if number < SLOW_ROUNDS or not entry.pipeline.slow]
    turn = number % len(entries)
    for entry in [*entries[turn:], *entries[:turn]]:
        if not entry.missing:
            _lap(course, entry, plate, store, "", keep=True)
    walls = ", ".join(f"{n} {e.laps[-1].wall:.1f}" for n, e in table.items() if e.laps)
    print(f"  {plate.title}, round {number + 1}: {walls}", flush=True)


def _lap(course: Course, entry: Entry, plate: Workload, store: Store, url: str, *, keep: bool) -> None:
    try:
        lap = course.run(entry.pipeline, plate, store, url, check=keep)
    except WrongArchive as error:
        entry.missing = f"its tarball is wrong: {error}"
    except Failed as error:
        entry.missing = f"failed: {str(error).splitlines()[0][:160]}"
        print(error, flush=True)
    else:
        if keep:
            entry.laps.append(lap)


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_of(plate: Workload, table: Table, rounds: int) -> list[Row]:
    return [*_times(plate, table, rounds), *_costs(plate, table)]


def _times(plate: Workload, table: Table, rounds: int) -> list[Row]:
    of = f"{plate.title} ({plate.size_bytes / 1e6:.0f} MB, median of {rounds})"
    raw = [entry for entry in peers_in(table) if not entry.pipeline.compressed]
    rows = [_against(f"archive uncompressed, {of}", table[NONE], peer, _aim_of(peer)) for peer in raw]
    timed = [entry for entry in raw if entry.wall is not None]
    for how, none, packed in (("as documented", NONE, GZIP), ("with --no-probe", NONE_BARE, GZIP_BARE)):
        ours = f"archive uncompressed, {how}"
        if timed:
            fastest = min(timed, key=lambda entry: entry.wall or 0.0)
            rows.append(_against(f"{ours}, beside the fastest peer, {of}", table[none], fastest, OF_PEER))
        rows.append(_against(f"{ours}, beside the floor, {of}", table[none], table[FLOOR], OF_FLOOR))
        rows += _packed(f"archive with gzip, {how}", of, table, table[packed])
    floor = table[FLOOR]
    rows.append(_against(f"the floor with gzip beside the chain, {of}", table[FLOOR_GZIP], table[SOP_GZIP], None))
    if SIX in table:
        rows.append(_against(f"archive with gzip, level 6 like the SOP's, {of}", table[SIX], table[SOP_GZIP], None))
    both = f"archive and verify, {of}"
    if timed:
        rows.append(_row(both + ", uncompressed", _all_of(table[NONE], plan=False), "s", fastest, fastest.wall))
    rows.append(_row(both + ", uncompressed", _all_of(table[NONE], plan=False), "s", table[SOP], table[SOP].wall))
    rows.append(_row(both + ", gzip", _all_of(table[GZIP], plan=False), "s", table[SOP_GZIP], table[SOP_GZIP].wall))
    for name in (NONE, GZIP):
        rows.append(_row(f"verify alone ({name}), {of}", table[name].median(_verifying), "s", floor, floor.wall))
    everything = f"plan with a look at each object, archive, verify, all by default, {of}"
    return [*rows, _row(everything, _all_of(table[GZIP]), "s", table[SOP_GZIP], table[SOP_GZIP].wall)]


def _packed(what: str, of: str, table: Table, ours: Entry) -> list[Row]:
    """With gzip: beside the floor with gzip, and beside the chain as far as that floor allows it."""
    floor, chain = table[FLOOR_GZIP], table[SOP_GZIP]
    rows = [_against(f"{what}, beside the floor with gzip, {of}", ours, floor, OF_FLOOR)]
    allowed = OF_FLOOR * floor.wall / chain.wall if floor.wall and chain.wall else None
    row = _against(f"{what}, beside the chain, {of}", ours, chain, allowed and round(allowed, 3))
    if allowed is not None:
        row["aim"] += f" ({OF_FLOOR:g} × the floor's)"
    return [*rows, row]


def peers_in(table: Table) -> list[Entry]:
    """What another tool does: neither ours nor the floor."""
    ours = (NONE, GZIP, NONE_BARE, GZIP_BARE, SIX, FLOOR, FLOOR_GZIP)
    return [entry for name, entry in table.items() if name not in ours]


def _verifying(lap: Lap) -> float:
    return lap.checks[-1]


def _aim_of(peer: Entry) -> float | None:
    return 0.5 if peer.pipeline.name == SOP else None


def _all_of(entry: Entry, *, plan: bool = True) -> float | None:
    """The archive with what is measured behind it: the verification, and before that the plan where there is one."""
    return entry.median(lambda lap: lap.wall + sum(lap.checks if plan else lap.checks[-1:]))


def _against(figure: str, ours: Entry, peer: Entry, limit: float | None) -> Row:
    row = _row(figure, ours.wall, "s", peer, peer.wall)
    if limit is None:
        return row
    aim = f"ratio ≤ {limit:g}"
    return row | {"aim": aim, "met": row["ratio"] <= limit if row["ratio"] is not None else None}


def _costs(plate: Workload, table: Table) -> list[Row]:
    """What a client spends. Peers: the SOP's chain of the same compression, and the fastest of the others."""
    others = [e for e in peers_in(table) if e.pipeline.name not in (SOP, SOP_GZIP) and e.wall is not None]
    pairs = [(NONE, table[SOP]), (GZIP, table[SOP_GZIP]), (NONE, table[FLOOR]), (GZIP, table[FLOOR_GZIP])]
    pairs += [(NONE, min(others, key=lambda entry: entry.wall or 0.0))] if others else []
    rows = []
    for name, peer in pairs:
        ours, what = table[name], f"{'uncompressed' if name == NONE else 'gzip'}, {plate.title}"
        rows += [
            _row(f"client CPU, {what}", ours.median(_cpu), "s", peer, peer.median(_cpu)),
            _row(f"client's peak memory, {what}", ours.median(_peak), "MB", peer, peer.median(_peak))
            | _limit(max((lap.peak_bytes for lap in ours.laps), default=0)),
            _row(f"scratch on disk (ours: journals), {what}", ours.median(_scratch), "MB", peer, peer.median(_scratch)),
            _row(f"requests, {what}", ours.requests, "", peer, peer.requests),
        ]
    return rows


def _limit(peak_bytes: int) -> Row:
    return {"aim": "< 300 MB in every lap", "met": 0 < peak_bytes < MEMORY_LIMIT}


def _cpu(lap: Lap) -> float:
    return lap.cpu


def _peak(lap: Lap) -> float:
    return lap.peak_bytes / 1e6


def _scratch(lap: Lap) -> float:
    return lap.scratch_bytes / 1e6


def _row(figure: str, value: float | None, unit: str, peer: Entry, peer_value: float | None) -> Row:
    name = peer.pipeline.name + (f": {peer.missing}" if peer.missing else "")
    known = value is not None and peer_value
    return {
        "figure": figure,
        "value": _short(value),
        "unit": unit,
        "peer": name,
        "peer_value": _short(peer_value),
        "ratio": round(value / peer_value, 3) if known and value is not None and peer_value else None,
        "aim": None,
        "met": None,
    }


def _short(value: float | None) -> float | None:
    return round(value, 4) if isinstance(value, float) else value
