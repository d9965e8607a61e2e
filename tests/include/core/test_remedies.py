"""Every cause has a remedy that names what a person needs, and none only says to trigger again."""

from __future__ import annotations

import pytest

from include.core import errors
from include.core.ledger.submit import AttemptLost, InDoubt
from include.core.remedies import (
    _REMEDIES,
    Cause,
    Problem,
    again_at,
    cause_of,
    lines_of,
    of_record,
    problems_of_steps,
    refusals,
    remedy_of,
)
from include.core.text import few, shorten

CAUSES = [
    (errors.AuthError("401"), Cause.CREDENTIAL),
    (errors.Forbidden("403"), Cause.FORBIDDEN),
    (errors.RequestError("x: wrong"), Cause.REFUSED),
    (errors.TransientError("busy"), Cause.TRANSIENT),
    (InDoubt("?"), Cause.TRANSIENT),
    (AttemptLost("!"), Cause.TRANSIENT),
    (errors.QuotaExceeded("full", available_at=5.0), Cause.QUOTA),
    (errors.DeadlinePassed("the time was over"), Cause.DEADLINE),
    (errors.Held("?"), Cause.HELD),
    (errors.Stopped("amy"), Cause.STOPPED),
    (errors.Unanswered("late"), Cause.EXPIRED),
    (errors.Cancelled("by amy"), Cause.CANCELLED),
    (errors.VerificationError("differs"), Cause.MISMATCH),
    (errors.NotFound("404"), Cause.NOT_FOUND),
    (errors.ConflictingRequest("two"), Cause.CONFLICT),
    (errors.RemoteError("no"), Cause.REMOTE),
    (errors.LedgerError("none"), Cause.LEDGER),
]


@pytest.mark.parametrize(("error", "cause"), CAUSES, ids=lambda one: type(one).__name__)
def test_each_error_has_its_cause(error: errors.WaybillError, cause: Cause):
    assert cause_of(error) is cause


def test_every_class_of_error_and_every_cause_has_an_answer():
    def below(kind: type) -> set[type]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    ours = {kind for kind in below(errors.WaybillError) if kind.__module__ == errors.__name__} - {errors.WaybillError}
    unknown = {kind for kind in ours if not any(isinstance(error, kind) for error, _ in CAUSES)}
    assert unknown <= {kind for kind in ours if cause_of(kind.__new__(kind)) is not Cause.LOST}
    assert set(_REMEDIES) == set(Cause)


@pytest.mark.parametrize("cause", Cause)
def test_a_remedy_names_what_to_do_and_never_only_to_trigger_again(cause: Cause):
    problem = Problem(
        cause, "it is so", "plate 7", "copy [3]", ("waybill_icav2",), ("manifest",), "amy can answer at https://a"
    )
    said = remedy_of([problem])
    assert said.startswith("plate 7 (it is so): ")
    named = ("copy [3]", "waybill_icav2", "manifest", "amy can answer at https://a")
    assert any(one in said for one in named) or cause is Cause.CANCELLED, said
    assert not said.lower().startswith("trigger") and ": trigger" not in said.lower()


def test_what_a_person_needs_stands_in_the_remedy():
    assert "connection waybill_icav2" in remedy_of([Problem(Cause.CREDENTIAL, "401", connections=("waybill_icav2",))])
    assert "resolve ID --as sent" in remedy_of([Problem(Cause.HELD, "?", task="copy")])
    assert "not before 1970-01-01 01:00 UTC" in remedy_of([Problem(Cause.TRANSIENT, "busy", not_before=3600.0)])
    fields = tuple(f"field{n}" for n in range(20))
    said = remedy_of([Problem(Cause.REFUSED, "no", fields=fields)])
    assert "field7 and 12 more, all listed in the receipt" in said
    assert remedy_of([Problem(Cause.UNANSWERED, "?", question="amy can answer at U")]) == "amy can answer at U."


def test_what_is_alike_is_said_once_for_all_it_concerns_and_what_is_not_apart():
    alike = [Problem(Cause.MISMATCH, f"why {n}", f"plate {n}", "verify") for n in range(5)]
    said = remedy_of([*alike, Problem(Cause.HELD, "?", "plate 9", "delete")], "parts are recognised")
    assert said.count("Compare what is named") == 1
    assert said.startswith("plate 0; plate 1; plate 2; and 2 more: see the items: ")
    assert "plate 9 (?): Run `python -m include.core.ledger in-doubt`" in said
    assert "parts are recognised" in said


def test_advice_of_the_system_takes_the_place_of_the_general_remedy():
    assert remedy_of([Problem(Cause.MISMATCH, "w", "p", advice="Move it.")]) == "p (w): Move it."


def test_problems_come_from_the_records_of_the_steps():
    failed = {
        "state": "failed",
        "why": "401",
        "cause": "credential",
        "connections": ["c"],
        "task_id": "t",
        "map_index": 3,
    }
    steps = {
        "plan": {"state": "done"},
        "copy": failed,
        "load": {
            "state": "refused",
            "why": "x",
            "problems": ["a.b: no", "a[“x: y”]: no", "c and d: no", "icav2://x: no"],
        },
    }
    copy, load = problems_of_steps(steps)
    assert (copy.cause, copy.task, copy.connections) == (Cause.CREDENTIAL, "t [3]", ("c",))
    assert (load.cause, load.fields) == (Cause.REFUSED, ("a", "c and d"))
    assert of_record({}, "copy").why == "the task was not reached"
    assert of_record({"state": "running"}, "copy").cause is Cause.LOST
    assert of_record({"state": "failed", "why": "old", "cause": "nobody knows"}, "copy").cause is Cause.LOST
    assert lines_of([copy, copy, load]) == ["401", "x"]


def test_when_to_try_again():
    assert again_at(errors.TransientError("busy", retry_after=60), 100.0) == 160.0
    assert again_at(errors.QuotaExceeded("full", available_at=7.0), 100.0) == 7.0
    assert again_at(errors.TransientError("busy"), 100.0) is None
    assert again_at(errors.AuthError("401"), 100.0) is None


def test_nothing_is_cut_without_saying_how_much_and_where_the_rest_is():
    assert few(["a", "b", "c"], 2, "see the receipt") == "a; b; and 1 more: see the receipt"
    assert few(["a"], 2, "see") == "a"
    assert few(["a", "b"], 3, "see", 9) == "a; b; and 7 more: see"
    text = shorten("x" * 500, 100, "in the receipt")
    assert len(text) == 100 and text.endswith("… (cut, 500 characters in all: in the receipt)")
    assert shorten("x" * 100, 100, "in the receipt") == "x" * 100


def test_two_steps_that_refuse_the_same_request_are_one_problem():
    refusal = {"state": "refused", "why": "plates: none", "problems": ["plates: none", "batch: empty"]}
    steps = {"load_request": refusal, "approval": {**refusal, "task_id": "approval"}}
    assert len(problems_of_steps(steps)) == 1
    assert refusals(steps) == ["plates: none", "batch: empty"]
