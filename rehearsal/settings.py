"""What every process of a local stack finds in its environment.

The environment is built up from nothing: what a stack needs is named here or passed as `extra_env`.

Invariant: a local stack never meets a real account, so the caller's AWS_*, AIRFLOW_*, proxy and home-directory settings do
not get in.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from rehearsal.errors import StackError

ROOT = Path(__file__).resolve().parent.parent
USERS = {"admin": "admin", "amy": "op", "uli": "user", "vic": "viewer"}
DATABASE_NAME = "airflow.db"

# Looks of the machine, not accounts: safe to hand on.
INHERITED = (
    "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME", "TERM", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONDONTWRITEBYTECODE", "COVERAGE_PROCESS_START",
)  # fmt: skip


def parse_env(text: str) -> dict[str, str]:
    """Read KEY=VALUE lines; blank lines and lines that begin with # are skipped, quotes are part of the value.

    Raises StackError for any other line and for a key given twice.
    """
    settings: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.isidentifier():
            raise StackError(f"line {number}: expected KEY=VALUE, found {line!r}")
        if key in settings:
            raise StackError(f"line {number}: {key} is set twice")
        settings[key] = value
    return settings


def airflow_settings(*, short_timings: bool = False, root: Path = ROOT) -> dict[str, str]:
    """The settings of airflow.env, with those of short_timings.env laid over them if wanted."""
    settings = parse_env((root / "airflow.env").read_text(encoding="utf-8"))
    if short_timings:
        settings |= parse_env((root / "rehearsal" / "short_timings.env").read_text(encoding="utf-8"))
    return settings


def free_ports(count: int) -> list[int]:
    """Distinct free loopback ports from below the range that the kernel hands out by itself.

    Between choosing and binding, nothing but another caller of this function can take them, and it draws at random.
    """
    chosen: list[int] = []
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            # Without this, a port of a stack stopped a moment ago (TIME_WAIT) would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in chosen:
            chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise StackError("no free port between 20000 and 32000 on this machine")


def keep_json(path: Path, make: Mapping[str, str]) -> dict[str, str]:
    """The content of `path`, readable by its owner only; where it is missing, `make` is written there first."""
    if path.exists():
        return {str(key): str(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        json.dump(make, stream, indent=2)
    return dict(make)


def passwords(home: Path) -> dict[str, str]:
    """Password by user name, drawn once per home and kept in `<home>/passwords.json`, where Airflow reads them."""
    return keep_json(home / "passwords.json", {user: secrets.token_urlsafe(9) for user in USERS})


def keys(home: Path) -> dict[str, str]:
    """Airflow's three keys, drawn once per home: without the first one, stored connections become unreadable."""
    made = {
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
        "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
    }
    return keep_json(home / "keys.json", made)


def base_environment(home: Path, *, short_timings: bool, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Everything that is the same for all processes of the stack at `home`, without ports and connections."""
    airflow_home = home / "airflow"
    bin_folder = Path(sys.executable).parent
    return {
        **{name: inherited[name] for name in INHERITED if name in inherited},
        "PATH": f"{bin_folder}:{inherited.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # ~/.aws, ~/.ssh and their like are the caller's; a stack has its own, empty.
        "HOME": str(home / "user"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        # Airflow renames its processes, which wipes their environment in /proc and with it the mark they are found
        # by (docs/protocols/airflow.md 7.1).
        "SPT_NOENV": "1",
        **airflow_settings(short_timings=short_timings),
        **keys(home),
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow_home / DATABASE_NAME}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "rehearsal.sqlite.CONNECT_ARGS",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS_ASYNC": "rehearsal.sqlite.CONNECT_ARGS_ASYNC",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow_home / "logs"),
    }


def port_environment(ports: Mapping[str, int]) -> dict[str, str]:
    """The settings that say where Airflow listens: `api`, and the two log servers that only `standalone` starts.

    Airflow 3.3.2 binds its log servers to every address (docs/protocols/airflow.md 7.3); they answer only to
    requests signed with the stack's own secret. Separate components are started without them.
    """
    address = f"http://127.0.0.1:{ports['api']}"
    return {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(ports["api"]),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports["worker_logs"]),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["trigger_logs"]),
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
    }
