"""Start the simulators on free loopback ports and run them until SIGTERM or SIGINT.

    python -m simulators --only icav2 --scenario sop --speed 10 --state-file .waybill/simulators.json

The state file is JSON, name to address. It appears, complete, when all of them answer; that is the signal to wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path

from simulators.common import SERVICES, Clock, Setup, build


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulators", description="Local stand-ins for the remote systems.")
    parser.add_argument("--only", action="append", choices=sorted(SERVICES), help="start this one (repeatable)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every draw (default 1)")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per second (default 1)")
    parser.add_argument("--scenario", help="what to seed, as `sop`: the inputs of the written procedures")
    parser.add_argument("--state-file", type=Path, help="write name -> address here, as JSON")
    return parser.parse_args(argv)


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
    setup = Setup(Clock(speed=arguments.speed), arguments.seed, arguments.scenario)
    services = {name: build(name, setup) for name in arguments.only or SERVICES}
    addresses = {name: await service.start() for name, service in services.items()}
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
