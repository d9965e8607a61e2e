"""All interleavings of three workers in `submit_once` (harness/core/interleavings.py): states, edges, violations; guards missed.

A state is that of the ledger, of the remote with its network, and of each worker; an edge is one step of one of them. Workers
stop at every call to the remote. Two states that differ only by names of tokens, or by which worker is which, are one.

Invariant: a row with violations is published too.
"""

from __future__ import annotations

import json
from typing import Any

from harness.core.explored_remote import FULL, Scope
from harness.core.guards import GUARDS, explore_without
from harness.core.interleavings import Explorer, Found

Row = dict[str, Any]
QUICK = Scope(crashes=1, ticks=2)


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: fewer things go wrong."""
    rows: list[Row] = []
    for name, (kind, scope) in FULL.items():
        found = Explorer(kind, QUICK if quick else scope).run()
        wrong = f"{scope.lost_answers} lost answer, {scope.late_commits} late commit, {scope.hidden_jobs} hidden job"
        print(f"  {name} ({wrong}): {found.states} states", flush=True)
        rows += _rows(name, found)
    missed = sum(bool(explore_without(guard).violations) for guard in GUARDS)
    rows.append(_row(f"guards of {len(GUARDS)} whose removal is found", missed, "guards", aim=len(GUARDS)))
    return rows


def _rows(name: str, found: Found) -> list[Row]:
    scope = found.scope
    told = f"{scope.workers} workers, {scope.crashes} crashes, {scope.ticks} ticks of the remote's clock"
    return [
        _row(f"{name}: states ({told})", found.states, "states"),
        _row(f"{name}: edges", found.edges, "edges"),
        _row(f"{name}: states with a second or a forgotten job", len(found.violations), "states", aim=0),
    ]


def _row(figure: str, value: int, unit: str, aim: int | None = None) -> Row:
    met = None if aim is None else value == aim
    return {
        "figure": figure,
        "value": value,
        "unit": unit,
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "aim": aim,
        "met": met,
    }


if __name__ == "__main__":
    import sys

    for row in run(quick="--quick" in sys.argv):
        print(json.dumps(row))
