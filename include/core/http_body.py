"""Bodies of HTTP requests and answers: from memory, from a file, into a file.

Invariant: a file that a body was written to exists only when the body came whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import httpx

from include.core.errors import RemoteError, RequestError, TransientError
from include.core.http_reply import Reply
from include.core.text import format_bytes, printable

CHUNK_BYTES = 1 << 20


class Options(TypedDict, total=False):
    """What a request may be given. At most one body: `json`, `form`, `text`, `content` (bytes) or `file` (a path)."""

    params: Mapping[str, Any] | None
    headers: Mapping[str, str]
    json: Any
    form: Mapping[str, str]
    text: str
    content: bytes
    file: Path
    answers: Collection[int]  # statuses beside 2xx that are answers, not errors
    timeout_seconds: float  # of silence, in place of the policy's; twice as much for the whole
    final_after: Mapping[int, int]  # status → after so many such answers to one call it is no passing trouble
    secrets: Sequence[str]  # what else no message may repeat
    signed: bool  # False: without our credential
    fence: Callable[[], None] | None  # called right before the bytes leave


@dataclass(frozen=True)
class Downloaded:
    """A body that was written to a file, whole."""

    path: Path
    size_bytes: int
    sha256: str
    headers: httpx.Headers


def request_body(options: Options, what: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A request's body as httpx wants it, and the headers that belong to it."""
    kind = next((name for name in ("json", "form", "text", "content", "file") if options.get(name) is not None), None)
    if kind == "json":
        return {"json": options["json"]}, {}
    if kind == "form":
        return {"data": dict(options["form"])}, {}
    if kind == "text":
        return {"content": options["text"].encode()}, {"Content-Type": "text/plain; charset=utf-8"}
    if kind == "content":
        return {"content": options["content"]}, {"Content-Type": "application/octet-stream"}
    if kind == "file":
        path = options["file"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise RequestError(f"{what}: {printable(str(path))} cannot be read here ({error.strerror})") from None
        return {"content": _chunks_of(path)}, {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    return {}, {}


async def _chunks_of(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def too_large(what: str, limit_bytes: int) -> RemoteError:
    return RemoteError(f"{what}: the answer is longer than {format_bytes(limit_bytes)}, more than is taken")


class Written:
    """A body on its way into a file."""

    def __init__(self, part: Path, what: str, limit_bytes: int):
        self._part, self._what, self._limit = part, what, limit_bytes
        self._size, self._digest = 0, hashlib.sha256()

    async def receive(self, response: httpx.Response) -> bytes:
        self._size, self._digest = 0, hashlib.sha256()
        with await self._here(self._part.open, "wb") as file:
            async for chunk in response.aiter_bytes(CHUNK_BYTES):
                self._size += len(chunk)
                if self._size > self._limit:
                    raise too_large(self._what, self._limit)
                self._digest.update(chunk)
                await self._here(file.write, chunk)
            await self._here(_flush, file)
        return b""

    async def moved_to(self, target: Path, size_bytes: int | None, reply: Reply) -> Downloaded:
        if size_bytes is not None and self._size != size_bytes:
            raise TransientError(f"{self._what}: {self._size} bytes came, and {size_bytes} were expected")
        await self._here(self._part.replace, target)
        return Downloaded(target, self._size, self._digest.hexdigest(), reply.headers)

    async def _here(self, work: Callable[..., Any], *args: Any) -> Any:
        """Work on the file in a thread; its trouble is this machine's, not the remote's."""
        try:
            return await asyncio.to_thread(work, *args)
        except OSError as error:
            folder = printable(str(self._part.parent))
            raise TransientError(f"{self._what}: cannot be written into {folder} here ({error.strerror})") from None


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
