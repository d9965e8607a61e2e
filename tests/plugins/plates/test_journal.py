"""The journal on an object store: every line is kept, in order, whoever wrote it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hooks.waybill import journals

from include.core.journal import FileJournal, ObjectJournal
from include.core.objects import Objects
from include.core.text import file_name
from tests.plugins.plates.conftest import Store, generic


def journal(folder: Path) -> ObjectJournal:
    return ObjectJournal(Objects(folder.as_uri()))


def test_what_one_process_wrote_the_next_reads_in_order(tmp_path: Path):
    first = journal(tmp_path)
    assert first.load() == []
    for number in range(12):
        first.append({"part": number})
    second = journal(tmp_path)
    second.append({"part": 12})
    assert journal(tmp_path).load() == [{"part": number} for number in range(13)]


def test_two_writers_at_once_lose_no_line(tmp_path: Path):
    """A killed worker's orphan still writes while its successor does."""
    orphan, successor = journal(tmp_path), journal(tmp_path)
    for one in (orphan, successor):
        one.load()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: (orphan if n % 2 else successor).append({"n": n}), range(20)))
    assert sorted(row["n"] for row in journal(tmp_path).load()) == list(range(20))


def test_journals_lie_under_the_receipts_prefix_by_bucket_and_plate(store: Store):
    made = journals("archive", "cold", "TAG/with odd:chars")("name.tar.gz")
    made.append({"a": 1})
    assert isinstance(made, FileJournal)
    assert made.path == store.receipts / "plates/journals/archive/cold/TAG_with_odd_chars/name.tar.gz.jsonl"


def test_on_an_object_store_they_are_objects(store: Store, connect: Any):
    options = {
        "endpoint": store.url, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1",
        "client_options": {"allow_http": True},
    }  # fmt: skip
    connect("waybill_receipts", generic(prefix=f"s3://{store.cold}/waybill", options=options))
    made = journals("delete", "cold")("plate")
    made.append({"intent": 1})
    assert isinstance(made, ObjectJournal)
    assert journals("delete", "cold")("plate").load() == [{"intent": 1}]
    assert all(key.startswith("waybill/plates/journals/delete/cold/plate/") for key in store.keys(store.cold))


@pytest.mark.parametrize(("text", "name"), [("a b/c", "a_b_c"), ("..", "_"), ("", "_"), ("20585", "20585")])
def test_a_step_of_a_path_leads_nowhere_else(text: str, name: str):
    assert file_name(text) == name
