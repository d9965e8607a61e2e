"""What a demo scenario offers to `rehearsal.demo`, and what scenarios share.

Invariant: `check` believes the simulators (their journals and what they hold), never what Waybill says of itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from include.core.ledger import Ledger
from rehearsal.api import APPROVAL_PAUSE_SECONDS, Run
from rehearsal.stack import Stack

Receipt = Mapping[str, Any]
OnPoll = Callable[[Sequence[Run]], object]


@dataclass(frozen=True)
class Progress:
    """How far a scenario is, as a table for people; every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ReceiptCounts:
    """A receipt's totals in the terms that the receipts of all systems share."""

    files_proved: int
    files: int
    size_bytes: int
    failed_jobs: int = 0


class Scene(Protocol):
    """A demo scenario of one system. Its methods are called in the order given here, `progress` while `finish` waits."""

    @property
    def dag_ids(self) -> Sequence[str]:
        """The DAGs whose runs and receipts are its own; they are switched on between `prepare` and `start`."""

    @property
    def activity(self) -> str:
        """What people read while it has no table to show."""

    @staticmethod
    def simulators() -> Sequence[str]:
        """Further arguments of `python -m simulators`, as the speed of a service."""
        return ()

    @staticmethod
    def connections(addresses: Mapping[str, str]) -> dict[str, str]:
        """Connections (AIRFLOW_CONN_... and value) from the simulators' addresses by name, before Airflow starts."""

    @staticmethod
    def command_environment(addresses: Mapping[str, str]) -> dict[str, str]:
        """What the system's command line reads from its environment to reach the simulators; by default nothing."""
        return {}

    def __init__(self, stack: Stack, ledger: Ledger) -> None:
        """`stack` runs."""

    def prepare(self) -> None:
        """Make what the runs need: buckets, files, pools."""

    def start(self) -> None:
        """Trigger the runs. All scenarios start before the first is finished, so their runs go on at the same time."""

    def finish(self, say: Callable[[str], None], on_poll: OnPoll) -> list[Run]:
        """Answer questions, wait, trigger what follows; return every run there was, as it ended.

        `say` prints a line for people. `on_poll` is to be called about once a second with the runs that are waited for.
        """

    def progress(self, runs: Sequence[Run]) -> Progress | None:
        """How far these runs are, or None if there is no table to show."""

    def count(self, receipt: Receipt) -> ReceiptCounts:
        """The totals of one of its receipts."""

    def check(self, receipts: Sequence[Receipt]) -> list[str]:
        """Everything that is wrong, in a sentence each, also after failed runs; `receipts` are those of its own DAGs."""


def answer_question(
    stack: Stack, dag_id: str, run_id: str, option: str, *,
    user: str, task_id: str = "approval", timeout_seconds: float = 300,
) -> str:  # fmt: skip
    """Answers an approval task as `user`, once it asks. Returns the subject of the question."""
    stack.api.wait_task(dag_id, run_id, task_id, timeout_seconds, states={"awaiting_input"})
    time.sleep(APPROVAL_PAUSE_SECONDS)
    asked = stack.api.question(dag_id, run_id, task_id)
    stack.api_as(user).answer(dag_id, run_id, task_id, option)
    return str(asked["subject"])


def journal_requests(address: str) -> list[dict[str, Any]]:
    """Every request in a simulator's journal: its method, path, query and status among other things."""
    journal = httpx.get(f"{address}/_sim/journal", timeout=60, trust_env=False).raise_for_status().json()
    return [entry["details"] for entry in journal["entries"] if entry["kind"] == "request"]
