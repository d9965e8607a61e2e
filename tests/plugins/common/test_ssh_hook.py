"""From a connection of type ssh to a client: the provider's fields, a checked host key, no secret shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk import BaseHook
from hooks.ssh import SshHook, ssh_target

from harness.sshd import Sshd, sshd
from include.core.errors import RequestError

Connect = Callable[[str, str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture
def give(server: Sshd, connect: Connect) -> Callable[..., None]:
    """Connection waybill_cluster to the running server, with these extras besides the key."""

    def connection(host: str = "127.0.0.1", **extra: Any) -> None:
        fields = {"conn_type": "ssh", "host": host, "port": server.port, "login": server.login}
        connect("waybill_cluster", json.dumps({**fields, "extra": {"private_key": server.private_key, **extra}}))

    return connection


def test_a_connections_fields_serve_tasks_and_triggers(server: Sshd, give: Callable[..., None]):
    give(host_key=server.host_key)

    async def main() -> tuple[str, str]:
        async with SshHook("waybill_cluster").client() as task, await SshHook("waybill_cluster").aclient() as trigger:
            return (await task.run("echo task", what="x")).stdout, (await trigger.run("echo trigger", what="x")).stdout

    assert asyncio.run(main()) == ("task\n", "trigger\n")


@pytest.mark.parametrize("off", [{"no_host_key_check": True}, {"no_host_key_check": "True"}, {"known_hosts": "none"}])
def test_the_hosts_key_goes_unchecked_on_this_machine_alone(give: Callable[..., None], off: dict[str, Any]):
    give(**off)
    assert ssh_target(BaseHook.get_connection("waybill_cluster")).no_host_key_check
    give(host="login.example", **off)
    with pytest.raises(RequestError, match=r"connection waybill_cluster \(login\.example:\d+\).*rehearsals"):
        SshHook("waybill_cluster").client()


def test_no_check_is_not_the_default_as_text_or_otherwise(give: Callable[..., None]):
    for extra in ({}, {"no_host_key_check": "false"}, {"no_host_key_check": None}, {"no_host_key_check": ""}):
        give(**extra)
        assert not ssh_target(BaseHook.get_connection("waybill_cluster")).no_host_key_check


def test_a_key_is_given_once(give: Callable[..., None]):
    give(key_file="/home/x/.ssh/id")
    with pytest.raises(RequestError, match="not both"):
        SshHook("waybill_cluster").client()
