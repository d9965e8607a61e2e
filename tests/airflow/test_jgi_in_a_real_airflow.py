"""Projects of the published shape from nothing to verified, over several runs, while answers are lost and one request is empty.

Invariant: what is right is read from what the simulators of JDP and Globus hold and from their journals.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from include.core.ledger.audit import verify
from rehearsal.scenes.jgi import DAG_ID, JgiScene
from tests.airflow.conftest import HANG, SMALL_WINDOW_BYTES, Rehearsal

pytestmark = [pytest.mark.airflow, pytest.mark.full, HANG]  # several runs of simulated days
POST = {"method": "POST", "path": "download_files|request_archived"}


class Published(JgiScene):
    """The two projects whose analyses have the published files."""

    projects: Mapping[str, int] = {"grow": 503568, "bioscales": 502924}
    window_bytes = SMALL_WINDOW_BYTES

    def prepare(self) -> None:
        super().prepare()  # the answer to the second restore request is lost
        self.world.fault("jdp", **POST, fault="ready_but_empty")
        self.world.fault("globus", method="POST", path="/transfer$", fault="drop_after_commit")
        self.world.fault("globus", method="POST", path="/transfer$", after=3, fault="corrupt_arrival")
        self.world.fault("globus", method="GET", path="/task/", times=2, fault="status", code=503)


def receipt_of(rehearsal: Rehearsal, run_id: str) -> Any:
    place = rehearsal.stack.home / "environment" / "receipts" / DAG_ID / run_id / "receipt.json"
    return json.loads(place.read_text("utf-8"))


def test_two_projects_go_from_nothing_to_verified_and_nothing_is_asked_for_twice(rehearsal: Rehearsal):
    scene = Published(rehearsal.stack, rehearsal.ledger)
    scene.prepare()
    rehearsal.api.unpause(DAG_ID)
    try:
        scene.start()
        runs = scene.finish(print, lambda _runs: None)
    finally:
        rehearsal.api.pause(DAG_ID)
    empty = scene.world.spoilt()
    assert empty, "the request that was ready and empty was never made"
    assert scene.world.problems(rehearsal.ledger, scene.projects, asked_again=empty) == []
    receipts = sorted(
        (receipt_of(rehearsal, run.run_id) for run in runs), key=lambda one: str(one["timings"]["started"])
    )
    states = Counter(receipt["state"] for receipt in receipts)
    assert states["handed_on"] >= 1 and receipts[-1]["state"] == "complete", [one["outcome"] for one in receipts]
    assert {run.state for run in runs} == {"success"}, [one["problems"] for one in receipts]
    wanted = len(scene.world.wanted(list(scene.projects.values())))
    assert receipts[-1]["totals"]["verified"] >= wanted
    assert verify(rehearsal.ledger, receipts).problems == []
