"""Start the simulators on free loopback ports and run them until SIGTERM or SIGINT.

    python -m simulators --only icav2 --scenario sop --speed 10 --state-file .waybill/simulators.json
    python -m simulators --speed 10 --speed s3=1440

The state file is JSON, name to address; a service with several has them as `service.name`. It appears, complete, when all of
them answer; that is the signal to wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
from pathlib import Path

from simulators.common import SERVICES, Clock, Setup, Shared, build, named


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulators", description="Local stand-ins for the remote systems.")
    parser.add_argument("--only", action="append", choices=sorted(SERVICES), help="start this one (repeatable)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every draw (default 1)")
    parser.add_argument(
        "--speed",
        action="append",
        type=_speed,
        default=[],
        metavar="[SERVICE=]NUMBER",
        help="simulated seconds per second, of all services or of one (repeatable; default 1)",
    )
    parser.add_argument("--scenario", help="what to seed, as `sop`: the inputs of the written procedures")
    parser.add_argument(
        "--folder", type=Path, help="where services keep files that they share (default: a temporary one)"
    )
    parser.add_argument("--state-file", type=Path, help="write name -> address here, as JSON")
    return parser.parse_args(argv)


def _speed(text: str) -> tuple[str, float]:
    """`10` for all services, `s3=1440` for one. Raises argparse.ArgumentTypeError for anything else."""
    service, _, number = text.rpartition("=")
    try:
        speed = float(number)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf") or (service and service not in SERVICES):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a number from 0, or SERVICE=NUMBER with one of {', '.join(sorted(SERVICES))}"
        )
    return service, speed


def setups(arguments: argparse.Namespace, folder: Path) -> dict[str, Setup]:
    """How each service is built: its own clock, and what all share."""
    speeds: dict[str, float] = dict(arguments.speed)
    shared = Shared(folder)
    return {
        name: Setup(Clock(speed=speeds.get(name, speeds.get("", 1.0))), arguments.seed, arguments.scenario, shared)
        for name in arguments.only or SERVICES
    }


def _write_state(path: Path, addresses: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(addresses, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


async def run(arguments: argparse.Namespace) -> None:
    """Start, publish the addresses, wait for a signal, stop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="waybill-simulators-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        services = {name: build(name, setup) for name, setup in setups(arguments, folder).items()}
        addresses: dict[str, str] = {}
        for name, service in services.items():
            addresses |= named(name, await service.start())
        if arguments.state_file:
            _write_state(arguments.state_file, addresses)
        for name, address in addresses.items():
            print(f"{name} {address}", flush=True)
        await stop.wait()
        for service in services.values():
            await service.stop()


def main(argv: list[str] | None = None) -> None:
    asyncio.run(run(_arguments(argv)))


if __name__ == "__main__":
    main()
