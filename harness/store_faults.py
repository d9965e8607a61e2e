"""What S3 servers do otherwise than S3, or than they said: faults of the proxy, by the name of the rule's `fault`.

| fault | options | what the store does |
|---|---|---|
| ignore_headers | names | does not know these request headers |
| honour_batch_etags | | DeleteObjects refuses, key by key, where the ETag is another (S3 does; moto and rclone do not) |
| hide_from_listing | text, element (Contents) | leaves out the rows of a listing with this text |
| cut_listing | element (Version), keep | gives the first rows of a listing, and says that they are all |
| drop_element | element | leaves an element out of its answer |
| cut_body | | keeps half of what is sent, and says that all is well |
| damage_body | | keeps what is sent with another first byte |
| flip_answer | | sends what it keeps with a flipped first bit |
| forget_part | | completes a multipart upload without its first part, and says that all is well |
| fail_one_key | code (InternalError) | DeleteObjects answers 200, and its first key was not deleted |

Each is a function of the request and of what passes it on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote
from xml.sax.saxutils import escape, unescape

from simulators.common import Answer, Call

Forward = Callable[[Call], Answer]
_XML = "application/xml"
_ROW = re.compile(rb"<Object>.*?</Object>", re.DOTALL)


def ignore_headers(request: Call, forward: Forward, names: list[str]) -> Answer:
    return forward(without_headers(request, *names))


def hide_from_listing(request: Call, forward: Forward, text: str, element: str = "Contents") -> Answer:
    answer = forward(request)
    name = element.encode()
    for row in re.findall(rb"<%s>.*?</%s>" % (name, name), answer.content(), re.DOTALL):
        if text.encode() in row:
            answer.body = answer.content().replace(row, b"")
    return answer


def cut_listing(request: Call, forward: Forward, element: str = "Version", keep: int = 3) -> Answer:
    answer = forward(request)
    rows = re.findall(rb"<%s>.*?</%s>" % (element.encode(), element.encode()), answer.content(), re.DOTALL)
    body = answer.content().replace(b"<IsTruncated>true</IsTruncated>", b"<IsTruncated>false</IsTruncated>")
    for row in rows[keep:]:
        body = body.replace(row, b"")
    answer.body = body
    return answer


def drop_element(request: Call, forward: Forward, element: str) -> Answer:
    answer = forward(request)
    answer.body = re.sub(
        rb"<%s>.*?</%s>" % (element.encode(), element.encode()), b"", answer.content(), flags=re.DOTALL
    )
    return answer


def cut_body(request: Call, forward: Forward) -> Answer:
    return forward(replace(without_headers(request, "content-md5"), body=request.body[: len(request.body) // 2]))


def damage_body(request: Call, forward: Forward) -> Answer:
    unchecked = without_headers(request, *(name for name in request.headers if "checksum" in name))
    return forward(replace(unchecked, body=b"?" + request.body[1:]))


def flip_answer(request: Call, forward: Forward) -> Answer:
    answer = forward(request)
    body = answer.content()
    answer.body = bytes([body[0] ^ 1]) + body[1:]
    return answer


def forget_part(request: Call, forward: Forward) -> Answer:
    parts = re.findall(rb"<Part>.*?</Part>", request.body, re.DOTALL)
    body = request.body.replace(parts[0], b"") if len(parts) > 1 else request.body
    names = [name for name in request.headers if name.startswith(("x-amz-mp", "x-amz-checksum"))]
    return forward(replace(without_headers(request, *names), body=body))


def fail_one_key(request: Call, forward: Forward, code: str = "InternalError") -> Answer:
    rows = _ROW.findall(request.body)
    name = re.search(rb"<Key>(.*?)</Key>", rows[0], re.DOTALL)
    failed = b"<Error><Key>%s</Key><Code>%s</Code></Error>" % (name[1] if name else b"?", code.encode())
    if len(rows) == 1:
        return Answer(200, b"<DeleteResult>" + failed + b"</DeleteResult>", _XML)
    answer = forward(replace(_unchecked_batch(request), body=request.body.replace(rows[0], b"")))
    answer.body = answer.content().replace(b"</DeleteResult>", failed + b"</DeleteResult>")
    return answer


def honour_batch_etags(request: Call, forward: Forward) -> Answer:
    errors, kept = "", ""
    for row in _ROW.findall(request.body):
        text = row.decode()
        refusal = _refusal(request, forward, text)
        errors += refusal
        kept += "" if refusal else re.sub(r"<ETag>.*?</ETag>", "", text)
    reply = f"<DeleteResult>{errors}</DeleteResult>"
    if kept:
        answer = forward(replace(_unchecked_batch(request), body=f"<Delete>{kept}</Delete>".encode()))
        reply = answer.content().decode().replace("</DeleteResult>", errors + "</DeleteResult>")
    return Answer(200, reply.encode(), _XML)


def _refusal(request: Call, forward: Forward, row: str) -> str:
    """The error of one key of a batch, empty where it may be deleted."""
    found = re.search(r"<Key>(.*?)</Key>", row, re.DOTALL)
    wanted = re.search(r"<ETag>(.*?)</ETag>", row)
    if found is None or wanted is None:
        return ""
    key = unescape(found[1])
    path = f"/{request.path.strip('/')}/{key}"
    asking = {name: value for name, value in request.headers.items() if name in ("host", "authorization", "x-amz-date")}
    there = forward(replace(request, method="HEAD", path=path, target=quote(path), headers=asking, body=b""))
    etag = next((value for name, value in there.headers.items() if name.lower() == "etag"), "")
    if there.status == 404:
        return f"<Error><Key>{escape(key)}</Key><Code>NoSuchKey</Code></Error>"
    if unescape(wanted[1], {"&quot;": '"'}).strip('"') != etag.strip('"'):
        return f"<Error><Key>{escape(key)}</Key><Code>PreconditionFailed</Code></Error>"
    return ""


def without_headers(request: Call, *names: str) -> Call:
    """The request without some of its headers (names in lower case)."""
    return replace(request, headers={name: value for name, value in request.headers.items() if name not in names})


def _unchecked_batch(request: Call) -> Call:
    return without_headers(request, "content-md5", "x-amz-checksum-crc32")


PECULIARITIES: dict[str, Callable[..., Answer]] = {
    function.__name__: function
    for function in (
        ignore_headers, honour_batch_etags, hide_from_listing, cut_listing, drop_element, cut_body, damage_body, flip_answer,
        forget_part, fail_one_key,
    )
}  # fmt: skip
