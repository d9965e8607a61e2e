"""Workers that die at every step of a submission leave one job, known to the ledger. `benchmarks/core/kills.py` runs more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest
from sqlalchemy.engine import URL

from harness.core.journal_server import JournalServer
from harness.core.kills import SCENARIOS, Outcome, in_parallel, run_scenario

SEEDS = 3


@pytest.fixture
def server() -> Iterator[JournalServer]:
    remote = JournalServer()
    yield remote
    remote.stop()


def test_whatever_dies_there_is_one_job_and_the_ledger_knows_it(server: JournalServer, url: URL):
    def play(scenario: str):
        return lambda: [asdict(outcome) for outcome in run_scenario(server, url, scenario, range(SEEDS))]

    results = in_parallel([play(scenario) for scenario in SCENARIOS])
    outcomes = [Outcome(**{**o, "problems": tuple(o["problems"])}) for some in results for o in some]
    assert len(outcomes) == SEEDS * len(SCENARIOS)
    assert [outcome for outcome in outcomes if not outcome.good] == []
