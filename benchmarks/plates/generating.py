"""An S3 that makes its objects up and throws uploads away: `python -m benchmarks.plates.generating PORT PLATES.json`.

PLATES.json gives buckets, each with `count` images of `size_bytes` under `folder`. Bytes of an object are a pure function
of its number modulo `KINDS`; ETags are their MD5, so a reader can check them. Parts are compared with the CRC64NVME that
came with them, as S3 does, and forgotten. Invariant: it shares the machine with the
client that is measured, so it copies nothing and hashes nothing but CRCs.
"""

from __future__ import annotations

import base64
import bisect
import hashlib
import json
import random
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from awscrt import checksums

KINDS = 16
PAGE = 1000
STAMP = "2018-07-20T12:00:00.000Z"
HTTP_DATE = "Fri, 20 Jul 2018 12:00:00 GMT"


@dataclass
class Stored:
    """A small document with its bytes, or a completed upload without."""

    size: int
    etag: str
    body: bytes | None
    headers: dict[str, str] = field(default_factory=dict)


class Plate:
    """A bucket of generated images."""

    def __init__(self, folder: str, count: int, size_bytes: int):
        self.folder = folder
        self.size = size_bytes
        self.keys = [f"{folder}f{number:06}.tiff" for number in range(count)]
        noise = random.Random(size_bytes)
        low = bytes(value & 0x0F for value in range(256))
        self._bodies = []
        for _ in range(min(KINDS, count)):
            body = bytearray(noise.randbytes(size_bytes))
            body[1::2] = body[1::2].translate(low)
            self._bodies.append(bytes(body))
        self._etags = [hashlib.md5(body, usedforsecurity=False).hexdigest() for body in self._bodies]

    def find(self, key: str) -> Stored | None:
        name = key.removeprefix(self.folder)
        number = name[1:7]
        if name == key or not number.isdigit() or int(number) >= len(self.keys) or self.keys[int(number)] != key:
            return None
        kind = int(number) % len(self._bodies)
        return Stored(self.size, self._etags[kind], self._bodies[kind])

    def page(self, prefix: str, start: int) -> tuple[list[tuple[str, int, str]], int | None]:
        """Up to PAGE rows (key, size, ETag) from the row `start`, and where the next page begins."""
        if not (self.folder.startswith(prefix) or prefix.startswith(self.folder)):
            return [], None
        rows = [
            (key, self.size, self._etags[number % len(self._bodies)])
            for number, key in enumerate(self.keys[start : start + PAGE], start=start)
            if key.startswith(prefix)
        ]
        return rows, start + PAGE if start + PAGE < len(self.keys) else None


