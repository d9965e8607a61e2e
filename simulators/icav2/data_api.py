"""The HTTP operations on project data, and the object store behind their presigned URLs.

Invariant: only content that was given or uploaded is kept; all other content is generated while it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from simulators.common import Answer, Call, ProblemError
from simulators.common.wire import Operation
from simulators.icav2.model import DATA_STATUSES, Node, generated
from simulators.icav2.reading import checked_object, choice, choices, ok
from simulators.icav2.render import data_json, page
from simulators.icav2.simulator import IcaWorld
from simulators.icav2.tree import DataFilter, check_path, make_etag

_DATA_PARAMETERS = frozenset(
    {
        *("id", "filename", "filenameMatchMode", "filePath", "filePathMatchMode", "status", "type"),
        *("parentFolderId", "parentFolderPath", "pageOffset", "pageToken", "pageSize", "sort"),
    }
)
_DATA_SORT: dict[str, Callable[[Node], Any]] = {
    "timeCreated": lambda node: node.created,
    "timeModified": lambda node: node.modified,
    "name": lambda node: node.name,
    "path": lambda node: node.path,
    "fileSizeInBytes": lambda node: node.size_bytes or 0,
    "status": lambda node: node.status,
    "dataType": lambda node: node.is_folder,
}


@dataclass
class _Stored:
    """An answer kept for its Idempotency-Key."""

    digest: str
    answer: Answer
    since: float
    done: float


class DataOperations:
    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim
        self._stored: dict[tuple[str, str, str], _Stored] = {}

    def _show(self, node: Node) -> dict[str, Any]:
        return data_json(node, self._sim.tokens.tenant_id)

    def _project(self, call: Call, *, write: bool = False) -> str:
        user = self._sim.tokens.caller(call)
        return self._sim.project_for(user, call.params["projectId"], write=write).id

    def _node(self, call: Call, *, write: bool = False) -> Node:
        project_id = self._project(call, write=write)
        node = self._sim.tree.by_id(call.params["dataId"])
        if node is None or node.project_id != project_id:
            raise ProblemError(404, "Not found", "No such data in this project.")
        return node

    def idempotent(self, operation: Operation) -> Operation:
        """Idempotency-Key as ICA documents it: kept for 7 days per user and endpoint; errors are not kept."""

        def wrapped(call: Call) -> Answer:
            key = call.headers.get("idempotency-key")
            if key is None:
                return operation(call)
            if len(key) > 255:
                raise ProblemError(400, "Bad request", "Idempotency-Key may have at most 255 characters.")
            slot = (self._sim.tokens.caller(call).name, call.path, key)
            now, digest = self._sim.agenda.time, _digest(call)
            stored = self._stored.get(slot)
            if stored is None or stored.since + self._sim.settings.idempotency_seconds <= now:
                answer = operation(call)
                self._stored[slot] = _Stored(digest, answer, now, now + answer.hold_seconds)
                return answer
            if stored.digest != digest:
                raise ProblemError(422, "Unprocessable", "This Idempotency-Key was used with another body.")
            if stored.done > now:
                raise ProblemError(409, "Conflict", "The first request with this Idempotency-Key still runs.")
            first = stored.answer
            return Answer(first.status, first.body, first.media_type, dict(first.headers), first.ref)

        return wrapped

    def list(self, call: Call) -> Answer:
        project_id = self._project(call)
        unknown = set(call.query) - _DATA_PARAMETERS
        if unknown:
            raise ProblemError(501, "Not simulated", f"Parameters not simulated: {', '.join(sorted(unknown))}.")
        parent = call.query.get("parentFolderPath")
        if parent is not None and not (parent.startswith("/") and parent.endswith("/")):
            raise ProblemError(400, "Bad request", "parentFolderPath must start and end with a slash.")
        wanted = DataFilter(
            ids=tuple(call.query.getlist("id")),
            parent_path=parent,
            parent_ids=tuple(call.query.getlist("parentFolderId")),
            filenames=tuple(call.query.getlist("filename")),
            filename_mode=choice(call, "filenameMatchMode", ("EXACT", "EXCLUDE", "FUZZY"), "EXACT"),
            paths=tuple(call.query.getlist("filePath")),
            path_mode=choice(
                call,
                "filePathMatchMode",
                ("STARTS_WITH_CASE_INSENSITIVE", "FULL_CASE_INSENSITIVE"),
                "STARTS_WITH_CASE_INSENSITIVE",
            ),
            data_type=choice(call, "type", ("FILE", "FOLDER"), "") or None,
            statuses=choices(call, "status", DATA_STATUSES),
        )
        nodes = self._sim.tree.listing(project_id, wanted)
        return ok(page(call, self._sim.settings, nodes, lambda node: node.seq, self._show, _DATA_SORT))

    def get(self, call: Call) -> Answer:
        return ok(self._show(self._node(call)))

    def _target(self, call: Call, body: dict[str, Any], project_id: str) -> str:
        """The path that a create request means, without a final slash."""
        if body.get("folderId") and body.get("folderPath"):
            raise ProblemError(400, "Bad request", "Give folderId or folderPath, not both.")
        parent = body.get("folderPath") or "/"
        if not parent.endswith("/"):
            raise ProblemError(400, "Bad request", "folderPath must end with a slash.")
        if body.get("folderId"):
            folder = self._sim.tree.by_id(body["folderId"])
            if folder is None or not folder.is_folder or folder.project_id != project_id:
                raise ProblemError(404, "Not found", f"No such folder in this project: {body['folderId']}.")
            parent = folder.path
        if not body["name"] or "/" in body["name"]:
            raise ProblemError(400, "Bad request", "name must not be empty and must not hold a slash.")
        path: str = parent + body["name"]
        check_path(path, folder=False)
        return path

    def create(self, call: Call) -> Answer:
        body = checked_object(call, {"name": str, "dataType": str}, {"folderId": str, "folderPath": str})
        if body["dataType"] == "FOLDER":
            return self.create_folder(call)
        if body["dataType"] != "FILE":
            raise ProblemError(400, "Bad request", "dataType must be FILE or FOLDER.")
        return ok(self._show(self._new_file(call)), 201)

    def create_folder(self, call: Call) -> Answer:
        body = checked_object(call, {"name": str}, {"folderId": str, "folderPath": str})
        project_id = self._project(call, write=True)
        path = self._target(call, body, project_id) + "/"
        there = self._sim.tree.at(project_id, path)
        if there is not None and there.ready_from <= self._sim.agenda.time:
            raise ProblemError(409, "Conflict", f"Folder {path} exists already.")
        hold = self._sim.settings.folder_create_seconds
        folder = self._sim.tree.make_folders(project_id, path, hold)
        if folder is None:
            raise ProblemError(409, "Conflict", "The root folder exists already.")
        return ok(self._show(folder), 201, ref=folder.id, hold_seconds=hold)

    def _new_file(self, call: Call) -> Node:
        body = checked_object(call, {"name": str}, {"folderId": str, "folderPath": str})
        project_id = self._project(call, write=True)
        return self._sim.tree.add_file(project_id, self._target(call, body, project_id), status="PARTIAL")

    def create_file(self, call: Call) -> Answer:
        node = self._new_file(call)
        body = self._show(node) | {"uploadUrl": self._storage_url(call, node, "PUT")}
        return ok(body, 201, ref=node.id)

    def delete(self, call: Call) -> Answer:
        node = self._node(call, write=True)
        self._sim.journal.record("delete_asked", project_id=node.project_id, id=node.id, path=node.path)
        self._sim.tree.delete(node)
        return Answer(204)

    def download_url(self, call: Call) -> Answer:
        node = self._node(call)
        if node.is_folder or node.status != "AVAILABLE":
            raise ProblemError(409, "Conflict", f"Data in status {node.status} cannot be downloaded.")
        return ok({"url": self._storage_url(call, node, "GET")})

    def upload_url(self, call: Call) -> Answer:
        node = self._node(call, write=True)
        if node.is_folder or node.status != "PARTIAL":
            raise ProblemError(409, "Conflict", "Only new and PARTIAL files can be uploaded.")
        return ok({"url": self._storage_url(call, node, "PUT")})

    # The object store behind the presigned URLs

    def _signature(self, verb: str, node_id: str, expires: str) -> str:
        return hashlib.sha256(f"{self._sim.tokens.tenant_id}|{verb}|{node_id}|{expires}".encode()).hexdigest()[:32]

    def _storage_url(self, call: Call, node: Node, verb: str) -> str:
        origin = call.base_url.removesuffix("/ica/rest")
        expires = f"{self._sim.agenda.time + self._sim.settings.signed_url_seconds:.3f}"
        return f"{origin}/storage/{node.id}?expires={expires}&signature={self._signature(verb, node.id, expires)}"

    def _signed(self, call: Call) -> Node:
        if call.headers.get("authorization"):
            raise ProblemError(400, "Bad request", "Only one way to authorize is allowed: the URL is signed already.")
        node, expires = self._sim.tree.by_id(call.params["dataId"]), call.query.get("expires", "0")
        if node is None or call.query.get("signature") != self._signature(call.method, node.id, expires):
            raise ProblemError(403, "Forbidden", "The signature does not match.")
        if float(expires) < self._sim.agenda.time:
            raise ProblemError(403, "Forbidden", "The request has expired.")
        return node

    def store(self, call: Call) -> Answer:
        """Takes a body as an object store does: whole, and shown as AVAILABLE once ICA has learned of it."""
        node, seconds = self._signed(call), self._sim.settings.upload_seconds
        node.content = call.body
        etag = make_etag(self._sim.settings, node.content_key, len(call.body), call.body)
        if seconds:
            self._sim.agenda.schedule(self._sim.agenda.time + seconds, lambda: self._sim.tree.uploaded(node))
        else:
            self._sim.tree.uploaded(node)
        return Answer(200, headers={"ETag": f'"{etag}"'}, ref=node.id)

    def fetch(self, call: Call) -> Answer:
        node = self._signed(call)
        size = node.size_bytes or 0
        headers = {"Content-Length": str(size), "ETag": f'"{node.etag}"'}

        async def blocks() -> AsyncIterator[bytes]:
            for block in [node.content] if node.content is not None else generated(node.content_key, size):
                yield block

        return Answer(200, media_type="application/octet-stream", headers=headers, stream=blocks())


def _digest(call: Call) -> str:
    """The same for bodies that mean the same."""
    return hashlib.sha256(json.dumps(call.json(), sort_keys=True).encode()).hexdigest()
