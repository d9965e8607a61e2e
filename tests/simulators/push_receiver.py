"""A tiny receiver of push notifications on a loopback socket: it keeps what was posted, and answers as told."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class PushReceiver:
    """A context manager. `letters` are the envelopes in order of arrival."""

    def __init__(self, answer_status: int = 200) -> None:
        self.letters: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._arrived:
                    receiver.letters.append(json.loads(body))
                    receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                    receiver._arrived.notify_all()
                self.send_response(answer_status)
                self.send_header("Content-Length", "0")
                if answer_status == 302:
                    self.send_header("Location", receiver.address + "elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/hook/"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)

    def wait_for(self, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """The letters, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.letters) >= count, seconds), f"{len(self.letters)} letters"
            return list(self.letters)

    def statuses(self) -> list[str]:
        return [letter["payload"]["status"] for letter in self.letters]

    def __enter__(self) -> PushReceiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
