"""What an object carries beside its bytes and gets back with them: headers, user metadata, tags, storage class.

Invariant: one flat form for all, by the names of the HTTP headers that would set them (`content-type`, `x-amz-meta-owner`,
`x-amz-tagging`, `x-amz-storage-class`), sorted, and without what a store gives to every object by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.header import Header
from typing import Any
from urllib.parse import urlencode

Headers = tuple[tuple[str, str], ...]

META = "x-amz-meta-"
TAGGING = "x-amz-tagging"
STORAGE_CLASS = "x-amz-storage-class"
SHA256_METADATA = "waybill-sha256"

_CONTENT = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "content-type": "ContentType",
}
_GIVEN_BY_THE_STORE = {("content-type", "binary/octet-stream"), (STORAGE_CLASS, "STANDARD")}
_OURS = META + SHA256_METADATA  # set by a restore: it says nothing of the object that was restored


def of_answer(answer: Mapping[str, Any]) -> Headers:
    """From botocore's answer to GET or HEAD: all but tags, of which it gives the number only."""
    pairs = [(name, answer.get(field)) for name, field in _CONTENT.items()]
    pairs += [(META + name, value) for name, value in answer.get("Metadata", {}).items()]
    return _sorted([*pairs, (STORAGE_CLASS, answer.get("StorageClass"))])


def of_attributes(attributes: Mapping[str, str]) -> Headers:
    """The same from obstore's attributes, in which whatever is no known header is user metadata; without storage class."""
    pairs = [(name if name.lower() in _CONTENT else META + name, value) for name, value in attributes.items()]
    return _sorted(pair for pair in pairs if pair[0] != META + "Storage-Class")


def joined(headers: Headers, *, tags: str | None, storage_class: str | None) -> Headers:
    """With what comes from elsewhere: tags as `tagging` gives them, and the listing's storage class, unless it is known."""
    return _sorted(({STORAGE_CLASS: storage_class} | dict(headers) | {TAGGING: tags}).items())


def tagging(tag_set: Iterable[Mapping[str, str]]) -> str:
    """A TagSet in the form of header x-amz-tagging."""
    return urlencode([(tag["Key"], tag["Value"]) for tag in tag_set])


def put_parameters(headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What botocore's put_object and create_multipart_upload take to set these headers."""
    found: dict[str, Any] = {}
    for name, value in headers:
        if name in _CONTENT:
            found[_CONTENT[name]] = value
        elif name.startswith(META):
            found.setdefault("Metadata", {})[name.removeprefix(META)] = _ascii(value)
        elif name == TAGGING:
            found["Tagging"] = value
        elif name == STORAGE_CLASS:
            found["StorageClass"] = value
    return found


def _sorted(pairs: Iterable[tuple[str, Any]]) -> Headers:
    kept = {(name.lower(), _without_chunked(name, str(value))) for name, value in pairs if value}
    return tuple(sorted(pair for pair in kept if pair[1] and pair[0] != _OURS and pair not in _GIVEN_BY_THE_STORE))


def _without_chunked(name: str, value: str) -> str:
    """Some stores keep `aws-chunked`, which says how an upload was sent and nothing of the object."""
    if name.lower() != "content-encoding":
        return value
    return ",".join(one.strip() for one in value.split(",") if one.strip() not in ("", "aws-chunked"))


def _ascii(value: str) -> str:
    """S3 gives metadata beyond ASCII as RFC 2047 and takes it so."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=10_000).encode()
