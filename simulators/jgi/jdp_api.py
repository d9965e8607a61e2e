"""The HTTP operations of JDP that clients are known to use: search, restore, status, bytes.

Invariant: a refusal is `{"detail": …}`, and a restore that is refused leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from simulators.common import Answer, Call, ProblemError
from simulators.common.wire import Operation
from simulators.jgi.catalog import ArchiveFile
from simulators.jgi.jdp import JdpWorld
from simulators.jgi.restores import Restore
from simulators.jgi.search import Query, answer_json, by_ids, find, known_field

_PACIFIC = timezone(timedelta(hours=-7))
_BOOLEANS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
_FLAGS = ("send_mail", "send_email", "restore_related_ap_data", "include_private_data")


def add_routes(sim: JdpWorld) -> None:
    """Register every operation. Django, which JDP runs on, sends a path without its last slash to the one that has it."""
    search, restore = _Search(sim), _Restores(sim)
    routes: list[tuple[str, str, Operation]] = [
        ("GET", "/search/", search.search),
        ("POST", "/search/by_file_ids/", search.by_file_ids),
        ("POST", "/request_archived_files/", restore.create),
        ("POST", "/download_files/", restore.create),
        ("GET", "/request_archived_files/requests/{request_id}", restore.status),
        ("GET", "/request_archived_files/requests/{request_id}/", restore.status),
        ("GET", "/download_files/{file_id}/", restore.download),
    ]
    for method, template, operation in routes:
        sim.route(method, template, operation)
    for path in ("/search", "/search/by_file_ids", "/request_archived_files", "/download_files"):
        for method in ("GET", "POST"):
            sim.route(method, path, _to(path + "/"))
    for path in ("/request_archived_files/", "/download_files/", "/search/by_file_ids/"):
        sim.route("GET", path, _wrong_method)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        sim.route(method, "/{rest:path}", _nothing_there)


def _to(path: str) -> Callable[[Call], Answer]:
    def redirect(call: Call) -> Answer:
        return Answer(301, None, None, {"Location": path + (f"?{call.raw_query}" if call.raw_query else "")})

    return redirect


def _wrong_method(call: Call) -> Answer:
    raise ProblemError(405, "Method not allowed", f'Method "{call.method}" not allowed.')


def _nothing_there(call: Call) -> Answer:
    raise ProblemError(404, "Not found", "Not found.")


class _Search:
    def __init__(self, sim: JdpWorld) -> None:
        self._sim = sim

    def search(self, call: Call) -> Answer:
        """Open to all; private files only with `include_private_data=1` and a token. A token that is not good is ignored."""
        size = _number(call, "x", 10)
        if size > self._sim.settings.max_page_groups:
            raise ProblemError(400, "Bad request", f"x must not be more than {self._sim.settings.max_page_groups}.")
        query = Query(
            text=call.query.get("q", ""),
            field=call.query.get("f", ""),
            statuses=tuple(call.query.getlist("ff[file_status]")),
            private=call.query.get("include_private_data") == "1"
            and self._sim.sessions.caller_or_none(call) is not None,
            page=_number(call, "p", 1),
            size=size,
            descending=call.query.get("d") == "desc",
        )
        if not known_field(query.field):
            raise ProblemError(400, "Bad request", f"f={query.field} is not a field.")
        return Answer(200, answer_json(find(self._sim.catalog, query), query.page, query.size))

    def by_file_ids(self, call: Call) -> Answer:
        body = _object(call)
        ids, most = body.get("ids"), self._sim.settings.max_search_ids
        if not isinstance(ids, list) or not ids or not all(isinstance(each, str) for each in ids):
            raise ProblemError(400, "Bad request", "ids must be a list of file ids.")
        if len(ids) > most:
            raise ProblemError(400, "Bad request", f"Not more than {most} ids.")
        private = _flag(body, "include_private_data") and self._sim.sessions.caller_or_none(call) is not None
        hits = by_ids(self._sim.catalog, ids, private)
        return Answer(200, answer_json(hits, 1, max(1, len(hits))))


class _Restores:
    def __init__(self, sim: JdpWorld) -> None:
        self._sim = sim

    def create(self, call: Call) -> Answer:
        user = self._sim.sessions.caller(call)
        body = _object(call)
        for name in _FLAGS:
            _flag(body, name)
        ids = list(dict.fromkeys(_ids(body.get("ids"))))
        if len(ids) > self._sim.settings.max_ids:
            told = f"{len(ids)} files; not more than {self._sim.settings.max_ids} in one request."
            raise ProblemError(self._sim.settings.too_many_status, "Too many files", told)
        request = self._sim.engine.accept(user, str(body.get("globus_user_name", "")), self._files(ids))
        answer = {
            "updated_count": request.updated_count,
            "restored_count": request.restored_count,
            "request_id": request.id,
            "request_status_url": f"{call.base_url}/request_archived_files/requests/{request.id}",
        }
        return Answer(200, answer, ref=str(request.id))

    def _files(self, ids: list[str]) -> list[ArchiveFile]:
        known = self._sim.catalog.files
        unknown = [each for each in ids if each not in known or known[each].withdrawn]
        if unknown:
            raise ProblemError(404, "Not found", f"Unknown file ids: {', '.join(unknown[:10])}")
        return [known[each] for each in ids]

    def status(self, call: Call) -> Answer:
        """Anyone may look; a token that is not good is refused all the same."""
        if "authorization" in call.headers:
            self._sim.sessions.caller(call)
        number = call.params["request_id"]
        request = self._sim.engine.requests.get(int(number) if number.isascii() and number.isdigit() else 0)
        if request is None:
            raise ProblemError(404, "Not found", "No such request.")
        return Answer(200, _status_json(request))

    def download(self, call: Call) -> Answer:
        self._sim.sessions.caller(call)
        file = self._sim.catalog.files.get(call.params["file_id"])
        if file is None or file.withdrawn:
            raise ProblemError(404, "Not found", "No such file.")
        if not file.on_disk:
            raise ProblemError(409, "Conflict", "The file is archived: request its restore first.")
        if file.content is None:
            raise ProblemError(501, "Not implemented", f"The simulator keeps no bytes of {file.id}, it is too large.")
        name = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name)}"}
        return Answer(200, file.content, "application/octet-stream", name)


def _status_json(request: Restore) -> dict[str, Any]:
    return {
        "request_id": request.id,
        "status": request.status,
        "api_version": "1",
        "file_ids": [file.id for file in request.files],
        "file_count": len(request.files),
        "total_size": request.bytes,
        "restored_count": request.restored_count,
        "updated_count": request.updated_count,
        "created_date": _pacific(request.created),
        "modified_date": _pacific(request.modified),
        "expiration_date": _pacific(request.expires),
        "globus_user_name": request.globus_user or None,
        "send_mail": True,
        "messages": [],
    }


def _pacific(seconds: float) -> str:
    """A date as JDP writes those of requests: ISO with microseconds and an offset."""
    return datetime.fromtimestamp(seconds, UTC).astimezone(_PACIFIC).isoformat(timespec="microseconds")


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ProblemError(400, "Bad request", f"{name} must be a number from 1.")
    return int(text)


def _object(call: Call) -> dict[str, Any]:
    body = call.json()
    if not isinstance(body, dict):
        raise ProblemError(400, "Bad request", "The body must be a JSON object.")
    return body


def _flag(body: dict[str, Any], name: str) -> bool:
    """A boolean, which clients send as one, as a string or as 0 and 1."""
    value = body.get(name, False)
    if isinstance(value, str):
        value = value.lower()
    if not isinstance(value, str | int) or value not in _BOOLEANS:
        raise ProblemError(400, "Bad request", f"{name} must be true or false.")
    return _BOOLEANS[value]


def _ids(given: Any) -> list[str]:
    """The ids of a restore: a list, or an object of data sets each with its `file_ids`."""
    if isinstance(given, dict):
        parts = [each.get("file_ids") if isinstance(each, dict) else None for each in given.values()]
    else:
        parts = [given]
    ids = [each for part in parts if isinstance(part, list) for each in part]
    if not ids or any(not isinstance(part, list) for part in parts) or any(not isinstance(each, str) for each in ids):
        raise ProblemError(400, "Bad request", "ids must be a list of file ids, or an object with file_ids.")
    return ids
