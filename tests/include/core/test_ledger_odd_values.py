"""What a remote may answer, and what may be asked: odd texts and numbers lose nothing after a send, and send nothing before."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from include.core.errors import LedgerError, RemoteError, RequestError
from include.core.ledger import Accepted, InDoubt, Intent, Ledger, Quota, SendFence, Sent, State, submit_once, verify
from include.core.ledger.odd_values import storable, storable_id
from include.core.ledger.rows import Submission
from include.core.ledger.upkeep import long_in_doubt
from tests.include.core.ledger_world import Remote, begun, intent, owner, submit
from tests.include.core.test_ledger_states import at

S = State
LOOP: list[Any] = []
LOOP.append(LOOP)


def answer(ledger: Ledger, given: Any) -> Submission:
    async def send(_row: Submission, fence: SendFence) -> Any:
        fence()
        return given

    return asyncio.run(submit_once(ledger, intent(), send=send, probe=Remote().probe()))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("job\udc80", "escaped:job\\udc80"),
        ("job\0", "escaped:job\\x00"),
        ("j\\\0", "escaped:j\\\\\\x00"),
        ("job\\x00", "job\\x00"),
        ("escaped:job\\x00", "escaped:escaped:job\\\\x00"),
        (4711, "4711"),
        ("grün ⚗", "grün ⚗"),
    ],
)
def test_an_id_that_no_database_keeps_is_kept_readable_and_found_again(ledger: Ledger, given: Any, kept: str):
    row = answer(ledger, given)
    assert (row.state, row.external_id) == (S.SENT, kept)
    if kept != given:
        assert ledger.get(row.id).detail["remote_id"] == given
    if isinstance(given, str):
        assert ledger.known("tape", "restore", [given, "another"]) == {given}
    assert verify(ledger).problems == []


def test_an_id_that_is_too_long_is_kept_by_its_beginning_and_digest(ledger: Ledger):
    given = "j" * 5000
    row = answer(ledger, given)
    assert row.external_id is not None
    assert (row.state, row.external_id[:210], len(row.external_id)) == (
        S.SENT,
        "escaped:" + "j" * 200 + "…s",
        280,
    )
    assert ledger.get(row.id).detail["remote_id"] == given
    assert ledger.known("tape", "restore", [given]) == {given}


@pytest.mark.parametrize("given", ["", " ", None, {"id": 1}, float("nan"), b"job", True, LOOP])
def test_an_answer_whose_id_names_nothing_waits_for_its_id_and_is_not_sent_again(ledger: Ledger, given: Any):
    with pytest.raises(InDoubt, match="does not show its job yet"):
        for _ in range(2):
            answer(ledger, given)
    (row,) = ledger.generations("tape", "restore", "plate-7")
    assert (row.state, "answer_without_id" in row.detail) == (S.ACCEPTED, True)
    assert verify(ledger).problems == []


@pytest.mark.parametrize(
    "facts",
    [
        {"size": float("nan"), "rate": float("inf"), "ok": 1},
        {"when": object(), 7: {"a", "b"}},
        {"name": "\ud800\0"},
        {"deep": LOOP},
        {"big": 10**400},
        ["a", "list"],
        None,
    ],
)
def test_facts_that_are_no_json_are_kept_as_text_beside_the_id(ledger: Ledger, facts: Any):
    row = answer(ledger, Sent("job-1", facts))
    assert (row.state, row.external_id) == (S.SENT, "job-1")
    json.dumps(dict(ledger.get(row.id).detail), allow_nan=False)
    assert verify(ledger).problems == []


@pytest.mark.parametrize("within", [float("nan"), float("inf"), -1.0])
def test_a_yes_with_an_odd_promise_is_kept_all_the_same(ledger: Ledger, within: float):
    with pytest.raises(InDoubt):
        for _ in range(2):
            answer(ledger, Accepted({"x": float("nan")}, named_within_seconds=within))
    assert ledger.generations("tape", "restore", "plate-7")[0].state == S.ACCEPTED


def test_odd_words_of_an_error_are_kept(ledger: Ledger):
    remote = Remote(faults=[RemoteError("no: \ud800\0", no_effect=True)])
    with pytest.raises(RemoteError):
        submit(ledger, remote)
    (row,) = ledger.generations("tape", "restore", "plate-7")
    assert (row.state, row.detail["refusal"]) == (S.REJECTED, "no: \ud800\0")
    found = at(ledger, S.IN_DOUBT, intent("b"))
    assert ledger.record_found(found, "job\udc80").external_id == "escaped:job\\udc80"


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (intent(run_id="run\0"), "run_id .* NUL"),
        (intent(run_id="r" * 251), "run_id .* 251 bytes"),
        (replace(intent(), owner=replace(owner(), task_id="t\ud800")), "task_id .* no UTF-8"),
        (replace(intent(), account="a\0"), "account .* NUL"),
        (replace(intent(), system="s\ud800"), "system .* no UTF-8"),
        (replace(intent(), size_bytes=2**63), "size_bytes"),
        (replace(intent(), size_bytes=1.5), "size_bytes"),
        (replace(intent(), payload={"a": float("nan")}), "payload cannot be written as JSON"),
        (replace(intent(), detail={"a": object()}), "detail cannot be written as JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_sent(ledger: Ledger, what: Intent, problem: str):
    remote = Remote()
    assert ledger.latest("tape", "restore", [what.business_key, "odd\ud800", "odd\0"]) == {}
    with pytest.raises(RequestError, match=problem):
        submit(ledger, remote, what)
    assert (remote.requests, ledger.head()[0]) == (0, 0)


def test_a_hold_and_an_attachment_of_odd_names_are_refused(ledger: Ledger):
    with pytest.raises(RequestError, match=r"why .* NUL"):
        ledger.hold("tape", until=1.0, who="amy", why="a\0")
    with pytest.raises(RequestError, match="run_id"):
        ledger.attach(ledger.open(intent()), owner("run\ud800"))


def test_what_can_be_kept_is_left_alone():
    assert storable_id("job-1") == "job-1"
    assert storable({"a": [1, "ü", None]}) == {"a": [1, "ü", None]}


def test_every_job_that_was_accepted_counts_in_a_quota(ledger: Ledger):
    quota = Quota(100, doubt_expires=True)
    old = begun(ledger, intent(size=60), quota=quota)
    thought_absent = ledger.move(old, S.RESERVED, why="absence proved")
    new = ledger.begin(thought_absent, response_deadline=60, quota=quota)
    assert new is not None
    ledger.record_sent(new, "job-2", why="answer")
    with pytest.raises(Exception, match="replaced"):
        ledger.record_sent(old, "job-1", why="late")
    assert ledger.quota_reading("tape", "restore", quota).used_bytes == 120


ODD_IDS = [
    *(
        "a\0b",
        "a\\x00b",
        "a\\\\x00b",
        "a\\\0b",
        "escaped:a\\x00b",
        "escaped:a\0b",
        "escaped:escaped:a\\x00b",
        "\ud800",
        "\\ud800",
    ),
    *("é" * 1100 + "\0", "é" * 1100 + "\\x00", "…" * 900, "j" * 5000, "j" * 5001),
]


def test_no_two_ids_are_kept_alike():
    kept = [storable_id(given) for given in ODD_IDS]
    more = [storable_id(str(one)) for one in kept]  # what is kept, as the id of another job
    assert len({*kept, *more}) == len({*ODD_IDS, *(str(one) for one in kept)})


@pytest.mark.parametrize("given", ["job\0", "job\\x00", "j" * 5000])
def test_a_person_gives_an_id_as_messages_show_it(ledger: Ledger, given: str):
    shown = storable_id(given)
    row = ledger.move(at(ledger, S.IN_DOUBT), S.SENT, why="looked", who="amy", external_id=shown)
    assert (row.external_id, ledger.known("tape", "restore", [given])) == (shown, {given})


OURS_SAID_BY_A_REMOTE: list[dict[str, Any]] = [
    *({"late_answers": odd} for odd in ("abc", 5, [1], {"a": 1})),
    *({"late_acceptances": odd} for odd in (1, ["x"], {"answer": 1})),
    *({"attached_runs": odd} for odd in ([1], "x", [["copy", "run-9"]])),
    {"waybill_document": {"sha256": "0" * 64}},
    {"x": {"waybill_document": {"sha256": "0" * 64}}},
    {"waybill_archived": True, "names": 5},
    {"client_key": 5, "first_sending_at": "x", "first_sending_clock": "x"},
    {"named_by": "x", "claimed_until": "x", "not_before": "x"},
    {"is_effective": True, "effect_present": True},
    {"first_empty_search": 5, "first_empty_walk": 5},
    {"candidates": 5, "refusal": {}},
]


@pytest.mark.parametrize("said", OURS_SAID_BY_A_REMOTE)
@pytest.mark.parametrize("way", ["sent", "accepted", "late"])
def test_what_a_remote_says_is_never_read_as_our_own_note(ledger: Ledger, said: dict[str, Any], way: str):
    attempt = begun(ledger)
    if way == "late":
        again = ledger.begin(ledger.move(attempt, S.RESERVED, why="thought absent"), response_deadline=60)
        assert again is not None
        ledger.record_sent(again, "job-2", why="answer")
        with pytest.raises(LedgerError):
            ledger.record_accepted(attempt, said, named_within=60)
    elif way == "sent":
        ledger.record_sent(attempt, "job-1", why="answer", detail=said)
    else:
        ledger.record_accepted(attempt, said, named_within=60)
    row = ledger.get(attempt.id)
    assert (row.late_jobs, row.client_key, row.is_effective) == (int(way == "late"), None, False)
    assert ledger.quota_reading("tape", "restore", Quota(10)).in_doubt == ()
    assert long_in_doubt(ledger) == []
    kept = row.detail["late_acceptances"][0]["said"] if way == "late" else row.detail
    for name, value in said.items():
        assert value in (kept.get(name), kept.get(f"remote_{name}"))
    assert verify(ledger).problems == []