class World:
    """Everything that the server knows."""

    def __init__(self, plates: dict[str, Plate]):
        self.plates = plates
        self.stored: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, tuple[dict[str, str], dict[int, tuple[str, int, int]]]] = {}
        self.lock = threading.Lock()

    def find(self, bucket: str, key: str) -> Stored | None:
        plate = self.plates.get(bucket)
        return (plate.find(key) if plate else None) or self.stored.get((bucket, key))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    world: World

    def log_message(self, *_: object) -> None:
        """Nothing: a line per request would cost more than the request."""

    def handle_expect_100(self) -> bool:
        """The client waits a second for this one: out of the buffer with it."""
        answered = super().handle_expect_100()
        self.wfile.flush()
        return answered

    def _asked(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, {name: v[0] for name, v in parse_qs(parts.query, keep_blank_values=True).items()}

    def _answer(
        self, status: int, body: Any = b"", headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        if self.command != "HEAD" and len(body):
            self.wfile.flush()
            self.connection.sendall(body)

    def _xml(self, tag: str, inside: str, headers: dict[str, str] | None = None) -> None:
        text = f'<?xml version="1.0"?><{tag} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{tag}>'
        self._answer(200, text.encode(), {"Content-Type": "application/xml", **(headers or {})})

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_GET(self) -> None:
        bucket, key, query = self._asked()
        if not key:
            self._bucket(bucket, query)
        elif "uploadId" in query:
            self._list_parts(query["uploadId"], int(query.get("part-number-marker", 0)))
        elif "tagging" in query:
            self._xml("Tagging", "<TagSet></TagSet>")
        else:
            self._object(bucket, key)

    do_HEAD = do_GET

    def _object(self, bucket: str, key: str) -> None:
        found = self.world.find(bucket, key)
        if found is None:
            self._error(404, "NoSuchKey")
            return
        headers = {"ETag": f'"{found.etag}"', "Last-Modified": HTTP_DATE, "Accept-Ranges": "bytes", **found.headers}
        body = memoryview(found.body or b"")
        wanted = self.headers.get("Range")
        if wanted and found.body is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or found.size - 1), found.size - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
            self._answer(206, body[start:end], headers)
        else:
            self._answer(200, body, headers, found.size if self.command == "HEAD" else None)

    def _bucket(self, bucket: str, query: dict[str, str]) -> None:
        if "versioning" in query:
            self._xml("VersioningConfiguration", "")
            return
        plate = self.world.plates.get(bucket)
        prefix, start = query.get("prefix", ""), int(query.get("continuation-token", 0))
        if plate is not None and query.get("marker"):
            start = bisect.bisect_right(plate.keys, query["marker"])
        rows, following = ([], None) if plate is None or "delimiter" in query else plate.page(prefix, start)
        if plate is None:
            rows = [
                (k, s.size, s.etag)
                for (b, k), s in self.world.stored.items()
                if b == bucket and k.startswith(prefix) and k > query.get("marker", "")
            ]
        inside = "".join(
            f"<Contents><Key>{escape(k)}</Key><LastModified>{STAMP}</LastModified><ETag>&quot;{e}&quot;</ETag>"
            f"<Size>{s}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for k, s, e in rows
        )
        more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
        self._xml("ListBucketResult", f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>{more}{inside}")

    def _list_parts(self, upload: str, after: int) -> None:
        parts = self.world.uploads[upload][1]
        numbers = sorted(number for number in parts if number > after)
        shown, more = numbers[:PAGE], len(numbers) > PAGE
        inside = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{parts[n][0]}&quot;</ETag><Size>{parts[n][1]}</Size></Part>"
            for n in shown
        )
        last = f"<NextPartNumberMarker>{shown[-1]}</NextPartNumberMarker>" if more else ""
        self._xml("ListPartsResult", f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{last}{inside}")

    def do_PUT(self) -> None:
        bucket, key, query = self._asked()
        if "partNumber" in query:
            self._part(query["uploadId"], int(query["partNumber"]))
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "tagging" not in query and key:
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            self.world.stored[bucket, key] = Stored(len(body), etag, body, self._metadata())
            self._answer(200, headers={"ETag": f'"{etag}"'})
        else:
            self._answer(200)

    def _metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}

    def _part(self, upload: str, number: int) -> None:
        """Reads a part into one small buffer, over and over; only its CRC stays."""
        left = size = int(self.headers["Content-Length"])
        buffer, crc = memoryview(bytearray(1 << 20)), 0
        while left:
            count = self.rfile.readinto(buffer[: min(left, len(buffer))])
            if not count:
                return
            crc, left = checksums.crc64nvme(buffer[:count], crc), left - count
        told = base64.b64encode(crc.to_bytes(8, "big")).decode()
        if self.headers.get("x-amz-checksum-crc64nvme", told) != told:
            self._error(400, "BadDigest")
            return
        etag = f"{crc:016x}-part"
        with self.world.lock:
            self.world.uploads[upload][1][number] = (etag, size, crc)
        self._answer(200, headers={"ETag": f'"{etag}"', "x-amz-checksum-crc64nvme": told})

    def do_POST(self) -> None:
        bucket, key, query = self._asked()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "uploads" in query:
            upload = f"upload-{len(self.world.uploads) + 1}"
            self.world.uploads[upload] = (self._metadata(), {})
            told = {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"}
            self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>", told)
            return
        metadata, parts = self.world.uploads[query["uploadId"]]
        whole = 0
        for number in sorted(parts):
            whole = checksums.combine_crc64nvme(whole, parts[number][2], parts[number][1])
        told = base64.b64encode(whole.to_bytes(8, "big")).decode()
        if self.headers.get("x-amz-checksum-crc64nvme", told) != told:
            self._error(400, "BadDigest")
            return
        size, etag = sum(part[1] for part in parts.values()), f"{whole:032x}-{len(parts)}"
        kept = {**metadata, "x-amz-checksum-crc64nvme": told, "x-amz-checksum-type": "FULL_OBJECT"}
        self.world.stored[bucket, key] = Stored(size, etag, None, kept)
        self._xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key><ETag>&quot;{etag}&quot;</ETag>")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


def main(port: str, plates: str) -> int:
    described = json.loads(Path(plates).read_text())
    Handler.world = World({bucket: Plate(**plate) for bucket, plate in described.items()})
    Server(("127.0.0.1", int(port)), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
