"""The side channel of the simulated Globus, and what it shares with other services."""

from __future__ import annotations

import asyncio
import json

import httpx
from globus_rehearsal import ROOT, md5

from simulators.common import Clock, InProcessTransport, Setup, Shared, build
from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION, collections_of

OTHER = "33333333-3333-4333-8333-333333333333"


def sim(globus, method: str, path: str, /, **body):
    answer = httpx.request(method, f"{globus.url}/_sim{path}", json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_files_are_seeded_shown_spoilt_and_removed(globus):
    files = f"/endpoints/{JGI_COLLECTION}/files"
    sim(globus, "POST", files, path=f"{ROOT}/a", content="abc")
    sim(globus, "POST", files, path=f"{ROOT}/v", size=10**12, md5="0" * 32, private=True)
    shown = sim(globus, "GET", files)
    assert shown["folder"] == str(globus.files.folder_of(JGI_COLLECTION))
    assert shown["files"] == [
        {"path": f"{ROOT}/a", "size": 3, "md5": md5(b"abc"), "real": True, "private": False},
        {"path": f"{ROOT}/v", "size": 10**12, "md5": "0" * 32, "real": False, "private": True},
    ]
    assert sim(globus, "POST", f"/endpoints/{JGI_COLLECTION}/flip?path={ROOT}/a")["md5"] != md5(b"abc")
    assert sim(globus, "DELETE", f"{files}?path={ROOT}") == {"removed": True}
    assert sim(globus, "GET", files)["files"] == []


def test_collections_are_added_and_changed(globus):
    sim(globus, "POST", "/endpoints", id=OTHER, display_name="scratch", free_bytes=5)
    assert globus.client.get_endpoint(OTHER)["display_name"] == "scratch"
    assert sim(globus, "PATCH", f"/endpoints/{OTHER}", free_bytes=7)["free_bytes"] == 7
    answer = httpx.patch(f"{globus.url}/_sim/endpoints/{OTHER}", json={"colour": "red"})
    assert (answer.status_code, "colour" in answer.text) == (400, True)
    assert len(sim(globus, "GET", "/endpoints")) == 3


def test_tasks_are_told_as_they_are_and_suffer_faults(globus):
    task = globus.submit(globus.seed("a"))
    assert sim(globus, "POST", f"/tasks/{task}/faults", fault="pause_task", options={"message": "wait"}) == {
        "task_id": task,
        "status": "ACTIVE",
        "state": "queued",
    }
    assert globus.task(task)["is_paused"]
    assert sim(globus, "POST", f"/tasks/{task}/faults", fault="resume_task")["state"] == "running"
    globus.advance(10)
    truth = sim(globus, "GET", "/tasks")[0]
    assert (truth["status"], truth["pairs"]) == ("SUCCEEDED", [[f"{ROOT}/a", "/staging/a"]])
    assert httpx.post(f"{globus.url}/_sim/tasks/{task}/faults", json={"fault": "moonwalk"}).status_code == 400


def test_clients_are_added_and_tokens_revoked(globus):
    sim(globus, "POST", "/clients", id=OTHER, secret="theirs")
    globus.new_client(OTHER, "theirs").get_submission_id()
    assert sim(globus, "POST", "/tokens/revoke") == {"revoked": 1}


def test_another_service_fills_and_empties_the_collections(tmp_path):
    """What was due before a removal has been moved, whichever service is asked first."""
    clock = Clock(epoch=1_800_000_000.0, speed=0)
    setup = Setup(clock, shared=Shared(tmp_path))
    globus = build("globus", setup).simulator
    files = collections_of(setup)
    files.put(JGI_COLLECTION, "/73709/R1/a", data=b"abc")

    async def ask(method: str, path: str, **options):
        async with httpx.AsyncClient(transport=InProcessTransport(globus.app), base_url="http://globus") as client:
            return (await client.request(method, path, **options)).json()

    async def submit() -> str:
        form = {"grant_type": "client_credentials"}
        client = next(iter(globus.tokens.clients.values()))
        token = (await ask("POST", "/v2/oauth2/token", data=form, auth=(client.id, client.secret)))["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        body = {
            "DATA_TYPE": "transfer",
            "submission_id": (await ask("GET", "/v0.10/submission_id", headers=headers))["value"],
            "source_endpoint": JGI_COLLECTION,
            "destination_endpoint": DESTINATION_COLLECTION,
            "DATA": [{"DATA_TYPE": "transfer_item", "source_path": "73709/R1/a", "destination_path": "/x/a"}],
        }
        answer = await ask("POST", "/v0.10/transfer", content=json.dumps(body), headers=headers)
        clock.advance(40 * 3600)
        files.remove(JGI_COLLECTION, "/73709/R1")  # as JDP does at a purge
        return (await ask("GET", f"/v0.10/task/{answer['task_id']}", headers=headers))["status"]

    assert asyncio.run(submit()) == "SUCCEEDED"
    assert (tmp_path / DESTINATION_COLLECTION / "x" / "a").read_bytes() == b"abc"
