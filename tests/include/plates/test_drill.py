"""The restore drill: what it draws, what it says reading will cost, and what it finds of what was planted."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.damage import PLANTED
from harness.plates.servers import plate, plate_files
from harness.proxy import proxied
from include.core.errors import RequestError, TransientError
from include.plates.checksum_report import parse_rows, read_report
from include.plates.drill import PlateLook, look_at_plate
from include.plates.drill_plan import DrillPlan, batch_list, chance, plan_drill
from include.plates.file_index import FileIndex
from include.plates.manifest import read_manifest
from include.plates.models import Outcome
from include.plates.proof import parse_proof
from tests.include.plates.test_archive import MAIN

PREFIX = "imaging_analysis/"
MANIFEST, TARBALL, PROOF = MAIN + ".manifest.jsonl.zst", MAIN + ".tar.gz", MAIN + ".proof.json"
NOW = 2_000_000_000.0


def archived(bench: Bench, *ids: str) -> None:
    for one in map(plate, ids or ("20586",)):
        bench.put(plate_files(one, sites=2))
        run(bench.archive_it(run(bench.plan(one))))


def planned(bench: Bench, folder: Path, seed: str = "s", plates: int = 100, max_gib: float = 1) -> DrillPlan:
    with FileIndex(folder / "drill.sqlite", "store") as index:
        listing = run(index.refresh(bench.archive, PREFIX, now=NOW))
        rows = index.archived(bench.cold, PREFIX)
        return run(plan_drill([(bench.archive, listing, rows)], seed=seed, plates=plates, max_gib=max_gib))


def looked(bench: Bench, plan: DrillPlan, **more: Any) -> dict[str, PlateLook]:
    drawn = [one for one in plan.drawn if not one.left_out]
    looks = [run(look_at_plate(one, bench.access, by="plate_drill", now=NOW, **more))[0] for one in drawn]
    return {look.name.split()[-1]: look for look in looks}


def test_a_whole_archive_is_sound_and_its_proofs_are_renewed_without_its_source(bench: Bench, tmp_path: Path):
    archived(bench)
    for key in bench.files:
        bench.client.delete_object(Bucket=bench.live, Key=key)
    look = looked(bench, planned(bench, tmp_path))["20586"]
    assert (look.state, look.why) == ("sound", "read back byte for byte")
    assert [tarball.proof for tarball in look.tarballs] == ["renewed", "renewed"]
    proof = parse_proof(bench.get(PROOF))
    assert proof is not None and (proof.outcome, proof.by, proof.at) == (
        "verified",
        "plate_drill",
        "2033-05-18T03:33:20Z",
    )


def test_the_same_seed_draws_the_same_plates_and_a_new_plate_changes_no_order(bench: Bench, tmp_path: Path):
    archived(bench, "1", "2", "3", "4")
    before = [one.name for one in planned(bench, tmp_path).drawn]
    assert before == [one.name for one in planned(bench, tmp_path / "anew").drawn]
    assert [one.name for one in planned(bench, tmp_path, plates=2).drawn] == before[:2]
    assert len({tuple(one.name for one in planned(bench, tmp_path, seed=str(s)).drawn) for s in range(8)}) > 1
    archived(bench, "5")
    after = [one.name for one in planned(bench, tmp_path).drawn]
    assert [name for name in after if not name.endswith(" 5")] == before


def test_what_it_costs_is_told_before_and_is_what_is_read(bench: Bench, tmp_path: Path):
    archived(bench, "1", "2")
    plan = planned(bench, tmp_path)
    cost = plan.cost()["STANDARD"]
    looks = looked(bench, plan)
    assert cost["tarballs"] == 4
    assert cost["read_bytes"] == sum(tarball.read_bytes for look in looks.values() for tarball in look.tarballs)
    with proxied(bench.url) as front:
        access = servers.access(front.url)
        for one in plan.drawn:
            assert run(look_at_plate(one, access, by="plate_drill"))[0].state == "sound"
        access.close()
        assert 0 < len(front.requests) <= cost["requests"]


def test_no_more_is_read_than_max_gib_allows(bench: Bench, tmp_path: Path):
    archived(bench, "1", "2", "3")
    one = planned(bench, tmp_path).drawn[0].read_bytes
    plan = planned(bench, tmp_path, max_gib=one * 1.5 / 1024**3)
    assert [bool(each.left_out) for each in plan.drawn] == [False, True, True]
    assert "of max_gib are left" in plan.drawn[1].left_out
    assert plan.cost()["STANDARD"]["read_bytes"] == one
    assert plan.chance() == pytest.approx(1 / 3)


# What is planted is found


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("known", [False, True], ids=["never seen before", "seen whole before"])
def test_what_is_planted_in_a_plate_is_found(bench: Bench, tmp_path: Path, fault: str, known: bool):
    archived(bench, "20585", "20586")
    if known:
        planned(bench, tmp_path)
    PLANTED[fault](bench, MAIN, MAIN.replace("_20586_", "_20585_"), random.Random(fault))
    plan = planned(bench, tmp_path)
    looks = looked(bench, plan)
    found = [name for name, look in looks.items() if look.state == "damaged"]
    assert found == ["20586"] or any(MAIN in line for line in plan.faults)
    assert looks["20585"].state == "sound"


def test_what_is_missing_is_found_also_in_plates_that_were_not_drawn(bench: Bench, tmp_path: Path):
    archived(bench, "20585", "20586")
    bench.client.delete_object(Bucket=bench.cold, Key=MAIN + ".tar.gz")
    faults = planned(bench, tmp_path, plates=0).faults
    assert faults == (f"{TARBALL}: the tarball is missing",)


def test_a_tarball_and_its_manifest_that_went_together_are_missed_by_their_proof(bench: Bench, tmp_path: Path):
    archived(bench)
    run(bench.verify(plate()))
    for key in (TARBALL, MANIFEST):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    (fault,) = planned(bench, tmp_path).faults
    assert MAIN in fault and "missing" in fault


def test_a_tarball_of_the_written_procedure_is_no_fault(bench: Bench, tmp_path: Path):
    archived(bench)
    bench.client.put_object(Bucket=bench.cold, Key=PREFIX + "P/plates/P_B_1_images.tar.gz", Body=b"x")
    assert planned(bench, tmp_path).faults == ()


def test_a_store_that_refuses_leaves_a_plate_not_looked_at_and_its_proof_as_it_was(bench: Bench, tmp_path: Path):
    archived(bench)
    run(bench.verify(plate()))
    plan, before = planned(bench, tmp_path), bench.get(PROOF)
    closed = servers.access("http://127.0.0.1:9")
    closed.client = closed._client(attempts=1)
    look, error = run(look_at_plate(plan.drawn[0], closed, by="plate_drill"))
    closed.close()
    assert isinstance(error, TransientError)
    assert look.state == "not looked at" and "the store did not let it be read" in look.why
    assert bench.client.get_object(Bucket=bench.cold, Key=PROOF)["Body"].read() == before


# Cold storage


def cool(bench: Bench, key: str = TARBALL) -> None:
    there = bench.client.get_object(Bucket=bench.cold, Key=key)
    data = there["Body"].read()
    bench.client.put_object(
        Bucket=bench.cold, Key=key, Body=data, Metadata=there["Metadata"], StorageClass="DEEP_ARCHIVE"
    )


def report_of(bench: Bench, crc: str, *, status: str = "succeeded", etag: str = "", **said: Any) -> Any:
    message = {
        "checksum_base64": crc,
        "etag": etag,
        "checksumAlgorithm": "CRC64NVME",
        "checksumType": "FULL_OBJECT",
    } | said
    out = io.StringIO()
    csv.writer(out).writerow([bench.cold, quote(TARBALL), "", status, "", "200", json.dumps(message)])
    bench.client.put_object(Bucket=bench.live, Key="job-1/results/1.csv", Body=out.getvalue().encode())
    manifest = {
        "Format": "Report_CSV_20180820",
        "ReportCreationDate": "2033-05-01T10:00:00.000Z",
        "Results": [{"TaskExecutionStatus": status, "Bucket": bench.live, "Key": "job-1/results/1.csv"}],
    }
    bench.client.put_object(Bucket=bench.live, Key="job-1/manifest.json", Body=json.dumps(manifest).encode())
    return run(read_report(bench.live, "job-1/manifest.json", bench.access))


def sent_crc(bench: Bench) -> str:
    return str(run(read_manifest(bench.archive, MANIFEST)).head.stored_crc64nvme)


def test_a_cold_tarball_is_not_called_sound_and_costs_no_read(bench: Bench, tmp_path: Path):
    archived(bench)
    cool(bench)
    plan = planned(bench, tmp_path)
    cost = plan.cost()["DEEP_ARCHIVE"]
    assert cost["read_bytes"] < 10_000 and cost["requests"] == 3
    assert batch_list(plan) == f"{bench.cold},{TARBALL}\n"
    look = looked(bench, plan)["20586"]
    assert look.state == "not looked at" and "keeps no checksum" in look.why
    assert PROOF not in bench.keys(bench.cold)


def test_a_cold_tarball_is_checked_by_what_s3_computed_of_it(bench: Bench, tmp_path: Path):
    archived(bench)
    cool(bench)
    plan = planned(bench, tmp_path)
    good = looked(bench, plan, report=report_of(bench, sent_crc(bench)))["20586"]
    assert good.state == "cold: checked by Compute checksum"
    proof = parse_proof(bench.get(PROOF))
    assert proof is not None and (proof.how, proof.at) == ("compute_checksum", "2033-05-01T10:00:00Z")
    bad = looked(bench, plan, report=report_of(bench, base64.b64encode(bytes(8)).decode()))["20586"]
    assert bad.state == "damaged"
    assert parse_proof(bench.get(PROOF)).outcome is Outcome.MISMATCH  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"status": "failed"}, "could not compute"),
        ({"checksumAlgorithm": "SHA1"}, "another kind"),
        ({"checksumType": "COMPOSITE"}, "another kind"),
        ({"etag": "of-another-object"}, "keeps no checksum"),
    ],
)
def test_a_report_that_does_not_say_it_proves_nothing(bench: Bench, tmp_path: Path, said: dict[str, Any], why: str):
    archived(bench)
    cool(bench)
    report = report_of(bench, sent_crc(bench), **said)
    look = looked(bench, planned(bench, tmp_path), report=report)["20586"]
    assert look.state == "not looked at" and why in look.why


def test_a_cold_tarball_of_another_plan_is_damaged(bench: Bench, tmp_path: Path):
    archived(bench)
    data = bench.get(TARBALL)
    bench.client.put_object(
        Bucket=bench.cold, Key=TARBALL, Body=data, Metadata={"waybill-plan-sha256": "0" * 64}, StorageClass="GLACIER"
    )
    assert looked(bench, planned(bench, tmp_path))["20586"].state == "damaged"


def test_a_report_that_is_none_is_refused(bench: Bench):
    bench.client.put_object(Bucket=bench.live, Key="x/manifest.json", Body=b"{}")
    with pytest.raises(RequestError, match="report_uri"):
        run(read_report(bench.live, "x/manifest.json", bench.access))
    rows = parse_rows(
        b'b,a%2Bb+c,v1,succeeded,,200,"{""checksum_hex"":""00000000000000ff"",""checksumAlgorithm"":""CRC64NVME""}"\n'
    )
    assert rows["b", "a+b c"].crc64nvme == "AAAAAAAAAP8="


# What a sample can find


@given(st.integers(1, 40), st.data())
def test_the_chance_is_that_of_drawing_at_least_one(plates: int, data: st.DataObject):
    looked_at, damaged = data.draw(st.integers(0, plates)), data.draw(st.integers(0, plates))
    missed = math.prod((plates - damaged - n) / (plates - n) for n in range(looked_at)) if damaged else 1.0
    assert chance(plates, looked_at, damaged) == pytest.approx(1 - max(0.0, missed), abs=1e-12)
