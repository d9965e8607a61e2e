"""The floor of an archive: every object is read and its bytes are sent on, and nothing else is done to them.

`python floor.py URL LIVE COLD [gzip]`. No tar, no digest, no manifest, no check, and no code of ours: what no tool that
passes the bytes through one process can be faster than. With `gzip` the bytes are compressed on the way, as fast as we know how.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import obstore
from obstore.store import S3Store

AHEAD, PART_BYTES, PARTS_AT_ONCE = 32, 32 * 1024 * 1024, 3
GROUP_BYTES, GROUPS_AT_ONCE = 4 * 1024 * 1024, 2
TARGET = "floor.bytes"


async def main(url: str, live: str, cold: str, packing: str = "") -> None:
    source, target = (S3Store(name, endpoint=url, client_options={"allow_http": True}) for name in (live, cold))
    stream = _packed(_bytes_of(source)) if packing else _bytes_of(source)
    await obstore.put_async(
        target, TARGET, stream, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
    )


async def _bytes_of(source: Any) -> AsyncIterator[Any]:
    keys = [row["path"] async for rows in obstore.list(source, "projects/") for row in rows]
    waiting: deque[asyncio.Task[Any]] = deque()
    for key in sorted(keys):
        waiting.append(asyncio.create_task(_read(source, key)))
        if len(waiting) >= AHEAD:
            yield await waiting.popleft()
    while waiting:
        yield await waiting.popleft()


async def _read(source: Any, key: str) -> Any:
    return await (await obstore.get_async(source, key)).bytes_async()


async def _packed(stream: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    from isal import isal_zlib

    waiting: deque[asyncio.Task[bytes]] = deque()
    compress: Callable[[bytes], bytes] = lambda data: isal_zlib.compress(data, 1, 31)  # noqa: E731
    held = bytearray()
    async for data in stream:
        held += data
        while len(held) >= GROUP_BYTES:
            waiting.append(asyncio.create_task(asyncio.to_thread(compress, bytes(held[:GROUP_BYTES]))))
            del held[:GROUP_BYTES]
            if len(waiting) >= GROUPS_AT_ONCE:
                yield await waiting.popleft()
    waiting.append(asyncio.create_task(asyncio.to_thread(compress, bytes(held))))
    while waiting:
        yield await waiting.popleft()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    os._exit(0)  # obstore's threads may abort a process that is being taken down
