"""A run whose small files are streamed by the worker, over real sockets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from airflow.sdk.exceptions import TaskDeferred

from include.core.ledger import Ledger, State
from include.icav2.small_files import STREAM_KIND
from tests.plugins.conftest import SOURCE, TARGET, Ica, rows_of
from tests.plugins.icav2.test_copy_batch import Copy

MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def places(ledger: Ledger, receipts_folder: Path) -> None:
    """Every copy needs a ledger and a place for its documents."""


def conf(ica: Ica, **options: str) -> dict[str, object]:
    sizes = {"small": 1000, "single": 9 * MEBIBYTE, "large": 30 * MEBIBYTE}
    ica.call(lambda sim: [sim.seed_file(SOURCE, f"/run/{name}", size) for name, size in sizes.items()])
    manifest = {f"icav2://{SOURCE}/run/{name}": [f"icav2://{TARGET}/cache/d0/"] for name in sizes}
    return {"manifest": manifest, **options}


def test_streamed_files_arrive_whole_beside_those_of_the_batch_and_the_receipt_counts_both(ica: Ica, ledger: Ledger):
    ica.change_settings(small_file_fails_below_bytes=8 * MEBIBYTE, single_part_fails=True)
    copy = Copy(conf(ica, small_files="stream"))
    copy.wait()
    assert [[item["name"] for item in job["items"]] for job in ica.jobs()] == [["large"]]
    assert [row.state for row in rows_of(ledger) if row.kind == STREAM_KIND] == [State.DONE, State.DONE]
    ica.pass_time(60)
    output = copy.leg("wake")
    assert output["counters"] == {"jobs_failed": 0, "jobs_running": 0, "jobs_passed": 1}
    files = ica.files()
    assert {path.rsplit("/", 1)[-1]: node["size_bytes"] for path, node in files.items()} == {
        "small": 1000,
        "single": 9 * MEBIBYTE,
        "large": 30 * MEBIBYTE,
    }
    content = ica.call(lambda sim: sim.tree.nodes[files["/cache/d0/single"]["id"]].content)
    assert hashlib.md5(content).hexdigest() == files["/cache/d0/single"]["etag"]
    receipt = copy.receipt()
    assert (receipt["state"], receipt["totals"]["files proved"]) == ("complete", 3)


def test_a_run_of_small_files_alone_ends_in_its_first_leg(ica: Ica):
    ica.call(lambda sim: sim.seed_file(SOURCE, "/run/small", 1000))
    manifest = {f"icav2://{SOURCE}/run/small": [f"icav2://{TARGET}/cache/d0/"]}
    output = Copy({"manifest": manifest, "small_files": "stream"}).leg()
    assert output["job_list_with_attempt_counter"][0]["job_id"] is None
    assert output["job_list_with_attempt_counter"][0]["job_status"] is True
    again = Copy({"manifest": manifest, "small_files": "stream"}, "second")
    assert again.leg()["counters"]["jobs_passed"] == 1


def test_icas_words_about_a_refused_file_stand_in_the_error_the_receipt_and_the_list(ica: Ica):
    ica.change_settings(small_file_fails_below_bytes=8 * MEBIBYTE, single_part_fails=True)
    copy = Copy(conf(ica))
    copy.wait()
    for _ in range(2):
        ica.pass_time(60)
        try:
            copy.leg("wake")
        except TaskDeferred:
            continue
        except Exception as error:
            failure = str(error)
    words = "Access denied when tagging the object."
    assert words in failure
    assert len(ica.jobs()) == 2
    missing = json.loads((copy.folder / "not_copied.json").read_text())
    assert len(missing) == 2
    assert all(words in line for line in missing)
    receipt = copy.receipt()
    assert all(words in line for line in receipt["problems"])
    assert "small_files: stream" in receipt["remedy"]
