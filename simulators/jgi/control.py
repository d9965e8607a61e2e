"""The side channels of the JDP and GOLD simulators under `/_sim/`: requests, purges, sessions, projects. Not part of the APIs.

Invariant: they offer what the worlds have as methods, so that a test in another process needs no other way in.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.requests import Request

from simulators.common import iso_millis
from simulators.common.controls import Controls
from simulators.jgi.catalog import ArchiveFile, Catalog, Proposal
from simulators.jgi.gold import GoldWorld
from simulators.jgi.jdp import JdpWorld
from simulators.jgi.restores import Restore
from simulators.jgi.search import naive_utc, status_of


def add_jdp_controls(sim: JdpWorld) -> None:
    """Register the side channel of JDP."""
    for method, path, handler in (*_requests(sim), *_archive(sim), *_sessions(sim)):
        sim.control(method, path, handler)


def _requests(sim: JdpWorld) -> Controls:
    """Restore requests: all of them, one held in pending (`{"seconds"}`, or for ever) or released; the fullest window."""

    async def requests(_: Request) -> Any:
        return [request_truth(each) for each in sim.engine.requests.values()]

    async def hold(request: Request) -> Any:
        held = sim.request(int(request.path_params["request"]))
        sim.engine.hold(held, (await _body(request)).get("seconds"))
        return request_truth(held)

    async def release(request: Request) -> Any:
        held = sim.request(int(request.path_params["request"]))
        sim.engine.release(held)
        return request_truth(held)

    async def window(request: Request) -> Any:
        query = request.query_params
        seconds, limit = query.get("seconds"), query.get("limit")
        peak = sim.engine.peak(float(seconds) if seconds else None, int(limit) if limit else None, query.get("user"))
        return peak._asdict()

    return [
        ("GET", "/requests", requests),
        ("POST", "/requests/{request}/hold", hold),
        ("POST", "/requests/{request}/release", release),
        ("GET", "/window", window),
    ]


def _archive(sim: JdpWorld) -> Controls:
    """Files: what is so of them, purged now, taken out of the archive; further projects."""

    async def files(request: Request) -> Any:
        proposal = request.query_params.get("proposal")
        chosen = sim.catalog.files_of_proposal(int(proposal)) if proposal else sim.catalog.files.values()
        return [file_truth(file) for file in chosen]

    async def purge(request: Request) -> Any:
        body = await _body(request)
        return {"purged": sim.purge(body.get("ids"), bool(body.get("everything")))}

    async def withdraw(request: Request) -> Any:
        return file_truth(sim.withdraw(request.path_params["file"]))

    async def project(request: Request) -> Any:
        return project_truth(sim.catalog, sim.add_project(**await _body(request)))

    return [
        ("GET", "/files", files),
        ("POST", "/purge", purge),
        ("POST", "/files/{file}/withdraw", withdraw),
        ("POST", "/projects", project),
    ]


def _sessions(sim: JdpWorld) -> Controls:
    """A person logs in anew and copies the token; all tokens end."""

    async def login(request: Request) -> Any:
        return {"token": sim.sessions.login(**await _body(request))}

    async def revoke(_: Request) -> Any:
        return {"revoked": sim.sessions.revoke_all()}

    return [("POST", "/sessions", login), ("POST", "/sessions/revoke", revoke)]


def add_gold_controls(sim: GoldWorld) -> None:
    """GET `/projects`: what is in the catalog; POST `/tokens/revoke`, with `{"offline_too": true}` the offline ones too."""

    async def projects(_: Request) -> Any:
        return [project_truth(sim.catalog, each) for each in sim.catalog.proposals.values()]

    async def revoke(request: Request) -> Any:
        return {"revoked": sim.revoke_all(**await _body(request))}

    sim.control("GET", "/projects", projects)
    sim.control("POST", "/tokens/revoke", revoke)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; none is an empty one."""
    body: dict[str, Any] = await request.json() if await request.body() else {}
    return body


def request_truth(request: Restore) -> dict[str, Any]:
    """What is so of a request, also what no answer tells."""
    return {
        "id": request.id,
        "user": request.user,
        "status": request.status,
        "begun": request.begun,
        "ids": [file.id for file in request.files],
        "bytes": request.bytes,
        "created": iso_millis(request.created),
        "expires": iso_millis(request.expires),
        "ready_at": None if request.ready_at is None else iso_millis(request.ready_at),
        "wait_seconds": request.draw.wait_seconds,
        "slow": request.draw.slow,
        "held": math.isinf(request.held_until),
        "paths": dict(request.paths),
    }


def file_truth(file: ArchiveFile) -> dict[str, Any]:
    """What is so of a file, also what its record leaves out."""
    return {
        "id": file.id,
        "name": file.name,
        "size": file.size,
        "md5": file.md5,
        "directory": file.directory,
        "analyses": list(file.analyses),
        "status": status_of(file),
        "on_disk": file.on_disk,
        "dt_to_purge": None if file.dt_to_purge is None else naive_utc(file.dt_to_purge),
        "private": file.private,
        "real": file.content is not None,
        "traps": sorted(file.traps),
        "withdrawn": file.withdrawn,
    }


def project_truth(catalog: Catalog, proposal: Proposal) -> dict[str, Any]:
    """A project with its biosamples and how much it holds."""
    files = catalog.files_of_proposal(proposal.id)
    return {
        "proposal_id": proposal.id,
        "name": proposal.name,
        "study": proposal.study,
        "biosamples": [each.gold_id for each in catalog.biosamples.values() if each.proposal_id == proposal.id],
        "files": len(files),
        "bytes": sum(file.size for file in files),
    }
