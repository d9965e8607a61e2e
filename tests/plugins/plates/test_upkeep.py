"""The plates' part of the daily maintenance: what is new is found, and what killed runs left is listed, then removed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from operators.plates import upkeep
from operators.plates.upkeep import CleanUpStagingOperator, IndexArchivesOperator

from harness.fixtures import Connect
from include.core.errors import Forbidden, RemoteError, RequestError, VerificationError
from include.plates.file_index import FileIndex, store_of
from include.s3.staging import MARK
from tests.plugins.plates.conftest import Store, generic
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan
from tests.plugins.plates.test_drill import configure

PIECE = "waybill-staging/imaging_analysis/P/plates/a.tar/0123456789abcdef/0-512.lead"


def execute(kind: type[Any]) -> tuple[Run, str]:
    run = Run("waybill_maintenance", {})
    return run, run.execute(kind(task_id="task"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the maintenance run so many days from now."""

    def move(days: float) -> None:
        now = time.time() + days * 86_400
        monkeypatch.setattr(upkeep, "time", SimpleNamespace(time=lambda: now))

    return move


@pytest.fixture
def piece(store: Store, connect: Connect) -> Store:
    """A piece that nobody uses any more, but for its age."""
    store.client.put_object(Bucket=store.cold, Key=PIECE, Body=b"header", Metadata={MARK: "a-digest"})
    configure(store, connect)
    return store


def test_what_was_archived_since_is_in_the_index_after_the_maintenance(store: Store, connect: Connect, tmp_path: Path):
    configure(store, connect, index=str(tmp_path / "index.sqlite"))
    assert "0 manifests, 0 read now" in execute(IndexArchivesOperator)[1]
    store.seed("20585", sites=1)
    run = store.run("20585")
    archive(run, plan(run)[0])
    assert "2 manifests, 2 read now, 0 cannot be read, 0 are gone" in execute(IndexArchivesOperator)[1]
    with FileIndex(tmp_path / "index.sqlite", store_of(store.url), read_only=True) as index:
        assert index.find("20585.sqlite", store.cold, "imaging_analysis/", limit=2)
    assert "2 manifests, 0 read now" in execute(IndexArchivesOperator)[1]


@pytest.mark.parametrize("kind", [IndexArchivesOperator, CleanUpStagingOperator])
def test_without_an_archive_there_is_nothing_to_look_after(store: Store, connect: Connect, kind: type[Any]):
    with pytest.raises(AirflowSkipException, match="waybill_archives does not exist"):
        execute(kind)
    connect("waybill_archives", generic(prefixes="s3://x/"))
    with pytest.raises(RequestError, match="waybill_archives"):
        execute(kind)


def test_without_an_index_none_is_made(store: Store, connect: Connect):
    configure(store, connect)
    with pytest.raises(AirflowSkipException, match="names no index"):
        execute(IndexArchivesOperator)


def test_abandoned_pieces_are_listed_and_removed(piece: Store, later: Callable[[float], None]):
    later(8)
    run, outcome = execute(CleanUpStagingOperator)
    assert outcome == "1 target of abandoned pieces removed, 0 kept"
    (line,) = run.xcoms["task", "staging"]
    assert "imaging_analysis/P/plates/a.tar: 1 object of 6 bytes" in line and "to be removed" in line
    (listed,) = json.loads((piece.receipts / "waybill_maintenance" / run.run_id / "staging.json").read_text())
    assert listed["bucket"] == piece.cold and listed["versions"] == [[PIECE, "null"]] and listed["kept"] == ""
    assert PIECE not in piece.keys(piece.cold)
    assert execute(CleanUpStagingOperator)[1] == "0 targets of abandoned pieces removed, 0 kept"


def test_young_pieces_are_listed_and_kept(piece: Store):
    run, outcome = execute(CleanUpStagingOperator)
    assert outcome == "0 targets of abandoned pieces removed, 1 kept"
    assert "to be kept: it is young" in run.xcoms["task", "staging"][0]
    assert PIECE in piece.keys(piece.cold)


def test_what_cannot_be_listed_beside_the_receipts_is_not_removed(
    piece: Store, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    later(8)

    async def full(*_: object) -> None:
        raise RemoteError("the disk is full")

    monkeypatch.setattr(upkeep, "receipts", lambda: SimpleNamespace(objects=SimpleNamespace(put=full)))
    with pytest.raises(RemoteError, match="full"):
        execute(CleanUpStagingOperator)
    assert PIECE in piece.keys(piece.cold)


def test_what_may_not_be_looked_at_is_said_and_is_no_failure(piece: Store, monkeypatch: pytest.MonkeyPatch):
    async def refused(*_: object, **__: object) -> None:
        raise Forbidden("access is denied")

    monkeypatch.setattr(upkeep, "find_staged", refused)
    assert "s3://cold-bucket/waybill-staging/ may not be listed" in execute(CleanUpStagingOperator)[1]


def test_what_the_store_does_not_remove_fails_with_the_right_that_is_needed(
    piece: Store, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
):
    later(8)

    async def left(*_: object) -> list[str]:
        return [PIECE]

    monkeypatch.setattr("include.s3.staging_cleanup.remove", left)
    with pytest.raises(VerificationError, match=r"did not remove .*Waybill needs s3:DeleteObject"):
        execute(CleanUpStagingOperator)
