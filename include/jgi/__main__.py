"""`python -m include.jgi plan FILES.csv`: what would be asked of JDP, and when. Asks nothing of anyone.

FILES.csv has the columns jdp_file_id, file_name, file_size, file_status, and if known apGoldId, biosample_id, project_name,
dt_to_purge, priority, waiting_since, attempts; others are ignored. Exits with 2 where the input is wrong, and says all that is.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from include.core.errors import RequestError
from include.core.terminal import end_with
from include.core.text import format_bytes, pluralize, printable
from include.jgi.bound import Accepted
from include.jgi.files_csv import Listed, read_accepted, read_files, read_instant
from include.jgi.forecast import forecast
from include.jgi.models import Limits
from include.jgi.planner import DRAIN_RATE, plan

T = TypeVar("T")
FASTEST = 1e15


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m include.jgi", description=__doc__)
    command = top.add_subparsers(required=True).add_parser("plan", help="what would be asked of JDP, and when")
    command.add_argument("files", metavar="FILES.csv", help="the files, or - for standard input")
    command.add_argument(
        "--accepted",
        default="[]",
        metavar="JSON",
        help='what JDP accepted lately: [{"at": "2026-11-26T02:00:00Z", "bytes": 9800000000000}], or a file with that',
    )
    command.add_argument("--now", metavar="ISO", help="plan from this instant on; default: now")
    command.add_argument(
        "--drain-rate",
        default=str(DRAIN_RATE),
        metavar="B/S",
        help="bytes per second that Globus moves; default: 3.7e8",
    )
    command.add_argument("--free-bytes", metavar="N", help="bytes that the destination has room for")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return top


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 1 <= rate <= FASTEST:
        raise RequestError(
            f"--drain-rate: {printable(text, 80)} is no rate: write bytes per second, at least 1, as 3.7e8"
        )
    return rate


def _free(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise RequestError(f"--free-bytes: {printable(text, 80)} is no number: write whole bytes, as 50000000000000")
    return None if text is None else int(text)


def _now(text: str | None) -> float:
    try:
        return float(int(time.time())) if text is None else read_instant(text).timestamp()
    except ValueError:
        raise RequestError(f"--now: {printable(text, 80)} is no date: write it as 2026-11-26T02:00:00+00:00") from None


def _listed(name: str) -> Listed:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror}; name a CSV with files") from None
    return read_files(data)


class _Inputs:
    """Reads all that is given, and keeps every refusal."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, reader: Callable[[Any], T], given: Any, instead: T) -> T:
        try:
            return reader(given)
        except RequestError as error:
            self.problems += error.problems
            return instead


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    inputs = _Inputs()
    nothing: list[Accepted] = []
    now = inputs.read(_now, options.now, 0.0)
    rate = inputs.read(_rate, options.drain_rate, DRAIN_RATE)
    free = inputs.read(_free, options.free_bytes, None)
    accepted = inputs.read(read_accepted, options.accepted, nothing)
    listed = inputs.read(_listed, options.files, Listed([], []))
    if inputs.problems:
        print("\n".join(inputs.problems), file=sys.stderr)
        return 2
    found = plan(listed.files, accepted, now, Limits(), drain_rate=rate, free_bytes=free)
    told = forecast(replace(found, not_planned=(*listed.left_out, *found.not_planned)), now)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        _show(told)
    return 0


def _show(told: dict[str, Any]) -> None:
    from include.core.terminal import table

    requests, window = told["requests"], told["window"]
    size = sum(one["bytes"] for one in requests)
    count = sum(len(one["ids"]) for one in requests)
    print(
        f"{pluralize(count, 'file')} ({format_bytes(size)}) in {pluralize(len(requests), 'restore request')} over "
        f"{pluralize(told['days'], 'day')}; no plan needs less than {pluralize(told['lower_bound_days'], 'day')}."
    )
    print(
        f"Window of {window['seconds'] / 3600:.2f} h: {format_bytes(window['used_bytes'])} used, "
        f"{format_bytes(window['free_bytes'])} free"
        + (f"; more from {window['next_free_at']}" if window["next_free_at"] else "")
    )
    if requests:
        table(("send at", "files", "size"), [(r["send_at"], len(r["ids"]), format_bytes(r["bytes"])) for r in requests])
        rows = [
            (name or "-", one["files"], format_bytes(one["bytes"]), one["last_send_at"])
            for name, one in told["projects"].items()
        ]
        table(("project", "files", "size", "last is sent at"), rows)
    if told["not_planned"]:
        table(("not planned", "state", "why"), [(n["jdp_file_id"], n["state"], n["why"]) for n in told["not_planned"]])


if __name__ == "__main__":
    gc.disable()  # a million files stay until the end, and none of them is in a circle
    end_with(main)
