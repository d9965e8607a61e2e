"""A real OpenSSH server on loopback, with keys and settings of its own, and the fault script for the commands that it runs.

With `faults=True` every command passes a small gate (`ForceCommand`) that asks this process what shall happen to it
(`simulators.common.commands`), so that connections break at exactly the step that a test names, by the death of the sshd
process that serves them.

Invariant: it listens on loopback only, and is stopped by process ids, with all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from include.core.ssh_login import SshTarget
from simulators.common import FaultScript, Journal
from simulators.common.commands import COMMAND_FAULTS, CommandPlan, plan_command

READY_WITHIN_SECONDS = 60.0
PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd of Debian does not start as root without it

# What runs in place of each command. It knows nothing but its socket; the standard library alone starts fast.
GATE = """
import json, os, socket, subprocess, sys, time
command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
shell = os.environ.get("SHELL", "/bin/sh")
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
file = line.makefile("rw")
def ask(**said):
    file.write(json.dumps(said) + "\\n")
    file.flush()
    return json.loads(file.readline() or "{}")
plan = ask(command=command, pid=os.getpid())
if plan.get("plain"):
    os.execv(shell, [shell, "-c", command])
done = None
if plan.get("runs"):
    done = subprocess.run([shell, "-c", command], capture_output=True)
plan = ask(ran=done is not None)
own = (done.stdout, done.stderr, done.returncode) if done else (b"", b"", 255)
out, err = (own[i] if plan[name] is None else plan[name].encode() for i, name in enumerate(("stdout", "stderr")))
out = out if plan["keep_bytes"] is None else out[: plan["keep_bytes"]]
size = max(1, -(-len(out) // plan["chunks"]))
for start in range(0, len(out), size):
    time.sleep(plan["trickle_seconds"] / plan["chunks"])
    os.write(1, out[start : start + size])
os.write(2, err)
ask(written=True)
status = own[2] if plan["exit_status"] is None else plan["exit_status"]
os._exit(status if status >= 0 else 255)
"""


def program() -> Path | None:
    """The installed sshd, None where there is none."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


class Sshd:
    """One running server; a context manager. `settings` are lines of sshd_config, as `MaxSessions="3"`.

    `journal` holds an entry for each command that reached the gate, with what was done to it, and `faults` the script: both
    only with `faults=True`.
    """

    def __init__(self, *, faults: bool = False, **settings: str):
        sshd = program()
        if sshd is None:
            raise RuntimeError("no sshd is installed: apt-get install openssh-server")
        self.faults = FaultScript(COMMAND_FAULTS)
        self.journal = Journal(time.time)
        self.folder = Path(tempfile.mkdtemp(prefix="waybill-sshd-"))
        self.login = pwd.getpwuid(os.geteuid()).pw_name
        self.host_key = self._new_key("host_key")
        self.other_host_key = self._new_key("other_host_key", "ecdsa")
        (self.folder / "authorized_keys").write_text(self._new_key("user_key") + "\n")
        self.private_key = (self.folder / "user_key").read_text()
        self._gate = _GateServer(self) if faults else None
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self._sshd, self._settings = sshd, settings
        self._server: subprocess.Popen[bytes] | None = None
        self.port = 0
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts it, again on the same port where it was stopped before."""
        until = time.monotonic() + READY_WITHIN_SECONDS
        while True:
            self.port = self.port or _free_port()
            command = [str(self._sshd), "-D", "-f", str(self._config()), "-E", str(self.folder / "log")]
            self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            while self._server.poll() is None:
                if self._answers():
                    return
                if time.monotonic() > until:
                    break
                time.sleep(0.02)
            self.kill_server()
            log = (self.folder / "log").read_text("utf-8") if (self.folder / "log").exists() else ""
            if time.monotonic() > until or "Bind to port" not in log:
                raise RuntimeError(f"sshd did not start: {log[-2000:]}")
            self.port = 0

    def target(self, **changes: Any) -> SshTarget:
        """How to log in here."""
        fields = {
            "name": "waybill_test_ssh", "host": "127.0.0.1", "port": self.port, "login": self.login,
            "private_key": self.private_key, "host_key": self.host_key,
        }  # fmt: skip
        return SshTarget(**{**fields, **changes})

    def connections(self) -> list[psutil.Process]:
        """The processes that serve a connection each."""
        return psutil.Process(self._server.pid).children() if self._server else []

    def kill_connections(self, how: int = signal.SIGKILL) -> None:
        """Ends (or, by SIGSTOP, freezes) what serves the connections, and leaves the commands that they run."""
        for connection in self.connections():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*connection.children(recursive=True), connection]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if process.name().startswith("sshd"):
                            process.send_signal(how)

    def kill_server(self) -> None:
        """Ends the server and all that it started; nobody listens any more."""
        if self._server is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            serving = psutil.Process(self._server.pid).children(recursive=True)
            self._server.kill()
            for process in [*serving, *self._commands_running()]:
                _kill(process)
        self._server.wait(30)
        self._server = None

    def stop(self) -> None:
        self.kill_server()
        if self._gate is not None:
            self._gate.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _commands_running(self) -> list[psutil.Process]:
        """Also those whose connection has gone: they are nobody's children any more, but have our folder as their home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("HOME") == str(self.folder):
                    found.append(process)
        return found

    def __enter__(self) -> Sshd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def commands(self) -> list[dict[str, Any]]:
        """The journal's entries of commands, oldest first."""
        return [entry.details for entry in self.journal.entries("command")]

    def _new_key(self, name: str, kind: str = "ed25519") -> str:
        path = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)], check=True)
        return path.with_suffix(".pub").read_text().strip()

    def _config(self) -> Path:
        settings = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "AuthorizedKeysFile": str(self.folder / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "yes",
            "PrintMotd": "no",
            "LogLevel": "VERBOSE",
            "SetEnv": f"HOME={self.folder}",  # no start-up files of whoever runs the tests
            **self._settings,
        }
        if self._gate is not None:
            settings["ForceCommand"] = f"/usr/bin/env python3 -I -S {self._gate.script} {self._gate.path}"
        path = self.folder / "sshd_config"
        keys = [("HostKey", self.folder / "host_key"), ("HostKey", self.folder / "other_host_key")]
        path.write_text("".join(f"{name} {value}\n" for name, value in [*keys, *settings.items()]))
        return path

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


