"""A small S3 server in memory, for measuring copies inside a store: `python -m benchmarks.plates.memory_store PORT FOLDER`.

It keeps checksums as S3 does (docs/protocols/s3.md 3.2, 3.6) and answers as a bucket with SSE-KMS: its ETags are opaque, since an
MD5 would be computed by the two cores that client and server share here, which no store's client waits for. The buckets are
the folders in FOLDER, read before the first answer.

Invariant: bytes that a client asks to have copied are copied, one by one, and their CRC64NVME is computed from the copy.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape, unescape

from awscrt import checksums

PAGE = 1000
_MODIFIED = 1_700_000_000
_lock = threading.Lock()


def text_of(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


@dataclass
class Stored:
    """An object or a part: its bytes in stretches, and the CRC64NVME of the whole."""

    stretches: list[bytes]
    crc: int
    metadata: dict[str, str] = field(default_factory=dict)
    etag: str = ""

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.stretches))
        self.etag = self.etag or hashlib.blake2b(f"{self.crc} {self.size}".encode(), digest_size=16).hexdigest()

    def cut(self, start: int, end: int) -> list[memoryview]:
        found, at = [], 0
        for stretch in self.stretches:
            low, high = max(start - at, 0), min(end - at, len(stretch))
            if low < high:
                found.append(memoryview(stretch)[low:high])
            at += len(stretch)
        return found


def stored(data: bytes, metadata: dict[str, str] | None = None) -> Stored:
    return Stored([data], int(checksums.crc64nvme(data)), metadata or {})


def copied(source: Stored, start: int, end: int) -> Stored:
    """A real copy: new bytes."""
    stretches = [piece.tobytes() for piece in source.cut(start, end)]
    crc = 0
    for stretch in stretches:
        crc = int(checksums.crc64nvme(stretch, crc))
    return Stored(stretches, crc)


def joined(parts: list[Stored], metadata: dict[str, str]) -> Stored:
    crc = 0
    for part in parts:
        crc = int(checksums.combine_crc64nvme(crc, part.crc, part.size))
    whole = Stored([stretch for part in parts for stretch in part.stretches], crc, metadata)
    whole.etag += f"-{len(parts)}"
    return whole


@dataclass
class Upload:
    key: str
    metadata: dict[str, str]
    parts: dict[int, Stored] = field(default_factory=dict)


Answer = tuple[int, dict[str, str], list[Any]]
Query = dict[str, str]


class Store:
    """All buckets. Each operation takes the request apart and gives (status, headers, body)."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, Upload] = {}

    def load(self, folder: Path) -> None:
        for bucket in folder.iterdir():
            files = {str(path.relative_to(bucket)): path for path in bucket.rglob("*") if path.is_file()}
            self.buckets[bucket.name] = {key: stored(files[key].read_bytes()) for key in sorted(files)}

    def answer(self, method: str, path: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        bucket, _, key = path.lstrip("/").partition("/")
        if method == "PUT" and not key:
            self.buckets.setdefault(bucket, {})
            return 200, {}, []
        if bucket not in self.buckets:
            return _error(404, "NoSuchBucket")
        if not key:
            return self._of_bucket(method, bucket, query, body)
        if "tagging" in query:
            return 200, {}, [] if method == "PUT" else [b"<Tagging><TagSet></TagSet></Tagging>"]
        if "uploadId" in query or "uploads" in query:
            return self._of_upload(method, bucket, key, query, headers, body)
        return self._of_object(method, self.buckets[bucket], key, headers, body)

    # Buckets

    def _of_bucket(self, method: str, bucket: str, query: Query, body: bytes) -> Answer:
        objects = self.buckets[bucket]
        if method == "POST":
            keys = [unescape(key.decode()) for key in re.findall(rb"<Key>(.*?)</Key>", body, re.DOTALL)]
            for key in keys:
                objects.pop(key, None)
            rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
            return xml(f"<DeleteResult>{rows}</DeleteResult>")
        if "versioning" in query:
            return xml("<VersioningConfiguration></VersioningConfiguration>")
        prefix = query.get("prefix", "")
        if "uploads" in query:
            pairs = [(name, one.key) for name, one in self.uploads.items() if one.key.startswith(prefix)]
            rows = "".join(
                f"<Upload><Key>{quote(key)}</Key><UploadId>{name}</UploadId></Upload>" for name, key in pairs
            )
            return xml(
                f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{rows}</ListMultipartUploadsResult>"
            )
        return self._listing(objects, prefix, query)

    def _listing(self, objects: dict[str, Stored], prefix: str, query: Query) -> Answer:
        given = (query.get(name) for name in ("continuation-token", "key-marker", "start-after", "marker"))
        after = next(filter(None, given), "")
        keys = sorted(key for key in list(objects) if key.startswith(prefix) and key > after)
        folders: list[str] = []
        if query.get("delimiter"):
            cut = {key: key[len(prefix) :].partition("/") for key in keys}
            folders = sorted({prefix + first + "/" for first, slash, _ in cut.values() if slash})
            keys = [key for key in keys if not cut[key][1]]
        return listing_page(objects, keys[:PAGE], len(keys) > PAGE, query, folders)

    # Uploads

    def _of_upload(
        self, method: str, bucket: str, key: str, query: Query, headers: dict[str, str], body: bytes
    ) -> Answer:
        if "uploads" in query:
            with _lock:
                name = f"upload{len(self.uploads)}-{time.monotonic_ns()}"
                self.uploads[name] = Upload(key, _metadata(headers))
            sums = {"x-amz-checksum-algorithm": "CRC64NVME", "x-amz-checksum-type": "FULL_OBJECT"}
            made = f"<UploadId>{name}</UploadId>"
            return xml(f"<InitiateMultipartUploadResult>{made}</InitiateMultipartUploadResult>", sums | _KMS)
        upload = self.uploads.get(query["uploadId"])
        if upload is None:
            return _error(404, "NoSuchUpload")
        if method == "DELETE":
            del self.uploads[query["uploadId"]]
            return 204, {}, []
        if method == "GET":
            rows = "".join(
                f'<Part><PartNumber>{n}</PartNumber><ETag>"{part.etag}"</ETag><Size>{part.size}</Size></Part>'
                for n, part in sorted(upload.parts.items())
            )
            return xml(f"<ListPartsResult><IsTruncated>false</IsTruncated>{rows}</ListPartsResult>")
        if method == "POST":
            return self._join(bucket, query["uploadId"], upload, headers)
        return self._part(upload, int(query["partNumber"]), headers, body)

    def _part(self, upload: Upload, number: int, headers: dict[str, str], body: bytes) -> Answer:
        if "x-amz-copy-source" not in headers:
            part = upload.parts[number] = stored(body)
            return 200, {"ETag": f'"{part.etag}"', "x-amz-checksum-crc64nvme": text_of(part.crc)} | _KMS, []
        place = unquote(headers["x-amz-copy-source"].partition("?")[0]).lstrip("/")
        source = self.buckets[place.partition("/")[0]][place.partition("/")[2]]
        if headers.get("x-amz-copy-source-if-match", source.etag).strip('"') != source.etag:
            return _error(412, "PreconditionFailed")
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("x-amz-copy-source-range", f"bytes=0-{source.size - 1}"))
        part = upload.parts[number] = copied(source, int(span[1]), int(span[2]) + 1)  # type: ignore[index]
        told = f'<ETag>"{part.etag}"</ETag><ChecksumCRC64NVME>{text_of(part.crc)}</ChecksumCRC64NVME>'
        return xml(f"<CopyPartResult>{told}</CopyPartResult>", _KMS)

    def _join(self, bucket: str, name: str, upload: Upload, headers: dict[str, str]) -> Answer:
        parts = [part for _, part in sorted(upload.parts.items())]
        if any(part.size < 5 * 1024 * 1024 for part in parts[:-1]):
            return _error(400, "EntityTooSmall")
        whole = joined(parts, upload.metadata)
        if headers.get("x-amz-checksum-crc64nvme", text_of(whole.crc)) != text_of(whole.crc):
            return _error(400, "BadDigest")
        with _lock:
            if headers.get("if-none-match") == "*" and upload.key in self.buckets[bucket]:
                return _error(412, "PreconditionFailed")
            self.buckets[bucket][upload.key] = whole
            del self.uploads[name]
        told = f'<ETag>"{whole.etag}"</ETag><ChecksumCRC64NVME>{text_of(whole.crc)}</ChecksumCRC64NVME>'
        return xml(f"<CompleteMultipartUploadResult>{told}</CompleteMultipartUploadResult>", _KMS)

    # Objects

    def _of_object(
        self, method: str, objects: dict[str, Stored], key: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        if method == "PUT":
            if headers.get("if-none-match") == "*" and key in objects:
                return _error(412, "PreconditionFailed")
            objects[key] = stored(body, _metadata(headers))
            return 200, {"ETag": f'"{objects[key].etag}"'} | _KMS, []
        if method == "DELETE":
            objects.pop(key, None)
            return 204, {}, []
        one = objects.get(key)
        if one is None:
            return _error(404, "NoSuchKey")
        told = _KMS | one.metadata | {"ETag": f'"{one.etag}"', "Last-Modified": formatdate(_MODIFIED, usegmt=True)}
        told["Accept-Ranges"] = "bytes"
        if headers.get("x-amz-checksum-mode") == "ENABLED" and "range" not in headers:
            told |= {"x-amz-checksum-crc64nvme": text_of(one.crc), "x-amz-checksum-type": "FULL_OBJECT"}
        if headers.get("if-match", one.etag).strip('"') != one.etag:
            return _error(412, "PreconditionFailed")
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if span is None:
            return 200, told | {"Content-Length": str(one.size)}, [] if method == "HEAD" else one.cut(0, one.size)
        start, end = int(span[1]), min(int(span[2] or one.size) + 1, one.size)
        told |= {"Content-Range": f"bytes {start}-{end - 1}/{one.size}", "Content-Length": str(end - start)}
        return 206, told, [] if method == "HEAD" else one.cut(start, end)


_KMS = {"x-amz-server-side-encryption": "aws:kms"}


def _metadata(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}


def listing_page(
    objects: dict[str, Stored], page: list[str], more: bool, query: Query, folders: Sequence[str] = ()
) -> Answer:
    versions = "versions" in query
    element = "Version" if versions else "Contents"
    extra = "<VersionId>null</VersionId><IsLatest>true</IsLatest>" if versions else ""
    rows = "".join(_row(element, key, objects[key], extra) for key in page)
    rows += "".join(f"<CommonPrefixes><Prefix>{quote(one)}</Prefix></CommonPrefixes>" for one in folders)
    if more:
        last = quote(page[-1])
        rows += f"<NextContinuationToken>{last}</NextContinuationToken>" if not versions else ""
        rows += f"<NextKeyMarker>{last}</NextKeyMarker><NextVersionIdMarker>null</NextVersionIdMarker>"
    name = "ListVersionsResult" if versions else "ListBucketResult"
    kind = "<EncodingType>url</EncodingType>"
    return xml(f"<{name}>{kind}<IsTruncated>{str(more).lower()}</IsTruncated>{rows}</{name}>")


def _row(element: str, key: str, one: Stored, extra: str) -> str:
    when = "2023-11-14T22:13:20.000Z"
    sums = "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
    told = f"<LastModified>{when}</LastModified><ETag>&quot;{one.etag}&quot;</ETag><Size>{one.size}</Size>"
    return f"<{element}><Key>{quote(key)}</Key>{told}<StorageClass>STANDARD</StorageClass>{sums}{extra}</{element}>"


def xml(text: str, headers: dict[str, str] | None = None) -> Answer:
    return 200, {"Content-Type": "application/xml", **(headers or {})}, [text.encode()]


def _error(status: int, code: str) -> Answer:
    return status, {"Content-Type": "application/xml"}, [f"<Error><Code>{code}</Code></Error>".encode()]


def serve_one(store: Store, connection: socket.socket) -> None:
    """One connection, request by request."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb", 1 << 16) as incoming:
        while line := incoming.readline():
            method, target, _ = line.decode().split(" ", 2)
            headers: dict[str, str] = {}
            while (line := incoming.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("expect") == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = incoming.read(int(headers.get("content-length", "0")))
            path, _, query = target.partition("?")
            told = store.answer(method, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), headers, body)
            _send(connection, method, *told)


def _send(connection: socket.socket, method: str, status: int, headers: dict[str, str], body: list[Any]) -> None:
    length = sum(map(len, body))
    named = {"Content-Length": str(length)} | headers
    head = f"HTTP/1.1 {status} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in named.items()) + "\r\n"
    if method == "HEAD" or length < 1 << 16:
        connection.sendall(head.encode() + (b"" if method == "HEAD" else b"".join(body)))
        return
    connection.sendall(head.encode())
    for piece in body:
        connection.sendall(piece)


def serve(store: Store, port: int) -> None:
    with socket.create_server(("127.0.0.1", port), backlog=128) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve_one, args=(store, connection), daemon=True).start()


def main(port: int, folder: Path) -> None:
    store = Store()
    store.load(folder)
    serve(store, port)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
