"""The waybill of a run: what is written is read again, and the page shows text, never markup."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pydantic
import pytest

from include.core.receipt import LedgerHead, Receipt, ReceiptStore, folder, nothing_done, page
from include.core.text import format_bytes


def full(**more: Any) -> Receipt:
    facts: dict[str, Any] = {
        "dag_id": "icav2_copy_batch",
        "run_id": "manual__2026-01-01T00:00:00+00:00",
        "state": "complete",
        "outcome": "All 2 files are at their destinations.",
        "remedy": "",
        "asked": {"manifest_uri": "s3://b/m.json", "max_in_flight": 200},
        "totals": {"files": 2, "bytes": 10_000_000_000, "proved bytes": 10_000_000_000},
        "items": [{"destination": "icav2://p/x/", "failed_jobs": ["a", "b"]}, {"destination": "y", "state": "passed"}],
        "documents": {"plan": {"uri": "file:///r/plan.json", "sha256": "0" * 64, "size_bytes": 3}},
        "superseded": ["icav2://p/x/ generation 1"],
        "held": ["icav2://p/y/"],
        "questions": [{"who": "Ann", "where": "https://a/required_actions"}],
        "timings": {"copy": "12 s"},
        "versions": {"waybill": "0.1.0"},
        "ledger": LedgerHead(id="l1", number=7, sha256="f" * 64),
    }  # fmt: skip
    return Receipt(**(facts | more))


def test_a_question_is_shown_as_it_was_meant_to_be_read_and_loads_nothing():
    text = "Are these **deleted**?\n\n| plate | objects |\n| --- | ---: |\n| `a` | 3 |\n\n- <b>x</b> ![i](https://e/i) [l](https://e)"
    shown = page(full(questions=[{"text": text}]))
    assert "<strong>deleted</strong>" in shown and "<td>plate" not in shown and "<code>a</code>" in shown
    assert "| --- |" not in shown and "&lt;b&gt;x&lt;/b&gt;" in shown
    assert "<img" not in shown and "<a href" not in shown.split("Questions to people")[1].split("<h2>")[0]


@pytest.fixture
def store(tmp_path: Path) -> ReceiptStore:
    return ReceiptStore.at(f"file://{tmp_path}/receipts")


def test_a_receipt_is_read_as_it_was_written_and_its_digest_is_that_of_the_document(store, tmp_path):
    receipt = full()
    document = asyncio.run(store.write(receipt))
    assert asyncio.run(store.read(receipt.dag_id, receipt.run_id)) == receipt
    assert asyncio.run(store.objects.get_document(document.to_dict()))
    assert asyncio.run(store.read(receipt.dag_id, "another run")) is None
    assert (tmp_path / "receipts" / folder(receipt.dag_id, receipt.run_id) / "receipt.html").exists()


def test_all_receipts_are_listed_as_plain_documents_and_a_later_one_replaces_the_earlier(store):
    for receipt in (full(state="running"), full(), full(run_id="r2")):
        asyncio.run(store.write(receipt))
    found = asyncio.run(store.all())
    assert [(r["run_id"], r["state"]) for r in found] == [(full().run_id, "complete"), ("r2", "complete")]
    assert found[0]["ledger"] == {"id": "l1", "number": 7, "sha256": "f" * 64}
    assert json.loads(json.dumps(found)) == found


def test_the_barest_receipt_can_be_written(store):
    bare = Receipt(dag_id="d", run_id="r", state="incomplete", outcome="Nothing was planned.")
    asyncio.run(store.write(bare))
    assert asyncio.run(store.read("d", "r")) == bare


def test_the_page_says_what_the_document_says():
    html = page(full(remedy="Trigger again."))
    for text in ("All 2 files", "Trigger again.", "icav2://p/x/", "10.0 GB", "passed", "file:///r/plan.json", "Held",
                 "Superseded", "Ann", "12 s", "event 7", "max_in_flight", "generation 1"):  # fmt: skip
        assert text in html, text
    assert "failed_jobs" not in html, "lists are for programs"


EVIL = "<script>alert(1)</script>&\"'"


def test_what_an_item_holds_below_its_row_can_be_unfolded():
    item = {"plate": "20585", "verify": {"state": "verified", "proofs": {"V4": "24 members read back"}, "reasons": []}}
    text = page(
        Receipt(dag_id="d", run_id="r", state="complete", outcome="done", items=[item], questions=[{"by": "amy"}])
    )
    for wanted in ("20585: step by step", "24 members read back", "amy"):
        assert wanted in text
    assert "{'" not in text, "no program's notation on a page for people"


def test_nothing_on_the_page_is_markup_wherever_it_came_from():
    receipt = full(
        run_id=EVIL, outcome=EVIL, remedy=EVIL, asked={EVIL: EVIL}, totals={EVIL: 1}, items=[{EVIL: EVIL}],
        documents={EVIL: {"uri": EVIL, "sha256": EVIL}}, superseded=[EVIL], held=[EVIL], questions=[{EVIL: EVIL}],
        problems=[EVIL],
        timings={EVIL: EVIL}, versions={EVIL: EVIL}, ledger=LedgerHead(id=EVIL, number=1, sha256=EVIL),
    )  # fmt: skip
    html = page(receipt)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 12


@pytest.mark.parametrize(
    ("run_id", "name"),
    [("manual__2026-01-01T00:00:00+00:00", "manual__2026-01-01T00:00:00+00:00"), ("a/b c", "a_b_c"), ("..", "_.."), (".", "_."),
     ("../../etc", ".._.._etc"), ("a\0b", "a_b")],
)  # fmt: skip
def test_a_run_id_never_leads_out_of_its_folder(run_id, name):
    assert folder("d", run_id) == f"d/{name}"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_640_000, "1.6 MB"), (5e12, "5.0 TB"), (5e15, "5000.0 TB")],
)  # fmt: skip
def test_bytes_are_said_as_people_say_them(number, text):
    assert format_bytes(number) == text


STATES = {
    "complete": "all that was asked for is there and proved",
    "handed_on": "nothing is wrong, and the rest is the next run&#39;s",
    "incomplete": "something is missing, or a person is needed",
    "running": "The run goes on",
}


@pytest.mark.parametrize("state", STATES)
def test_the_page_of_every_state_says_it_in_words_with_all_that_a_person_needs(state):
    receipt = full(
        state=state, problems=["plate 7: no answer"], remedy="amy can answer.", items=[{"plate": "7", "job": None}]
    )
    html = page(receipt)
    style = ".outcome {" if state == "incomplete" else f".{state} .outcome"
    for text in (STATES[state], f'<body class="{state}">', style, "plate 7: no answer", "amy can answer.",
                 '<a href="https://a/required_actions">', "ledger in-doubt"):  # fmt: skip
        assert text in html, text
    assert "None" not in html
    assert receipt.good == (state in ("complete", "handed_on"))


def test_an_address_that_is_no_address_is_no_link():
    assert "href" not in page(full(questions=[{"where": "javascript:alert(1)"}]))


def test_a_receipt_of_before_is_read_with_its_approvals():
    old = {**full().model_dump(mode="json"), "approvals": [{"by": "amy"}]}
    del old["questions"], old["problems"]
    assert Receipt.model_validate(old).questions == [{"by": "amy"}]


def test_thousands_of_problems_lie_in_a_document_and_the_receipt_says_how_many_and_where(store):
    lines = [f"file {number}: differs" for number in range(10_000)]
    asyncio.run(store.write(full(state="incomplete", problems=lines)))
    read = asyncio.run(store.read(full().dag_id, full().run_id))
    assert read is not None and len(read.problems) == 201
    document = read.documents["problems"]
    assert read.problems[-1] == f"and 9800 more: document problems, {document['uri']}"
    assert json.loads(asyncio.run(store.objects.get_document(document))) == lines


def test_a_run_that_came_to_no_plan_says_every_refusal_or_which_task_failed():
    problems = [f"field{n}: wrong" for n in range(9)]
    refused = nothing_done(
        {"plan": {"state": "refused", "why": "…", "problems": problems}}, "copied", dag_id="d", run_id="r"
    )
    assert refused.outcome == (
        "Refused, nothing was copied: field0: wrong; field1: wrong; field2: wrong; field3: wrong; field4: wrong; "
        "and 4 more: all are listed below."
    )
    assert refused.problems == problems
    assert refused.remedy.startswith("Correct field0, field1,")
    broken = {"plan": {"state": "failed", "why": "401", "cause": "credential", "connections": ["c"], "task_id": "plan"}}
    receipt = nothing_done(broken, "copied", dag_id="d", run_id="r")
    assert "Task plan: 401" in receipt.outcome
    assert receipt.remedy == "Renew the credential of connection c, then clear task plan."
    assert "clear the task that failed" in nothing_done({}, "copied", dag_id="d", run_id="r").remedy.lower()


def test_a_receipt_with_an_unknown_field_is_refused():
    with pytest.raises(pydantic.ValidationError):
        full(colour="red")
