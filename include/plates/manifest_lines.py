"""The lines of a stored manifest, one after another: no manifest, however it was made, takes more memory than a few of them.

Invariant: both readers of manifests, the archiver's and the verifier's, go through here, and take nothing else from each other.
This only unpacks: it knows no row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import zstandard

_LINE_BYTES = 1024 * 1024  # a key has at most 1,024 bytes, and an object's headers a few thousand
_MOST_TIMES = 1_000  # a row is some 350 bytes, of which digests and offsets take 10 or more once they are packed
_ALWAYS = 1024 * 1024


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
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("a line is no row")
            yield row
