"""Workers killed with SIGKILL at random instants while they archive, verify and delete a plate: 100 kills.

The thing to know before changing it: a kill counts only if it came before the command had ended by itself, and what is
right is read from the buckets (tests/plates/kill_harness.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

KILLS = 50  # of each kind


def run(*, quick: bool) -> list[dict[str, Any]]:
    from tests.plates import servers
    from tests.plates.conftest import new_bench
    from tests.plates.kill_harness import Round, kill_archiving, kill_verifying_and_deleting

    wanted, rows = 3 if quick else KILLS, []
    with servers.moto() as url:
        for name, play in (("archive", kill_archiving), ("verify and delete", kill_verifying_and_deleting)):
            told, seed = Round(), 0
            while told.kills < wanted:
                seed += 1
                servers.reset_moto(url)
                with tempfile.TemporaryDirectory() as folder:
                    bench = new_bench(url, Path(folder) / "journals")
                    try:
                        ended = play(bench, Path(folder), seed, min(6, wanted - told.kills))
                    finally:
                        bench.access.close()
                told = Round(*(getattr(told, field) + getattr(ended, field) for field in Round.__annotations__))
                print(f"{name}: {told}", flush=True)
            rows += _rows(name, told)
    return rows


def _rows(name: str, told: Any) -> list[dict[str, Any]]:
    figures = {"plates that did not end as undisturbed": told.wrong_bytes}
    if name == "archive":
        figures["finished parts sent again"] = told.resent
    else:
        figures |= {"objects deleted unproved": told.unproved, "deletions without their line": told.lines_missing}
    return [
        {"figure": f"{name}, {told.kills} kills: {what}", "value": value, "unit": "", "aim": 0, "met": value == 0}
        for what, value in figures.items()
    ]
