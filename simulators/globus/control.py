"""The side channel of the Globus simulator under `/_sim/`: files, collections, faults of tasks, truth. Not part of the API.

Invariant: it offers what `GlobusWorld` and `Collections` have as methods, so that a test in another process needs no other way
in.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from simulators.common.controls import Controls
from simulators.globus.collections import Entry
from simulators.globus.simulator import GlobusWorld


def add_controls(sim: GlobusWorld) -> None:
    """Register the side channel."""
    for method, path, handler in (*_endpoints(sim), *_files(sim), *_tasks(sim), *_accounts(sim)):
        sim.control(method, path, handler)


def _endpoints(sim: GlobusWorld) -> Controls:
    async def show(_: Request) -> Any:
        return [asdict(endpoint) for endpoint in sim.endpoints.values()]

    async def add(request: Request) -> Any:
        body = await request.json()
        return asdict(sim.add_endpoint(body.pop("id"), **body))

    async def change(request: Request) -> Any:
        return asdict(sim.change_endpoint(request.path_params["endpoint"], **await request.json()))

    return [
        ("GET", "/endpoints", show),
        ("POST", "/endpoints", add),
        ("PATCH", "/endpoints/{endpoint}", change),
    ]


def _files(sim: GlobusWorld) -> Controls:
    """POST files; GET all of a collection with its folder; DELETE `?path=`; POST `?path=` to let one rot."""

    async def put(request: Request) -> Any:
        body = await request.json()
        return [
            _put(sim, request.path_params["endpoint"], item) for item in (body if isinstance(body, list) else [body])
        ]

    async def show(request: Request) -> Any:
        endpoint = request.path_params["endpoint"]
        found = [_entry(path, entry) for path, entry in sim.collections.files(endpoint)]
        return {"folder": str(sim.collections.folder_of(endpoint)), "files": found}

    async def remove(request: Request) -> Any:
        return {"removed": sim.collections.remove(request.path_params["endpoint"], request.query_params["path"])}

    async def flip(request: Request) -> Any:
        path = request.query_params["path"]
        return _entry(path, sim.collections.flip(request.path_params["endpoint"], path))

    return [
        ("POST", "/endpoints/{endpoint}/files", put),
        ("GET", "/endpoints/{endpoint}/files", show),
        ("DELETE", "/endpoints/{endpoint}/files", remove),
        ("POST", "/endpoints/{endpoint}/flip", flip),
    ]


def _tasks(sim: GlobusWorld) -> Controls:
    """GET what the tasks really are; POST `{"fault": ..., "seconds": ..., "options": {...}}` to one of them."""

    async def tasks(_: Request) -> Any:
        return sim.task_truth()

    async def afflict(request: Request) -> Any:
        body = await request.json()
        options = body.get("options", {})
        task = sim.afflict(request.path_params["task"], body["fault"], float(body.get("seconds", 0)), **options)
        return {"task_id": task.id, "status": task.status, "state": task.state}

    return [("GET", "/tasks", tasks), ("POST", "/tasks/{task}/faults", afflict)]


def _accounts(sim: GlobusWorld) -> Controls:
    async def client(request: Request) -> Any:
        body = await request.json()
        return {"id": sim.tokens.add_client(body["id"], body["secret"]).id}

    async def revoke(_: Request) -> Any:
        return {"revoked": sim.tokens.revoke_all()}

    return [("POST", "/clients", client), ("POST", "/tokens/revoke", revoke)]


def _put(sim: GlobusWorld, endpoint: str, item: dict[str, Any]) -> dict[str, Any]:
    more = dict(item)
    path = more.pop("path")
    if "content_base64" in more:
        more["data"] = base64.b64decode(more.pop("content_base64"), validate=True)
    elif "content" in more:
        more["data"] = more.pop("content").encode()
    return _entry(path, sim.collections.put(endpoint, path, **more))


def _entry(path: str, entry: Entry) -> dict[str, Any]:
    return {
        "path": path,
        "size": entry.size,
        "md5": entry.md5,
        "real": entry.data is not None,
        "private": entry.private,
    }
