"""Hosts that are not reached, host keys, logins, the fence, and secrets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from harness.sshd import Sshd, sshd
from include.core.errors import (
    AuthError,
    CommandFailed,
    RemoteError,
    RequestError,
    SshTrouble,
    TransientError,
    WaybillError,
    error_for_ssh,
)
from include.core.ssh import SshClient, SshPolicy
from include.core.ssh_login import SshTarget, library
from tests.include.core.ssh_world import QUICK, SECRET, ask, failure

# -- not connected ----------------------------------------------------------------------------------------------------


def test_a_host_that_does_not_listen_proves_that_nothing_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fenced: list[int] = []
    target = SshTarget("waybill_cluster", "127.0.0.1", port, no_host_key_check=True)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    error = failure(
        target,
        lambda ssh: ssh.run("x", what="submitting", fence=lambda: fenced.append(1)),
        policy=SshPolicy(attempts=6),
        sleep=sleep,
    )
    assert isinstance(error, TransientError)
    assert error.no_effect
    assert f"submitting: connection waybill_cluster (127.0.0.1:{port}) cannot be reached" in str(error)
    assert "The command was not sent" in str(error)
    assert (len(pauses), fenced) == (5, [])
    assert max(pauses) <= 30.0
    assert len(set(pauses)) == 5  # random, so that those refused together do not come back together


def test_a_host_that_comes_back_is_waited_for():
    with sshd() as server:
        server.kill_server()

        async def sleep(_: float) -> None:
            if server.connections() == [] and server._server is None:
                await asyncio.to_thread(server.start)

        assert ask(server.target(), lambda ssh: ssh.run("echo up", what="x"), sleep=sleep).stdout == "up\n"


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"SSH-2.0-x\r\n\0\0\0\1garbage"]
)
def test_what_is_no_ssh_server_proves_that_nothing_was_sent(says: bytes):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listening.accept()
                connection.sendall(says)
                if says:
                    connection.close()
                else:
                    silent.append(connection)

        silent: list[socket.socket] = []
        thread = threading.Thread(target=serve)
        thread.start()
        target = SshTarget("x", "127.0.0.1", listening.getsockname()[1], no_host_key_check=True)
        policy = SshPolicy(attempts=2, backoff_seconds=0.01, connect_seconds=0.3 if not says else 30.0)
        error = failure(target, lambda ssh: ssh.run("x", what="x"), policy=policy)
        thread.join()
        for connection in silent:
            connection.close()
    assert isinstance(error, TransientError)
    assert error.no_effect


# -- whom is talked to, and as whom -----------------------------------------------------------------------------------


def no_retry(target: SshTarget) -> AuthError:
    """The error, where it is an AuthError after one login at most."""

    async def main() -> AuthError:
        async with SshClient(target, policy=QUICK) as client:
            with pytest.raises(AuthError) as caught:
                await client.run("echo x", what="asking")
            assert client.logins <= 1
            return caught.value

    error = asyncio.run(main())
    assert error.no_effect
    assert "waybill_test_ssh" in str(error)
    return error


def test_another_host_key_is_refused_before_anything_is_sent(server: Sshd):
    other = library().generate_private_key("ssh-ed25519").export_public_key().decode()
    assert "the host's key is not the one" in str(no_retry(server.target(host_key=other)))
    rsa = library().generate_private_key("ssh-rsa").export_public_key().decode()
    assert "the host's key is not the one" in str(no_retry(server.target(host_key=rsa)))
    assert server.private_key not in str(no_retry(server.target(host_key=other)))


def test_a_host_key_is_taken_in_each_form_that_people_paste(server: Sshd):
    key = server.host_key
    for form in (key, server.other_host_key, key + " root@host\n", f"[127.0.0.1]:{server.port} {key}", f" {key} "):
        assert ask(server.target(host_key=form), lambda ssh: ssh.run("echo x", what="x")).stdout == "x\n"
    assert "no public key" in str(no_retry(server.target(host_key="AAAAnonsense")))


def test_without_a_key_the_known_hosts_file_must_name_the_host(server: Sshd, tmp_path: Path):
    known = tmp_path / "known_hosts"
    bare = server.target(host_key="", known_hosts=str(known))
    assert "names no key of the host" in str(no_retry(bare))
    known.write_text(f"other.example {server.host_key}\n")
    assert "names no key of the host" in str(no_retry(bare))
    other = library().generate_private_key("ssh-rsa").export_public_key().decode()
    known.write_text(f"[127.0.0.1]:{server.port} {other}\n")
    assert "the host's key is not the one" in str(no_retry(bare))
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    assert ask(bare, lambda ssh: ssh.run("echo x", what="x")).stdout == "x\n"


def test_the_check_is_switched_off_for_this_machine_alone(server: Sshd):
    off = server.target(host_key="", no_host_key_check=True)
    assert ask(off, lambda ssh: ssh.run("echo x", what="x")).stdout == "x\n"
    for host in ("login.cluster.example", "10.0.0.1", "127.0.0.1.example"):
        with pytest.raises(RequestError, match=r"waybill_test_ssh.*rehearsals"):
            server.target(host=host, host_key="", no_host_key_check=True)
    with pytest.raises(RequestError, match="not both"):
        server.target(no_host_key_check=True)


def test_a_login_that_is_refused_is_not_tried_again(server: Sshd):
    other = library().generate_private_key("ssh-ed25519").export_private_key().decode()
    assert "is refused" in str(no_retry(server.target(private_key=other)))
    said = str(no_retry(server.target(private_key="", password=SECRET)))
    assert "is refused" in said
    assert SECRET not in said


def test_keys_come_from_the_connection_a_file_or_with_a_passphrase(server: Sshd, tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(server.private_key)
    locked = tmp_path / "locked"
    locked.write_text(server.private_key)
    locked.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", SECRET, "-f", str(locked)], check=True)
    windows = server.private_key.strip().replace("\n", "\r\n")
    for changes in (
        {"private_key": "", "key_file": str(file)},
        {"private_key": windows},
        {"private_key": locked.read_text(), "passphrase": SECRET},
        {"private_key": "", "key_file": str(locked), "passphrase": SECRET},
    ):
        assert ask(server.target(**changes), lambda ssh: ssh.run("echo x", what="x")).stdout == "x\n"
    for wrong in (
        {"private_key": "nonsense " + SECRET},
        {"private_key": locked.read_text()},
        {"private_key": locked.read_text(), "passphrase": "wrong " + SECRET},
        {"private_key": "", "key_file": str(tmp_path / "none")},
    ):
        said = str(no_retry(server.target(**wrong)))
        assert "private key cannot be read" in said
        assert SECRET not in said


def test_a_target_without_a_host_is_refused_and_none_shows_its_secrets(server: Sshd):
    with pytest.raises(RequestError, match="waybill_test_ssh has no host"):
        server.target(host="")
    shown = repr(server.target(password=SECRET, passphrase=SECRET))
    assert SECRET not in shown
    assert "PRIVATE KEY" not in shown


# -- the fence, and secrets -------------------------------------------------------------------------------------------


def test_the_fence_is_called_right_before_the_command_leaves_and_a_refusal_sends_nothing(faulty: Sshd):
    order: list[str] = []

    def no() -> None:
        order.append("asked")
        raise TransientError("another worker has it", no_effect=True)

    async def main(ssh: SshClient) -> None:
        with pytest.raises(TransientError, match="another worker"):
            await ssh.run("echo x", what="x", fence=no)
        assert (order, faulty.commands) == (["asked"], [])  # and it was not tried again
        await ssh.run("echo x", what="x", fence=lambda: order.append("again"))
        assert (order, len(faulty.commands), ssh.logins) == (["asked", "again"], 1, 1)

    ask(faulty.target(), main)


def test_what_a_failed_command_repeats_of_our_secrets_is_not_quoted(server: Sshd):
    script = f"export TOKEN='{SECRET}'\nexport URL=https://h/?key={SECRET.replace(' ', '+')}\n"
    command = "cat >&2; echo more words >&2; exit 2"
    error = failure(server.target(), lambda ssh: ssh.run(command, what="x", stdin=script))
    assert isinstance(error, CommandFailed)
    assert "more words" in str(error)
    assert SECRET not in str(error)
    named = failure(
        server.target(), lambda ssh: ssh.run(f"echo 'you gave {SECRET}' >&2; exit 2", what="x", secrets=[SECRET])
    )
    assert "you gave …" in str(named)
    long = "".join(f"{number:03}" for number in range(70))
    repeated = failure(
        server.target(), lambda ssh: ssh.run(f"yes '{long}' | head -n 3000 >&2; exit 2", what="x", secrets=[long])
    )
    assert len(str(repeated)) < 700
    assert not any(long[-length:] in str(repeated) for length in range(4, len(long)))


@pytest.mark.parametrize(
    ("trouble", "kind", "no_effect"),
    [
        (SshTrouble.HOST_KEY, AuthError, True),
        (SshTrouble.LOGIN, AuthError, True),
        (SshTrouble.NOT_CONNECTED, TransientError, True),
        (SshTrouble.NO_SESSION, TransientError, True),
        (SshTrouble.LOST, TransientError, False),
        (SshTrouble.TIMEOUT, TransientError, False),
        (SshTrouble.OUTPUT, RemoteError, False),
        (SshTrouble.STATUS, CommandFailed, False),
    ],
)
def test_the_table_says_what_each_end_proves(trouble: SshTrouble, kind: type[WaybillError], no_effect: bool):
    error = error_for_ssh(trouble, "asking", where="connection c (h)", detail="so it is")
    assert (type(error), error.no_effect) == (kind, no_effect)
    assert str(error).startswith("asking: ")
    assert "connection c (h)" in str(error)
    assert "so it is" in str(error)


def test_every_end_stands_in_that_table():
    rows = next(
        mark.args[1] for mark in test_the_table_says_what_each_end_proves.pytestmark if mark.name == "parametrize"
    )
    assert {row[0] for row in rows} == set(SshTrouble)
