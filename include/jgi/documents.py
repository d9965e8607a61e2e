"""Between the values of `models` and the documents that MongoDB keeps; older documents are read too.

Field names are those that NMDC's tools have used all along where they have one (`jdp_file_id`, `file_name`, `file_size`,
`md5sum`, `request_id`, `project_name`), so that a person finds the way. Two older shapes are read: one status for both
systems (`file_status`, `apGoldId`), and the runtime API's (`jdp_file_status`, `globus_file_status`, `ap_gold_id`). They lie in
collections of their own.

Invariant: what is not known is left out of a document, never stored as null; what one release writes the next one reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from include.core.errors import RequestError
from include.jgi.models import BatchState, FileState, Placement, PlacementState, Project, RequestState, StagedFile

Doc = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedRequest:
    """A restore request. `key` is its business key in the ledger; The ledger has its file ids."""

    key: str
    state: RequestState
    ids: int
    size_bytes: int
    project: str = ""
    request_id: int | None = None
    sent_at: datetime | None = None
    expires_at: datetime | None = None
    jdp_status: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class TrackedBatch:
    """One Globus task. `key` is its business key in the ledger, `request_key` that of the restore request it moves."""

    key: str
    state: BatchState
    request_key: str
    files: int
    size_bytes: int
    submission_id: str = ""
    task_id: str | None = None
    deadline: datetime | None = None
    why: str = ""


def without_none(document: Mapping[str, Any]) -> Doc:
    return {name: value for name, value in document.items() if value is not None and value != "" and value != []}


def instant(value: Any) -> datetime | None:
    """An instant with its zone. MongoDB gives them without one, in UTC; older documents hold text."""
    if value in (None, ""):
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise RequestError(f"{value!r} is no instant: write it as 2026-11-26T02:00:00+00:00")
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# -- files --------------------------------------------------------------------------------------------------------------


def file_facts(file: StagedFile) -> Doc:
    """What a search may refresh, whatever state the file is in."""
    return without_none(
        {
            "file_name": file.file_name,
            "file_size": file.size_bytes,
            "md5sum": file.md5,
            "jdp_file_status": file.jdp_status,
            "dt_to_purge": file.purge_at,
            "biosample_id": file.biosample,
            "ap_gold_ids": list(file.analyses),
            "priority": file.priority,
        }
    )


def file_start(file: StagedFile) -> Doc:
    """What is written once, when a file is first known."""
    return without_none(
        {
            "state": str(file.state),
            "project_name": file.project,  # whose it was first: another project may have it too
            "attempts": file.attempts,
            "waiting_since": file.waiting_since,
            "request_id": file.request_id,
            "claim": file.claim,
            "why": file.why,
        }
    )


def file_of(document: Mapping[str, Any]) -> StagedFile:
    """Raises RequestError naming the document and the field that it lacks."""
    try:
        return StagedFile(
            jdp_file_id=document["jdp_file_id"],
            file_name=document["file_name"],
            size_bytes=int(document["file_size"]),
            project=document.get("project_name", ""),
            state=FileState(document["state"]),
            md5=document.get("md5sum"),
            jdp_status=document.get("jdp_file_status", ""),
            purge_at=instant(document.get("dt_to_purge")),
            request_id=document.get("request_id"),
            claim=document.get("claim"),
            attempts=int(document.get("attempts", 0)),
            priority=float(document.get("priority", 1.0)),
            waiting_since=instant(document.get("waiting_since")),
            biosample=document.get("biosample_id", ""),
            analyses=tuple(document.get("ap_gold_ids", ())),
            why=document.get("why", ""),
            history=tuple(document.get("history", ())),
        )
    except (KeyError, ValueError) as error:
        raise _unreadable(document, error) from None


def older_file_of(document: Mapping[str, Any]) -> StagedFile:
    """A file by both older shapes, at its begin: what they say of its way was never checked, and is kept as the reason."""
    try:
        status = str(document.get("jdp_file_status") or document.get("file_status") or "")
        analysis = document.get("apGoldId") or document.get("ap_gold_id") or ""
        size = document.get("file_size", document.get("jdp_file_size"))
        return StagedFile(
            jdp_file_id=str(document["jdp_file_id"]),
            file_name=str(document["file_name"]),
            size_bytes=int(size),  # None is refused below
            project=str(document.get("project_name") or document.get("sequencing_project_name") or ""),
            md5=document.get("md5sum") or None,
            jdp_status=status,
            request_id=_whole(document.get("request_id")),
            why=f"an older tool left it as {document.get('globus_file_status') or status or 'new'}",
            waiting_since=instant(document.get("create_date")),
            biosample=str(document.get("biosample_id") or document.get("gold_biosample_id") or ""),
            analyses=(str(analysis),) if analysis else (),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise _unreadable(document, error) from None


def _whole(value: Any) -> int | None:
    """A number that may have come through a table as "1196479.0"."""
    return None if value in (None, "") else int(float(value))


def _unreadable(document: Mapping[str, Any], error: Exception) -> RequestError:
    name = document.get("jdp_file_id") or document.get("_id")
    lacks = f"lacks {error}" if isinstance(error, KeyError) else str(error)
    return RequestError(f"the document of file {name} cannot be read: {lacks}. Mend or remove it in MongoDB")


# -- placements, requests, batches, projects ------------------------------------------------------------------------------


def placement_doc(placement: Placement) -> Doc:
    return without_none(
        {
            "jdp_file_id": placement.jdp_file_id,
            "ap_gold_id": placement.analysis,
            "project_name": placement.project,
            "destination": placement.destination,
            "file_size": placement.size_bytes,
            "md5sum": placement.md5,
            "state": str(placement.state),
            "batch": placement.batch,
            "why": placement.why,
        }
    )


def placement_of(document: Mapping[str, Any]) -> Placement:
    return Placement(
        jdp_file_id=document["jdp_file_id"],
        analysis=document.get("ap_gold_id", ""),
        project=document["project_name"],
        destination=document["destination"],
        size_bytes=int(document["file_size"]),
        md5=document.get("md5sum"),
        state=PlacementState(document["state"]),
        batch=document.get("batch"),
        why=document.get("why", ""),
    )


def request_doc(request: TrackedRequest) -> Doc:
    return without_none(
        {name: getattr(request, name) for name in TrackedRequest.__slots__} | {"state": str(request.state)}
    )


def request_of(document: Mapping[str, Any]) -> TrackedRequest:
    known = {name: document[name] for name in TrackedRequest.__slots__ if name in document}
    times = {name: instant(document.get(name)) for name in ("sent_at", "expires_at")}
    return TrackedRequest(**(known | times | {"state": RequestState(document["state"])}))


def batch_doc(batch: TrackedBatch) -> Doc:
    return without_none({name: getattr(batch, name) for name in TrackedBatch.__slots__} | {"state": str(batch.state)})


def batch_of(document: Mapping[str, Any]) -> TrackedBatch:
    known = {name: document[name] for name in TrackedBatch.__slots__ if name in document}
    return TrackedBatch(
        **(known | {"deadline": instant(document.get("deadline")), "state": BatchState(document["state"])})
    )


def project_doc(project: Project) -> Doc:
    known = {
        "project_name": project.name,
        "proposal_id": project.proposal_id,
        "nmdc_study_id": project.nmdc_study_id,
        "priority": project.priority,
    }
    return without_none(known) | {"remove_files": list(project.remove_files)}  # an empty list says: leave out nothing


def project_of(document: Mapping[str, Any]) -> Project:
    """Reads ours, A0's `proposal_id` and the runtime API's `jgi_proposal_id`."""
    name = document.get("project_name") or document.get("sequencing_project_name")
    proposal = document.get("proposal_id") or document.get("jgi_proposal_id")
    if not name or not proposal:
        raise RequestError(f"the project document {document.get('_id')} lacks project_name or proposal_id")
    known = {"remove_files": tuple(document["remove_files"])} if "remove_files" in document else {}
    return Project(
        name=str(name),
        proposal_id=int(proposal),
        nmdc_study_id=str(document.get("nmdc_study_id") or ""),
        priority=float(document.get("priority", 1.0)),
        **known,
    )
