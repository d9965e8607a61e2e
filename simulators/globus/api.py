"""The HTTP operations of Globus Auth and Transfer that Waybill's clients may use, both at one address.

Invariant: each operation is synchronous and atomic (see `simulators.common.wire`); what takes time in the real service is an
entry of the agenda.
"""

from __future__ import annotations

import hashlib
from typing import Any

from simulators.common import Answer, Call, ProblemError
from simulators.common.wire import Operation
from simulators.globus.collections import join, split
from simulators.globus.model import Endpoint, Item, Task, denied
from simulators.globus.reading import (
    bad,
    checked_path,
    items_of,
    marker_page,
    matcher,
    offset_page,
    options_of,
    order,
    seconds_of,
    submission_of,
)
from simulators.globus.render import (
    endpoint_json,
    event_json,
    file_json,
    moved_json,
    pause_info_json,
    skipped_json,
    task_json,
)
from simulators.globus.simulator import GlobusWorld

_DAY = 86400.0
_MESSAGES = {
    "Accepted": "The transfer has been accepted and a task has been created and queued for execution",
    "Duplicate": "A transfer with id already exists",
}


def add_routes(sim: GlobusWorld) -> None:
    """Register every operation."""
    submissions, tasks, files = _Submissions(sim), _Tasks(sim), _Files(sim)
    routes: list[tuple[str, str, Operation]] = [
        ("GET", "/submission_id", submissions.new_id),
        ("POST", "/transfer", submissions.transfer),
        ("GET", "/task_list", tasks.list),
        ("GET", "/task/{task}", tasks.get),
        ("POST", "/task/{task}/cancel", tasks.cancel),
        ("GET", "/task/{task}/event_list", tasks.events),
        ("GET", "/task/{task}/successful_transfers", tasks.successful),
        ("GET", "/task/{task}/skipped_errors", tasks.skipped),
        ("GET", "/task/{task}/pause_info", tasks.pause_info),
        ("GET", "/endpoint/{endpoint}", files.endpoint),
        ("GET", "/operation/endpoint/{endpoint}/ls", files.ls),
        ("GET", "/operation/endpoint/{endpoint}/stat", files.stat),
        ("POST", "/operation/endpoint/{endpoint}/mkdir", files.mkdir),
    ]
    sim.route("POST", "/v2/oauth2/token", sim.tokens.grant)
    for method, template, operation in routes:
        sim.route(method, template, operation, ("/v0.10",))
    sim.route("GET", "/https/{endpoint}/{path:path}", files.bytes_over_https)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        sim.route(method, "/{rest:path}", _nothing_there)


def _nothing_there(call: Call) -> Answer:
    raise ProblemError(404, "ClientError.NotFound", f"No such resource: {call.method} {call.path}")


class _Submissions:
    def __init__(self, sim: GlobusWorld) -> None:
        self._sim = sim

    def new_id(self, call: Call) -> Answer:
        self._sim.tokens.caller(call)
        value = self._sim.ids.uuid()
        self._sim.submission_ids.add(value)
        return Answer(200, {"value": value})

    def transfer(self, call: Call) -> Answer:
        sim = self._sim
        token = sim.tokens.caller(call)
        body = submission_of(call)
        known = sim.engine.by_submission.get((token.client.id, body["submission_id"]))
        if known is not None and sim.settings.known_submission_first:
            return self._result(known, "Duplicate")
        source = sim.access(token, body.get("source_endpoint"))
        destination = sim.access(token, body.get("destination_endpoint"))
        items = items_of(body)
        if len(items) > sim.settings.max_files_per_task:
            raise bad(f"a transfer has at most {sim.settings.max_files_per_task} items")
        pairs = frozenset((item.source, item.destination) for item in items)
        if sim.engine.conflicting(source.id, destination.id, pairs):
            raise ProblemError(409, "Conflict", "A transfer with identical paths has not yet completed")
        if known is not None:
            return self._result(known, "Duplicate")
        self._refuse_unknown_or_too_many(body["submission_id"], token.client.id)
        task = self._task(body, token.client.id, source, destination, items, pairs)
        sim.engine.accept(task)
        return self._result(task, "Accepted")

    def _refuse_unknown_or_too_many(self, submission_id: str, owner: str) -> None:
        sim = self._sim
        if sim.settings.unknown_submission_ids == "reject" and submission_id not in sim.submission_ids:
            raise bad(f"submission_id was not given out: {submission_id}")
        pending = sum(task.owner == owner for task in sim.engine.open.values())
        if pending >= sim.settings.max_pending_tasks:
            text = f"You have {pending} pending tasks, which is the limit. Wait until some of them complete."
            raise ProblemError(409, sim.settings.too_many_code, text)

    def _task(
        self,
        body: dict[str, Any],
        owner: str,
        source: Endpoint,
        destination: Endpoint,
        items: list[Item],
        pairs: frozenset[tuple[str, str]],
    ) -> Task:
        now = self._sim.agenda.time
        given = body.get("deadline")
        deadline = seconds_of(str(given)) if given else now + _DAY
        if deadline <= now:
            raise bad("deadline must be in the future")
        names = "\n".join(f"{one}\t{two}" for one, two in sorted(pairs))
        return Task(
            id=self._sim.ids.uuid(),
            submission_id=body["submission_id"],
            owner=owner,
            source=source,
            destination=destination,
            options=options_of(body),
            pairs=pairs,
            pairs_digest=hashlib.sha256(names.encode()).hexdigest(),
            items=items,
            requested=now,
            deadline=deadline,
            deadline_given=bool(given),
        )

    def _result(self, task: Task, code: str) -> Answer:
        body = {
            "DATA_TYPE": "transfer_result",
            "code": code,
            "message": _MESSAGES[code],
            "request_id": self._sim.ids.hex32()[:9],
            "resource": "/v0.10/transfer",
            "submission_id": task.submission_id,
            "task_id": task.id,
            "task_link": {
                "DATA_TYPE": "link",
                "href": f"/v0.10/task/{task.id}?format=json",
                "rel": "related",
                "resource": "task",
                "title": "related task",
            },
        }
        return Answer(202 if code == "Accepted" else 200, body, ref=task.id)


