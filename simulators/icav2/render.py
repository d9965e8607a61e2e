"""The JSON of the API, from the model (ICA OpenAPI: schemas Job, ProjectData,
ProjectDataCopyBatch and their paged lists; docs/protocols/icav2.md).

Invariant: optional fields whose schema is not nullable are left out when empty, never null; and the cursor
of the last page is the empty string (docs/protocols/icav2.md 2.5).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from simulators.common import Call, ProblemError, iso_millis
from simulators.icav2.model import Item, Job, Node, User
from simulators.icav2.settings import Settings

T = TypeVar("T")
MEDIA_TYPE = "application/vnd.illumina.v3+json"
PREFIXES = ("", "/ica/rest")  # clients are given either base address
PROBLEM_TYPE = "application/problem+json"
_BEGINNING = "2023-01-01T00:00:00.000Z"


def user_json(user: User, tenant_id: str) -> dict[str, Any]:
    return {
        "id": user.id,
        "timeCreated": _BEGINNING,
        "timeModified": _BEGINNING,
        "ownerId": user.id,
        "tenantId": tenant_id,
        "username": user.name,
        "email": f"{user.name}@example.invalid",
        "active": True,
        "tenantAdministrator": False,
        "emailVerified": True,
        "twoFactorAuthentication": False,
    }


def job_json(job: Job, tenant_id: str) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "additionalStatusInformation": job.info,
        "subjectType": "ProjectDataCopyBatch" if job.kind == "copy" else "ProjectDataMoveBatch",
        "subjectId": job.batch_id,
        "timeCreated": iso_millis(job.created),
        "timeStarted": None if job.started is None else iso_millis(job.started),
        "timeFinished": None if job.finished is None else iso_millis(job.finished),
        "owner": user_json(job.owner, tenant_id),
    }


def batch_json(job: Job, tenant_id: str) -> dict[str, Any]:
    folder = {} if job.folder_id is None else {"destinationFolderId": job.folder_id}
    return {"id": job.batch_id, "job": job_json(job, tenant_id), **folder, **job.options}


def item_json(item: Item, tenant_id: str) -> dict[str, Any]:
    created = {"createdProjectData": data_json(item.created, tenant_id)} if item.created else {}
    processing = {"status": item.status, "additionalStatusInformation": item.info}
    return {"id": item.id, "request": {"dataId": item.data_id}, "processing": processing, **created}


def data_json(node: Node, tenant_id: str) -> dict[str, Any]:
    details: dict[str, Any] = {
        "timeCreated": iso_millis(node.created),
        "timeModified": iso_millis(node.modified),
        "tenantId": tenant_id,
        "owningProjectId": node.project_id,
        "name": node.name,
        "path": node.path,
        "status": node.status,
        "dataType": "FOLDER" if node.is_folder else "FILE",
        "tags": {
            "technicalTags": node.technical_tags,
            "userTags": node.user_tags,
            "connectorTags": [],
            "runInTags": [],
            "runOutTags": [],
            "referenceTags": [],
        },
    }
    if not node.is_folder:
        details |= {"fileSizeInBytes": node.size_bytes, "objectETag": node.etag}
    urn = f"urn:ilmn:ica:region:00000000-0000-4000-8000-000000000000:data:{node.id}#{node.path}"
    return {"projectId": node.project_id, "data": {"id": node.id, "urn": urn[:2000], "details": details}}


def node_truth(node: Node) -> dict[str, Any]:
    """A node for the side channel: sizes in bytes."""
    return {
        "id": node.id,
        "path": node.path,
        "type": "FOLDER" if node.is_folder else "FILE",
        "status": node.status,
        "size_bytes": node.size_bytes,
        "etag": node.etag,
        "user_tags": node.user_tags,
        "technical_tags": node.technical_tags,
    }


def problem_json(status: int, title: str, detail: str, problem_id: str, now: float) -> dict[str, Any]:
    return {
        "id": problem_id,
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "parameters": {},
        "timestamp": iso_millis(now),
    }


def _integer(call: Call, name: str, default: int, least: int) -> int:
    value = call.query.get(name)
    if value in (None, ""):
        return default
    if not (value or "").isdecimal() or int(value or "") < least:
        raise ProblemError(400, "Bad request", f"{name} must be an integer of at least {least}, not {value!r}.")
    return int(value or "")


def _page_size(call: Call, settings: Settings) -> int:
    size = _integer(call, "pageSize", settings.default_page_size, 1)
    if size > settings.max_page_size and settings.oversize_page == "reject":
        raise ProblemError(400, "Bad request", f"pageSize may be at most {settings.max_page_size}.")
    return min(size, settings.max_page_size)


def _cursor(call: Call) -> int:
    token = call.query.get("pageToken")
    if not token:
        return 0
    try:
        return int(json.loads(base64.urlsafe_b64decode(token))["after"])
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise ProblemError(400, "Bad request", "pageToken is not one of ours.") from error


def page(
    call: Call,
    settings: Settings,
    things: Sequence[T],
    position: Callable[[T], int],
    show: Callable[[T], dict[str, Any]],
    sort_keys: dict[str, Callable[[T], Any]] | None = None,
) -> dict[str, Any]:
    """One page of `things`, which come in the order of `position`.

    Without `sort` or `pageOffset`: by cursor, `nextPageToken` empty at the end, `remainingRecords`. With one of them:
    by offset, `totalItemCount`, no token (docs/protocols/icav2.md 2.5).
    """
    size = _page_size(call, settings)
    if call.query.get("sort") or call.query.get("pageOffset"):
        offset = _integer(call, "pageOffset", 0, 0)
        ordered = _sorted(call, things, sort_keys or {})
        return {"items": [show(thing) for thing in ordered[offset : offset + size]], "totalItemCount": len(things)}
    after = _cursor(call)
    rest = [thing for thing in things if position(thing) > after]
    shown = rest[:size]
    token = ""
    if len(rest) > size:
        token = base64.urlsafe_b64encode(json.dumps({"after": position(shown[-1])}).encode()).decode()
    return {
        "items": [show(thing) for thing in shown],
        "nextPageToken": token,
        "remainingRecords": len(rest) - len(shown),
    }


def _sorted(call: Call, things: Sequence[T], keys: dict[str, Callable[[T], Any]]) -> list[T]:
    ordered = list(things)
    for part in reversed([part.strip() for part in call.query.get("sort", "").split(",") if part.strip()]):
        name, _, direction = part.partition(" ")
        if name not in keys or direction.strip().lower() not in ("", "asc", "desc"):
            raise ProblemError(400, "Bad request", f"Cannot sort by {part!r}; sort keys: {', '.join(keys)}.")
        ordered.sort(key=keys[name], reverse=direction.strip().lower() == "desc")
    return ordered
