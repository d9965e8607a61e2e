"""Restores from JDP withstand what the conformance kit plays, with MongoDB beside the ledger."""

from __future__ import annotations

import pytest

from harness import conformance
from harness.jgi.conformance import JdpRestores


@pytest.mark.parametrize("scenario", conformance.scenarios(JdpRestores("")))
def test_it_withstands(mongo_uri: str, scenario: str) -> None:
    conformance.play(JdpRestores(mongo_uri), scenario)
