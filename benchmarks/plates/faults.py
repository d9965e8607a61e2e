"""What is lost when things go wrong with a plate: by the engine, and by the check of the procedure that it replaces.

Each case of harness/plates/fault_cases.py (docs/faults.md) with 25 seeds. An unsafe deletion is an object that is gone
although no stored tarball holds its last bytes, or although nobody allowed it; the procedure's check is taken to be obeyed.

Invariant: the cases are the tests' own, so what is measured here is what every change is tested against.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SEEDS = 25
PROCESSES = 2
PEER = "the procedure's own check"
Row = dict[str, Any]
_urls: dict[bool, str] = {}  # a process's own servers: moto, and rclone for the cases that need it
_stack = ExitStack()


def run(*, quick: bool) -> list[Row]:
    from harness.plates.fault_cases import CASES

    seeds = 1 if quick else SEEDS
    rows: list[Row] = []
    totals = [0, 0, 0, 0, 0]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn"), initializer=_serve) as pool:
        for case, told in zip(CASES, pool.map(_play, range(len(CASES)), [seeds] * len(CASES)), strict=True):
            rows.append(_case(case.name, told, seeds))
            print(f"{case.name}: {told}", flush=True)
            totals = [a + b for a, b in zip(totals, told, strict=True)]
        list(pool.map(_end, range(PROCESSES)))
    ours, _, theirs, _, odd = totals
    runs = len(CASES) * seeds
    rows.append(_row(f"all {len(CASES)} cases, {runs} runs", ours, theirs))
    rows.append(_row(f"all cases, {runs} runs: runs that did not end as they must", odd, None, unit="runs"))
    return rows


def _serve() -> None:
    from harness.plates import servers

    _urls[False] = _stack.enter_context(servers.moto())
    folder = Path(_stack.enter_context(tempfile.TemporaryDirectory()))
    _urls[True] = _stack.enter_context(servers.rclone(folder))


def _end(_: int) -> None:
    _stack.close()


def _play(number: int, seeds: int) -> tuple[int, int, int, int, int]:
    """Unsafe deletions of ours, in how many runs; theirs, in how many; runs that ended otherwise than they must."""
    from harness.plates import servers
    from harness.plates.fault_cases import CASES
    from harness.plates.fault_table import play

    case, played = CASES[number], []
    for seed in range(seeds):
        servers.reset_moto(_urls[False])
        played.append(play(case, _urls[case.real], seed))
    odd = sum(one.ended not in case.ends or one.unlined > 0 for one in played)
    ours, theirs = [one.ours for one in played], [one.theirs for one in played]
    return sum(ours), sum(map(bool, ours)), sum(theirs), sum(map(bool, theirs)), odd


def _case(name: str, told: tuple[int, int, int, int, int], seeds: int) -> Row:
    ours, our_runs, theirs, their_runs, odd = told
    row = _row(f"{name} ({seeds} runs: unsafe in {our_runs}, peer in {their_runs})", ours, theirs)
    return row | {"met": ours == 0 and odd == 0}


def _row(figure: str, value: int, peer_value: int | None, unit: str = "unsafe deletions") -> Row:
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "peer": None if peer_value is None else PEER,
        "peer_value": peer_value,
        "aim": 0,
        "met": value == 0,
    }
