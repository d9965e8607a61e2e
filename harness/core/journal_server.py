"""A remote that takes jobs over HTTP and keeps a journal: the truth of the kill tests.

It runs in a process of its own, and a request says itself how it shall go wrong (`hold`, `delay`, `hidden`, in seconds).
Invariant: scenarios that run at once do not disturb each other.

| request | does |
|---|---|
| POST /jobs `{"key", "hold", "delay", "hidden"}` | accepts a job after `delay`, lists it after `hidden`, answers after `hold` |
| GET /jobs?page=N | what is visible, oldest first: `{"now", "jobs", "next"}` |
| GET /journal?key=K | the ids of all jobs of a key, visible or not |
| GET /wait?key=K | answers when the key has a job |
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

PAGE = 500


class _Journal:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: list[dict[str, Any]] = []

    def accept(self, key: str, hidden: float) -> str:
        with self.changed:
            job = {"id": f"job-{len(self.jobs) + 1}", "key": key, "visible_at": time.time() + hidden}
            self.jobs.append(job)
            self.changed.notify_all()
            return str(job["id"])

    def page(self, number: int) -> dict[str, Any]:
        with self.changed:
            now = time.time()
            some = self.jobs[number * PAGE : (number + 1) * PAGE]
            more = len(self.jobs) > (number + 1) * PAGE
            jobs = [{"id": job["id"], "key": job["key"]} for job in some if job["visible_at"] <= now]
            return {"now": now, "jobs": jobs, "next": number + 1 if more else None}

    def ids(self, key: str, *, wait: bool = False) -> list[str]:
        with self.changed:
            if wait:
                self.changed.wait_for(lambda: any(job["key"] == key for job in self.jobs), timeout=15)
            return [job["id"] for job in self.jobs if job["key"] == key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    journal: _Journal

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):  # its client died in the middle: nothing was asked
            self.close_connection = True
            return
        asked = json.loads(body)
        if asked.get("delay"):  # the client may have given up when this one commits, as with a slow remote's queue
            time.sleep(asked["delay"])
        job = self.journal.accept(asked["key"], asked.get("hidden", 0.0))
        time.sleep(asked.get("hold", 0.0))
        self._answer({"id": job})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/jobs":
            self._answer(self.journal.page(int(query["page"])))
        else:
            self._answer(self.journal.ids(query["key"], wait=url.path == "/wait"))

    def _answer(self, document: Any) -> None:
        body = json.dumps(document).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # nobody listens any more

    def log_message(self, *_args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_args: Any) -> None:
        pass  # clients are killed here all the time


class JournalServer:
    """The running remote. Its methods ask the journal from outside the protocol, for judges and harnesses."""

    def __init__(self) -> None:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"journal": _Journal()}))
        self.port = int(server.server_address[1])
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                server.serve_forever()
            finally:
                os._exit(0)
        server.socket.close()  # the child has it

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def jobs_of(self, key: str) -> list[str]:
        return list(self._get(f"/journal?key={quote(key)}"))

    def wait_for(self, key: str) -> None:
        """Returns when the remote has accepted a job of this key."""
        if not self._get(f"/wait?key={quote(key)}"):
            raise RuntimeError(f"no job of {key} was accepted")

    def submit(self, key: str, *, hold: float = 0.0) -> str:
        """A plain client's POST, without any ledger."""
        return str(self._call("POST", "/jobs", json.dumps({"key": key, "hold": hold}))["id"])

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: str | None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
