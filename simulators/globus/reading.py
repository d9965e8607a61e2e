"""Reading requests: submissions, filters, pages; refused in the manner of the API when they are wrong.

Invariant: nothing here changes the world.
"""

from __future__ import annotations

import fnmatch
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from simulators.common import Call, ProblemError
from simulators.globus.collections import normal
from simulators.globus.model import Item, Options

T = TypeVar("T")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")


def bad(message: str, code: str = "ClientError.BadRequest") -> ProblemError:
    """A 400."""
    return ProblemError(400, code, message)


def checked_path(text: Any) -> str:
    """A path in a collection. Raises `ProblemError` 400 for none, and for one that leaves it."""
    if not isinstance(text, str) or not text:
        raise bad("a path is required")
    if "\r\n" in text:
        raise bad("a path must not hold a line break of Windows", "InvalidPath")
    try:
        return normal(text)
    except ValueError as error:
        raise bad(str(error), "InvalidPath") from error


def number(call: Call, name: str, default: int, most: int) -> int:
    """A query parameter from 0 to `most`."""
    text = call.query.get(name) or str(default)
    if not text.isdigit() or int(text) > most:
        raise bad(f"{name} must be a number from 0 to {most}, not {text!r}")
    return int(text)


def flag(body: dict[str, Any], name: str) -> bool:
    """A field that is true or false, false by default."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{name} must be true or false")
    return bool(value)


def seconds_of(text: str) -> float:
    """Epoch seconds of an ISO date or time, without offset in UTC. Raises `ProblemError` 400."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise bad(f"not a time: {text!r}") from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def submission_of(call: Call) -> dict[str, Any]:
    """The body of `POST /transfer`, with a submission id that is a uuid."""
    body = call.json()
    if not isinstance(body, dict) or body.get("DATA_TYPE") != "transfer":
        raise bad("DATA_TYPE must be transfer")
    try:
        body["submission_id"] = str(uuid.UUID(str(body.get("submission_id"))))
    except ValueError as error:
        raise bad("submission_id is required, and is a uuid") from error
    return body


def options_of(body: dict[str, Any]) -> Options:
    """What a submission asks for beyond its files."""
    label, level = body.get("label"), body.get("sync_level")
    if label is not None and (
        not isinstance(label, str) or len(label) > 128 or label != label.strip() or "\n" in label
    ):
        raise bad("label has at most 128 characters, no line break, and no blanks around it")
    if level is not None and level not in (0, 1, 2, 3):
        raise bad("sync_level is 0, 1, 2 or 3")
    names = ("verify_checksum", "preserve_timestamp", "encrypt_data", "skip_source_errors", "fail_on_quota_errors")
    return Options(label or None, level, **{name: flag(body, name) for name in names})


def items_of(body: dict[str, Any]) -> list[Item]:
    """The items of a submission."""
    data = body.get("DATA")
    if not isinstance(data, list) or not data:
        raise bad("A transfer requires at least one item", "ClientError.BadRequest.NoTransferItems")
    return [_item(entry) for entry in data]


def _item(entry: Any) -> Item:
    if not isinstance(entry, dict) or entry.get("DATA_TYPE") != "transfer_item":
        raise bad("each of DATA is a transfer_item")
    checksum, recursive = entry.get("external_checksum"), flag(entry, "recursive")
    if checksum is not None:
        if recursive:
            raise bad("external_checksum and recursive exclude each other")
        if str(entry.get("checksum_algorithm") or "MD5").upper() != "MD5" or not _MD5.fullmatch(str(checksum)):
            raise bad("external_checksum is an MD5 here: 32 hexadecimal digits")
    source, destination = checked_path(entry.get("source_path")), checked_path(entry.get("destination_path"))
    return Item(source, destination, checksum, recursive)


def matcher(texts: Sequence[str]) -> Callable[[dict[str, Any]], bool]:
    """Whether a document passes filters as `status:ACTIVE,INACTIVE/label:~nmdc*`.

    Clauses are joined by slashes. Of the values of a text one must match, as it is or after `=`. After `~` it is a pattern
    with `*` in which case is ignored; after `!` it must not match. Times are a range `from,to`, either may be empty.
    """
    clauses = [clause.partition(":") for text in texts for clause in text.split("/") if clause]

    def matches(document: dict[str, Any]) -> bool:
        return all(_passes(document, name, values.split(",")) for name, _, values in clauses)

    return matches


def _passes(document: dict[str, Any], name: str, values: list[str]) -> bool:
    if name not in document:
        raise bad(f"cannot filter by {name!r}")
    value = document[name]
    if name.endswith("_time"):
        lower, upper = (seconds_of(text) if text else None for text in (*values, "")[:2])
        at = None if value is None else seconds_of(value)
        return at is not None and (lower is None or at >= lower) and (upper is None or at <= upper)
    text = "" if value is None else str(value)
    refused = [one[1:] for one in values if one.startswith("!")]
    wanted = [one for one in values if not one.startswith("!")]
    return not any(_is(text, one) for one in refused) and (not wanted or any(_is(text, one) for one in wanted))


def _is(text: str, wanted: str) -> bool:
    if wanted.startswith("~"):
        return fnmatch.fnmatchcase(text.lower(), wanted[1:].lower())
    return text == wanted.removeprefix("=")


def order(rows: list[dict[str, Any]], orderby: str) -> list[dict[str, Any]]:
    """Rows in the order `name ASC,size DESC`; the first field counts most. Raises `ProblemError` 400 for unknown fields."""
    for part in reversed([part.strip() for part in orderby.split(",") if part.strip()]):
        name, _, direction = part.partition(" ")
        if rows and name not in rows[0]:
            raise bad(f"cannot order by {name!r}")
        rows = sorted(rows, key=lambda row: (row[name] is not None, row[name]), reverse=direction.upper() == "DESC")
    return rows


def marker_page(call: Call, rows: Sequence[T], size: int, show: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    """A page after the query's `marker`; `next_marker` is null on the last one."""
    start = number(call, "marker", 0, len(rows))
    end = start + size
    return {
        "marker": start,
        "next_marker": end if end < len(rows) else None,
        "DATA": [show(row) for row in rows[start:end]],
    }


def offset_page(call: Call, rows: list[dict[str, Any]], default: int, most: int) -> dict[str, Any]:
    """A page by the query's `limit` and `offset`, with the total."""
    limit, offset = number(call, "limit", default, most), number(call, "offset", 0, 2**31)
    data = rows[offset : offset + limit]
    return {"length": len(data), "limit": limit, "offset": offset, "total": len(rows), "DATA": data}
