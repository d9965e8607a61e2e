"""How far a step is, for whoever shows it: a log, a terminal, nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from include.core.text import format_bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is. Totals are known from the plan; `note` names what is being done right now."""

    stage: str
    done_bytes: int
    total_bytes: int
    done_items: int = 0
    total_items: int = 0
    note: str = ""

    @property
    def line(self) -> str:
        """As a log has it. A total that is not known is left out."""
        items = f"{self.done_items} of {self.total_items}" if self.total_items else str(self.done_items)
        size = f", {format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}" if self.total_bytes else ""
        return f"{self.stage}: {items} items{size} {self.note}".rstrip()


OnProgress = Callable[[Progress], None]


def in_lines(say: Callable[[str], object], every_seconds: float) -> OnProgress:
    """A progress callback for a log: at most one line in so many seconds, and none at the beginning."""
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            last = time.monotonic()
            say(progress.line)

    return report


def silent(_: Progress) -> None:
    """The progress callback of a caller who does not care."""
