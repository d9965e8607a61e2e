"""From a connection of type ssh to a client that runs commands there, for tasks and triggers alike."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Connection
from airflow.sdk.log import mask_secret
from hooks.client import ClientHook

from include.core.errors import RequestError
from include.core.ssh import SshClient
from include.core.ssh_login import SshTarget


class SshHook(ClientHook[SshClient]):
    """Connection fields as in Airflow's ssh provider: host, port, login, password; extras `private_key` (with
    `private_key_passphrase`) or `key_file`, and `host_key` or `known_hosts`. The host's key is always checked, but on a
    rehearsal's own machine where the extra `no_host_key_check` says so."""

    conn_name_attr = "ssh_conn_id"
    default_conn_name = "waybill_ssh"
    conn_type = "ssh"
    hook_name = "Waybill SSH"

    def connect(self, connection: Connection, *_others: Connection) -> SshClient:
        return SshClient(ssh_target(connection))


def ssh_target(connection: Connection) -> SshTarget:
    """The host of a connection, and how to log in there. Its secrets are masked in logs from here on."""
    extra = connection.extra_dejson
    if extra.get("private_key") and extra.get("key_file"):
        raise RequestError(f"connection {connection.conn_id}: give the extra private_key or key_file, not both")
    passphrase = _text(extra, "private_key_passphrase") or _text(extra, "passphrase")
    for secret in (connection.password, _text(extra, "private_key"), passphrase):
        if secret:
            mask_secret(secret.strip())
    known_hosts = _text(extra, "known_hosts")
    return SshTarget(
        name=connection.conn_id,
        host=(connection.host or "").strip(),
        port=connection.port or 22,
        login=(connection.login or "").strip() or None,
        password=connection.password or "",
        private_key=_text(extra, "private_key"),
        key_file=_text(extra, "key_file"),
        passphrase=passphrase,
        host_key=_text(extra, "host_key").strip(),
        known_hosts=known_hosts if known_hosts.lower() != "none" else "",
        no_host_key_check=_true(extra.get("no_host_key_check")) or known_hosts.lower() == "none",
    )


def _text(extra: dict[str, Any], name: str) -> str:
    return str(extra.get(name) or "")


def _true(value: Any) -> bool:
    """Airflow's form stores a switch as true, its texts as "true"."""
    return str(value).strip().lower() == "true"
