"""S3's error answers: XML with a code (Amazon S3 API Reference, Error Responses)."""

from __future__ import annotations

from xml.sax.saxutils import escape

from simulators.common import Answer

_CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "OperationAborted",
    412: "PreconditionFailed",
    416: "InvalidRange",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}


def error_answer(status: int, code: str | None = None, message: str | None = None) -> Answer:
    """An error as S3 sends it; without `code`, the one that S3 uses most for this status."""
    name = code or _CODES.get(status, "InternalError")
    body = f"<Error><Code>{escape(name)}</Code><Message>{escape(message or name)}</Message></Error>"
    return Answer(status, f"<?xml version='1.0' encoding='UTF-8'?>\n{body}".encode(), "application/xml")
