"""A loopback relay that counts requests and answered bytes: each client connection has one of its own to the server.

Laps through it are not timed. It reads only what it must to find where a request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

_LIMIT = 1 << 20


class Counting:
    """`url` to give to the client; `methods` counts."""

    def __init__(self) -> None:
        self.url = ""
        self.methods: Counter[str] = Counter()
        self.answered_bytes = 0  # headers included


@contextlib.contextmanager
def counting(upstream: str) -> Iterator[Counting]:
    where = urlsplit(upstream)
    counter = Counting()
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    ending: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(where.hostname, where.port, limit=_LIMIT)
        back = asyncio.create_task(_pour(up_reader, writer, counter))
        try:
            while await _request(reader, up_writer, counter):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went; so does the other side
        finally:
            if up_writer.can_write_eof():
                with contextlib.suppress(OSError):
                    up_writer.write_eof()
            await asyncio.wait([back], timeout=5)
            for one in (writer, up_writer):
                one.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=_LIMIT)
        counter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ending.append(asyncio.Event())
        ready.set()
        await ending[0].wait()
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield counter
    finally:
        loop.call_soon_threadsafe(ending[0].set)
        thread.join(10)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counting) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_LIMIT):
            counter.answered_bytes += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counting) -> bool:
    """Passes one request on. False where the client has no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return False
    first, *lines = head.decode("latin-1").split("\r\n")
    counter.methods[first.split(" ", 1)[0]] += 1
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    writer.write(head)
    left = int(headers.get("content-length") or 0)
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    while left or chunked:
        if chunked and not left:
            size = await reader.readline()
            writer.write(size)
            left = int(size.split(b";")[0], 16) + 2
            chunked = left > 2
        data = await reader.read(min(left, _LIMIT))
        if not data:
            return False
        left -= len(data)
        writer.write(data)
        await writer.drain()
    await writer.drain()
    return True