class _GateServer(socketserver.ThreadingUnixStreamServer):
    """What the gate of each command asks: runs in threads of this process."""

    daemon_threads = True

    def __init__(self, sshd: Sshd):
        self.path = str(sshd.folder / "gate")
        self.script = sshd.folder / "gate.py"
        self.script.write_text(GATE)
        self._lock = threading.Lock()
        self._sshd = sshd
        super().__init__(self.path, _Gate)
        self._thread = threading.Thread(target=self.serve_forever, name="sshd gate", kwargs={"poll_interval": 0.05})
        self._thread.start()

    def plan(self, command: str) -> CommandPlan:
        with self._lock:
            plan = plan_command(self._sshd.faults, command, time.time())
            self._sshd.journal.record("command", command=command, ran=plan.runs, faults=list(plan.faults))
            return plan

    def stop(self) -> None:
        self.shutdown()
        self._thread.join(30)
        self.server_close()


class _Gate(socketserver.StreamRequestHandler):
    """One command."""

    server: _GateServer

    def handle(self) -> None:
        asked = self._heard()
        if not asked:
            return
        plan = self.server.plan(asked["command"])
        if plan.plain:
            self._say(plain=True)
            return
        served_by = _server_of(asked["pid"])
        waited = 0.0
        if plan.drop_after_seconds is not None:
            waited = plan.drop_after_seconds
            time.sleep(waited)
            _kill(served_by)
        time.sleep(max(0.0, plan.delay_seconds - waited))
        self._say(runs=plan.runs)
        if not self._heard():
            return
        time.sleep(plan.hold_seconds)
        self._say(
            stdout=plan.stdout, stderr=plan.stderr, keep_bytes=plan.keep_bytes, trickle_seconds=plan.trickle_seconds,
            chunks=plan.chunks, exit_status=plan.exit_status,
        )  # fmt: skip
        if self._heard() and plan.drops:
            _kill(served_by)
        self._say()

    def _heard(self) -> dict[str, Any]:
        heard: dict[str, Any] = json.loads(self.rfile.readline() or b"{}")
        return heard

    def _say(self, **said: Any) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(json.dumps(said).encode() + b"\n")


def _server_of(pid: int) -> psutil.Process | None:
    """The sshd process that serves the connection of a command."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return next((process for process in psutil.Process(pid).parents() if process.name().startswith("sshd")), None)
    return None


def _kill(process: psutil.Process | None) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        if process is not None:
            process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def sshd(**options: Any) -> Iterator[Sshd]:
    """A running server, stopped at the end."""
    with Sshd(**options) as server:
        yield server
