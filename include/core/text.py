"""Text as people read it: values in messages, counts, sizes, URIs without secrets, file names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

Hide = Callable[[str], str]


def printable(value: Any, limit: int = 600, *, quotes: bool = True) -> str:
    """A value as it may stand in a message or a log: cut in the middle, and nothing in it that moves the cursor."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]}…{text[-limit // 3 :]}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"“{text}”" if quotes else text


def bare_uri(uri: str) -> str:
    """A URI without what may be secret in it: user information, query, fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "this URI"
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    return printable(f"{scheme}{parts.netloc.rsplit('@', 1)[-1]}{parts.path}", quotes=False)


def is_bare_uri(uri: str) -> bool:
    """Whether a URI has a scheme, and neither query nor fragment nor user information."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    return bool(parts.scheme and "://" in uri) and not (parts.query or parts.fragment or "@" in parts.netloc)


def hiding(secrets: Iterable[str]) -> Hide:
    """Takes these out of a text, also as they are written in a URL."""
    given = {secret for secret in secrets if secret}

    def hide(text: str) -> str:
        forms = {form for secret in given for form in (secret, quote(secret, safe=""), quote_plus(secret))}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "…")
        return text

    return hide


def few(lines: Sequence[str], limit: int = 5, rest: str = "", count: int | None = None) -> str:
    """The first lines as one sentence. What is left out is counted, and `rest` says where it is. `count`: how many there
    are, where `lines` are the first of them."""
    more = (len(lines) if count is None else count) - min(limit, len(lines))
    end = f"; and {more} more" + (f": {rest}" if rest else "") if more > 0 else ""
    return "; ".join(lines[:limit]) + end


def shorten(text: str, limit: int, rest: str) -> str:
    """Text of at most so many characters. Where it is cut it says how long it was, and `rest` where to read on."""
    end = f"… (cut, {len(text)} characters in all: {rest})"
    return text if len(text) <= limit else text[: max(0, limit - len(end))] + end


def sentences(*parts: str) -> str:
    """Texts as sentences, one after the other: each ends with one full stop, also where it came with one."""
    said = [part.rstrip() for part in parts if part.strip()]
    return " ".join(part if part[-1] in "?!…" else f"{part.rstrip('.')}." for part in said)


def pluralize(count: float, noun: str) -> str:
    """A count with its noun: `1 file`, `2 files`."""
    shown = count if isinstance(count, int) else f"{count:g}"
    return f"{shown} {noun}" if count == 1 else f"{shown} {noun}s"


def format_bytes(number: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return ""


def file_name(text: str) -> str:
    """Text as one step of a path; what is odd becomes `_`."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".") or "_"
