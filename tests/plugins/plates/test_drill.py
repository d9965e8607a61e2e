"""plate_drill step by step: what is configured is what is read, damage makes the run red, and the receipt tells the draw."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from operators.common.load_request import LoadRequestOperator
from operators.plates.drill import PlateDrillOperator
from operators.plates.drill_plan import PlateDrillPlanOperator, check_drill
from operators.plates.drill_receipt import PlateDrillReceiptOperator

from harness.fixtures import Connect
from harness.plates.simulated import simulated
from include.core.errors import RequestError, TransientError, VerificationError
from include.core.receipt import Receipt, page
from include.plates.drill_request import DrillRequest
from include.plates.file_index import FileIndex, store_of
from simulators.s3 import S3Simulator
from tests.plugins.plates.conftest import Store, generic
from tests.plugins.plates.doubles import Run
from tests.plugins.plates.test_backup_steps import archive, plan


@pytest.fixture
def archived(store: Store, connect: Connect) -> Store:
    """Two plates in their tarballs, and nothing of them left in the live bucket."""
    store.seed("20585", "20586", sites=2)
    run = store.run("20585", "20586")
    for entry in plan(run):
        archive(run, entry)
    for key in store.files:
        store.client.delete_object(Bucket=store.live, Key=key)
    configure(store, connect)
    return store


def configure(store: Store, connect: Connect, **more: Any) -> None:
    connect("waybill_archives", generic(prefixes=[f"s3://{store.cold}/imaging_analysis/"], **more))


def drilled(run: Run) -> list[dict[str, Any]]:
    """Every step but the receipt; a drill that fails stops no other."""
    run.execute(LoadRequestOperator(task_id="load_request", model=DrillRequest, check=check_drill))
    entries = run.execute(PlateDrillPlanOperator(task_id="plan"))
    for number, entry in enumerate(entries):
        try:
            run.execute(PlateDrillOperator(task_id="drill", plate=entry), number)
        except VerificationError:
            pass
    return list(entries)


def receipt(run: Run, store: Store) -> Receipt:
    try:
        run.execute(PlateDrillReceiptOperator(task_id="receipt"))
    except VerificationError:
        pass
    return Receipt.model_validate_json((store.receipts / "plate_drill" / run.run_id / "receipt.json").read_text())


def test_a_run_by_schedule_reads_plates_of_the_configured_prefixes(archived: Store):
    run = Run("plate_drill", {}, "scheduled__2026-11-01")
    assert len(drilled(run)) == 2
    told = receipt(run, archived)
    assert told.state == "complete"
    assert {item["state"] for item in told.items} == {"sound"}
    assert "2 plates of 2 drawn by seed scheduled__2026-11-01: 2 sound" in told.outcome
    assert "probability of 100.0%" in told.outcome
    assert told.totals["planned bytes"] == told.totals["read bytes"] > 0
    assert run.xcoms["plan", "cost"]["STANDARD"]["tarballs"] == 4
    assert len([key for key in archived.keys(archived.cold) if key.endswith(".proof.json")]) == 4
    assert "sound" in page(told)


def test_a_dry_run_tells_the_cost_and_reads_nothing(archived: Store):
    run = Run("plate_drill", {"dry_run": True, "seed": "x"})
    assert drilled(run) == []
    told = receipt(run, archived)
    assert told.state == "complete" and told.outcome.startswith(
        "Dry run, nothing was read: 2 plates of 2 drawn by seed x, "
    )
    assert [item["state"] for item in told.items] == ["planned", "planned"]
    assert not [key for key in archived.keys(archived.cold) if key.endswith(".proof.json")]


def test_damage_makes_the_run_red_and_says_what_to_do(archived: Store):
    archived.flip("20585")
    run = Run("plate_drill", {})
    drilled(run)
    told = receipt(run, archived)
    assert told.state == "incomplete"
    assert sorted(item["state"] for item in told.items) == ["damaged", "sound"]
    assert any("20585" in line for line in told.problems)
    assert "Do not run plate_backup over it" in told.remedy


def test_a_plate_beyond_max_gib_is_named_and_the_run_is_green(archived: Store):
    run = Run("plate_drill", {"max_gib": 1e-9})
    assert drilled(run) == []
    told = receipt(run, archived)
    assert told.state == "complete"
    assert {item["state"] for item in told.items} == {"not looked at"}
    assert all("of max_gib are left" in item["why"] for item in told.items)
    assert "probability of 0.0%" in told.outcome


def test_what_is_missing_is_told_though_no_plate_of_it_was_drawn(archived: Store):
    gone = next(
        key for key in archived.keys(archived.cold) if "20585_backend" in key and key.endswith(".manifest.jsonl.zst")
    )
    archived.client.delete_object(Bucket=archived.cold, Key=gone)
    run = Run("plate_drill", {"max_gib": 1e-9})
    drilled(run)
    told = receipt(run, archived)
    assert told.state == "incomplete" and "its manifest is missing" in told.problems[0]


def test_what_was_indexed_once_is_missed_when_it_is_gone_without_a_trace(
    archived: Store, connect: Connect, tmp_path: Path
):
    index = tmp_path / "index.sqlite"
    configure(archived, connect, index=str(index))
    drilled(Run("plate_drill", {"dry_run": True}))
    for key in archived.keys(archived.cold):
        if "20585_backend" in key:
            archived.client.delete_object(Bucket=archived.cold, Key=key)
    run = Run("plate_drill", {}, "manual__2")
    drilled(run)
    told = receipt(run, archived)
    assert sorted(item["state"] for item in told.items) == ["damaged", "sound"]
    with FileIndex(index, store_of(archived.url), read_only=True) as known:
        assert known.places()[0][0] == archived.cold


def test_a_cold_plate_is_listed_for_s3_batch_operations(archived: Store):
    key = next(key for key in archived.keys(archived.cold) if "20585_images" in key and key.endswith(".tar.gz"))
    there = archived.client.get_object(Bucket=archived.cold, Key=key)
    archived.client.put_object(
        Bucket=archived.cold,
        Key=key,
        Body=there["Body"].read(),
        Metadata=there["Metadata"],
        StorageClass="DEEP_ARCHIVE",
    )
    run = Run("plate_drill", {})
    drilled(run)
    told = receipt(run, archived)
    place = Path(told.documents["cold_tarballs"]["uri"].removeprefix("file://"))
    assert place.read_text() == f"{archived.cold},{key}\n"
    assert sorted(item["state"] for item in told.items) == ["not looked at", "sound"]


@dataclass
class Cold(Store):
    """A store that keeps checksums as S3 does, and can compute them at rest."""

    sim: S3Simulator = field(default_factory=S3Simulator)

    def compute_checksums(self, listed: str) -> str:
        """What S3 Batch Operations does with that list, operation Compute checksum, and where its completion report lies."""
        out = io.StringIO()
        for line in listed.splitlines():
            name, _, key = line.partition(",")
            said = json.dumps(self.sim.compute_checksum(name, unquote(key)))
            csv.writer(out).writerow([name, key, "", "succeeded", "", "200", said])
        self.put("job-1/results/1.csv", out.getvalue().encode())
        results = [{"Bucket": self.live, "Key": "job-1/results/1.csv"}]
        manifest = {"ReportCreationDate": "2033-05-01T10:00:00.000Z", "Results": results}
        self.put("job-1/manifest.json", json.dumps(manifest).encode())
        return f"s3://{self.live}/job-1/manifest.json"


@pytest.fixture
def kept(store: Store, connect: Connect, tmp_path: Path) -> Iterator[Cold]:
    """A plate whose tarballs lie in cold storage."""
    with simulated(tmp_path / "journals") as made:
        bench = made.bench
        keys = {"login": "rehearsal", "password": "rehearsal-secret"}
        extra = {"endpoint_url": bench.url, "region_name": "us-east-1"}
        connect("waybill_aws", json.dumps({"conn_type": "aws", **keys, "extra": extra}))
        cold = Cold(bench.url, bench.live, bench.cold, store.receipts, store.inputs, bench.access, sim=made.sim)
        cold.seed("20585", sites=2)
        backup = cold.run("20585", storage_class="DEEP_ARCHIVE")
        archive(backup, plan(backup)[0])
        configure(cold, connect)
        yield cold


@pytest.mark.parametrize("rotten", [False, True])
def test_cold_tarballs_are_checked_by_the_checksums_that_s3_computed(kept: Cold, connect: Connect, rotten: bool):
    """From the list that a drill leaves, by the job that a person makes of it, to the drill that reads its report."""
    configure(kept, connect, reports=[f"s3://{kept.live}/job-1/"])
    run = Run("plate_drill", {"seed": "a"})
    drilled(run)
    listed = Path(receipt(run, kept).documents["cold_tarballs"]["uri"].removeprefix("file://")).read_text()
    assert len(listed.splitlines()) == 2
    if rotten:
        key = next(key for key in kept.keys(kept.cold) if "_images" in key and key.endswith(".tar.gz"))
        assert kept.sim.flip_bit(kept.cold, key)
    again = Run("plate_drill", {"seed": "a", "report_uri": kept.compute_checksums(listed)}, "manual__2")
    assert {entry["name"].split()[-1] for entry in drilled(again)} == {"20585"}
    told = receipt(again, kept)
    assert told.items[0]["state"] == ("damaged" if rotten else "cold: checked by Compute checksum")
    assert told.state == ("incomplete" if rotten else "complete")
    assert told.totals["read bytes"] == told.totals["planned bytes"] < 20_000, "no tarball was read"
    proofs = [key for key in kept.keys(kept.cold) if key.endswith(".proof.json")]
    assert len(proofs) == 2
    assert ("Do not run plate_backup over it" in told.remedy) is rotten


def test_cold_tarballs_whose_checksum_the_store_keeps_are_compared_with_it(kept: Cold):
    run = Run("plate_drill", {})
    drilled(run)
    told = receipt(run, kept)
    assert told.items[0]["state"] == "cold: checked by the checksum that the store keeps"
    assert not [key for key in kept.keys(kept.cold) if key.endswith(".proof.json")], "nothing was read, by nobody"


def test_a_store_that_fails_leaves_the_error_for_the_retry_and_the_receipt_says_so(
    archived: Store, monkeypatch: pytest.MonkeyPatch
):
    run = Run("plate_drill", {"plates": 1})
    entry = run.execute(PlateDrillPlanOperator(task_id="plan"))[0]

    async def refused(*_: object, **__: object) -> None:
        raise TransientError("GET: the store was not reached")

    monkeypatch.setattr("include.plates.drill.verify_tarball", refused)
    with pytest.raises(TransientError):
        run.execute(PlateDrillOperator(task_id="drill", plate=entry), 0)
    told = receipt(run, archived)
    assert (told.state, told.items[0]["state"]) == ("incomplete", "not looked at")
    assert "the store was not reached" in told.items[0]["why"]


@pytest.mark.parametrize(
    ("conf", "match"),
    [
        ({"prefixes": ["s3://another-bucket/x/"]}, "does not lie under"),
        ({"report_uri": "s3://reports/job/manifest.json"}, "none is configured"),
        ({"prefixes": ["file:///etc/"]}, "give s3://"),
        ({"report_uri": "s3://reports/job/results.csv"}, "manifest.json"),
        ({"plates": 0}, "plates"),
    ],
)
def test_what_is_not_configured_is_refused_before_anything_is_read(archived: Store, conf: dict[str, Any], match: str):
    run = Run("plate_drill", conf)
    with pytest.raises(RequestError):
        drilled(run)
    assert any(match in problem for problem in run.xcoms["load_request", "request_errors"])
    assert receipt(run, archived).state == "incomplete"


@pytest.mark.parametrize(
    "extra",
    [{}, {"prefixes": "s3://x/"}, {"prefixes": ["file:///x"]}, {"prefixes": ["s3://x/"], "index": "relative.sqlite"}],
)
def test_a_connection_that_says_too_little_is_named(store: Store, connect: Connect, extra: dict[str, Any]):
    connect("waybill_archives", json.dumps({"conn_type": "generic", "extra": extra}))
    with pytest.raises(RequestError, match="connection waybill_archives"):
        check_drill(DrillRequest(), None)


def test_without_the_connection_the_run_is_refused_and_told_how_to_make_it(store: Store):
    with pytest.raises(RequestError, match="connection waybill_archives does not exist: create it"):
        check_drill(DrillRequest(), None)
