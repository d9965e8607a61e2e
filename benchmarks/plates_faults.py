"""What is lost when things go wrong with a plate: by the engine, and by the check of the procedure that it replaces.

Each case of tests/plates/fault_table.py with 25 seeds. An unsafe deletion is an object that is gone although no stored
tarball holds its last bytes. The thing to know before changing it: the cases are the tests' own, so what is measured here
is what every change is tested against.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SEEDS = 25
PEER = "the procedure's own check"


def run(*, quick: bool) -> list[dict[str, Any]]:
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "plugins")]  # the approval's judge lives there
    from tests.plates import servers
    from tests.plates.fault_table import CASES, play

    seeds = range(2 if quick else SEEDS)
    rows, ours, theirs, plays = [], 0, 0, 0
    with servers.moto() as url:
        for case in CASES:
            played = []
            for seed in seeds:
                servers.reset_moto(url)
                played.append(play(case, url, seed))
            ended = sum(one.report is not None and one.report.complete for one in played)
            lost = sum(one.ours for one in played)
            their_runs = sum(one.theirs > 0 for one in played)
            ours, theirs, plays = ours + lost, theirs + sum(one.theirs for one in played), plays + len(played)
            told = f"; deleted to the end in {ended}" if case.completes else ""
            rows.append(
                {
                    "figure": f"{case.name}: unsafe deletions in {len(played)} runs "
                    f"(ours in {sum(one.ours > 0 for one in played)} runs, theirs in {their_runs}{told})",
                    "value": lost,
                    "unit": "objects",
                    "peer": PEER,
                    "peer_value": sum(one.theirs for one in played),
                    "aim": 0,
                    "met": lost == 0 and (not case.completes or ended == len(played)),
                }
            )
            print(f"{case.name}: {lost} / {rows[-1]['peer_value']}", flush=True)
    rows.append(
        {
            "figure": f"all cases: unsafe deletions in {plays} runs",
            "value": ours,
            "unit": "objects",
            "peer": PEER,
            "peer_value": theirs,
            "aim": 0,
            "met": ours == 0,
        }
    )
    return rows
