"""What the tests of SSH share: a client for each question, and its failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from include.core.errors import WaybillError
from include.core.ssh import SshClient, SshPolicy
from include.core.ssh_login import SshTarget

SECRET = "s3cr3t with blanks"
QUICK = SshPolicy(backoff_seconds=0.02, backoff_limit_seconds=0.2)


def ask(
    target: SshTarget, work: Callable[[SshClient], Awaitable[Any]], policy: SshPolicy = QUICK, **options: Any
) -> Any:
    async def main() -> Any:
        async with SshClient(target, policy=policy, rng=random.Random(1), **options) as client:
            return await work(client)

    return asyncio.run(main())


def failure(target: SshTarget, work: Callable[[SshClient], Awaitable[Any]], **options: Any) -> WaybillError:
    with pytest.raises(WaybillError) as caught:
        ask(target, work, **options)
    return caught.value


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.01)
