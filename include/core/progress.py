"""How far a step is, for whoever shows it: a log, a terminal, nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is. Totals are known from the plan; `note` names what is being done right now."""

    stage: str
    done_bytes: int
    total_bytes: int
    done_items: int = 0
    total_items: int = 0
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The progress callback of a caller who does not care."""
