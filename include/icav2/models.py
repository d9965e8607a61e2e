"""What a caller may ask of an ICAv2 copy, and the typed things that travel between the modules of this package.

Invariant: `CopyRequest` is at once the UI form, the strict check and the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

import pydantic
from pydantic import Field

from include.core.request import BULKY, DEADLINE_DAYS, DeadlineDays, Request
from include.core.text import bare_uri, is_bare_uri

Manifest = dict[str, list[str]]
INPUTS = ("manifest", "manifest_b64gz", "manifest_uri")


class CopyRequest(Request):
    """The conf of a run of `icav2_copy_batch`."""

    manifest: dict[str, Any] | None = Field(
        None,
        description="What to copy: each key is a source file (icav2://PROJECT-ID/path), each value the list of folders it "
        "is copied to (icav2://PROJECT-ID/path/).",
        json_schema_extra=BULKY,
    )
    manifest_b64gz: str | None = Field(
        None,
        description="The same manifest as JSON, gzipped, then base64 encoded.",
        json_schema_extra=BULKY,
    )
    manifest_uri: str | None = Field(
        None, description="The same manifest as a JSON file under one of the prefixes of connection waybill_inputs."
    )
    max_resubmissions: int = Field(
        5, ge=0, le=20, description="How often a failed copy job is sent again for one destination in this run."
    )
    max_in_flight: int = Field(200, ge=1, le=2000, description="How many copy jobs may run at once.")
    poll_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="The longest pause between two looks at the jobs. Young jobs are looked at sooner.",
    )
    job_timeout_minutes: float = Field(
        120.0,
        gt=0,
        le=10080,
        description="A job that runs longer is stuck: what it copied is verified, the rest sent once more.",
    )
    deadline_days: DeadlineDays = DEADLINE_DAYS
    verify: Literal["size_and_etag", "size"] = Field(
        "size_and_etag",
        description="How a copied file is proved: by its size, and by its MD5 ETag where both sides are single-part; or by size.",
    )
    require_empty_destination: bool = Field(
        True, description="Refuse destinations that hold files which Waybill did not create there."
    )
    small_files: Literal["batch", "stream"] = Field(
        "batch",
        description="How files are copied that ICA's batch copy has been seen to refuse: those below 8 MiB, and single-part "
        "ones of at most 100 MiB. batch: as all others. stream: the worker downloads and uploads them; tags are not copied.",
    )
    same_project: Literal["refuse", "allow"] = Field(
        "refuse", description="What to do with a copy within one project, which ICA has refused in the past."
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        given = [name for name in INPUTS if conf.get(name) is not None]
        if len(given) == 1:
            return []
        what = ", ".join(given) or "none"
        return [f"give exactly one of manifest, manifest_b64gz and manifest_uri (given: {what})"]

    @pydantic.field_validator("manifest_uri")
    @classmethod
    def _plain_uri(cls, value: str | None) -> str | None:
        if value is not None and not is_bare_uri(value):
            raise ValueError(f"{bare_uri(value)} is refused: give a plain URI without a query or user information")
        return value


class Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Flipped(Frozen):
    """One destination folder and what goes there: an element of the SOP's Flip Manifest output, field for field."""

    dest_uri: str
    source_uris: list[str]


class JobStatus(StrEnum):
    """Job states of ICA v3. Anything else counts as running, with a warning."""

    INITIALIZED = "INITIALIZED"
    WAITING_FOR_RESOURCES = "WAITING_FOR_RESOURCES"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    PARTIALLY_SUCCEEDED = "PARTIALLY_SUCCEEDED"
    FAILED = "FAILED"


TERMINAL = frozenset({JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.PARTIALLY_SUCCEEDED, JobStatus.FAILED})


class Job(Frozen):
    """A job as ICA lists it. `created` and `finished` are epoch seconds of ICA's clock, `message` ICA's words about it."""

    id: str
    status: str
    subject_id: str | None
    created: float
    finished: float | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    @property
    def known(self) -> bool:
        return self.status in JobStatus.__members__


class Data(Frozen):
    """A file or folder in a project. `path` is the full path, ending with `/` for folders; `created` in epoch seconds."""

    id: str
    name: str
    path: str
    is_folder: bool
    status: str
    size_bytes: int
    etag: str | None
    created: float


class Content(Frozen):
    """One file of an item: its path relative to the destination folder, what proves it, and its id at the source."""

    path: str
    size_bytes: int
    etag: str | None
    data_id: str | None = None


class Item(Frozen):
    """One source, resolved: what is sent (`data_id`) and what must be there afterwards (`files`)."""

    source_uri: str
    data_id: str
    name: str
    is_folder: bool = False
    files: list[Content]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Destination(Frozen):
    """One destination folder with its resolved items. `dest_uri` is the caller's spelling, `key` is ours."""

    dest_uri: str
    project_id: str
    path: str
    items: list[Item]

    @property
    def key(self) -> str:
        """The business key: one spelling per folder in the world."""
        return f"icav2://{self.project_id}{self.path}"


class CopyPlan(Frozen):
    """Everything that a run will copy, resolved to ids and sizes. Written once, read by every leg.

    `request_sha256`: of the request that it was made for. Another request under the same run id has another plan.
    """

    destinations: list[Destination]
    request_sha256: str = ""

    @property
    def files(self) -> int:
        return sum(len(item.files) for d in self.destinations for item in d.items)

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for d in self.destinations for item in d.items)


class Verdict(StrEnum):
    """What a look at the destination says of one file."""

    OK = "ok"
    MISSING = "missing"
    PARTIAL = "partial"
    SIZE_MISMATCH = "size_mismatch"
    ETAG_MISMATCH = "etag_mismatch"


class Proof(Frozen):
    """The verdict on one file, with what it rests on."""

    source_uri: str
    dest_uri: str
    path: str
    verdict: Verdict
    size_bytes: int
    by: str
    data_id: str | None = None
