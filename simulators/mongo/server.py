"""`MongoServer`: the process of nx-27017, from its start until it answers to its end.

Invariant: it listens on loopback only, and no process is left behind by `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from simulators.common.server import loopback_socket

# isMaster as OP_MSG: {"isMaster": 1, "$db": "admin"}. The answer's content does not matter here, only that there is one.
_DOCUMENT = b"\x10isMaster\x00\x01\x00\x00\x00\x02$db\x00\x06\x00\x00\x00admin\x00\x00"


def _hello() -> bytes:
    document = (len(_DOCUMENT) + 4).to_bytes(4, "little") + _DOCUMENT
    body = (0).to_bytes(4, "little") + b"\x00" + document
    header = (16 + len(body), 1, 0, 2013)
    return b"".join(number.to_bytes(4, "little") for number in header) + body


class MongoServer:
    """A database server on a free loopback port whose files lie in `folder`.

    Args:
        folder: made if needed; a server that is started there again has the data of the one before.
        start_seconds: how long it may take until it answers.
    """

    def __init__(self, folder: Path, start_seconds: float = 60.0) -> None:
        self._folder = folder
        self._start_seconds = start_seconds
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The server's process while it runs; tests kill it."""
        return None if self._process is None else self._process.pid

    async def start(self, port: int = 0) -> str:
        """Start it and wait until it answers; its URI. Raises RuntimeError when it cannot, with the end of its log."""
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        port = _free(port)
        log = self._folder / "log.txt"
        with (self._folder / "output.txt").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).parent / "nx-27017"),
                *("--data-dir", str(data), "--host", "127.0.0.1", "-p", str(port)),
                *("--pid-file", str(self._folder / "pid"), "--log-file", str(log)),
                stdout=output,
                stderr=output,
            )
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._until_it_answers(port)
        except (TimeoutError, RuntimeError) as error:
            await self.stop()
            told = "".join(
                path.read_text("utf-8", "replace")[-500:]
                for path in (log, self._folder / "output.txt")
                if path.exists()
            )
            raise RuntimeError(f"nx-27017 did not answer on port {port}: {told}") from error
        return f"mongodb://127.0.0.1:{port}/?directConnection=true"

    async def stop(self) -> None:
        """End the process; after ten seconds by force."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _until_it_answers(self, port: int) -> None:
        while True:
            if self._process is None or self._process.returncode is not None:
                raise RuntimeError("the process has ended")
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(_hello())
                    await writer.drain()
                    await reader.readexactly(16)
                    return
                finally:
                    writer.close()
            await asyncio.sleep(0.05)


def _free(port: int) -> int:
    """This port, or (0) one that is free. Raises RuntimeError where another server would answer in place of ours."""
    try:
        with loopback_socket(port=port) as bound:
            found: int = bound.getsockname()[1]
            return found
    except OSError as error:
        raise RuntimeError(f"port {port}: {error.strerror}") from error
