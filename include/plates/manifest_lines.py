"""The lines of a stored manifest, one after another: no manifest, however it was made, takes more memory than a few of them.

Invariant: both readers of manifests, the archiver's and the verifier's, go through here, and take nothing else from each other.
This unpacks, and looks whether a field holds a value of its kind; what a row means is for each reader to judge.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

_LINE_BYTES = 1024 * 1024  # a key has at most 1,024 bytes, and an object's headers a few thousand
_MOST_TIMES = 1_000  # a row is some 350 bytes, of which digests and offsets take 10 or more once they are packed
_ALWAYS = 1024 * 1024
_LARGEST = 2**62  # of an offset, a size or a time


def manifest_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Each line as JSON. Raises ValueError for a line that is none or is not ended, and for what unpacks to more than any
    manifest does; zstandard.ZstdError."""
    left = _ALWAYS + _MOST_TIMES * len(data)
    with zstandard.ZstdDecompressor().stream_reader(data) as stream, io.BufferedReader(stream, 1 << 18) as lines:
        while line := lines.readline(min(_LINE_BYTES, left) + 1):
            left -= len(line)
            if len(line) > _LINE_BYTES or left < 0:
                raise ValueError("it unpacks to more than a manifest holds")
            if not line.endswith(b"\n"):
                raise ValueError("the last line is not ended")
            yield _row(line)


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())  # as text: of bytes, json takes some that are no UTF-8
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a pair is no character, and no key
    except RecursionError:
        raise ValueError("a line is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("a line is no row")
    return row


def checked_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """As `manifest_lines`, and after the first line each field holds a value of its kind. Raises ValueError also for others."""
    lines = manifest_lines(data)
    for head in lines:
        yield head
        break
    for row in lines:
        if "name" in row and not row.keys() >= _NEEDED:
            raise ValueError("a member without its place")
        for name, value in row.items():
            fits = _KINDS.get(name)
            if fits is not None and not fits(value):
                raise ValueError(f"{name} does not hold what it must")
        yield row


def _text(value: object) -> bool:
    return type(value) is str


def _text_or_none(value: object) -> bool:
    return value is None or type(value) is str


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _time(value: object) -> bool:
    return type(value) is int and -_LARGEST <= value <= _LARGEST


def _counts(value: object) -> bool:
    return value is None or (type(value) is list and 2 <= len(value) <= 4 and all(map(_count, value)))


def _texts(value: object) -> bool:
    return type(value) is dict and all(map(_text, value.values()))


_NEEDED = {"name", "size", "header_offset", "data_offset", "modified"}
_KINDS: dict[str, Callable[[object], bool]] = {
    "name": _text,
    **dict.fromkeys(("key", "part", "etag", "version_id", "checksum", "sha256", "crc64nvme"), _text_or_none),
    **dict.fromkeys(("size", "header_offset", "data_offset"), _count),
    "modified": _time,
    **dict.fromkeys(("parts", "frame"), _counts),
    "headers": _texts,
    "etag_is_md5": lambda value: type(value) is bool,
}
