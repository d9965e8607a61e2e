"""Commands on another host over SSH, for tasks and triggers: one connection, few sessions on it.

A connection that drops raises nothing in asyncssh: output is empty and the exit status None (docs/protocols/ssh.md). Read as
an empty queue that would be a duplicate job.

Invariant: only an exit status that the caller takes for an answer (0) is returned. What is not proved to have had no effect
becomes an error without `no_effect`, and no command is sent again by itself that may have left.
"""

from __future__ import annotations

import asyncio
import random
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, TypedDict, Unpack

from include.core.concurrency import stop
from include.core.errors import (
    CommandFailed,
    RequestError,
    SshTrouble,
    WaybillError,
    error_for_ssh,
)
from include.core.ssh_login import SshTarget, library, login_options, login_trouble, login_turn, reason_of
from include.core.text import Hide, hiding, printable

CHUNK_BYTES = 1 << 16
DETAIL_LIMIT = 300  # characters of a command's error output in one of our messages
QUOTED = 1 << 14  # how much of it is looked at for that
SHORT = 8  # a line of input of fewer characters is no secret, and hiding it would spoil messages


@dataclass(frozen=True)
class SshPolicy:
    """Bounds, in seconds and bytes, and how often what had no effect is tried again."""

    connect_seconds: float = 30.0  # for each of: connecting with login, opening a session
    command_seconds: float = 60.0
    attempts: int = 8  # to connect and open a session; with the pauses below about two minutes
    read_attempts: int = 3  # for a command that only reads
    backoff_seconds: float = 1.0
    backoff_limit_seconds: float = 30.0
    sessions: int = 5  # at once on the one connection; sshd refuses the 11th (MaxSessions 10)
    keepalive_seconds: float = 15.0
    keepalive_count: int = 3
    output_limit_bytes: int = 32 << 20


@dataclass(frozen=True)
class CommandReply:
    """The output of a command that ended with an exit status that is an answer."""

    stdout: str
    stderr: str
    exit_status: int


class CommandOptions(TypedDict, total=False):
    """What a command may be given."""

    stdin: str | bytes
    timeout_seconds: float  # from its start to its end
    output_limit_bytes: int
    answers: Collection[int]  # the exit statuses that are answers, by default 0 alone
    secrets: Sequence[str]  # what no message may repeat, beside what is in stdin
    fence: Callable[[], None]  # called right before the command leaves


@dataclass(frozen=True)
class _Command:
    """A command as it is sent, and what belongs to it."""

    text: str
    what: str
    stdin: bytes
    seconds: float
    limit_bytes: int
    answers: Collection[int]
    fence: Callable[[], None]
    hide: Hide


class _Ended(Exception):
    """A command ended without an answer."""

    def __init__(self, trouble: SshTrouble, detail: str = "", failed: CommandReply | None = None):
        super().__init__(trouble)
        self.trouble, self.detail, self.failed = trouble, detail, failed


