"""The page that finds archived files: the same answer as the command's, escaped, in pages, and with its age."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from operators.plates.drill_plan import PlateDrillPlanOperator
from operators.plates.receipt import PlateReceiptOperator
from portal.app import app, may_read_run

from harness.fixtures import Connect
from include.core.receipt import Receipt, page
from include.plates import where_page
from tests.plugins.plates.conftest import Store
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan, verify
from tests.plugins.plates.test_drill import configure


@pytest.fixture
def portal() -> Iterator[TestClient]:
    for depends in may_read_run:
        app.dependency_overrides[depends.dependency] = lambda: None
    yield TestClient(app)
    app.dependency_overrides.clear()


@pytest.fixture
def indexed(store: Store, connect: Connect, tmp_path: Path) -> Store:
    """A plate in its tarballs, whose files the index knows."""
    store.seed("20585", sites=4)
    store.put("projects/2013_Gustafsdottir_PLOSONE/BBBC022/images/20585/Images/<b>&.tiff", b"odd")
    run = store.run("20585")
    verify(run, archive(run, plan(run)[0]))
    configure(store, connect, index=str(tmp_path / "index.sqlite"))
    Run("plate_drill", {"dry_run": True}, "manual__index").execute(PlateDrillPlanOperator(task_id="plan"))
    return store


def test_a_file_is_found_with_its_place_and_its_proof(portal: TestClient, indexed: Store):
    answer = portal.get("/where/plate_restore", params={"name": "20585.sqlite"})
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    for told in (f"s3://{indexed.cold}/imaging_analysis/", "20585_backend.tar.gz", "read back and sound on", "--file"):
        assert told in answer.text
    assert "2 manifests under" in answer.text and "less than a minute ago" in answer.text


def test_what_a_person_types_and_what_keys_hold_is_escaped(portal: TestClient, indexed: Store):
    text = portal.get("/where/plate_backup", params={"name": "*<b>*"}).text
    assert "&lt;b&gt;&amp;.tiff" in text and "<b>&" not in text
    text = portal.get("/where/plate_backup", params={"name": '"><script>x</script>'}).text
    assert "<script>" not in text and "No file of this name" in text


def test_a_long_answer_comes_in_pages_that_hold_every_file_once(
    portal: TestClient, indexed: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(where_page, "ROWS", 3)
    seen: list[str] = []
    at = "?name=*&page=1"
    while at:
        text = portal.get(f"/where/plate_backup{at}").text
        seen += re.findall(r"<tr><td>([^<]+)", text)
        more = re.search(r'href="([^"]+)">more', text)
        at = more[1].replace("&amp;", "&") if more else ""
        assert not at or parse_qs(urlsplit(at).query)["name"] == ["*"]
    assert len(seen) == len(set(seen)) == len(indexed.files)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("icav2_copy_batch?name=x", 404),
        ("plate_backup?name=x&page=0", 422),
        ("plate_backup?name=x&page=201", 422),
        ("plate_backup?name=" + "x" * 1025, 422),
        ("plate_backup", 200),
    ],
)
def test_what_is_out_of_bounds_is_refused(portal: TestClient, indexed: Store, path: str, status: int):
    assert portal.get(f"/where/{path}").status_code == status


def test_without_an_index_the_page_says_how_to_have_one(
    portal: TestClient, store: Store, connect: Connect, tmp_path: Path
):
    answer = portal.get("/where/plate_backup?name=x")
    assert answer.status_code == 503 and "connection waybill_archives does not exist" in answer.text
    configure(store, connect)
    assert portal.get("/where/plate_backup?name=x").json()["detail"].startswith("No index is kept"), "for a program"
    shown = portal.get("/where/plate_backup?name=x", headers={"Accept": "text/html,*/*;q=0.8"})
    assert shown.status_code == 404 and shown.headers["content-type"].startswith("text/html")
    assert "<h1" in shown.text and "No index is kept" in shown.text and "add the extra index" in shown.text
    odd = portal.get("/receipts/plate_backup/<b>x", headers={"Accept": "text/html"})
    assert odd.status_code == 404 and "&lt;b&gt;x" in odd.text and "<b>" not in odd.text
    configure(store, connect, index=str(tmp_path / "index.sqlite"))
    answer = portal.get("/where/plate_backup?name=x")
    assert answer.status_code == 503 and "include.plates index" in answer.text
    assert not (tmp_path / "index.sqlite").exists(), "a page makes no file"


def test_a_receipt_leads_to_the_page_and_names_the_command(indexed: Store):
    run = indexed.run("20585")
    verify(run, archive(run, plan(run)[0]))
    run.execute(PlateReceiptOperator(task_id="receipt"))
    told = Receipt.model_validate_json((indexed.receipts / "plate_backup" / run.run_id / "receipt.json").read_text())
    place = f"s3://{indexed.cold}/imaging_analysis/2013_Gustafsdottir_PLOSONE/plates/"
    assert told.items[0]["one_file"]["find"] == f"python -m include.plates where NAME --prefix {place}"
    assert told.items[0]["one_file"]["where"].endswith("/waybill/where/plate_backup")
    assert re.search(r'<a href="[^"]*/waybill/where/plate_backup">', page(told))
