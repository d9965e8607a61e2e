"""The waybill of a run: what is written is read again, and the page shows text, never markup."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pydantic
import pytest

from include.core.receipt import LedgerHead, Receipt, ReceiptStore, folder, page
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
        "approvals": [{"who": "Ann"}],
        "timings": {"copy": "12 s"},
        "versions": {"waybill": "0.1.0"},
        "ledger": LedgerHead(id="l1", number=7, sha256="f" * 64),
    }  # fmt: skip
    return Receipt(**(facts | more))


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
        Receipt(dag_id="d", run_id="r", state="complete", outcome="done", items=[item], approvals=[{"by": "amy"}])
    )
    for wanted in ("20585: step by step", "24 members read back", "amy"):
        assert wanted in text
    assert "{'" not in text, "no program's notation on a page for people"


def test_nothing_on_the_page_is_markup_wherever_it_came_from():
    receipt = full(
        run_id=EVIL, outcome=EVIL, remedy=EVIL, asked={EVIL: EVIL}, totals={EVIL: 1}, items=[{EVIL: EVIL}],
        documents={EVIL: {"uri": EVIL, "sha256": EVIL}}, superseded=[EVIL], held=[EVIL], approvals=[{EVIL: EVIL}],
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


def test_a_receipt_with_an_unknown_field_is_refused():
    with pytest.raises(pydantic.ValidationError):
        full(colour="red")