class SshClient:
    """One connection to a host, opened when it is needed and again when it is lost. Use as an async context manager.

    `sleep` and `rng` (for the jitter) are passed in by tests.
    """

    def __init__(
        self,
        target: SshTarget,
        *,
        policy: SshPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ):
        self.target = target
        self.policy = policy or SshPolicy()
        self.logins = 0
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._sessions = asyncio.Semaphore(self.policy.sessions)
        self._opening = asyncio.Lock()
        self._link: _Link | None = None
        self._options: dict[str, Any] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._link is not None:
            await self._link.close()

    async def run(self, command: str | Sequence[str], *, what: str, **options: Unpack[CommandOptions]) -> CommandReply:
        """Runs a command once. A list is quoted for the remote shell; a string is given to it as it is.

        Raises CommandFailed for an exit status that is no answer, TransientError where the host is out of reach or the
        connection is lost (`no_effect` says whether the command can have begun) or the time is over (the remote process
        may go on), AuthError, RemoteError for more output than is taken.
        """
        return await self._until_it_ends(self._command(command, what, options), reads=False)

    async def read(self, command: str | Sequence[str], *, what: str, **options: Unpack[CommandOptions]) -> CommandReply:
        """The same for a command that changes nothing: it is run again after a lost connection or another exit status,
        but not when its time was over, since the first may still run."""
        return await self._until_it_ends(self._command(command, what, options), reads=True)

    def _command(self, command: str | Sequence[str], what: str, options: CommandOptions) -> _Command:
        given = options.get("stdin", b"")
        stdin = given.encode() if isinstance(given, str) else given
        secrets = [*options.get("secrets", ()), self.target.password, self.target.passphrase]
        return _Command(
            text=_shell(command, what),
            what=what,
            stdin=stdin,
            seconds=options.get("timeout_seconds", self.policy.command_seconds),
            limit_bytes=options.get("output_limit_bytes", self.policy.output_limit_bytes),
            answers=options.get("answers", (0,)),
            fence=options.get("fence", lambda: None),
            hide=_hiding_input(secrets, stdin),
        )

    async def _until_it_ends(self, asked: _Command, *, reads: bool) -> CommandReply:
        unsent = unanswered = 0
        async with self._sessions:
            while True:
                try:
                    return await self._run_once(asked)
                except _Ended as ended:
                    if ended.trouble in (SshTrouble.NOT_CONNECTED, SshTrouble.NO_SESSION):
                        unsent += 1
                        spent = unsent >= self.policy.attempts
                    else:
                        unanswered += 1
                        may_pass = reads and ended.trouble in (SshTrouble.LOST, SshTrouble.STATUS)
                        spent = not may_pass or unanswered >= self.policy.read_attempts
                    if spent:
                        raise self._error(ended, asked) from None
                # A random part of a growing pause: those who were refused together shall not come back together.
                limit = min(
                    self.policy.backoff_seconds * 2.0 ** (unsent + unanswered), self.policy.backoff_limit_seconds
                )
                await self._sleep(limit * self._rng.random())

    def _error(self, ended: _Ended, asked: _Command) -> WaybillError:
        error = error_for_ssh(ended.trouble, asked.what, where=self.target.where, detail=ended.detail)
        if isinstance(error, CommandFailed) and ended.failed is not None:
            error.exit_status = ended.failed.exit_status if ended.failed.exit_status >= 0 else None
            error.stdout, error.stderr = ended.failed.stdout, ended.failed.stderr
        return error

    # -- one session ----------------------------------------------------------------------------------------------

    async def _run_once(self, asked: _Command) -> CommandReply:
        link = await self._connected()
        session = _Session(asked.fence)
        async with link.used():
            try:
                process = await self._open(link, session, asked)
                try:
                    async with asyncio.timeout(asked.seconds):
                        return _judged(process, link, session, asked, *await _talk(process, asked))
                finally:
                    process.channel.abort()
            except TimeoutError:
                link.retire()  # its session stays taken as long as the remote process runs
                raise _Ended(SshTrouble.TIMEOUT, f"{asked.seconds:g} s") from None
            except asyncio.CancelledError:
                link.retire()
                raise

    async def _open(self, link: _Link, session: _Session, asked: _Command) -> Any:
        """The command's process at the host. Until asyncssh calls `session.opened`, no byte of it has left."""
        ssh = library()
        try:
            async with asyncio.timeout(self.policy.connect_seconds):
                _, process = await link.connection.create_session(session.process, asked.text, encoding=None)
        except (ssh.Error, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                link.retire()
            if not session.left:
                raise _Ended(SshTrouble.NO_SESSION, reason_of(error)) from None
            # Also "Session request failed": asyncssh says it of a refusal and of a connection that broke meanwhile.
            trouble = SshTrouble.TIMEOUT if isinstance(error, TimeoutError) else SshTrouble.LOST
            raise _Ended(trouble, reason_of(error)) from None
        return process

    # -- the connection -------------------------------------------------------------------------------------------

    async def _connected(self) -> _Link:
        async with self._opening:
            if self._link is None or not self._link.usable:
                self._link = _Link(await self._log_in())
            return self._link

    async def _log_in(self) -> Any:
        if self._options is None:
            # asyncssh takes a second to load, and an encrypted key as long to decrypt: not in a trigger's event loop.
            self._options = await asyncio.to_thread(login_options, self.target)
        ssh = library()
        async with login_turn(self._rng):
            self.logins += 1
            try:
                async with asyncio.timeout(self.policy.connect_seconds):
                    return await ssh.connect(
                        self.target.host,
                        self.target.port,
                        keepalive_interval=self.policy.keepalive_seconds,
                        keepalive_count_max=self.policy.keepalive_count,
                        **self._options,
                    )
            except (ssh.Error, OSError, ValueError) as error:
                raise _Ended(login_trouble(error), reason_of(error)) from None


class _Link:
    """One asyncssh connection and how many sessions run on it. One that is retired closes with its last session."""

    def __init__(self, connection: Any):
        self.connection = connection
        self._in_use = 0
        self._retired = False

    @property
    def usable(self) -> bool:
        return not self._retired and not self.connection.is_closed()

    def retire(self) -> None:
        self._retired = True

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            if self._retired and not self._in_use:
                self.connection.abort()

    async def close(self) -> None:
        self.connection.close()
        try:
            async with asyncio.timeout(5.0):
                await self.connection.wait_closed()
        except TimeoutError:
            self.connection.abort()


class _Session:
    """What is known of one session: whether the command has left, and whether the host has ended its output."""

    def __init__(self, fence: Callable[[], None]):
        self._fence = fence
        self.left = False
        self.whole = False
        self.over = False

    def process(self) -> Any:
        return _process_class()(self)

    def opened(self) -> None:
        """The host has opened a session, and the command is sent next."""
        self._fence()
        self.left = True


@cache
def _process_class() -> Any:
    ssh = library()

    class Process(ssh.SSHClientProcess):  # type: ignore[misc, name-defined]
        def __init__(self, session: _Session):
            super().__init__()
            self._of = session

        def connection_made(self, chan: Any) -> None:
            super().connection_made(chan)
            try:
                self._of.opened()
            except Exception:
                chan.abort()
                raise

        def connection_lost(self, exc: Exception | None) -> None:
            self._of.over = True
            super().connection_lost(exc)

        def eof_received(self) -> bool:
            self._of.whole = self._of.whole or not self._of.over  # asyncssh calls this also when the connection is lost
            return bool(super().eof_received())

    return Process


async def _talk(process: Any, asked: _Command) -> tuple[str, str]:
    """Gives the command its input and takes its output and error output, to its end."""
    ssh = library()
    room = [asked.limit_bytes]
    readers = [asyncio.ensure_future(_taken(stream, room)) for stream in (process.stdout, process.stderr)]
    try:
        try:
            process.stdin.write(asked.stdin)
            process.stdin.write_eof()
        except OSError:
            pass  # it ended without reading all of it: the exit status says more
        stdout, stderr = await asyncio.gather(*readers)
        await process.channel.wait_closed()
        return stdout, stderr
    except (ssh.Error, OSError) as error:
        raise _Ended(SshTrouble.LOST, reason_of(error)) from None
    finally:
        await stop(readers)


def _judged(process: Any, link: _Link, session: _Session, asked: _Command, stdout: str, stderr: str) -> CommandReply:
    """The reply, where the end of the command is an answer."""
    signal, status = process.exit_signal, process.exit_status
    # The output may be cut even where the exit status came: sshd sends that first. Some servers end no output, but close
    # the session; that is as good while the connection lives.
    cut = not session.whole and link.connection.is_closed()
    if cut or (status is None and not signal):
        raise _Ended(SshTrouble.LOST)
    reply = CommandReply(stdout, stderr, -1 if signal else status)
    if status in asked.answers:  # of a process that a signal has ended it is -1
        return reply
    end = f"signal {printable(str(signal[0]), 20, quotes=False)}" if signal else f"exit status {status}"
    words = _last_words(stderr.strip() or stdout.strip(), asked.hide)
    raise _Ended(SshTrouble.STATUS, f"{end}: {words}" if words else end, reply)


async def _taken(stream: Any, room: list[int]) -> str:
    """All of a stream. `room`: how many bytes may still come, of this one and its neighbour together."""
    chunks = []
    while chunk := await stream.read(CHUNK_BYTES):
        room[0] -= len(chunk)
        if room[0] < 0:
            raise _Ended(SshTrouble.OUTPUT)
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _last_words(text: str, hide: Hide) -> str:
    """The end of what a failed command says. Whole lines are taken, so that no secret is cut before it is hidden."""
    end = text[-QUOTED:]
    if len(text) > QUOTED:
        end = end.partition("\n")[2]
    return printable(hide(end), 2 * QUOTED, quotes=False)[-DETAIL_LIMIT:]


def _hiding_input(secrets: Sequence[str], stdin: bytes) -> Hide:
    """Takes these out of a text, and the lines of a command's input, with what stands behind a `=` in them."""
    if len(stdin) > QUOTED:
        return lambda _: "…"
    lines = [line.strip() for line in stdin.decode(errors="replace").splitlines()]
    parts = [part.strip("\"' ") for line in lines for part in (line, line.partition("=")[2])]
    return hiding([*secrets, *(part for part in parts if len(part) >= SHORT)])


def _shell(command: str | Sequence[str], what: str) -> str:
    text = command if isinstance(command, str) else shlex.join(command)
    if not text or "\0" in text:
        raise RequestError(f"{what}: the command is empty or holds a zero byte")
    return text
