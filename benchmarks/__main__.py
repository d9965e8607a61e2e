"""`make bench`: measures every published figure and writes `benchmarks/results.json` and `docs/figures.md`.

`python -m benchmarks [NAME …] [--quick]`. Without names all run. Each module's rows replace its old ones, the others
stay, so figures can be measured one module at a time. A quick run shows that it works; it publishes nothing.
Invariant: a figure is a ratio measured side by side in one run, never an absolute speed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results.json", ROOT / "docs" / "figures.md"
# Module → what it measures, in the order of the page.
MODULES = {
    "icav2.engine": "ICAv2 copies: the engine on a virtual clock",
    "icav2.disturbed": "ICAv2 copies: slow, paused and killed",
    "icav2.real_airflow": "ICAv2 copies: a real Airflow at full size",
    "core.kills": "Workers killed while they submit",
    "core.interleavings": "Every interleaving of workers that submit, in a small scope",
    "plates.faults": "Plates: what is lost when things go wrong",
    "plates.kills": "Plates: workers killed at random instants",
    "core.ledger": "The ledger",
    "plates.speed": "Plates: time and cost of an archive",
    "plates.zero_byte": "Plates: an archive that the store puts together itself",
    "plates.radosgw": "Plates: time and cost of an archive on radosgw",
    "plates.before": "Plates: this code beside the code of before",
    "plates.size": "Plates: size, growth and reading back",
    "plates.drill": "Plates: finding files, and the restore drill",
    "jgi.planner": "Restores from tape: the planner",
    "core.dag_import": "DAG import",
}
# What a reader of the rows has to know.
NOTES = {
    "plates.speed": "Server and client share the cores, and rclone's server reads an object for its ETag at every listing and "
    "HEAD. The floor passes the bytes on and does nothing else; the fastest peers pass them on by way of the disk. The SOP's "
    "chains, s3-tar and level 6 have 3 laps, all others as many as the row says. The archive makes no MD5: the verification "
    "does, for its proof and for the `.md5` file. Python's and boto3's start is a fixed part of our time, which a real plate, a "
    "hundred times the mix, does not notice. Plates of less than 8 GiB, as all here, are not tried object by object before they "
    "are archived: as documented, a few objects of each part are looked at.",
    "plates.zero_byte": "The store is a small one of our own in memory, which copies byte for byte, computes the CRC64NVME of "
    "every copy, and no MD5 (as S3 with SSE-KMS, whose ETags are none): it shares the two cores with the client, which S3 "
    "does not. The link has a speed and no delay. The peer verifies nothing; the second row is ours with its proof by checksums.",
    "jgi.planner": "Each plan begins with what was accepted within the last two windows: nothing, a day's requests, or many "
    "small ones. The peers are replays, written from descriptions, of how NMDC's scripts cut a list into requests: the direct "
    "version wrote to MongoDB itself, the later one goes through the runtime API. They keep no margin, so they are judged by "
    "JDP's 24 h; each is started every 24 h to the second, and what it asked for is moved by then. The later version asks for a "
    "list in fewer days because it exceeds the window. "
    "Lists of which a peer's first batch is over the limit it never asks for whole.",
}


def machine() -> dict[str, Any]:
    """What the figures were measured on, without names of hosts."""
    cpu = next((li.split(":")[1].strip() for li in _lines("/proc/cpuinfo") if li.startswith("model name")), "unknown")
    memory = next((int(li.split()[1]) // 1024**2 for li in _lines("/proc/meminfo") if li.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gib": memory,
        "os": platform.system(),
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def measure(names: list[str], *, quick: bool) -> dict[str, Any]:
    """Runs modules and returns all results, the old ones of other modules included."""
    results: dict[str, Any] = {}
    for name in names:
        print(f"== {MODULES[name]}", flush=True)
        begun = time.monotonic()
        rows = importlib.import_module(f"benchmarks.{name}").run(quick=quick)
        if not rows:
            continue  # it has said why
        # Read only now: another module may have been measured meanwhile.
        results |= json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = {
            "title": MODULES[name],
            "measured": datetime.now(UTC).date().isoformat(),
            "minutes": round((time.monotonic() - begun) / 60, 1),
            "machine": machine(),
            "load_before": round(os.getloadavg()[2], 1),
            "rows": rows,
        }
        show(results[name])
        if not quick:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return results


def show(result: dict[str, Any]) -> None:
    table = Table(title=result["title"], title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in result["rows"]:
        table.add_row(*cells(row))
    Console().print(table)


COLUMNS = ("figure", "value", "peer", "peer's value", "ratio", "aim", "met")


def cells(row: dict[str, Any]) -> list[str]:
    met = {True: "yes", False: "NO", None: ""}[row.get("met")]
    value = f"{number(row['value'])} {row['unit']}".strip()
    return [
        row["figure"], value, row.get("peer") or "", number(row.get("peer_value")),
        number(row.get("ratio")), str(row["aim"]) if row.get("aim") is not None else "", met,
    ]  # fmt: skip


def number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def page(results: dict[str, Any]) -> str:
    """docs/figures.md."""
    parts = [
        "# Figures\n",
        "Written by `make bench`; not by hand. A figure is a ratio measured side by side in one run on one machine. "
        "The same rows, for programs: `benchmarks/results.json`.\n",
    ]
    for name in MODULES:
        if name not in results:
            continue
        result = results[name]
        on = result["machine"]
        parts += [
            f"## {result['title']}\n",
            f"Measured {result['measured']} by `python -m benchmarks {name}` in {result['minutes']} min on {on['cpu']}, "
            f"{on['cores']} cores, {on['memory_gib']} GiB, Python {on['python']}.\n",
            *([NOTES[name] + "\n"] if name in NOTES else []),
            "| " + " | ".join(COLUMNS) + " |",
            "|" + " --- |" * len(COLUMNS),
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in result["rows"]),
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}; all without")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; publishes nothing")
    parser.add_argument("--page", action="store_true", help="only write docs/figures.md from results.json")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in MODULES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if args.page:
        results = json.loads(RESULTS.read_text())
    else:
        results = measure(args.names or list(MODULES), quick=args.quick)
    if not args.quick:
        PAGE.write_text(page(results))
    missed = [r["figure"] for result in results.values() for r in result["rows"] if r.get("met") is False]
    print("aims missed: " + ("; ".join(missed) if missed else "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
