"""The side channel of the ICAv2 simulator under `/_sim/`: seeding, truth, outages. Not part of the simulated API.

The one thing to know: it offers what `IcaSimulator` has as methods, so that a test in another process needs no other way in.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from simulators.icav2.render import node_truth
from simulators.icav2.scenarios import seed_scenario

if TYPE_CHECKING:
    from simulators.icav2.simulator import IcaSimulator


def add_controls(sim: IcaSimulator) -> None:
    """Register the side channel."""

    async def projects(request: Request) -> Any:
        if request.method == "POST":
            body = await request.json()
            return asdict(sim.seed_project(body.get("id"), body.get("name"), body.get("rights")))
        return [asdict(project) for project in sim.tree.projects.values()]

    async def files(request: Request) -> Any:
        body = await request.json()
        return [node_truth(_seed(sim, request.path_params["project"], item)) for item in _list(body)]

    async def folders(request: Request) -> Any:
        body = await request.json()
        nodes = [sim.seed_folder(request.path_params["project"], item["path"]) for item in _list(body)]
        return [node_truth(node) for node in nodes if node is not None]

    async def tree(request: Request) -> Any:
        return sim.dump(request.path_params["project"])

    async def data(request: Request) -> Any:
        return node_truth(sim.set_data(request.path_params["data"], **await request.json()))

    async def jobs(request: Request) -> Any:
        return sim.job_truth()

    async def outage(request: Request) -> Any:
        body = await request.json()
        sim.job_outage(float(body["seconds"]), float(body.get("starts_in", 0)))
        return {"ok": True}

    async def deliver(request: Request) -> Any:
        return {"posted": await sim.deliver()}

    async def users(request: Request) -> Any:
        body = await request.json()
        user = sim.tokens.add_user(body["name"], body["api_key"], body.get("password", ""))
        user.default_right = body.get("default_right", user.default_right)
        return {"name": user.name, "id": user.id}

    async def revoke(request: Request) -> Any:
        return {"revoked": sim.tokens.revoke_all()}

    async def scenario(request: Request) -> Any:
        return seed_scenario(sim, (await request.json())["name"])

    sim.control("GET", "/projects", projects)
    sim.control("POST", "/projects", projects)
    sim.control("POST", "/projects/{project}/files", files)
    sim.control("POST", "/projects/{project}/folders", folders)
    sim.control("GET", "/projects/{project}/tree", tree)
    sim.control("PATCH", "/data/{data}", data)
    sim.control("GET", "/jobs", jobs)
    sim.control("POST", "/job-outage", outage)
    sim.control("POST", "/deliver", deliver)
    sim.control("POST", "/users", users)
    sim.control("POST", "/tokens/revoke", revoke)
    sim.control("POST", "/scenario", scenario)


def _list(body: Any) -> list[dict[str, Any]]:
    return body if isinstance(body, list) else [body]


def _seed(sim: IcaSimulator, project_id: str, item: dict[str, Any]) -> Any:
    more = dict(item)
    if "content_base64" in more:
        more["content"] = base64.b64decode(more.pop("content_base64"), validate=True)
    elif "content" in more:
        more["content"] = more["content"].encode()
    return sim.seed_file(project_id, **more)
