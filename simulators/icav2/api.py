"""The HTTP operations of ICA v3 that Waybill's clients may use.

Invariant: each operation is synchronous and atomic (see `simulators.common.wire`); what takes time in the real
service is an entry of the agenda, or an answer that is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from simulators.common import Answer, Call, ProblemError
from simulators.common.wire import Operation
from simulators.icav2.data_api import DataOperations
from simulators.icav2.model import ITEM_STATUSES, JOB_STATUSES, Job, Node, User
from simulators.icav2.notification_api import notification_routes
from simulators.icav2.reading import checked_object, choices, ok
from simulators.icav2.render import PREFIXES, batch_json, item_json, job_json, page
from simulators.icav2.simulator import IcaWorld

_JOB_SORT: dict[str, Callable[[Job], Any]] = {
    "timeCreated": lambda job: job.created,
    "timeStarted": lambda job: job.started or 0.0,
    "timeFinished": lambda job: job.finished or 0.0,
}


def add_routes(sim: IcaWorld) -> None:
    """Register every operation. Paths with a `:verb` come before those whose last parameter would swallow it."""
    tokens, jobs, data, batches = _Tokens(sim), _Jobs(sim), DataOperations(sim), _Batches(sim)
    project = "/api/projects/{projectId}"
    copy, move = f"{project}/dataCopyBatch", f"{project}/dataMoveBatch"
    routes: list[tuple[str, str, Operation]] = [
        ("POST", "/api/tokens", tokens.create),
        ("POST", "/api/tokens:refresh", tokens.refresh),
        ("GET", "/api/jobs", jobs.list),
        ("GET", "/api/jobs/{jobId}", jobs.get),
        ("POST", copy, batches.create_copy),
        ("GET", f"{copy}/{{batchId}}", batches.get),
        ("GET", f"{copy}/{{batchId}}/items", batches.items),
        ("GET", f"{copy}/{{batchId}}/items/{{itemId}}", batches.item),
        ("POST", move, batches.create_move),
        ("GET", f"{project}/data", data.list),
        ("POST", f"{project}/data", data.idempotent(data.create)),
        ("POST", f"{project}/data:createFolder", data.idempotent(data.create_folder)),
        ("POST", f"{project}/data:createFileWithUploadUrl", data.idempotent(data.create_file)),
        ("POST", f"{project}/data/{{dataId}}:delete", data.delete),
        ("POST", f"{project}/data/{{dataId}}:createDownloadUrl", data.download_url),
        ("POST", f"{project}/data/{{dataId}}:createUploadUrl", data.upload_url),
        ("GET", f"{project}/data/{{dataId}}", data.get),
        *notification_routes(sim),
    ]
    for method, template, operation in routes:
        sim.route(method, template, operation, PREFIXES)
    sim.route("PUT", "/storage/{dataId}", data.store)
    sim.route("GET", "/storage/{dataId}", data.fetch)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        sim.route(method, "/{rest:path}", _nothing_there)


def _nothing_there(call: Call) -> Answer:
    raise ProblemError(404, "Not found", f"No such endpoint: {call.method} {call.path}")


class _Tokens:
    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim

    def create(self, call: Call) -> Answer:
        return ok({"token": self._sim.tokens.issue(call)})

    def refresh(self, call: Call) -> Answer:
        return ok({"token": self._sim.tokens.refresh(call)})


class _Jobs:
    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim

    def _visible(self, job: Job, user: User) -> bool:
        in_scope = self._sim.settings.job_scope == "tenant" or job.owner is user
        return in_scope and job.hidden_until <= self._sim.agenda.time

    def list(self, call: Call) -> Answer:
        user = self._sim.tokens.caller(call)
        wanted = choices(call, "status", JOB_STATUSES)
        jobs = [
            job
            for job in self._sim.engine.jobs.values()
            if self._visible(job, user) and (not wanted or job.status in wanted)
        ]
        tenant = self._sim.tokens.tenant_id
        show = partial(job_json, tenant_id=tenant)
        return ok(page(call, self._sim.settings, jobs, lambda job: job.seq, show, _JOB_SORT))

    def get(self, call: Call) -> Answer:
        user = self._sim.tokens.caller(call)
        job = self._sim.engine.jobs.get(call.params["jobId"])
        if job is None or not self._visible(job, user):
            raise ProblemError(404, "Not found", "No such job.")
        return ok(job_json(job, self._sim.tokens.tenant_id))


class _Batches:
    def __init__(self, sim: IcaWorld) -> None:
        self._sim = sim

    def create_copy(self, call: Call) -> Answer:
        flags = {"copyUserTags": bool, "copyTechnicalTags": bool, "copyInstrumentInfo": bool}
        required = {"items": list, "actionOnExist": str, **flags}
        body = checked_object(call, required, {"destinationFolderId": str})
        if not re.search("OVERWRITE|SKIP|RENAME", body["actionOnExist"]):
            raise ProblemError(400, "Bad request", "actionOnExist must be OVERWRITE, SKIP or RENAME.")
        return self._create(call, "copy", body, {name: body[name] for name in (*flags, "actionOnExist")})

    def create_move(self, call: Call) -> Answer:
        return self._create(call, "move", checked_object(call, {"items": list}, {"destinationFolderId": str}), {})

    def _create(
        self, call: Call, kind: Literal["copy", "move"], body: dict[str, Any], options: dict[str, object]
    ) -> Answer:
        sim = self._sim
        user = sim.tokens.caller(call)
        project = sim.project_for(user, call.params["projectId"], write=True)
        folder = self._destination(project.id, body.get("destinationFolderId"))
        sources = self._sources(user, body["items"])
        if kind == "copy":
            self._refuse_impossible(project.id, folder, sources)
        job = sim.engine.accept(kind, user, project.id, folder, sources, options)
        return ok(batch_json(job, sim.tokens.tenant_id), 201, ref=job.id)

    def _destination(self, project_id: str, folder_id: str | None) -> Node | None:
        if folder_id is None:
            return None
        folder = self._sim.tree.by_id(folder_id)
        if folder is None or not folder.is_folder or folder.project_id != project_id:
            raise ProblemError(404, "Not found", f"No such folder in this project: {folder_id}.")
        if folder.status == "DELETING":
            raise ProblemError(409, "Conflict", "The destination folder is being deleted.")
        return folder

    def _sources(self, user: User, items: list[Any]) -> list[Node]:
        limit = self._sim.settings.max_items_per_batch
        if not items or (limit is not None and len(items) > limit):
            raise ProblemError(400, "Bad request", f"A batch holds 1 to {limit or 'any number of'} items.")
        sources = []
        for item in items:
            data_id = item.get("dataId") if isinstance(item, dict) else None
            node = self._sim.tree.by_id(data_id) if isinstance(data_id, str) else None
            if node is None:
                raise ProblemError(404 if data_id else 400, "Unknown data", f"No such data: {data_id}.")
            self._sim.project_for(user, node.project_id)
            sources.append(node)
        return sources

    def _refuse_impossible(self, project_id: str, folder: Node | None, sources: list[Node]) -> None:
        path = folder.path if folder else "/"
        for node in sources:
            if node.project_id != project_id:
                continue
            if self._sim.settings.same_project == "reject_400":
                raise ProblemError(400, "Bad request", "Data cannot be copied within one project.")
            if node.is_folder and path.startswith(node.path):
                raise ProblemError(400, "Bad request", f"{node.path} cannot be copied into itself.")

    def _batch(self, call: Call) -> Job:
        user = self._sim.tokens.caller(call)
        self._sim.project_for(user, call.params["projectId"])
        job = self._sim.engine.by_batch.get(call.params["batchId"])
        if job is None or job.kind != "copy" or job.project_id != call.params["projectId"]:
            raise ProblemError(404, "Not found", "No such batch.")
        if job.hidden_until > self._sim.agenda.time:
            raise ProblemError(404, "Not found", "No such batch.")
        return job

    def get(self, call: Call) -> Answer:
        return ok(batch_json(self._batch(call), self._sim.tokens.tenant_id))

    def items(self, call: Call) -> Answer:
        job = self._batch(call)
        wanted = choices(call, "status", ITEM_STATUSES)
        numbered = [(at, item) for at, item in enumerate(job.items, 1) if not wanted or item.status in wanted]
        tenant = self._sim.tokens.tenant_id
        return ok(
            page(call, self._sim.settings, numbered, lambda pair: pair[0], lambda pair: item_json(pair[1], tenant))
        )

    def item(self, call: Call) -> Answer:
        for item in self._batch(call).items:
            if item.id == call.params["itemId"]:
                return ok(item_json(item, self._sim.tokens.tenant_id))
        raise ProblemError(404, "Not found", "No such item.")
