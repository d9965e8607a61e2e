"""Commands over SSH against a real sshd: what is an answer, what proves that nothing was done, and how few connections."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.sshd import Sshd, sshd
from include.core.concurrency import map_concurrently
from include.core.errors import (
    AuthError,
    CommandFailed,
    RemoteError,
    RequestError,
    TransientError,
)
from include.core.ssh import CommandReply, SshClient, SshPolicy
from include.core.ssh_login import LOGINS_AT_ONCE, SshTarget, library
from tests.include.core.ssh_world import QUICK, ask, failure, until

# -- what a command gives ---------------------------------------------------------------------------------------------


def test_output_error_output_and_input_of_a_command(server: Sshd):
    reply = ask(server.target(), lambda ssh: ssh.run("cat; echo bad >&2", what="x", stdin="in é\n"))
    assert reply == CommandReply("in é\n", "bad\n", 0)
    large = "0123456789abcdef" * (1 << 18)
    assert ask(server.target(), lambda ssh: ssh.run("cat", what="x", stdin=large)).stdout == large
    assert ask(server.target(), lambda ssh: ssh.run("true", what="x", stdin=large)).exit_status == 0  # reads none of it


def test_a_list_reaches_the_command_as_it_is(server: Sshd):
    words = st.text("aé'\"\\$`*? \n\t;&|<>(){}[]~!#-=%\u2028\x7f", max_size=12)

    async def main(ssh: SshClient) -> None:
        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(words, min_size=1, max_size=5))
        def check(parts: list[str]) -> None:
            tried.append(parts)

        tried: list[list[str]] = [["$HOME", "a b", "'", '"', "`id`", "\n", "*", "-n", "é", ""]]
        check()
        for parts in tried:
            reply = await ssh.run(["printf", "%s\\0", *parts], what="x")
            assert reply.stdout.split("\0")[:-1] == parts

    ask(server.target(), main)


@pytest.mark.parametrize("command", ["", [], "a\0b", ["a", "b\0"]])
def test_a_command_that_cannot_be_sent_is_refused(server: Sshd, command: Any):
    assert isinstance(failure(server.target(), lambda ssh: ssh.run(command, what="asking")), RequestError)


def test_only_status_0_is_an_answer_unless_the_caller_says_otherwise(server: Sshd):
    command = "echo out; echo 'sbatch: error: Invalid partition' >&2; exit 1"
    error = failure(server.target(), lambda ssh: ssh.run(command, what="submitting"))
    assert isinstance(error, CommandFailed)
    assert (error.exit_status, error.stdout, error.no_effect) == (1, "out\n", False)
    assert "Invalid partition" in error.stderr
    assert "submitting: the command failed on connection waybill_test_ssh" in str(error)
    assert "exit status 1: sbatch: error: Invalid partition" in str(error)
    assert ask(server.target(), lambda ssh: ssh.run(command, what="x", answers=(0, 1))).exit_status == 1


def test_a_command_that_a_signal_ends_is_no_answer(server: Sshd):
    error = failure(server.target(), lambda ssh: ssh.run("kill -9 $$", what="x", answers=range(256)))
    assert isinstance(error, CommandFailed)
    assert error.exit_status is None
    assert "signal KILL" in str(error)


def test_output_is_bounded_and_error_output_counts(server: Sshd):
    for command in ("yes", "yes >&2"):
        error = failure(server.target(), lambda ssh, text=command: ssh.run(text, what="x", output_limit_bytes=10_000))
        assert type(error) is RemoteError
        assert not error.no_effect


# -- connections and sessions -----------------------------------------------------------------------------------------


def test_many_commands_share_one_connection_and_at_most_five_run_at_once(server: Sshd, tmp_path: Path):
    command = f"cd {tmp_path}; touch $$; ls | wc -l; sleep 0.05; rm $$"

    async def main(ssh: SshClient) -> list[int]:
        replies = await map_concurrently(range(30), lambda _: ssh.run(command, what="x"))
        assert ssh.logins == 1
        return [int(reply.stdout) for reply in replies]

    counts = ask(server.target(), main)
    assert len(counts) == 30
    assert max(counts) <= 5


def test_two_hundred_commands_at_sshds_own_limits_are_one_login_and_none_is_lost(server: Sshd):
    async def main(ssh: SshClient) -> None:
        replies = await map_concurrently(range(200), lambda n: ssh.run(f"echo {n}", what="x"))
        assert [int(reply.stdout) for reply in replies] == list(range(200))
        assert ssh.logins == 1

    ask(server.target(), main)


def test_a_host_that_opens_fewer_sessions_loses_no_command(tmp_path: Path):
    async def main(ssh: SshClient) -> int:
        command = f"echo x >> {tmp_path}/ran; sleep 0.02"
        await map_concurrently(range(20), lambda _: ssh.run(command, what="x"))
        return ssh.logins

    with sshd(MaxSessions="2") as server:
        policy = SshPolicy(backoff_seconds=0.02, backoff_limit_seconds=0.2, attempts=200)
        assert ask(server.target(), main, policy) == 1
    assert (tmp_path / "ran").read_text() == "x\n" * 20


def test_of_many_users_at_once_none_is_lost_though_sshd_drops_logins(tmp_path: Path):
    async def main() -> int:
        policy = SshPolicy(backoff_seconds=0.05, backoff_limit_seconds=1.0, attempts=60)
        clients = [SshClient(server.target(), policy=policy) for _ in range(24)]

        async def one(client: SshClient) -> None:
            async with client:
                await client.run(f"echo x >> {tmp_path}/ran", what="x")

        await map_concurrently(clients, one)
        return sum(client.logins for client in clients)

    with sshd(MaxStartups="2:100:2") as server:  # the third that has not logged in yet is dropped
        assert asyncio.run(main()) > 24
    assert (tmp_path / "ran").read_text() == "x\n" * 24


def test_no_more_than_eight_logins_at_once_in_one_process_whatever_its_event_loops(monkeypatch: pytest.MonkeyPatch):
    running, peak, lock = 0, 0, threading.Lock()

    async def connect(*_: Any, **__: Any) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        await asyncio.sleep(0.02)
        with lock:
            running -= 1
        raise library().PermissionDenied("no")

    monkeypatch.setattr(library(), "connect", connect)
    target = SshTarget("x", "127.0.0.1", no_host_key_check=True)

    def loop() -> None:
        async def one(_: int) -> None:
            with pytest.raises(AuthError):
                async with SshClient(target) as client:
                    await client.run("true", what="x")

        asyncio.run(map_concurrently(range(12), one))

    threads = [threading.Thread(target=loop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak <= LOGINS_AT_ONCE


def test_the_connection_is_closed_at_the_end(server: Sshd):
    async def main() -> None:
        async with SshClient(server.target()) as client:
            await client.run("true", what="x")
            assert server.connections()
        await until(lambda: not server.connections())

    asyncio.run(main())


def test_asyncssh_does_not_log_what_is_run(server: Sshd, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        ask(server.target(), lambda ssh: ssh.run("echo GEHEIM", what="x"))
    assert "GEHEIM" not in caplog.text


# -- connections that break -------------------------------------------------------------------------------------------


def test_a_connection_that_dies_under_a_command_proves_nothing(server: Sshd, tmp_path: Path):
    async def main(ssh: SshClient) -> None:
        running = asyncio.create_task(ssh.run(f"touch {tmp_path}/begun; sleep 600", what="submitting"))
        await until((tmp_path / "begun").exists)
        server.kill_connections()
        with pytest.raises(TransientError, match=r"submitting: .* was lost after the command had left") as caught:
            await running
        assert not caught.value.no_effect
        assert (await ssh.run("echo again", what="x")).stdout == "again\n"
        assert ssh.logins == 2

    ask(server.target(), main)


def test_a_connection_that_died_unused_is_opened_again_and_the_command_runs_once(server: Sshd, tmp_path: Path):
    async def main(ssh: SshClient) -> None:
        await ssh.run("true", what="x")
        server.kill_connections()
        await until(lambda: not server.connections())
        await ssh.run(f"echo x >> {tmp_path}/ran", what="x")
        assert ssh.logins == 2

    ask(server.target(), main)
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.parametrize(
    "rule",
    [
        {"fault": "drop_before_commit"},
        {"fault": "drop_after_commit"},
        {"fault": "cut_output", "options": {"keep": 1, "drop": True}},
        {"fault": "commit_delayed", "seconds": 0.01},
        {"fault": "outage"},
    ],
    ids=lambda rule: rule["fault"],
)
def test_a_dropped_connection_is_never_an_answer_and_the_command_is_sent_once(faulty: Sshd, rule: dict[str, Any]):
    faulty.faults.add(**rule)
    error = failure(faulty.target(), lambda ssh: ssh.run("echo queue", what="x", answers=range(256)))
    assert isinstance(error, TransientError)
    assert not error.no_effect
    assert "lost after the command had left" in str(error)
    assert [entry["faults"] for entry in faulty.commands] == [[rule["fault"]]]


@pytest.mark.parametrize(
    "rule", [{"fault": "drop_after_commit"}, {"fault": "status", "code": 1}], ids=lambda r: r["fault"]
)
def test_what_only_reads_is_asked_again(faulty: Sshd, rule: dict[str, Any]):
    faulty.faults.add(**rule, times=2)
    assert ask(faulty.target(), lambda ssh: ssh.read("echo queue", what="x")).stdout == "queue\n"
    assert len(faulty.commands) == 3
    faulty.faults.add(**rule, times=None)
    assert isinstance(failure(faulty.target(), lambda ssh: ssh.read("echo queue", what="x")), TransientError)
    assert len(faulty.commands) == 6


@pytest.mark.parametrize("how", ["abort", "close"])
def test_an_exit_status_whose_output_may_be_cut_is_no_answer(how: str):
    """sshd sends the status when the process ends, and the rest of its output after that."""
    ssh = library()

    async def handle(process: Any) -> None:
        process.stdout.write("first of many lines\n")
        process.channel._send_request(b"exit-status", b"\0\0\0\0")
        getattr(process.channel.get_connection(), how)()

    class Server(ssh.SSHServer):  # type: ignore[misc, name-defined]
        def begin_auth(self, username: str) -> bool:
            return False

    assert "lost after the command had left" in str(ask_a_server_of_ours(Server, process_factory=handle))


@pytest.mark.parametrize("drops", [True, False])
def test_a_command_whose_start_is_not_confirmed_may_have_begun(drops: bool):
    ssh = library()
    asked: list[str] = []

    class Session(ssh.SSHServerSession):  # type: ignore[misc, name-defined]
        def connection_made(self, chan: Any) -> None:
            self.chan = chan

        def exec_requested(self, command: str) -> bool:
            asked.append(command)
            if drops:
                self.chan.get_connection().abort()
            return False

    class Server(ssh.SSHServer):  # type: ignore[misc, name-defined]
        def begin_auth(self, username: str) -> bool:
            return False

        def session_requested(self) -> Any:
            return Session()

    error = ask_a_server_of_ours(Server)
    assert not error.no_effect
    assert "lost after the command had left" in str(error)
    assert asked == ["squeue"]


def ask_a_server_of_ours(kind: Any, **options: Any) -> TransientError:
    """The error of a command that an asyncssh server of this kind is asked for."""
    ssh = library()

    async def main() -> TransientError:
        key = ssh.generate_private_key("ssh-ed25519")
        server = await ssh.listen("127.0.0.1", 0, server_host_keys=[key], server_factory=kind, **options)
        target = SshTarget("x", "127.0.0.1", server.get_port(), "user", host_key=key.export_public_key().decode())
        async with server, SshClient(target, policy=QUICK) as client:
            with pytest.raises(TransientError) as caught:
                await client.run("squeue", what="x")
            return caught.value

    return asyncio.run(main())


def test_a_host_that_freezes_is_found_lost_by_keepalive(tmp_path: Path):
    async def main(ssh: SshClient) -> None:
        running = asyncio.create_task(ssh.run(f"touch {tmp_path}/begun; sleep 600", what="x"))
        await until(lambda: (tmp_path / "begun").exists() or running.done())
        server.kill_connections(signal.SIGSTOP)
        with pytest.raises(TransientError, match="lost after the command had left"):
            await running

    with sshd() as server:
        ask(server.target(), main, SshPolicy(keepalive_seconds=0.2, keepalive_count=2, command_seconds=250.0))


def test_a_timeout_says_that_the_remote_process_lives_on_and_it_does(server: Sshd, tmp_path: Path):
    async def main(ssh: SshClient) -> None:
        command = f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done; touch {tmp_path}/done"
        with pytest.raises(TransientError, match=r"not ended the command in time .*may still run") as caught:
            await ssh.run(command, what="x", timeout_seconds=2.0)
        assert not caught.value.no_effect
        # Its session stays taken, so that the next command gets another connection.
        assert (await ssh.run(f"touch {tmp_path}/go; echo next", what="x")).stdout == "next\n"
        assert ssh.logins == 2
        await until((tmp_path / "done").exists)

    ask(server.target(), main)


def test_ten_commands_that_never_end_do_not_use_up_the_hosts_sessions(server: Sshd):
    async def main(ssh: SshClient) -> None:
        async def hang(_: int) -> None:
            with pytest.raises(TransientError, match="in time"):
                await ssh.run("sleep 600", what="x", timeout_seconds=0.1)

        await map_concurrently(range(15), hang)
        await ssh.run("true", what="x")

    ask(server.target(), main)
    server.kill_connections()


def test_what_only_reads_is_not_asked_again_after_its_time(faulty: Sshd):
    faulty.faults.add(fault="slow", seconds=600.0, times=None)
    error = failure(faulty.target(), lambda ssh: ssh.read("echo", what="x", timeout_seconds=0.5))
    assert "in time" in str(error)
    assert len(faulty.commands) <= 1


def test_a_caller_that_is_cancelled_leaves_a_client_that_works(server: Sshd, tmp_path: Path):
    async def main(ssh: SshClient) -> None:
        running = asyncio.create_task(ssh.run(f"touch {tmp_path}/begun; sleep 600", what="x"))
        await until((tmp_path / "begun").exists)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await ssh.run("echo on", what="x")).stdout == "on\n"

    ask(server.target(), main)
