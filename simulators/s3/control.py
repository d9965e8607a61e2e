"""The side channel of the S3 simulator beyond what every simulator has: POST `/_sim/reset`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from simulators.s3.simulator import S3World


def add_controls(sim: S3World) -> None:
    """Register the side channel."""

    async def reset(_: Request) -> Any:
        sim.reset()
        return {"ok": True}

    sim.control("POST", "/reset", reset)
