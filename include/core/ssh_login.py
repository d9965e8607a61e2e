"""Logging in over SSH: who, with what, to a host whose key is known; and how many logins at once.

Invariant: a host's key is checked before anything is sent to it; without a check only this machine is logged in to.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from include.core.errors import AuthError, RequestError, SshTrouble
from include.core.text import printable

LOGINS_AT_ONCE = 8  # of one process; sshd drops connections at random while more than 10 log in (MaxStartups 10:30:100)

RSA = ("rsa-sha2-512", "rsa-sha2-256")
KEY_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", *RSA)

_logins = threading.BoundedSemaphore(LOGINS_AT_ONCE)


@dataclass(frozen=True)
class SshTarget:
    """A host and how to log in there: the fields of an Airflow connection of type ssh.

    `host_key` is the host's own public key, as `ssh-ed25519 AAAA…`; without it the file `known_hosts` must name the host.
    `no_host_key_check` is for rehearsals, and refused for a host that is not this machine.
    """

    name: str
    host: str
    port: int = 22
    login: str | None = None
    password: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    key_file: str = ""
    passphrase: str = field(default="", repr=False)
    host_key: str = ""
    known_hosts: str = ""
    no_host_key_check: bool = False

    @property
    def where(self) -> str:
        return f"connection {self.name} ({self.host}{f':{self.port}' if self.port != 22 else ''})"

    def __post_init__(self) -> None:
        if not self.host:
            raise RequestError(f"connection {self.name} has no host: give the login host's name")
        if self.no_host_key_check and not _is_this_machine(self.host):
            raise RequestError(
                f"{self.where}: no_host_key_check is for rehearsals on this machine; give the host's key as extra host_key"
            )
        if self.no_host_key_check and self.host_key:
            raise RequestError(f"{self.where}: give host_key or no_host_key_check, not both")


@cache
def library() -> Any:
    """asyncssh, silent about what it connects to and runs: it would log whole commands."""
    ssh = importlib.import_module("asyncssh")
    ssh.set_log_level("ERROR")
    return ssh


def login_options(target: SshTarget) -> dict[str, Any]:
    """What asyncssh is given to log in; nothing is taken from this machine's own settings of ssh, nor from an agent."""
    ssh = library()
    try:
        if target.private_key:
            keys = [ssh.import_private_key(_pem(target.private_key), target.passphrase or None)]
        elif target.key_file:
            keys = [ssh.read_private_key(target.key_file, target.passphrase or None)]
        else:
            keys = []
    except (ValueError, OSError) as error:
        raise AuthError(
            f"{target.where}: its private key cannot be read ({type(error).__name__}); give a key in PEM or OpenSSH form as "
            "extra private_key, and its passphrase as private_key_passphrase"
        ) from None
    return {
        "username": target.login or (),
        "password": target.password.strip("\r\n") or None,
        "client_keys": keys or None,
        "config": None,
        "agent_path": None,
        **_host_check(target),
    }


def _pem(text: str) -> str:
    return text.replace("\r\n", "\n").strip() + "\n"


def _host_check(target: SshTarget) -> dict[str, Any]:
    """What the host's key is compared with, and which kinds of key it is asked for."""
    if target.no_host_key_check:
        return {"known_hosts": None}
    keys, authorities = ([_host_key(target)], []) if target.host_key else _known(target)
    if authorities:
        return {"known_hosts": (keys, authorities, [])}
    # The right kinds first, and the others too: sshd just closes the connection where it has none of those asked for, and
    # a host with another key would look like one out of reach.
    kinds = [key.algorithm.decode("ascii") for key in keys]
    right = [name for kind in kinds for name in (RSA if kind == "ssh-rsa" else (kind,))]
    return {"known_hosts": (keys, [], []), "server_host_key_algs": list(dict.fromkeys([*right, *KEY_KINDS]))}


def _host_key(target: SshTarget) -> Any:
    parts = target.host_key.split()
    kind = next((index for index, part in enumerate(parts) if part.startswith(("ssh-", "ecdsa-", "sk-"))), None)
    text = " ".join(parts[kind : kind + 2]) if kind is not None else f"ssh-rsa {parts[0]}"  # as the provider reads it
    try:
        return library().import_public_key(text)
    except ValueError:
        raise AuthError(f"{target.where}: its host_key is no public key; give it as ssh-ed25519 AAAA…") from None


def _known(target: SshTarget) -> tuple[list[Any], list[Any]]:
    """Keys and authorities that the file names for the host."""
    file = Path(target.known_hosts or "~/.ssh/known_hosts").expanduser()
    port = target.port if target.port != 22 else None
    try:
        keys, authorities, revoked, *_ = library().match_known_hosts(str(file), target.host, "", port)
    except (OSError, ValueError):
        keys, authorities, revoked = [], [], []
    if not (keys or authorities) or revoked:
        raise AuthError(
            f"{target.where} names no key of the host, nor does {printable(str(file))}: give the extra host_key, as "
            "ssh-ed25519 AAAA… (ssh-keyscan shows it; compare it with what the host's administrator says)"
        )
    return list(keys), list(authorities)


def login_trouble(error: Exception) -> SshTrouble:
    ssh = library()
    if isinstance(error, ssh.HostKeyNotVerifiable):
        return SshTrouble.HOST_KEY
    if isinstance(error, (ssh.PermissionDenied, ssh.IllegalUserName)):
        return SshTrouble.LOGIN
    return SshTrouble.NOT_CONNECTED


def reason_of(error: Exception) -> str:
    name, text = type(error).__name__, printable(str(error), 160, quotes=False)
    return f"{name}: {text}" if text and isinstance(error, (OSError, library().Error)) else name


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@asynccontextmanager
async def login_turn(rng: random.Random) -> AsyncIterator[None]:
    """One of the few logins that this process makes at once, whatever event loops it has."""
    while not _logins.acquire(blocking=False):  # noqa: ASYNC110 - an asyncio.Semaphore belongs to one event loop
        await asyncio.sleep(0.02 + 0.06 * rng.random())
    try:
        yield
    finally:
        _logins.release()
