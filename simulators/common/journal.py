"""The journal: what a simulator was asked and what it really did. Tests take it as the truth.

Invariant: it is append-only and holds no credential; of a request's headers nothing but names is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from simulators.common.clock import iso_millis


@dataclass(frozen=True)
class Entry:
    """One line of the journal: `seq` from 1 without gaps, `time` in simulated epoch seconds."""

    seq: int
    time: float
    kind: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"at": iso_millis(self.time)}


class Journal:
    """An append-only list of entries, with counts by kind and of requests by endpoint and status."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: list[Entry] = []
        self.calls: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()

    def record(self, kind: str, **details: Any) -> Entry:
        """Append an entry of `kind` at the present simulated instant."""
        entry = Entry(len(self._entries) + 1, self._now(), kind, details)
        self._entries.append(entry)
        if kind == "request":
            self.calls[f"{details['method']} {details['template']}"] += 1
            self.statuses[str(details["status"])] += 1
        return entry

    def entries(self, kind: str | None = None, since: int = 0) -> list[Entry]:
        """Entries with `seq > since`, of one kind when given, oldest first."""
        return [entry for entry in self._entries[since:] if kind is None or entry.kind == kind]

    def __len__(self) -> int:
        return len(self._entries)
