"""What the ledger is asked and what it answers, as frozen values: intents, quotas, and rows as they were when read.

Invariant: digests and the chain are made over `canonical` text; another spelling would make every older digest differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from include.core.ledger.migrations import detail_value
from include.core.ledger.states import State


def canonical(value: Any) -> str:
    """One spelling for equal JSON values, so that equal content has equal digests.

    Pure ASCII: file names may hold bytes that are no text (lone surrogates), which neither UTF-8 nor the databases take.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Owner:
    """The task that asks: written beside what it asked for, so that a person finds the log."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1


@dataclass(frozen=True)
class Intent:
    """What shall come true in the world. `business_key` names the effect, never the run (unless it repeats per run).

    `payload` is what will be asked of the remote (JSON); its digest tells the same request from another one.
    `detail` is kept for people and for the probe; it holds no secret.
    """

    system: str
    kind: str
    business_key: str
    payload: Mapping[str, Any]
    owner: Owner
    size_bytes: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def payload_sha256(self) -> str:
        return sha256_of(dict(self.payload))


@dataclass(frozen=True)
class Quota:
    """At most `limit_bytes` of one kind accepted by the remote within any `window_seconds`, plus a margin.

    The margin is how wrong the database's clock may be: a clock that was an hour slow when a job was accepted and is put
    right later would else free its bytes an hour early, by the remote's clock.
    """

    limit_bytes: int
    window_seconds: float = 86_400.0
    margin_seconds: float = 4_500.0


@dataclass(frozen=True)
class Submission:
    """One row of the ledger, as it was when read. Times are epoch seconds of the ledger's clock."""

    id: int
    system: str
    kind: str
    business_key: str
    generation: int
    state: State
    fencing_token: str | None
    external_id: str | None
    payload_sha256: str
    size_bytes: int
    owner: Owner
    reserved_at: float
    sending_at: float | None
    accept_deadline: float | None
    closed_at: float | None
    cancel_requested_at: float | None
    detail: Mapping[str, Any]

    @property
    def runs(self) -> list[str]:
        """The ids of the runs that asked for it or attached to it."""
        return [self.owner.run_id, *(run_id for _, run_id in self.detail.get("attached_runs", []))]

    def belongs_to(self, dag_id: str, run_id: str) -> bool:
        """Whether this run asked for it or attached to it (two DAGs may have runs of one id)."""
        asked = (self.owner.dag_id, self.owner.run_id) == (dag_id, run_id)
        return asked or [dag_id, run_id] in self.detail.get("attached_runs", [])

    @property
    def is_effective(self) -> bool:
        """Ended with its effect in place: asked for again, the effect is looked at before anything is sent."""
        return self.state == State.DONE or (
            self.state == State.SUPERSEDED and bool(detail_value(self.detail, "is_effective"))
        )

    def __str__(self) -> str:
        return f"{self.system}/{self.kind} {self.business_key} generation {self.generation} ({self.state})"


def submission(row: Mapping[Any, Any]) -> Submission:
    """A database row as a value."""
    fields = {name: row[name] for name in Submission.__dataclass_fields__ if name not in ("owner", "state", "detail")}
    owner = Owner(row["dag_id"], row["run_id"], row["task_id"], row["map_index"])
    return Submission(**fields, owner=owner, state=State(row["state"]), detail=json.loads(row["detail"]))
