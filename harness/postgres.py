"""A PostgreSQL cluster of our own, in a temporary folder, on loopback: for tests and figures of the ledger.

The server refuses to run as root: a root test session starts it as an unprivileged user.
Invariant: it is stopped by its pid, and its folder removed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import URL

PASSWORD = "Horse-Battery/9@staple"  # with the characters that break careless URLs; tests look for it in messages
BINARIES = Path("/usr/lib/postgresql")
READY_WITHIN_SECONDS = 30.0


def binaries() -> Path | None:
    """The newest installed server's programs, None where there is none."""
    found = sorted(BINARIES.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def _as_unprivileged() -> tuple[list[str], int | None]:
    """A command prefix that gives up root, and the user id; nothing where there is no root to give up."""
    if os.geteuid() != 0:
        return [], None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        return ["setpriv", *ids, "--"], user.pw_uid
    raise RuntimeError("no unprivileged user to run PostgreSQL")


class Cluster:
    """One running server. `durable` keeps fsync on, as for figures; kills of clients need none."""

    def __init__(self, programs: Path, *, durable: bool = False):
        prefix, uid = _as_unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="waybill-pg-"))
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if uid is not None:
            os.chown(self.folder, uid, -1)
            os.chown(password, uid, -1)
        data = str(self.folder / "data")
        common: dict[str, Any] = {"cwd": self.folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        how = ["--auth=scram-sha-256", f"--pwfile={password}", "--username=waybill", "--encoding=UTF8", "--no-sync"]
        subprocess.run([*prefix, str(programs / "initdb"), "-D", data, *how], check=True, **common)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "on" if durable else "off",
            "max_connections": "60",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._server = subprocess.Popen([*prefix, str(programs / "postgres"), "-D", data, *options], **common)
        self._schemas = 0
        self._wait()

    def url(self, schema: str | None = None) -> URL:
        query = {"options": f"-csearch_path={schema}"} if schema else {}
        where: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "database": "postgres", "query": query}
        return URL.create("postgresql+psycopg2", username="waybill", password=PASSWORD, **where)

    def new_schema(self) -> URL:
        """The URL of an empty schema."""
        self._schemas += 1
        name = f"t{self._schemas}"
        self.execute(f"CREATE SCHEMA {name}")
        return self.url(name)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        connection = self._connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def stop(self) -> None:
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _connect(self) -> psycopg2.extensions.connection:
        who = {"user": "waybill", "password": PASSWORD, "dbname": "postgres"}
        return psycopg2.connect(host="127.0.0.1", port=self.port, connect_timeout=5, **who)

    def _wait(self) -> None:
        until = time.monotonic() + READY_WITHIN_SECONDS
        while True:
            try:
                self._connect().close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > until or self._server.poll() is not None:
                    self.stop()
                    raise
                time.sleep(0.05)
