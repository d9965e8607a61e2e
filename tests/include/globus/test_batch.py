"""A batch: its document, its label, its text for the record, and what it refuses."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.core.errors import RequestError
from include.globus.batch import LABEL_LIMIT, Batch, Item, batch_file, batch_key, batch_of, check_items, sealed, under

PATHS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\x00"), min_size=1)


def _batch(*items: Item, label: str = "waybill") -> Batch:
    return Batch(batch_key("a", "b", items), "a", "b", items, datetime(2027, 1, 15, tzinfo=UTC), label)


def test_a_document_has_a_deadline_and_checksums_and_leaves_out_what_is_gone() -> None:
    document = _batch(Item("/s/a", "/d/a")).document()
    assert document["deadline"] == "2027-01-15T00:00:00+00:00"
    assert (document["sync_level"], document["verify_checksum"]) == (3, True)
    assert (document["skip_source_errors"], document["fail_on_quota_errors"]) == (True, True)


def test_the_batch_comes_back_from_its_document() -> None:
    batch = _batch(Item("/s/a", "/d/a"), Item("/s/b", "/d/b"))
    assert batch_of(batch.document(), batch.key) == batch


@given(st.text(max_size=300))
def test_a_label_is_short_plain_and_holds_key_and_submission(label: str) -> None:
    batch = _batch(Item("/s/a", "/d/a"), label=label)
    found = sealed(batch.document(), batch.key, "0a1b2c3d-0000")["label"]
    assert len(found) <= LABEL_LIMIT
    assert found == found.strip()
    assert found.endswith(f"{batch.key} 0a1b2c3d")
    assert not set(found) & set("\n\r/,:*!~"), "these mean something in a filter, or are refused"


def test_the_key_depends_on_files_places_and_md5_and_not_on_order() -> None:
    one, two = Item("/s/a", "/d/a", 1, "0" * 32), Item("/s/b", "/d/b")
    assert batch_key("a", "b", [one, two]) == batch_key("a", "b", [two, one])
    assert batch_key("a", "b", [one]) != batch_key("a", "c", [one])
    assert batch_key("a", "b", [one]) != batch_key("a", "b", [Item("/s/a", "/d/a", 1, "1" * 32)])


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "has no files"),
        ([Item("s/a", "/d/a")], "does not begin with /"),
        ([Item("/s/../x", "/d/a")], "leaves its folder"),
        ([Item("/s/a", "/d/../../etc/x")], "leaves its folder"),
        ([Item("/s/a\n", "/d/a")], "control character"),
        ([Item("/s/a/", "/d/a")], "names a folder"),
        ([Item("/s/a", "/d/x"), Item("/s/b", "/d/x")], "/d/x”: more than one file goes there"),
        ([Item("/s/a", "/d/x"), Item("/s/b", "/d/X")], "more than one file goes there"),
    ],
)
def test_it_is_refused_by_name(items: list[Item], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_items(items)
    assert said in str(caught.value)


@given(PATHS, PATHS)
def test_the_text_for_the_record_reads_back_as_a_shell_reads_it(source: str, destination: str) -> None:
    item = Item("/" + source, "/" + destination, 3, "ab" * 16)
    (_, line) = batch_file([item], "R1").split("\n", 1)
    assert shlex.split(line) == ["--external-checksum", item.md5, item.source, item.destination]


def test_a_path_below_a_root() -> None:
    assert under("/73709", "R1/a") == under("/73709/", "/R1/a") == "/73709/R1/a"
