"""`python -m rehearsal stop|status [--home FOLDER]`: end or describe the stack in a folder, from any shell."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

import httpx

from include.core.terminal import end_with
from rehearsal import processes
from rehearsal.errors import StackError
from rehearsal.settings import ROOT
from rehearsal.stack import Record, stop_recorded

DEFAULT_HOME = ROOT / ".waybill" / "rehearsal"


def _stop(home: Path) -> int:
    count = stop_recorded(home)
    print(f"nothing runs in {home}" if count is None else f"ended {count} processes of the stack in {home}")
    return 0


def _status(home: Path) -> int:
    record = Record.read(home)
    members = processes.members(record.stack_id) if record else []
    if record is None or not members:
        print(f"nothing runs in {home}")
        return 1
    since = datetime.fromtimestamp(record.started_at).astimezone().isoformat(timespec="seconds")
    print(f"{record.address} since {since}: {', '.join(record.components)}, {len(members)} processes")
    try:
        with httpx.Client(trust_env=False, timeout=10) as client:
            health = client.get(f"{record.address}/api/v2/monitor/health").raise_for_status().json()
    except httpx.HTTPError as error:
        print(f"does not answer: {type(error).__name__}")
        return 1
    print(", ".join(f"{name} {part['status']}" for name, part in health.items()))
    print(f"users and passwords: {home / 'passwords.json'}; logs: {home / 'logs'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rehearsal", description=(__doc__ or "").partition(":")[2].strip())
    parser.add_argument("command", choices=("stop", "status"))
    parser.add_argument(
        "--home", type=Path, default=DEFAULT_HOME, help="the stack's folder (default .waybill/rehearsal)"
    )
    arguments = parser.parse_args(argv)
    try:
        return {"stop": _stop, "status": _status}[arguments.command](arguments.home.resolve())
    except (StackError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    end_with(main)
