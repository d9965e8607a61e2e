"""What a caller may ask of an ICAv2 copy, and the typed things that travel between the modules of this package.

Invariant: `CopyRequest` is at once the UI form, the strict check and the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

import pydantic
from pydantic import Field

from include.core.request import BULKY, DEADLINE_DAYS, LOST_IN_FORM, PASTED, DeadlineDays, Request, in_section
from include.core.text import bare_uri, is_bare_uri

SCHEME = "icav2://"
Manifest = dict[str, list[str]]
INPUTS = ("manifest", "manifest_b64gz", "manifest_uri")


CHECKS = in_section("Checks before and after the copy")
SPEED = in_section("Speed and repeats")


class CopyRequest(Request):
    """The conf of a run of `icav2_copy_batch`."""

    manifest: dict[str, Any] | None = Field(
        None,
        title="Manifest",
        description="What to copy. Each key is a source: a file, or a folder if it ends with `/`. Each value is the list of "
        f"folders that it is copied to. {PASTED}",
        examples=[
            {
                "icav2://b23fb516-d852-4985-adcc-831c12e8cd22/run/a.fastq.gz": [
                    "icav2://7595e8f2-32d3-4c76-a324-c6a85dae87b5/cache/"
                ]
            }
        ],
        json_schema_extra=BULKY,
    )
    manifest_uri: str | None = Field(
        None,
        title="Manifest as a file",
        description="Instead of the manifest above: where it lies as a JSON file, below a prefix of connection "
        "`waybill_inputs`.",
        examples=["s3://our-inputs/manifests/L2301368.json"],
    )
    manifest_b64gz: str | None = Field(
        None,
        title="Packed manifest",
        description="Instead of the manifest above: the same JSON, compressed by gzip, then encoded in base64. Such a text "
        "begins with `H4sI`.",
        json_schema_extra=BULKY,
    )
    verify: Literal["size_and_etag", "size"] = Field(
        "size_and_etag",
        title="Proof of a copied file",
        description="`size_and_etag`: by its size, and by its MD5 where ICA has it on both sides. `size`: by its size only.",
        json_schema_extra=CHECKS,
    )
    require_empty_destination: bool = Field(
        True,
        title="Refuse folders that are not empty",
        description="Refuse a destination that holds files which Waybill did not create there.",
        json_schema_extra=CHECKS,
    )
    same_project: Literal["refuse", "allow"] = Field(
        "refuse",
        title="Copies within one project",
        description="ICA has refused them in the past. `allow` sends them all the same.",
        json_schema_extra=CHECKS,
    )
    small_files: Literal["batch", "stream"] = Field(
        "batch",
        title="Small files",
        description="ICA's batch copy has been seen to refuse files below 8 MiB, and single-part ones. `batch`: copy them as all "
        "others. `stream`: the worker downloads and uploads them, up to 100 MiB each; tags are not copied.",
        json_schema_extra=SPEED,
    )
    max_resubmissions: int = Field(
        5,
        ge=0,
        le=20,
        title="Repeats of a failed job",
        description="How many times this run may send a failed copy job again, for each destination.",
        json_schema_extra=SPEED,
    )
    max_in_flight: int = Field(
        200,
        ge=1,
        le=2000,
        title="Copy jobs at once",
        description="How many copy jobs may run at once.",
        json_schema_extra=SPEED,
    )
    poll_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        title="Longest pause between two looks (seconds)",
        description="How long to wait, at most, before the jobs are looked at again. New jobs are looked at sooner.",
        json_schema_extra=SPEED,
    )
    job_timeout_minutes: float = Field(
        120.0,
        gt=0,
        le=10080,
        title="Time limit of a copy job (minutes)",
        description="A job that takes longer is stuck: what it has copied is checked, and the rest is sent once more.",
        json_schema_extra=SPEED,
    )
    deadline_days: DeadlineDays = Field(DEADLINE_DAYS, json_schema_extra=SPEED)

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        said = [name for name in INPUTS if conf.get(name) is not None]
        # The form's editor leaves {} in a field that was opened and left: it counts only if there is nothing else.
        given = [name for name in said if conf[name] != {}] or said
        if len(given) == 1:
            return []
        if not given and any(name.startswith(SCHEME) for name in conf):
            return ['this is a manifest by itself: give it as {"manifest": {…}}']
        lost = "" if given else f"; {LOST_IN_FORM}"
        return [
            f"give exactly one of manifest, manifest_b64gz and manifest_uri (given: {', '.join(given) or 'none'}){lost}"
        ]

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