class _Tasks:
    def __init__(self, sim: GlobusWorld) -> None:
        self._sim = sim

    def _asked(self, call: Call) -> Task:
        return self._sim.task(self._sim.tokens.caller(call), call.params["task"])

    def _show(self, task: Task) -> dict[str, Any]:
        self._sim.engine.settle(task)
        return task_json(task, self._sim.agenda.time, self._sim.history_deleted(task))

    def get(self, call: Call) -> Answer:
        task = self._asked(call)
        return Answer(200, self._show(task), ref=task.id)

    def list(self, call: Call) -> Answer:
        sim = self._sim
        owner, now = sim.tokens.caller(call).client.id, sim.agenda.time
        matches = matcher(call.query.getlist("filter"))
        seen = [
            task
            for task in reversed(sim.engine.tasks.values())
            if task.owner == owner and sim.is_known(task) and task.hidden_until <= now
        ]
        rows = [row for row in map(self._show, seen) if matches(row)]
        rows = order(rows, call.query.get("orderby") or "request_time DESC")
        return Answer(200, {"DATA_TYPE": "task_list"} | offset_page(call, rows, 10, 1000))

    def cancel(self, call: Call) -> Answer:
        task = self._asked(call)
        if task.is_over:
            code, text = "TaskComplete", "The task completed before the cancel request was processed."
        elif self._sim.engine.cancel(task):
            code, text = "Canceled", "The task has been cancelled successfully."
        else:
            code, text = "CancelAccepted", "The cancel request has been accepted and is processed in the background."
        body = {"DATA_TYPE": "result", "code": code, "message": text, "resource": f"/v0.10/task/{task.id}/cancel"}
        return Answer(200, body | {"request_id": self._sim.ids.hex32()[:9]}, ref=task.id)

    def events(self, call: Call) -> Answer:
        """Newest first, of the first thousand."""
        task = self._asked(call)
        events = [] if self._sim.history_deleted(task) else task.events[:1000]
        matches = matcher(call.query.getlist("filter"))
        rows = [row for row in map(event_json, reversed(events)) if matches(row)]
        return Answer(200, {"DATA_TYPE": "event_list"} | offset_page(call, rows, 10, 1000), ref=task.id)

    def successful(self, call: Call) -> Answer:
        task = self._asked(call)
        if not task.is_over:
            raise bad("successful_transfers are there for completed tasks only")
        rows = [] if self._sim.history_deleted(task) else task.moved
        page = marker_page(call, rows, self._sim.settings.page_size, moved_json)
        return Answer(200, {"DATA_TYPE": "successful_transfers"} | page, ref=task.id)

    def skipped(self, call: Call) -> Answer:
        task = self._asked(call)
        rows = [] if self._sim.history_deleted(task) else task.skipped
        page = marker_page(call, rows, self._sim.settings.page_size, skipped_json)
        return Answer(200, {"DATA_TYPE": "skipped_errors"} | page, ref=task.id)

    def pause_info(self, call: Call) -> Answer:
        task = self._asked(call)
        return Answer(200, pause_info_json(task), ref=task.id)


