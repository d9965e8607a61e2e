"""How a plate ended: each way has a word, a reason, and a remedy of its own."""

from __future__ import annotations

from typing import Any

import pytest

from include.core.questions import Record
from include.core.remedies import lines_of, remedy_of
from include.plates.report import STEPS, Standing, is_good, outcome_of, standing

ROW: dict[str, Any] = {"name": "20585", "objects": 3, "bytes": 9, "problems": [], "warnings": []}
ASKED: dict[str, Any] = {"delete_parts": ["images"], "bucket": "live", "undo_days": 0}
VERIFIED = {"state": "verified", "verdict": {"uri": "file:///v", "sha256": "0", "size_bytes": 1}}
DELETED = {"state": "done", "phase": "delete", "deleted": 3, "guard": "by version", "unknown": []}
MARKED = {**DELETED, "phase": "marker"}
LEFT = {"state": "left", "changed": ["a"], "failed": ["b", "c"], "deleted": 0}
FAILED = {"state": "failed", "why": "the store is busy", "cause": "transient", "task_id": "archive", "map_index": 4}
QUESTION = Record(
    task_id="approval", state="asked", people=("amy", "vic"), until="2026-12-10 10:00 UTC", where="https://a/required_actions",
    silence="nothing is deleted",
)  # fmt: skip


def ended(
    question: Record | None = None, row: dict[str, Any] | None = None, asked: dict[str, Any] | None = None, **steps: Any
) -> Standing:
    records = {step: steps.get(step, {}) for step in STEPS}
    return standing({**ROW, **(row or {})}, records, {**ASKED, **(asked or {})}, question)


DONE: dict[str, Any] = {"archive": {"state": "done"}, "verify": VERIFIED}
GOOD = [
    (ended(asked={"dry_run": True}), "planned"),
    (ended(asked={"delete_parts": []}, **DONE), "verified"),
    (ended(QUESTION.changed("rejected", by="amy"), **DONE), "rejected"),
    (ended(**DONE, delete=DELETED), "deleted"),
    (ended(**DONE, delete=MARKED), "marked"),
    (ended(**DONE, delete=MARKED, purge={"state": "waiting", "until": "tomorrow"}), "marked"),
    (ended(**DONE, delete=MARKED, purge={"state": "done", "deleted": 3, "guard": "g"}), "deleted"),
]
BAD = [
    (ended(row={"problems": ["images: cold"]}), "not planned", "Mend what is named"),
    (ended(archive=FAILED), "not archived", "clear task archive [4] once the remote answers"),
    (ended(), "not archived", "Clear task archive"),
    (ended(archive={"state": "done"}, verify={"state": "mismatch", "reasons": ["V1: x appeared"]}), "mismatch", "Keep both"),
    (ended(archive={"state": "done"}, verify={"state": "unverifiable", "reasons": ["403"]}), "unverifiable",
     "then clear task verify"),
    (ended(archive={"state": "done"}, verify={"state": "deletion begun", "why": "gone"}), "deletion begun",
     "plate_restore gives it back"),
    (ended(asked={"undo_days": 3}, archive={"state": "done"}, verify={"state": "deletion begun", "why": "gone"}),
     "deletion begun", "remove the delete markers of this plate: `aws s3api list-object-versions --bucket live"),
    (ended(archive={"state": "done"}, verify={"state": "running", "task_id": "verify"}), "not verified", "Clear task verify"),
    (ended(**DONE, delete={"state": "void", "why": "x appeared"}), "approval void", "Keep both copies"),
    (ended(**DONE, delete=LEFT), "partly deleted", "2 were refused by the store: give the right"),
    (ended(**DONE, delete={"state": "refused", "why": "not versioned", "task_id": "delete"}), "not deleted",
     "Protect the archive bucket"),
    (ended(**DONE, delete={"state": "running", "task_id": "delete"}), "not deleted", "Clear task delete"),
    (ended(**DONE, delete=MARKED, purge={"state": "void", "why": "brought back"}), "not purged", "Nothing, where somebody wants"),
    (ended(**DONE, delete=MARKED, purge=LEFT), "not purged", "1 were written anew since"),
    (ended(QUESTION, **DONE), "awaits approval", "amy or vic can answer until 2026-12-10 10:00 UTC, at https://a/required_actions"),
    (ended(QUESTION.changed("expired", why="nobody answered"), **DONE), "not deleted", "Clear task approval: it asks again"),
    (ended(QUESTION.changed("refused", why="vic is not one"), **DONE), "not deleted", "Clear task approval: it asks again"),
    (ended(QUESTION.changed("answered"), **DONE), "not deleted", "Clear task gate"),
    (ended(QUESTION.changed("approved", by="amy"), **DONE), "not deleted", "Clear task delete"),
    (ended(None, **DONE), "not deleted", "Clear task approval"),
    (ended(QUESTION, archive={"state": "done"}, verify={"state": "verified"}), "not deleted", "Clear task verify"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "state"), GOOD)
def test_what_ended_as_asked_needs_nobody(found: Standing, state: str):
    assert (found.state, found.problem) == (state, None)
    wanted = {"delete_parts": []} if state == "verified" else {**ASKED, "dry_run": state == "planned"}
    assert is_good(found.state, wanted)


@pytest.mark.parametrize(("found", "state", "remedy"), BAD, ids=[state for _, state, _ in BAD])
def test_what_did_not_says_why_and_what_to_do(found: Standing, state: str, remedy: str):
    assert found.state == state
    assert found.problem is not None
    assert remedy in remedy_of([found.problem])
    assert lines_of([found.problem]) == [f"20585: {found.why}"] and found.why
    assert not is_good(found.state, ASKED)


def test_a_plate_that_is_only_verified_is_not_good_where_it_was_to_be_deleted():
    assert not is_good("verified", ASKED)
    assert is_good("verified", {"delete_parts": []})


def test_an_outcome_without_a_proved_plate_says_first_what_is_the_matter():
    item = {
        "plate": "20585",
        "state": "not planned",
        "why": "nothing lies below images.",
        "objects": 0,
        "bytes": 0,
        "deleted": 0,
    }
    for asked in ({}, ASKED):
        told = outcome_of([item], asked, None)
        assert told == "No plate is archived and verified: plate 20585 is not planned: nothing lies below images."
    good = {**item, "plate": "20584", "state": "verified", "verify": VERIFIED, "why": ""}
    told = outcome_of([good, item, {**item, "plate": "20586"}], {}, None)
    assert told.endswith(
        "Not as asked: plate 20585 is not planned: nothing lies below images (1 more plate: see the receipt)."
    )
    assert told.startswith("1 of 3 plates are archived")
    asked = {"dry_run": True, "delete_parts": ["images"], "older_versions": "delete"}
    told = outcome_of([{**item, "state": "planned", "older_versions": 2}], asked, None)
    assert "1 of 1 plate " in told and told.endswith("2 older versions below the parts to delete would be deleted too.")
    told = outcome_of([item, {**item, "plate": "20586"}], {}, None)
    assert told.endswith("nothing lies below images (1 more plate: see the receipt).")
