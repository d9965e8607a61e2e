"""A restore drill in a real Airflow: rot is found and told, the rest is sound, and the page finds files by its index.

Invariant: what lies in the buckets is made and spoilt by the test itself, and read from the receipt and the page as people do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.plates import servers
from harness.plates.bench import Bench, run
from rehearsal.scenes import plates
from rehearsal.stack import Stack
from tests.airflow.conftest import HANG

pytestmark = [pytest.mark.airflow, HANG]
MAINTENANCE = "waybill_maintenance"
ROTTEN, SOUND = plates.plate_ids(2)


@pytest.fixture
def archive(stack: Stack, tmp_path: Path) -> Any:
    """Two plates in their tarballs, one of them with a bit flipped at rest."""
    bench = Bench(
        stack.addresses["s3"], servers.access(stack.addresses["s3"]), plates.LIVE, plates.COLD, tmp_path / "journals"
    )
    for bucket in (plates.LIVE, plates.COLD):
        bench.client.create_bucket(Bucket=bucket)
    for plate_id in (ROTTEN, SOUND):
        bench.put(plates.plate_files(plate_id, wells=1))
        run(bench.archive_it(run(bench.plan(servers.plate(plate_id)))))
    key = next(key for key in bench.keys(plates.COLD) if f"_{ROTTEN}_images" in key and key.endswith(".tar.gz"))
    there = bench.client.get_object(Bucket=plates.COLD, Key=key)
    data = bytearray(there["Body"].read())
    data[len(data) // 2] ^= 1
    bench.client.put_object(Bucket=plates.COLD, Key=key, Body=bytes(data), Metadata=there["Metadata"])
    yield bench
    bench.access.close()


def test_a_drill_finds_planted_rot_and_the_page_finds_files_by_the_index(stack: Stack, archive: Bench):
    api = stack.api
    api.unpause(plates.DRILL)
    run_id = api.trigger(plates.DRILL, {"plates": 2, "seed": "here"}).run_id
    assert api.wait(plates.DRILL, run_id, 300).state == "failed"
    api.pause(plates.DRILL)
    folder = stack.home / "environment" / "receipts" / plates.DRILL / run_id
    told = json.loads((folder / "receipt.json").read_text())
    assert {item["plate"].split()[-1]: item["state"] for item in told["items"]} == {ROTTEN: "damaged", SOUND: "sound"}
    assert "Do not run plate_backup over it" in told["remedy"] and "by seed here" in told["outcome"]
    assert api.xcom(plates.DRILL, run_id, "plan", "cost")["STANDARD"]["tarballs"] == 4
    drills = [task for task in api.task_instances(plates.DRILL, run_id) if task.task_id == "drill"]
    assert sorted(str(task.state) for task in drills) == ["failed", "success"]
    assert f"_{SOUND}_backend.tar.gz" in page_of(stack, f"{SOUND}.sqlite")

    api.unpause(MAINTENANCE)
    run_id = api.trigger(MAINTENANCE, {}).run_id
    for task_id in ("index_archives", "clean_up_staging"):
        assert api.wait_task(MAINTENANCE, run_id, task_id, 120).state == "success"
    api.pause(MAINTENANCE)
    assert "read back and sound" in page_of(stack, f"{SOUND}.sqlite"), (
        "the index knows the proofs that the drill renewed"
    )


def page_of(stack: Stack, name: str) -> str:
    """The page that finds archived files, as uli sees it."""
    bearer = {"Authorization": f"Bearer {stack.api_as('uli').token()}"}
    where = f"{stack.address}/waybill/where/{plates.DRILL}"
    answer = httpx.get(where, params={"name": name}, headers=bearer, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.text
