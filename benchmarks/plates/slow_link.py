"""A network link of a given speed, each way, before a server: `python slow_link.py PORT SERVER_PORT BYTES_PER_SECOND COUNTS`.

At its end (SIGTERM) it writes to COUNTS what passed each way. Every connection shares the link.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from pathlib import Path

_PIECE = 128 * 1024


class Way:
    """One direction: so many bytes a second in all."""

    def __init__(self, rate: float) -> None:
        self.passed = 0
        self._rate = rate
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, count: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + count / self._rate
            self.passed += count
            wait = self._free - now
        if wait > 0.002:  # shorter sleeps are not kept
            time.sleep(wait)


def pass_on(source: socket.socket, target: socket.socket, way: Way) -> None:
    buffer = bytearray(_PIECE)
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            way.wait(count)
            target.sendall(memoryview(buffer)[:count])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def main(port: int, server: int, rate: float, counts: Path) -> None:
    up, down = Way(rate), Way(rate)

    def end(*_: object) -> None:
        counts.write_text(json.dumps({"up": up.passed, "down": down.passed}))
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    with socket.create_server(("127.0.0.1", port), backlog=128) as listening:
        while True:
            client, _ = listening.accept()
            upstream = socket.create_connection(("127.0.0.1", server))
            for one in (client, upstream):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=pass_on, args=(client, upstream, up), daemon=True).start()
            threading.Thread(target=pass_on, args=(upstream, client, down), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
