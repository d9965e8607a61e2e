"""The side channel of the ICAv2 simulator under `/_sim/`: seeding, truth, outages. Not part of the simulated API.

Invariant: it offers what `IcaWorld` has as methods, so that a test in another process needs no other way in.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from simulators.common.controls import Controls
from simulators.icav2.render import node_truth
from simulators.icav2.scenarios import seed_scenario
from simulators.icav2.simulator import IcaWorld


def add_controls(sim: IcaWorld) -> None:
    """Register the side channel."""
    for method, path, handler in (*_seeding(sim), *_truth(sim), *_accounts(sim)):
        sim.control(method, path, handler)


def _seeding(sim: IcaWorld) -> Controls:
    async def project(request: Request) -> Any:
        body = await request.json()
        return asdict(sim.seed_project(body.get("id"), body.get("name"), body.get("rights")))

    async def files(request: Request) -> Any:
        body = await request.json()
        return [node_truth(_seed(sim, request.path_params["project"], item)) for item in _list(body)]

    async def folders(request: Request) -> Any:
        body = await request.json()
        nodes = [sim.seed_folder(request.path_params["project"], item["path"]) for item in _list(body)]
        return [node_truth(node) for node in nodes if node is not None]

    async def data(request: Request) -> Any:
        return node_truth(sim.set_data(request.path_params["data"], **await request.json()))

    async def scenario(request: Request) -> Any:
        return seed_scenario(sim, (await request.json())["name"])

    return [
        ("POST", "/projects", project),
        ("POST", "/projects/{project}/files", files),
        ("POST", "/projects/{project}/folders", folders),
        ("PATCH", "/data/{data}", data),
        ("POST", "/scenario", scenario),
    ]


def _truth(sim: IcaWorld) -> Controls:
    async def projects(_: Request) -> Any:
        return [asdict(project) for project in sim.tree.projects.values()]

    async def tree(request: Request) -> Any:
        return sim.dump(request.path_params["project"])

    async def jobs(_: Request) -> Any:
        return sim.job_truth()

    async def outage(request: Request) -> Any:
        body = await request.json()
        sim.job_outage(float(body["seconds"]), float(body.get("starts_in", 0)))
        return {"ok": True}

    async def deliver(_: Request) -> Any:
        return {"posted": await sim.deliver()}

    return [
        ("GET", "/projects", projects),
        ("GET", "/projects/{project}/tree", tree),
        ("GET", "/jobs", jobs),
        ("POST", "/job-outage", outage),
        ("POST", "/deliver", deliver),
    ]


def _accounts(sim: IcaWorld) -> Controls:
    async def users(request: Request) -> Any:
        body = await request.json()
        user = sim.tokens.add_user(body["name"], body["api_key"], body.get("password", ""))
        user.default_right = body.get("default_right", user.default_right)
        return {"name": user.name, "id": user.id}

    async def revoke(_: Request) -> Any:
        return {"revoked": sim.tokens.revoke_all()}

    return [("POST", "/users", users), ("POST", "/tokens/revoke", revoke)]


def _list(body: Any) -> list[dict[str, Any]]:
    return body if isinstance(body, list) else [body]


def _seed(sim: IcaWorld, project_id: str, item: dict[str, Any]) -> Any:
    more = dict(item)
    if "content_base64" in more:
        more["content"] = base64.b64decode(more.pop("content_base64"), validate=True)
    elif "content" in more:
        more["content"] = more["content"].encode()
    return sim.seed_file(project_id, **more)
