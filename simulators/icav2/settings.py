"""The settings of the ICAv2 simulator and the random draws of its copy jobs.

Invariant: a draw depends on (seed, destination, attempt) and on the settings only, never on the order in which
jobs come in. So two schedulers can be compared on the same draws, and the ideal makespan can be computed beforehand.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from simulators.common import SimulatorSettings


class Outcome(StrEnum):
    """How a copy job ends: what ICA was seen to do (docs/protocols/icav2.md 3.4, 5.5 to 5.7), and what it may do."""

    SUCCEEDED = "succeeded"
    FAILED_CLEAN = "failed_clean"
    """FAILED before any item."""
    FAILED_PARTIAL = "failed_partial"
    """FAILED; some files copied, one left in status PARTIAL."""
    PARTIALLY_SUCCEEDED = "partially_succeeded"
    """A proper subset COPIED; a job of one file ends FAILED instead, with that file PARTIAL."""
    STOPPED = "stopped"
    """STOPPED in the middle, leaving a PARTIAL file and QUEUED items."""
    TRUNCATED = "truncated"
    """SUCCEEDED, but one file is shorter than its source."""
    MISSING = "missing"
    """SUCCEEDED, but one file is not there."""
    WRONG_ITEMS = "wrong_items"
    """PARTIALLY_SUCCEEDED, and one file that was not copied is listed as COPIED."""
    STUCK = "stuck"
    """Runs `stuck_seconds` longer, then ends as `stuck_then`."""


DEFAULT_WEIGHTS = {
    Outcome.FAILED_CLEAN: 4.0,
    Outcome.FAILED_PARTIAL: 4.0,
    Outcome.PARTIALLY_SUCCEEDED: 2.0,
    Outcome.STOPPED: 1.0,
    Outcome.TRUNCATED: 1.0,
}


class Override(BaseModel):
    """Fixes the fate of jobs whose destination matches: a substring or regular expression of `<project id><path>`.

    `attempts` limits it to these attempt numbers (from 1). `show_status` replaces RUNNING while the job runs and
    `final_status` the last status, also by values outside the enum.
    """

    model_config = ConfigDict(extra="forbid")

    destination: str
    attempts: list[int] | None = None
    outcome: Outcome | None = None
    duration_seconds: float | None = Field(default=None, ge=0)
    show_status: str | None = None
    final_status: str | None = None

    @field_validator("destination")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    def matches(self, destination: str, attempt: int) -> bool:
        if self.attempts is not None and attempt not in self.attempts:
            return False
        return self.destination in destination or re.search(self.destination, destination) is not None


class Settings(SimulatorSettings):
    """Every setting of the ICAv2 simulator; sizes in bytes, times in simulated seconds."""

    # API
    token_lifetime_seconds: float = 3600.0
    rate_limit_per_second: float | None = None
    rate_limit_burst: float = 10.0
    rate_limit_retry_after: int | None = None
    """Value of Retry-After on a 429; None sends none."""
    default_page_size: int = Field(default=100, ge=1)
    max_page_size: int = Field(default=1000, ge=1)
    oversize_page: Literal["clamp", "reject"] = "clamp"
    listing_lag_seconds: float = 0.0
    """Listings show data as they were so long ago; look-ups by id are up to date."""
    folder_create_seconds: float = 0.05
    """A second creation of a folder meets 409 while the first is answered."""
    delete_seconds: float = 2.0
    idempotency_seconds: float = 7 * 86400.0
    signed_url_seconds: float = Field(default=3600.0, gt=0)
    """How long a download or upload URL is good for."""
    upload_seconds: float = Field(default=0.0, ge=0)
    """An uploaded file stays PARTIAL for so long: ICA learns of it from its storage."""
    job_scope: Literal["tenant", "user"] = "tenant"
    """Whose jobs `GET /api/jobs` shows."""

    # Duration of a job
    duration_mean_seconds: float = Field(default=10.0, gt=0)
    duration_cv: float = Field(default=0.5, ge=0)
    bandwidth_bytes_per_second: float | None = None
    initialized_fraction: float = Field(default=0.05, ge=0, le=0.5)
    waiting_fraction: float = Field(default=0.1, ge=0, le=0.5)

    # Failures
    failure_rate: float = Field(default=0.2, ge=0, le=1)
    failure_weights: dict[Outcome, float] = Field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    stuck_seconds: float = 3600.0
    stuck_status: Literal["WAITING_FOR_RESOURCES", "RUNNING"] = "RUNNING"
    stuck_then: Outcome = Outcome.SUCCEEDED
    failing_files: list[str] = Field(default_factory=list)
    """Regular expressions of source paths whose copy always fails."""
    small_file_fails_below_bytes: int = 0
    single_part_fails: bool = False
    """Files with a single-part ETag always fail (deterministic failures, docs/protocols/icav2.md 5.5)."""
    repeated_messages: bool = False
    """Passing failures of an item have the same words each time, as lasting ones always have (docs/protocols/icav2.md 4.7)."""
    overrides: list[Override] = Field(default_factory=list)

    # Push notifications
    notification_delay_seconds: float = Field(default=0.0, ge=0)
    notification_loss_rate: float = Field(default=0.0, ge=0, le=1)
    notification_duplicate_rate: float = Field(default=0.0, ge=0, le=1)
    notification_reorder_rate: float = Field(default=0.0, ge=0, le=1)
    """So many are held back, and later ones overtake them."""
    notification_straggle_seconds: float = Field(default=30.0, ge=0)
    """How much later than the others one comes that was held back, and the second copy of a duplicate."""

    # What the specification leaves open
    same_project: Literal["reject_400", "job_failed", "allow"] = "reject_400"
    skip_partial: Literal["skip", "overwrite", "fail"] = "skip"
    """What SKIP does to a file that is there in status PARTIAL."""
    skip_deleting: Literal["skip", "fail"] = "skip"
    """What SKIP does to a file that is being deleted; skipped, it vanishes after a job that succeeded."""
    multipart_etag_changes: bool = False
    max_items_per_batch: int | None = None
    single_part_below_bytes: int = 16 * 1024 * 1024
    part_size_bytes: int = 8 * 1024 * 1024

    @field_validator("failure_weights")
    @classmethod
    def _usable(cls, value: dict[Outcome, float]) -> dict[Outcome, float]:
        if any(weight < 0 for weight in value.values()) or sum(value.values()) <= 0:
            raise ValueError("weights must not be negative, and one must be positive")
        return value

    @field_validator("failing_files")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value


class Draw(NamedTuple):
    """The random draw of one job. `fraction` in [0, 1) decides which files of the job an outcome hits."""

    duration_seconds: float
    outcome: Outcome
    fraction: float


def destination_key(project_id: str, path: str) -> str:
    """How draws and overrides name a destination folder: `<project id>/a/b/`."""
    return f"{project_id}{path}"


def draw(seed: int, destination: str, attempt: int, settings: Settings | None = None) -> Draw:
    """The duration and outcome of the `attempt`-th job (from 1) for `destination` (see `destination_key`).

    The duration leaves out the bandwidth term and the extra time of a stuck job: both depend on more than the draw.
    """
    chosen = settings or Settings()
    digest = hashlib.sha256(f"{seed}|{destination}|{attempt}".encode()).digest()
    source = random.Random(int.from_bytes(digest, "big"))
    # All numbers are drawn always and in this order, so that changing one setting leaves the other draws alone.
    normal, failure, kind, fraction = source.gauss(0, 1), source.random(), source.random(), source.random()
    variance = math.log1p(chosen.duration_cv**2)
    duration = math.exp(math.log(chosen.duration_mean_seconds) - variance / 2 + math.sqrt(variance) * normal)
    outcome = _pick(kind, chosen.failure_weights) if failure < chosen.failure_rate else Outcome.SUCCEEDED
    override = find_override(chosen, destination, attempt)
    if override is not None:
        duration = duration if override.duration_seconds is None else override.duration_seconds
        outcome = override.outcome or outcome
    return Draw(duration, outcome, fraction)


def find_override(settings: Settings, destination: str, attempt: int) -> Override | None:
    """The first override that matches."""
    return next((item for item in settings.overrides if item.matches(destination, attempt)), None)


def _pick(position: float, weights: dict[Outcome, float]) -> Outcome:
    left = position * sum(weights.values())
    for outcome in Outcome:
        left -= weights.get(outcome, 0.0)
        if left < 0:
            return outcome
    return max(weights, key=lambda outcome: weights[outcome])
