"""The Airflow of the tests that run without one: a home of its own, our folders, the settings of `airflow.env`.

Invariant: Airflow reads its settings when it is first imported, so they are set here, before any
test module is. Nothing here imports Airflow: tests of `include/` and of the simulators must not pay for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from harness.fixtures import (
    connect,
    inputs_folder,
    ledger,
    mongo,
    mongo_stand_in,
    mongo_uri,
    quick_looks,
    receipts_folder,
)
from rehearsal import database
from rehearsal.settings import base_environment

__all__ = [  # fixtures of all tests
    "connect",
    "inputs_folder",
    "ledger",
    "mongo",
    "mongo_stand_in",
    "mongo_uri",
    "quick_looks",
    "receipts_folder",
]
HOME = Path(tempfile.mkdtemp(prefix="waybill-tests-"))
# The tests' own process keeps its PATH, HOME and proxies; only what Airflow reads is laid over them.
AIRFLOW = {name: value for name, value in base_environment(HOME, short_timings=False).items() if "AIRFLOW" in name}


# Hypothesis measures wall time; on a busy machine that says nothing of the code. Its runs end with their examples.
NO_CLOCK = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("no clock", NO_CLOCK)
hypothesis.settings.load_profile("no clock")
CPU_SECONDS = 300


def pytest_report_header() -> str:
    given = os.environ.get("WAYBILL_TEST_MONGO_URI")
    return f"MongoDB: {'the server of WAYBILL_TEST_MONGO_URI' if given else 'the stand-in nx-27017'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A property test is stopped by the CPU time it has used (marker `cpu_seconds`), never by wall time."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) and not item.get_closest_marker(
            "cpu_seconds"
        ):
            item.add_marker(pytest.mark.cpu_seconds(CPU_SECONDS))
        if item.get_closest_marker("cpu_seconds"):
            item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    limit = item.get_closest_marker("cpu_seconds")
    if limit is None:
        return (yield)

    def used_up(*_: object) -> None:
        raise TimeoutError(f"{item.name} has used {limit.args[0]} s of CPU")

    before = signal.signal(signal.SIGPROF, used_up)
    signal.setitimer(signal.ITIMER_PROF, limit.args[0])
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def pytest_configure() -> None:
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        del os.environ[name]
    os.environ.update(AIRFLOW)


class ByFile(LoadFileScheduling):
    """A file's tests stay in one test process; those of the real Airflow all do, so that it boots once."""

    def _split_scope(self, nodeid: str) -> str:
        return "airflow" if nodeid.startswith("tests/airflow/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def metadata_database() -> Iterator[Path]:
    """Airflow's metadata database, migrated and empty: one per test process."""
    home = Path(os.environ["AIRFLOW_HOME"])
    database.prepare(home, {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
    yield home / database.DATABASE_NAME
