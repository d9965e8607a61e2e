"""A batch: files from one collection to another, as one transfer document, and as the text that Globus' own command reads.

Invariant: no two items share a destination, and no path leaves its folder; a batch that breaks this is refused as a whole.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from include.core.errors import RequestError
from include.core.text import printable

LABEL_LIMIT = 128
_NOT_IN_A_LABEL = re.compile(r"[^\w .()=-]+")  # others mean something in the filters of Globus' task list
BY_CHECKSUM = 3  # the only level at which a file that is there already may be left


@dataclass(frozen=True, slots=True)
class Item:
    """One file: absolute paths on the two collections; size and md5 as its owner says, if he does."""

    source: str
    destination: str
    size_bytes: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Batch:
    """Files that move as one task. `key` names the effect in the ledger. After `deadline` Globus gives up."""

    key: str
    source_collection: str
    destination_collection: str
    items: tuple[Item, ...]
    deadline: datetime
    label: str = "waybill"

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes or 0 for item in self.items)

    def document(self) -> dict[str, Any]:
        """The transfer document as it is kept; `sealed` makes of it what is sent.

        Checksums are compared after each file, and one that differs is moved again until it is right; so there is always a
        deadline. A source that is gone is left out, and named by the task, so that it does not hold the others.
        """
        return {
            "DATA_TYPE": "transfer",
            "label": self.label,
            "source_endpoint": self.source_collection,
            "destination_endpoint": self.destination_collection,
            "sync_level": BY_CHECKSUM,
            "verify_checksum": True,
            "preserve_timestamp": True,
            "encrypt_data": False,
            "skip_source_errors": True,
            "fail_on_quota_errors": True,
            "deadline": self.deadline.astimezone(UTC).isoformat(timespec="seconds"),
            "notify_on_succeeded": False,
            "notify_on_failed": False,
            "notify_on_inactive": True,
            "DATA": [
                {"DATA_TYPE": "transfer_item", "source_path": item.source, "destination_path": item.destination}
                for item in self.items
            ],
        }


def batch_key(source_collection: str, destination_collection: str, items: Sequence[Item]) -> str:
    """Names the effect: these files at these places."""
    lines = sorted(f"{item.source}\n{item.destination}\n{item.md5 or ''}" for item in items)
    text = "\n".join([source_collection, destination_collection, *lines])
    return "batch-" + hashlib.sha256(text.encode()).hexdigest()[:20]


def under(root: str, path: str) -> str:
    """A path from a root, as one from the collection's own."""
    return f"{root.rstrip('/')}/{path.lstrip('/')}"


def check_items(items: Sequence[Item]) -> None:
    """Raises RequestError with every fault: a path that is not absolute, leaves its folder or is a folder; one destination
    twice, also if only its case differs."""
    problems = [f"{printable(path, 120)}: {why}" for item in items for path, why in _wrong_paths(item)]
    places = Counter(item.destination.casefold() for item in items)
    twice = sorted({item.destination for item in items if places[item.destination.casefold()] > 1})
    problems += [
        f"{printable(path, 120)}: more than one file goes there; give each a destination of its own" for path in twice
    ]
    if not items:
        problems = ["the batch has no files: leave it out"]
    if problems:
        raise RequestError(problems)


def _wrong_paths(item: Item) -> list[tuple[str, str]]:
    wrong = []
    for path in (item.source, item.destination):
        parts = PurePosixPath(path).parts
        if not path.startswith("/"):
            wrong.append((path, "it does not begin with /; give the path from the collection's root"))
        elif ".." in parts or not path.isprintable():
            wrong.append((path, "it leaves its folder or holds a control character; it cannot be moved"))
        elif path.endswith("/"):
            wrong.append((path, "it names a folder; give the path of a file"))
    return wrong


def batch_file(items: Sequence[Item], comment: str = "") -> str:
    """The same as lines for `globus transfer --batch`, quoted as a shell would, with the md5 of each: for the record."""
    lines = [f"# {line}" for line in comment.splitlines()]
    for item in items:
        md5 = f"--external-checksum {item.md5} " if item.md5 else ""
        lines.append(f"{md5}{shlex.quote(item.source)} {shlex.quote(item.destination)}")
    return "\n".join(lines) + "\n"


def sealed(document: Mapping[str, Any], key: str, submission_id: str) -> dict[str, Any]:
    """The document as it is sent, the same each time. Its label is what people see in Globus, and what a task is found by: it
    holds the batch's key, and a part of the submission_id, so that no two submissions share it."""
    end = f" {key} {submission_id[:8]}"
    label = _NOT_IN_A_LABEL.sub(" ", str(document["label"])).strip()[: LABEL_LIMIT - len(end)].strip() + end
    return {**document, "label": label.strip(), "submission_id": submission_id}


def batch_of(document: Mapping[str, Any], key: str) -> Batch:
    """The batch that a kept document describes; sizes and md5 are not in it."""
    items = tuple(Item(str(one["source_path"]), str(one["destination_path"])) for one in document["DATA"])
    deadline = datetime.fromisoformat(str(document["deadline"]))
    return Batch(
        key, document["source_endpoint"], document["destination_endpoint"], items, deadline, str(document["label"])
    )
