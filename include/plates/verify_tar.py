"""The verifier's own reading of a stored tarball: unpacks frames, parses tar, hashes members. Knows nothing of the writer.

Invariant: this file must never import the archiver's code (tar_format, volume_parts, volume_reader, manifest): a mistake
shared by both would prove itself. It is stricter than tar: every byte of the object must be accounted for.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zstandard
from awscrt import checksums

from include.core.packed import Packed

_ZEROS = bytes(512)
_RAW_AT_ONCE = 4 * 1024 * 1024
# zlib is told how much to give at once. zstd is not, and 4 bytes may be a block of 128 KiB: 1 KiB gives 32 MiB at most.
_STORED_AT_ONCE = {"gzip": 64 * 1024, "zstd": 1024}
_EXTENDED_BYTES = 1024 * 1024


class Damaged(Exception):
    """The stored bytes are not a well-formed archive; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Found:
    """One member as it lies in the tarball. Offsets are into the uncompressed tar."""

    name: str
    folder: bool
    size: int
    modified: int
    header_offset: int
    data_offset: int
    sha256: str
    md5: str
    crc64nvme: str


class TarScanner:
    """Takes the uncompressed tar in pieces of any size; `found` are the members so far. Raises Damaged.

    `members` is how many there may be: a tarball of more is not read on.
    """

    def __init__(self, members: int | None = None) -> None:
        self._most = members
        self.found: Packed[Found] = Packed(Found)
        self.offset = 0
        self._pending = bytearray()
        self._extended: dict[str, str] = {}
        self._extended_left = 0
        self._start: int | None = None
        self._zero_blocks = 0
        self._member: dict[str, Any] = {}
        self._left = 0
        self._pad = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = 0

    def feed(self, data: memoryview) -> None:
        while len(data):
            if self._left:
                data = self._content(data)
            elif self._pad:
                data = self._padding(data)
            else:
                data = self._block(data)

    @property
    def opened(self) -> dict[str, Any]:
        """The member whose header was read last: name, folder, size, modified, header_offset, data_offset."""
        return dict(self._member)

    def close(self) -> None:
        """The object has ended. Raises Damaged unless exactly one end marker was the last thing in it."""
        if self._left or self._pad or self._pending or self._extended_left or self._extended:
            raise Damaged(f"the tar ends in the middle of a member, at {self.offset}")
        if self._zero_blocks != 2:
            raise Damaged(f"the tar ends at {self.offset} with {self._zero_blocks} zero blocks instead of two")

    def _content(self, data: memoryview) -> memoryview:
        take = data[: self._left]
        self._sha256.update(take)
        self._md5.update(take)
        self._crc = int(checksums.crc64nvme(take, self._crc))
        self._left -= len(take)
        self.offset += len(take)
        if not self._left:
            self._close_member()
        return data[len(take) :]

    def _padding(self, data: memoryview) -> memoryview:
        take = data[: self._pad]
        if bytes(take).strip(b"\0"):
            raise Damaged(f"the padding after {self._member['name']} is not zero")
        self._pad -= len(take)
        self.offset += len(take)
        return data[len(take) :]

    def _block(self, data: memoryview) -> memoryview:
        need = (self._extended_left or 512) - len(self._pending)
        take = data[:need]
        self._pending += take
        self.offset += len(take)
        if len(take) == need:
            whole = bytes(self._pending)
            self._pending.clear()
            if self._extended_left:
                self._extended_left = 0
                self._read_extended(whole)
            else:
                self._header(whole)
        return data[len(take) :]

    def _header(self, block: bytes) -> None:
        at = self.offset - 512
        if self._zero_blocks == 2:
            raise Damaged(f"bytes follow the end marker, at {at}")
        if block == _ZEROS:
            if self._extended:
                raise Damaged(f"an extended header without its member, at {at}")
            self._zero_blocks += 1
            return
        if self._zero_blocks:
            raise Damaged(f"a single zero block inside the tar, at {at - 512}")
        # To the byte: the sum does not cover its own field, where a blank for a zero would say the same.
        if block[148:156] != b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:])):
            raise Damaged(f"the header at {at} has a wrong checksum")
        if self._start is None:
            self._start = at
        kind = block[156:157]
        if kind == b"x":
            size = _octal(block[124:136], at)
            if size > _EXTENDED_BYTES:
                raise Damaged(f"an extended header of {size} bytes at {at}")
            self._extended_left = size + -size % 512
            self._extended = {"": str(size)}
        elif kind in (b"0", b"\0", b"5"):
            self._open_member(block, folder=kind == b"5", at=at)
        else:
            raise Damaged(f"a member of type {kind!r} at {at}: only files and folders are archived")

    def _read_extended(self, data: bytes) -> None:
        size = int(self._extended.pop(""))
        at, records = 0, {}
        while at < size:
            space = data.find(b" ", at, at + 12)
            if space < 0 or not data[at:space].isdigit():
                raise Damaged(f"a broken extended header before {self.offset}")
            end = at + int(data[at:space])
            name, equals, value = data[space + 1 : end - 1].partition(b"=")
            if not equals or data[end - 1 : end] != b"\n" or end > size:
                raise Damaged(f"a broken extended header before {self.offset}")
            records[name.decode()] = value.decode()
            at = end
        if data[size:].strip(b"\0") or records.keys() - {"path", "size", "mtime"}:
            raise Damaged(f"an extended header with unknown content before {self.offset}")
        self._extended = records

    def _open_member(self, block: bytes, *, folder: bool, at: int) -> None:
        name = block[:100].rstrip(b"\0")
        prefix = block[345:500].rstrip(b"\0")
        plain = (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")
        size = int(self._extended["size"]) if "size" in self._extended else _octal(block[124:136], at)
        shown = self._extended.get("path", plain)
        self._member = {
            "name": shown + "/" if folder and not shown.endswith("/") else shown,
            "folder": folder,
            "size": size,
            "modified": self._modified(block, at),
            "header_offset": self._start,
            "data_offset": self.offset,
        }
        if folder and size:
            raise Damaged(f"the folder {shown} has a size")
        self._extended, self._start, self._left = {}, None, size
        if not size:
            self._close_member()

    def _modified(self, block: bytes, at: int) -> int:
        """Before 1970 and after 2242 the time stands in an extended header, and the plain field holds 0."""
        given = self._extended.get("mtime")
        if given is None:
            return _octal(block[136:148], at)
        if not re.fullmatch(r"-?[0-9]{1,15}", given):
            raise Damaged(f"a time in the extended header before {at} is no whole number")
        return int(given)

    def _close_member(self) -> None:
        if self._most is not None and len(self.found) >= self._most:
            raise Damaged(f"more than the {self._most} members of the manifest")
        self._pad = -self._member["size"] % 512
        crc = base64.b64encode(self._crc.to_bytes(8, "big")).decode()
        digests: dict[str, Any] = {"sha256": self._sha256.hexdigest(), "md5": self._md5.hexdigest(), "crc64nvme": crc}
        self.found.append(Found(**self._member, **digests))
        self._sha256, self._md5, self._crc = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0


def _octal(field: bytes, at: int) -> int:
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise Damaged(f"a number in the header at {at} is not octal") from None


class Unpacker:
    """Stored bytes to tar bytes; `frames` are (offset, length, raw offset, raw length) of each frame seen.

    However few stored bytes would unpack to however many, it gives them in pieces of at most 32 MiB, and a frame that holds
    more than `frame_bytes` is damage.
    """

    def __init__(self, compression: str, frame_bytes: int | None = None):
        self._make: dict[str, Any] = {
            "gzip": lambda: zlib.decompressobj(31),
            "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
        }
        self._compression = compression
        self._frame_bytes = frame_bytes
        self._inner: Any = None
        self.frames: list[tuple[int, int, int, int]] = []
        self._stored = self._raw = 0
        self._begun = (0, 0)

    def feed(self, data: memoryview) -> Iterator[memoryview]:
        """The tar bytes in these stored bytes. Raises Damaged."""
        if self._compression == "none":
            yield data
            return
        full = False
        while len(data) or full:
            if self._inner is None:
                self._inner = self._make[self._compression]()
                self._begun = (self._stored, self._raw)
            try:
                out, used = self._some(data[: _STORED_AT_ONCE[self._compression]])
            except (zlib.error, zstandard.ZstdError):
                raise Damaged(f"the compressed frame at {self._begun[0]} is damaged") from None
            data = data[used:]
            self._stored, self._raw = self._stored + used, self._raw + len(out)
            full = len(out) == _RAW_AT_ONCE
            self._check_frame()
            if self._inner.eof:
                stored, raw = self._begun
                self.frames.append((stored, self._stored - stored, raw, self._raw - raw))
                self._inner, full = None, False
            if out:
                yield memoryview(out)

    def _some(self, data: memoryview) -> tuple[bytes, int]:
        """Unpacked bytes, and how many of the stored ones they took."""
        if self._compression == "zstd":
            out = self._inner.decompress(data)
            return out, len(data) - len(self._inner.unused_data)
        out = self._inner.decompress(data, _RAW_AT_ONCE)
        return out, len(data) - len(self._inner.unconsumed_tail) - len(self._inner.unused_data)

    def _check_frame(self) -> None:
        stored, raw = self._begun
        if self._frame_bytes is not None and self._raw - raw > self._frame_bytes:
            raise Damaged(f"the compressed frame at {stored} holds more than the {self._frame_bytes} bytes of a group")

    def close(self) -> None:
        if self._inner is not None:
            raise Damaged(f"the compressed frame at {self._begun[0]} is not whole")
