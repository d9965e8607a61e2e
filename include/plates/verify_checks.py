"""What was found wrong, could not be found out, or is proved, check by check (V1 to V5 of docs/faults.md).

Invariant: a mismatch outweighs what could not be looked at, and both outweigh what is right; a check of which nothing was said
was not looked at, so it is unverifiable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from include.plates.models import NOT_LOOKED_AT, Check, Outcome

_SHOWN = 5
_WORST_FIRST = (Outcome.MISMATCH, Outcome.UNVERIFIABLE, Outcome.VERIFIED)


class Checks:
    """Collects what is said of each check."""

    def __init__(self) -> None:
        self._said: dict[str, list[tuple[Outcome, str]]] = {f"V{n}": [] for n in range(1, 6)}

    def say(self, name: str, outcome: Outcome, detail: str) -> None:
        self._said[name].append((outcome, detail))

    def all(self) -> tuple[Check, ...]:
        return tuple(_check(name, said) for name, said in self._said.items())


def worst(checks: Iterable[Check]) -> Outcome:
    outcomes = {check.outcome for check in checks}
    return next((outcome for outcome in _WORST_FIRST if outcome in outcomes), Outcome.VERIFIED)


def _check(name: str, said: Sequence[tuple[Outcome, str]]) -> Check:
    for outcome in _WORST_FIRST:
        details = [detail for one, detail in said if one is outcome]
        if details:
            return Check(name=name, outcome=outcome, detail="; ".join(details))
    return Check(name=name, outcome=Outcome.UNVERIFIABLE, detail=NOT_LOOKED_AT)


def some(keys: Sequence[str], what: str) -> str:
    """The first few keys and how many there are; empty where there is none."""
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} objects {what}: {', '.join(map(repr, keys[:_SHOWN]))}{more}"


def few(sentences: Sequence[str]) -> str:
    more = f"; and {len(sentences) - _SHOWN} more" if len(sentences) > _SHOWN else ""
    return "; ".join(sentences[:_SHOWN]) + more
