"""What an HTTP remote answers: its document, its clock, when to come back, and what of it may stand in a message.

Invariant: a success that cannot be read leaves the request in doubt; it is no refusal.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from include.core.errors import LONGEST_WAIT_SECONDS, TransientError
from include.core.text import Hide, bare_uri, printable

T = TypeVar("T")

DETAIL_LIMIT = 300  # characters of a remote's own words in one of our messages


@dataclass(frozen=True)
class Reply:
    """An answer: one of 2xx, or of the statuses that the caller said were answers. Header names in any case."""

    status: int
    headers: httpx.Headers
    content: bytes
    what: str

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The document, None for an empty body. Raises TransientError: a success that is none leaves the request in
        doubt; it is no refusal."""
        if self.status == 204 or not self.content:
            return None
        try:
            return jsonlib.loads(self.content)
        except (ValueError, RecursionError):
            kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            hint = ": a login page or proxy may stand before the remote" if kind == "text/html" else ""
            raise TransientError(f"{self.what} answered {self.status} with something that is not JSON{hint}") from None


def parse_answer(make: Callable[[Any], T], answer: Any, what: str) -> T:
    """What a document says. One that lacks a field, or holds another kind of value there, says nothing: the request is in
    doubt, not refused."""
    try:
        return make(answer)
    except KeyError as error:
        raise TransientError(f"{what}: the answer lacks {printable(str(error.args[0]), 60)}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise TransientError(f"{what}: the answer is not as the remote documents it") from None


def own_words(reply: Reply, hide: Hide) -> str:
    """What the remote says of an error, shortened and without our secrets. An HTML page explains nothing and is not quoted."""
    try:
        said = reply.json()
    except TransientError:
        return ""
    words = said.get("detail") or said.get("title") or said.get("message") or "" if isinstance(said, dict) else ""
    return hide(printable(str(words), len(str(words)), quotes=False))[:DETAIL_LIMIT]


def bare_location(location: str, hide: Hide) -> str:
    """Where a redirect points to, without query and user: those may hold a ticket."""
    if "://" in location:
        return hide(bare_uri(location))
    return hide(printable(location.partition("?")[0].partition("#")[0], quotes=False))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks for (it may be a number or a date), at most an hour; None where it is absent or not
    understood."""
    value = headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value), LONGEST_WAIT_SECONDS)
    try:
        wait = parsedate_to_datetime(value).timestamp() - (remote_time(headers) or now)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait), LONGEST_WAIT_SECONDS)


def remote_time(headers: Mapping[str, str]) -> float | None:
    """The remote's clock (epoch seconds) from the Date header."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
