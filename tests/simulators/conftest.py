"""Fixtures of the simulator tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ica_rehearsal import Rehearsal


@pytest.fixture
def rehearse() -> Iterator[Callable[..., Rehearsal]]:
    """Start simulators with the given settings; failures are off and the clock stands still unless said otherwise."""
    open_ones: list[Rehearsal] = []

    def start(**settings: Any) -> Rehearsal:
        open_ones.append(Rehearsal(**settings))
        return open_ones[-1]

    yield start
    for each in open_ones:
        each.close()