class _Files:
    def __init__(self, sim: GlobusWorld) -> None:
        self._sim = sim

    def endpoint(self, call: Call) -> Answer:
        owner = self._sim.tokens.caller(call).client.id
        endpoint = self._sim.endpoints.get(call.params["endpoint"])
        if endpoint is None:
            raise ProblemError(404, "EndpointNotFound", f"No such endpoint '{call.params['endpoint']}'")
        return Answer(200, endpoint_json(endpoint, owner))

    def ls(self, call: Call) -> Answer:
        endpoint, path = self._reached(call, call.query.get("path") or "/")
        self._refuse_denied(endpoint, path, [*endpoint.ls_denied, *endpoint.read_denied])
        if self._sim.collections.entry(endpoint.id, path) is not None:
            raise ProblemError(502, "ExternalError.DirListingFailed.NotDirectory", f"'{path}' is not a directory")
        if not self._sim.collections.is_folder(endpoint.id, path):
            text = f"Directory '{path}' not found on endpoint '{endpoint.display_name}'"
            raise ProblemError(404, "ClientError.NotFound", text)
        rows = [
            file_json(name, is_folder, entry)
            for name, is_folder, entry in self._sim.collections.children(endpoint.id, path)
            if self._is_listed(endpoint, join(path, name), entry is not None and entry.private)
        ]
        if call.query.get("show_hidden") in ("0", "false", "False"):
            rows = [row for row in rows if not row["name"].startswith(".")]
        matches = matcher(call.query.getlist("filter"))
        rows = order([row for row in rows if matches(row)], call.query.get("orderby") or "name ASC")
        shown = path if path == "/" else f"{path}/"
        head = {"DATA_TYPE": "file_list", "path": shown, "absolute_path": shown, "endpoint": endpoint.id}
        return Answer(200, head | offset_page(call, rows, 100_000, 100_000))

    def stat(self, call: Call) -> Answer:
        endpoint, path = self._reached(call, call.query.get("path") or "/")
        self._refuse_denied(endpoint, path, [*endpoint.ls_denied, *endpoint.read_denied])
        entry = self._sim.collections.entry(endpoint.id, path)
        is_folder = entry is None and self._sim.collections.is_folder(endpoint.id, path)
        if not is_folder and (entry is None or entry.private):
            raise ProblemError(
                404, "NotFound", f"Path not found, Error (list)\nMessage: No such file or directory: {path}"
            )
        return Answer(200, file_json(split(path)[1] or "/", is_folder, entry))

    def bytes_over_https(self, call: Call) -> Answer:
        """A collection's own address, which is here one of this service."""
        endpoint = self._sim.endpoints.get(call.params["endpoint"])
        if endpoint is None or endpoint.https_server is None:
            raise ProblemError(404, "NotFound", "no collection has this address")
        self._sim.tokens.caller(call, https=endpoint.id)
        path = checked_path("/" + call.params["path"])
        if endpoint.forbidden or denied(endpoint.read_denied, path):
            raise ProblemError(403, "Forbidden", f"Path not allowed: {path}")
        entry = self._sim.collections.entry(endpoint.id, path)
        if entry is None or entry.data is None:
            raise ProblemError(404, "NotFound", f"No such file: {path}")
        return Answer(200, entry.data.read_bytes(), media_type="application/octet-stream")

    def mkdir(self, call: Call) -> Answer:
        body = call.json()
        endpoint, path = self._reached(call, body.get("path") if isinstance(body, dict) else None)
        self._refuse_denied(endpoint, path, endpoint.write_denied)
        collections = self._sim.collections
        if collections.entry(endpoint.id, path) is not None or collections.is_folder(endpoint.id, path):
            raise ProblemError(502, "ExternalError.MkdirFailed.Exists", f"Path already exists: '{path}'")
        if not collections.is_folder(endpoint.id, split(path)[0]):
            raise ProblemError(404, "ClientError.NotFound", f"Directory '{split(path)[0]}' not found")
        try:
            collections.make_folder(endpoint.id, path)
        except OSError as error:
            raise ProblemError(502, "ExternalError.MkdirFailed", f"cannot make '{path}': {error.strerror}") from error
        self._sim.journal.record("folder_made", endpoint=endpoint.id, path=path)
        facts = {"code": "DirectoryCreated", "message": "The directory was created successfully"}
        where = {"resource": call.path, "request_id": self._sim.ids.hex32()[:9]}
        return Answer(202, {"DATA_TYPE": "mkdir_result"} | facts | where)

    def _reached(self, call: Call, path: Any) -> tuple[Endpoint, str]:
        endpoint = self._sim.access(self._sim.tokens.caller(call), call.params["endpoint"])
        checked = checked_path(path)
        if not endpoint.connected:
            text = f"cannot connect to '{endpoint.display_name}'"
            raise ProblemError(502, "ExternalError.DirListingFailed.ConnectFailed", text)
        return endpoint, checked

    def _refuse_denied(self, endpoint: Endpoint, path: str, patterns: list[str]) -> None:
        if denied(patterns, path):
            raise ProblemError(
                403, "EndpointPermissionDenied", f"Denied by endpoint, Error (list)\nPath not allowed: {path}"
            )

    def _is_listed(self, endpoint: Endpoint, path: str, private: bool) -> bool:
        return not private and not denied(endpoint.ls_denied, path)
