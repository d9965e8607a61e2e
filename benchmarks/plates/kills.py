"""Workers killed with SIGKILL at random instants while they archive, verify, delete and restore a plate: 160 kills.

Invariant: a kill counts only if it came before the command had ended by itself, and what is
right is read from the buckets (harness/plates/kills.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

KILLS = {"archive": 40, "archive inside the store": 20, "verify": 20, "delete": 40, "restore": 40}
PER_ROUND = 4
Row = dict[str, Any]


def run(*, quick: bool) -> list[Row]:
    from harness.plates import servers
    from harness.plates.kills import kill_archiving, kill_copying, kill_deleting, kill_restoring, kill_verifying

    plays = {
        "archive": kill_archiving,
        "archive inside the store": kill_copying,
        "verify": kill_verifying,
        "delete": kill_deleting,
        "restore": kill_restoring,
    }
    rows: list[Row] = []
    killed = 0
    with servers.moto() as url:
        for name, play in plays.items():
            told = _rounds(url, play, 3 if quick else KILLS[name])
            print(f"{name}: {told}", flush=True)
            killed += told.kills
            rows += _rows(name, told)
    figure = f"{killed} kills in all: what went wrong"
    return [*rows, _row(figure, sum(row["value"] for row in rows))]


def _rounds(url: str, play: Any, wanted: int) -> Any:
    """So many kills, in rounds of a fresh plate each."""
    from harness.plates import servers
    from harness.plates.bench import new_bench
    from harness.plates.kills import Round

    told, seed = Round(), 0
    while told.kills < wanted:
        servers.reset_moto(url)
        with tempfile.TemporaryDirectory() as folder:
            bench = new_bench(url, Path(folder) / "journals")
            try:
                told += play(bench, Path(folder), seed, min(PER_ROUND, wanted - told.kills))
            finally:
                bench.access.close()
        seed += 1
    return told


def _rows(name: str, told: Any) -> list[Row]:
    archives = {"archives with other bytes than undisturbed": told.different, "finished parts sent again": told.resent}
    figures = {
        "archive": archives,
        "archive inside the store": archives,
        "restore": {"files with other bytes, partial files and uploads that are left": told.different},
        "verify": {"archives, plates or verdicts that changed": told.different},
        "delete": {
            "deletions that did not end as undisturbed": told.different,
            "objects gone, at any time, that no tarball held": told.unproved,
            "deletions without a line of their own": told.lines,
        },
    }[name]  # fmt: skip
    return [_row(f"{name}, {told.kills} kills: {what}", value) for what, value in figures.items()]


def _row(figure: str, value: int) -> Row:
    return {"figure": figure, "value": value, "unit": "", "aim": 0, "met": value == 0}
