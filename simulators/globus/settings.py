"""The settings of the Globus simulator, and the names of what can go wrong with a file.

Invariant: what the documentation of Globus leaves open is a setting here, never a silent choice: the order of the checks of a
submission, the codes that are not written down, what an old task answers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from simulators.common import SimulatorSettings

DEFAULT_CLIENT_ID = "1c0a9e3e-6f0a-4c86-9f3d-0c7de1a50001"
DEFAULT_CLIENT_SECRET = "rehearsal-client-secret"  # opens nothing but a simulator
TRANSFER_SERVER = "transfer.api.globus.org"
TRANSFER_SCOPE = f"urn:globus:auth:scope:{TRANSFER_SERVER}:all"
SKIPPABLE = frozenset({"PERMISSION_DENIED", "FILE_NOT_FOUND", "AMBIGUOUS_PATH"})
"""What `skip_source_errors` skips, at the source."""
NICE_STATUS_SECONDS = 15 * 60.0
"""So long a task shows its last error."""


class Settings(SimulatorSettings):
    """Every setting of the Globus simulator; sizes in bytes, times in simulated seconds."""

    # Auth
    token_lifetime_seconds: float = Field(default=48 * 3600.0, gt=0)

    # Submission
    known_submission_first: bool = True
    """A known submission_id is answered `Duplicate` before the 409 for identical paths is considered; else after it."""
    identical_paths: Literal["same_set", "any_pair", "allow"] = "same_set"
    """Which submissions meet 409 `Conflict` while a task is not over: the same pairs of paths, one such pair, none."""
    unknown_submission_ids: Literal["reject", "accept"] = "reject"
    """Whether a submission_id must have been given out."""
    max_pending_tasks: int = Field(default=100, ge=1)
    too_many_code: str = "TooManyPendingTasks"
    """The code of that 409 is not written down."""
    max_files_per_task: int = Field(default=100_000_000, ge=1)

    # Work
    active_per_user: int = Field(default=3, ge=1)
    accept_seconds: float = Field(default=1.0, ge=0)
    """A task is begun so long after it was accepted."""
    task_bytes_per_second: float = Field(default=3.7e8, gt=0)
    shared_bytes_per_second: float | None = Field(default=None, gt=0)
    """What all running tasks share; None: each has its own rate."""
    file_seconds: float = Field(default=0.1, ge=0)
    """What a file costs beyond its bytes."""
    retry_seconds: float = Field(default=60.0, gt=0)
    """Wait after the first error of a file; it doubles up to `retry_max_seconds`."""
    retry_max_seconds: float = Field(default=600.0, gt=0)
    leave_partial: bool = True
    """A task that ends in the middle of a file leaves what had arrived of it."""
    cancel_seconds: float = Field(default=0.0, ge=0, le=10)
    """A running task is cancelled so much later, and the answer is `CancelAccepted`; 0: at once, `Canceled`."""

    # History
    history_seconds: float = Field(default=30 * 86400.0, gt=0)
    """What a task did to each file is kept so long after its end."""
    task_seconds: float = Field(default=120 * 86400.0, gt=0)
    """Older tasks answer 404."""
    page_size: int = Field(default=100, ge=1)
    """Rows of a page of `successful_transfers` and `skipped_errors`."""
