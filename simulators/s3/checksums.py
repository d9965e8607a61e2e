"""What S3 does with checksums, and moto does not (Amazon S3 User Guide, "Checking object integrity in Amazon S3"; API Reference).

- An object that comes without a checksum gets a CRC64NVME over the whole. An upload whose algorithm is CRC64NVME has one of
  each part, also of a copied one (`CopyPartResult`), and one over the whole, combined from them.
- A checksum or a size that is sent and is not that of the bytes is refused: `BadDigest`, `InvalidPart`, `InvalidRequest`.
- `UploadPartCopy` heeds `x-amz-copy-source-if-match`, refuses a range that is not in the object, and one of an object of 5 MB
  or less.

Faults of copying, by the name of the rule's `fault`; the checksum in the answer is that of what was copied, as S3 computes
it. With the option `source`, only copies of keys that hold this text:

| fault | options | what is copied |
|---|---|---|
| copy_swapped | key | that object's bytes |
| copy_short | | all but the last byte |
| copy_stale | | the bytes of the version before the newest |
| copy_flipped | bit (random) | the bytes with one bit flipped |

Invariant: only moto's own records of keys and parts are read and changed, so what a store says later is of one piece.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit
from xml.sax.saxutils import unescape

from awscrt import checksums

from simulators.common import Answer, Call
from simulators.s3.errors import error_answer

ALGORITHM = "CRC64NVME"
HEADER = "x-amz-checksum-crc64nvme"
FAULTS = frozenset({"copy_swapped", "copy_short", "copy_stale", "copy_flipped"})
_RANGE_FROM = 5_000_000
Buckets = Mapping[str, Any]


def crc64nvme(data: bytes) -> str:
    return base64.b64encode(int(checksums.crc64nvme(data)).to_bytes(8, "big")).decode()


def refusal(buckets: Buckets, call: Call) -> Answer | None:
    """Why S3 would not do this, where moto would."""
    if call.method == "PUT" and "x-amz-copy-source" in call.headers and "partNumber" in call.query:
        return _copy_refusal(buckets, call)
    if call.method == "POST" and "uploadId" in call.query:
        return _joining_refusal(buckets, call)
    told = call.headers.get(HEADER) if call.method == "PUT" and "x-amz-trailer" not in call.headers else None
    if told is not None and told != crc64nvme(call.body):
        return error_answer(400, "BadDigest", "The CRC64NVME you specified did not match the calculated checksum.")
    return None


def completed(buckets: Buckets, call: Call, answer: Answer) -> Answer:
    """The answer with its checksum, after what was stored has got one."""
    if answer.status != 200:
        return answer
    if call.method == "GET" and "versions" in call.query:
        return _with_algorithms(buckets, call, answer)
    if call.method == "HEAD":
        return _with_type(buckets, call, answer)
    if call.method == "POST" and "uploadId" in call.query:
        stored = _stored(buckets, *_place(call))
        _give_checksum(stored)
        return _add(answer, "CompleteMultipartUploadResult", stored)
    if call.method == "PUT" and "partNumber" in call.query:
        return _of_part(buckets, call, answer)
    if call.method == "PUT" and _place(call)[1] and not set(call.query) - {"x-id"}:
        return _of_put(_stored(buckets, *_place(call)), call, answer)
    return answer


def _of_part(buckets: Buckets, call: Call, answer: Answer) -> Answer:
    if "x-amz-copy-source" in call.headers:
        return _with_copied_checksum(_upload(buckets, call), call, answer)
    if HEADER in call.headers:
        answer.headers[HEADER] = call.headers[HEADER]
    return answer


def _of_put(stored: Any, call: Call, answer: Answer) -> Answer:
    _give_checksum(stored, ALGORITHM if HEADER in call.headers else None)
    if "x-amz-copy-source" in call.headers:
        return _add(answer, "CopyObjectResult", stored)
    if stored is not None and stored.checksum_algorithm == ALGORITHM:
        answer.headers |= {HEADER: stored.checksum_value, "x-amz-checksum-type": "FULL_OBJECT"}
    return answer


def _with_type(buckets: Buckets, call: Call, answer: Answer) -> Answer:
    stored = _stored(buckets, *_place(call), call.query.get("versionId"))
    if call.headers.get("x-amz-checksum-mode") == "ENABLED" and stored is not None and stored.checksum_type:
        answer.headers["x-amz-checksum-type"] = stored.checksum_type
    return answer


def forget(buckets: Buckets, bucket: str, key: str) -> None:
    """Makes an object one from before 2025, which has no checksum."""
    stored = _stored(buckets, bucket, key)
    if stored is not None:
        stored.checksum_algorithm = stored.checksum_value = stored.checksum_type = None


def spoil_copy(buckets: Buckets, call: Call, answer: Answer, fault: str, options: Mapping[str, Any], draw: Any) -> bool:
    """Lets a copy that was just made have gone wrong; whether it was one."""
    upload = _upload(buckets, call)
    if upload is None or answer.status != 200 or "x-amz-copy-source" not in call.headers:
        return False
    number = int(call.query["partNumber"])
    data = upload.parts[number].value
    bucket, key, _ = _copied(call)
    if options.get("source", "") not in key:
        return False
    if fault == "copy_short":
        data = data[:-1]
    elif fault == "copy_flipped":
        bit = int(options.get("bit", draw.randrange(8 * len(data)))) % (8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        data = bytes(changed)
    else:
        versions = buckets[bucket].keys.getlist(options["key"] if fault == "copy_swapped" else key)
        other = versions[-2 if fault == "copy_stale" else -1].value
        span = _span(call)
        data = other if span is None else other[span.start : span.stop]
    part = upload.set_part(number, data)
    body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>%s</ETag>" % part.etag.encode(), answer.content())
    _change(answer, re.sub(rb"<ChecksumCRC64NVME>.*?</ChecksumCRC64NVME>", b"", body))
    _with_copied_checksum(upload, call, answer)
    return True


# Copies


def _copy_refusal(buckets: Buckets, call: Call) -> Answer | None:
    bucket, key, version = _copied(call)
    there = _stored(buckets, bucket, key, version)
    if there is None:
        return None  # moto says it
    wanted = call.headers.get("x-amz-copy-source-if-match")
    if wanted is not None and wanted.strip('"') != there.etag.strip('"'):
        return error_answer(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    if "x-amz-copy-source-range" not in call.headers:
        return None
    span, size = _span(call), there.size
    if span is None:
        return error_answer(
            400, "InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last"
        )
    if span.stop > size:
        return error_answer(400, "InvalidArgument", f"Range specified is not valid for source object of size: {size}")
    if size <= _RANGE_FROM:
        return error_answer(400, "InvalidRequest", "The specified copy source is not larger than 5 MB")
    return None


def _copied(call: Call) -> tuple[str, str, str | None]:
    """Bucket, key and version of what is copied."""
    source = urlsplit(call.headers["x-amz-copy-source"])
    bucket, _, key = unquote(source.path).lstrip("/").partition("/")
    return bucket, key, parse_qs(source.query).get("versionId", [None])[0]


def _span(call: Call) -> range | None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("x-amz-copy-source-range", ""))
    return range(int(found[1]), int(found[2]) + 1) if found and int(found[1]) <= int(found[2]) else None


def _with_copied_checksum(upload: Any, call: Call, answer: Answer) -> Answer:
    if upload is not None and upload.metadata.get("x-amz-checksum-algorithm") == ALGORITHM:
        value = crc64nvme(upload.parts[int(call.query["partNumber"])].value)
        _insert(answer, "CopyPartResult", f"<Checksum{ALGORITHM}>{value}</Checksum{ALGORITHM}>")
    return answer


# Joining


def _joining_refusal(buckets: Buckets, call: Call) -> Answer | None:
    upload = _upload(buckets, call)
    if upload is None:
        return None
    rows = re.findall(r"<Part>.*?</Part>", call.body.decode(), re.DOTALL)
    numbers = [int(match[1]) for row in rows if (match := re.search(r"<PartNumber>(\d+)</PartNumber>", row))]
    parts = [upload.parts[number] for number in numbers if number in upload.parts]
    for number, row in zip(numbers, rows, strict=False):
        said = re.search(rf"<Checksum{ALGORITHM}>(.*?)</Checksum{ALGORITHM}>", row)
        if said and number in upload.parts and said[1] != crc64nvme(upload.parts[number].value):
            return error_answer(400, "InvalidPart", "One or more of the specified parts could not be found.")
    size = call.headers.get("x-amz-mp-object-size")
    if size is not None and int(size) != sum(part.size for part in parts):
        return error_answer(400, "InvalidRequest", "The provided 'x-amz-mp-object-size' header does not match")
    kind = call.headers.get("x-amz-checksum-type")
    if kind is not None and kind != upload.metadata.get("x-amz-checksum-type", "FULL_OBJECT"):
        return error_answer(400, "BadDigest", "The checksum type is not that of the upload.")
    if HEADER in call.headers:
        crc = 0
        for part in parts:
            crc = int(checksums.crc64nvme(part.value, crc))
        if call.headers[HEADER] != base64.b64encode(crc.to_bytes(8, "big")).decode():
            return error_answer(400, "BadDigest", "The CRC64NVME you specified did not match the calculated checksum.")
    return None


# Listings


def _with_algorithms(buckets: Buckets, call: Call, answer: Answer) -> Answer:
    """ListObjectVersions with the algorithm of each version, as ListObjectsV2 has it in moto too."""
    bucket, _ = _place(call)

    def named(row: re.Match[bytes]) -> bytes:
        key, version = (re.search(rf"<{name}>(.*?)</{name}>".encode(), row[0]) for name in ("Key", "VersionId"))
        name = unescape(key[1].decode()) if key else ""
        name = unquote_plus(name) if call.query.get("encoding-type") == "url" else name
        wanted = version[1].decode() if version else "null"
        stored = _stored(buckets, bucket, name, None if wanted == "null" else wanted)
        if stored is None or not stored.checksum_algorithm:
            return row[0]
        told = f"<ChecksumAlgorithm>{stored.checksum_algorithm}</ChecksumAlgorithm>"
        told += f"<ChecksumType>{stored.checksum_type}</ChecksumType></Version>"
        return row[0].replace(b"</Version>", told.encode())

    _change(answer, re.sub(rb"<Version>.*?</Version>", named, answer.content(), flags=re.DOTALL))
    return answer


# moto's records


def _place(call: Call) -> tuple[str, str]:
    bucket, _, key = call.path.lstrip("/").partition("/")
    return bucket, key


def _upload(buckets: Buckets, call: Call) -> Any:
    bucket, _ = _place(call)
    return buckets[bucket].multiparts.get(call.query.get("uploadId")) if bucket in buckets else None


def _stored(buckets: Buckets, bucket: str, key: str, version: str | None = None) -> Any:
    """A stored object, None where there is none or only a delete marker."""
    if bucket not in buckets:
        return None
    found = [one for one in buckets[bucket].keys.getlist(key, []) if version in (None, one.version_id)]
    return found[-1] if found and hasattr(found[-1], "checksum_algorithm") else None


def _give_checksum(stored: Any, algorithm: str | None = None) -> None:
    if stored is None:
        return
    stored.checksum_algorithm = algorithm or stored.checksum_algorithm or ALGORITHM
    if stored.checksum_algorithm == ALGORITHM:
        stored.checksum_value, stored.checksum_type = crc64nvme(stored.value), "FULL_OBJECT"
    stored.checksum_type = stored.checksum_type or "FULL_OBJECT"


def _add(answer: Answer, element: str, stored: Any) -> Answer:
    if stored is not None and stored.checksum_algorithm == ALGORITHM:
        value = f"<Checksum{ALGORITHM}>{stored.checksum_value}</Checksum{ALGORITHM}>"
        kind = "<ChecksumType>FULL_OBJECT</ChecksumType>"
        body = answer.content()
        if f"<Checksum{ALGORITHM}>".encode() in body:
            value = ""
        _insert(answer, element, value + kind)
    return answer


def _insert(answer: Answer, element: str, text: str) -> None:
    _change(answer, answer.content().replace(f"</{element}>".encode(), f"{text}</{element}>".encode()))


def _change(answer: Answer, body: bytes) -> None:
    answer.body = body
    answer.headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
