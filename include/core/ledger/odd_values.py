"""What no database keeps as it is: text that is no text, numbers that are none, ids that are too long or none at all.

Before anything is sent such a value is refused (`unstorable`). After it, what a remote said is kept in another spelling: the
fact that it accepted something must never be lost to an odd character.

Invariant: `storable_id` and `storable` leave alone what can be kept, and raise nothing whatever they are given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from include.core.ledger.rows import OURS, canonical
from include.core.text import printable

KEY_LIMIT = 2000  # bytes; PostgreSQL indexes at most 2704
ESCAPED = "escaped:"  # how an id begins that is not kept as it came
DEEPEST = 50  # levels of a value that a remote nests


def unstorable(text: Any, limit: int = KEY_LIMIT) -> str | None:
    """Why a database would not keep this as text of at most so many bytes; None where it would."""
    if not isinstance(text, str):
        return f"is no text but {type(text).__name__}"
    if "\0" in text:
        return "holds a NUL character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds bytes that are no UTF-8 text"
    return f"has {size} bytes, and at most {limit} can be kept" if size > limit else None


def storable_id(given: Any) -> str | None:
    """A remote id as it is kept: itself where that can be; else marked and with escapes, and where it is too long its beginning
    and its sha256. No two are kept alike. None: it names nothing."""
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given) if abs(given) < 10**100 else ""
    if not isinstance(given, str) or not given.strip():
        return None
    if unstorable(given) is None and not given.startswith(ESCAPED):
        return given
    escaped = ESCAPED + given.encode("unicode_escape").decode()  # backslashes doubled, nothing beyond ASCII left
    if unstorable(escaped) is None:
        return escaped
    digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{escaped[: len(ESCAPED) + 200]}…sha256:{digest}"


def id_as_shown(given: str) -> str | None:
    """A remote id that a person gives, as it is kept: in the spelling that messages show, or as the remote has it."""
    return given if given.startswith(ESCAPED) and unstorable(given) is None else storable_id(given)


def storable(detail: Any) -> dict[str, Any]:
    """Facts of a remote's answer as they are kept: themselves where they are JSON, else what is odd in them as text."""
    try:
        if isinstance(detail, Mapping) and all(isinstance(name, str) for name in detail):
            canonical(dict(detail))
            return dict(detail)
    except (ValueError, TypeError, RecursionError):
        pass
    plain = _plain(detail, DEEPEST)
    return plain if isinstance(plain, dict) else {"answer": plain} if detail else {}


def facts_of(detail: Any) -> dict[str, Any]:
    """Facts of a remote's answer as they are kept in the `detail` of a row: none under a name that the ledger gives a meaning."""
    found = storable(detail)
    kept = {name: value for name, value in found.items() if name not in OURS}
    for name, value in found.items():
        if name in OURS:
            while name in OURS or name in kept:
                name = f"remote_{name}"
            kept[name] = value
    return kept


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return _spelled(value) if isinstance(value, int) and abs(value) >= 10**300 else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth and isinstance(value, Mapping):
        return {
            name if isinstance(name, str) else _spelled(name): _plain(one, depth - 1) for name, one in value.items()
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, depth - 1) for one in value]
    return _spelled(value)


def _spelled(value: Any) -> str:
    try:
        return printable(str(value), quotes=False)
    except Exception:
        return f"a {type(value).__name__} that cannot be written down"
