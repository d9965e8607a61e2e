"""Whole runs of jgi_staging against all simulators, judged by the simulators' journals."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from include.jgi.models import FileState
from simulators.globus import DEFAULT_CLIENT_SECRET
from simulators.jgi import DEFAULT_OFFLINE_TOKEN, DEFAULT_SESSION
from tests.dags.test_secrets import found_in
from tests.plugins.jgi.conftest import Jgi

pytestmark = pytest.mark.usefixtures("metadata_database", "ledger", "quick_looks", "inputs_folder")
GROW, BLUE = 503568, 505022
A_DAY_LATER = {"window_seconds": 0.001, "margin_seconds": 0.0}  # what was accepted before is out of the window


def times_asked(jgi: Jgi) -> Counter[str]:
    """How often JDP was asked for each file, by its journal."""
    return Counter(one for request in jgi.requests() for one in request)


def no_twins(jgi: Jgi, *ids: str) -> bool:
    """Whether each file was asked for once, and no path was given to two tasks."""
    pairs = Counter(tuple(pair) for task in jgi.tasks() for pair in task["pairs"])
    return times_asked(jgi) == Counter(ids) and set(pairs.values()) == {1}


def test_what_a_window_does_not_hold_is_handed_on_and_the_next_runs_complete_it(jgi: Jgi) -> None:
    grow, blue = jgi.project(GROW, "grow", files=6), jgi.project(BLUE, "blue_hole", files=4)
    jgi.limits(window_bytes=7_000)
    first = jgi.run(project="grow", proposal_id=GROW)
    assert (first.state, first.receipt["state"]) == ("success", "complete")
    assert jgi.verified("grow") == len(grow)
    second = jgi.run(project="blue_hole", proposal_id=BLUE)
    assert (second.state, second.receipt["state"], second.receipt["problems"]) == ("success", "handed_on", [])
    assert "still to come" in second.receipt["outcome"] and second.receipt["documents"]["forecast"]
    jgi.limits(**A_DAY_LATER)
    third = jgi.run()
    assert (third.state, third.receipt["state"]) == ("success", "complete")
    assert {row["project"]: row["placements verified"] for row in third.receipt["items"]} == {
        "grow": len(grow),
        "blue_hole": len(blue),
    }
    assert no_twins(jgi, *grow, *blue)


def test_what_expires_before_its_transfer_is_asked_for_again_and_verified_by_a_later_run(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    jgi.fault("jdp", "stuck_pending", method="POST")
    first = jgi.run(project="grow", proposal_id=GROW, wait_hours=0.0001)
    assert (first.state, first.receipt["state"]) == ("success", "handed_on"), first.receipt["problems"]
    assert first.tasks["wait[0]"] == "skipped"
    waits = jgi.run(wait_hours=0.0001)
    assert waits.receipt["state"] == "handed_on" and len(jgi.requests()) == 1, "slow tapes are watched, not asked twice"
    jgi.servers["jdp"].call(lambda: [jgi.jdp.engine.release(one) for one in jgi.jdp.engine.requests.values()])
    jgi.servers["jdp"].call(jgi.jdp.run_until_idle)
    jgi.servers["jdp"].call(lambda: jgi.jdp.purge(everything=True))
    last = jgi.run()
    assert (last.state, last.receipt["state"]) == ("success", "complete"), last.receipt["problems"]
    assert jgi.verified("grow") == len(ids)
    assert times_asked(jgi) == Counter(dict.fromkeys(ids, 2))


def test_ready_but_empty_is_not_believed_and_asked_for_again(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    jgi.fault("jdp", "ready_but_empty", method="POST")
    first = jgi.run(project="grow", proposal_id=GROW)
    assert (first.state, first.receipt["state"]) == ("success", "handed_on"), first.receipt["problems"]
    assert jgi.verified("grow") == 0
    second = jgi.run()
    assert (second.state, second.receipt["state"]) == ("success", "complete"), second.receipt["problems"]
    assert times_asked(jgi) == Counter(dict.fromkeys(ids, 2))


def test_a_page_in_place_of_a_file_is_a_mismatch_and_the_receipt_names_it(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    jgi.without_mount()  # the manifest is read over HTTPS, and checksums are Globus'
    jgi.fault("jdp", "spoil_restored", method="POST", options={"how": "page"})
    run = jgi.run(project="grow", proposal_id=GROW)
    assert (run.state, run.receipt["state"]) == ("failed", "incomplete")
    assert jgi.verified("grow") == len(ids) - 1
    assert any("1 file MISMATCH: /staging/grow/" in line for line in run.receipt["problems"])
    assert "ask JGI to look at its copies" in run.receipt["remedy"]


def test_a_token_that_jdp_refuses_stops_no_transfer_and_the_receipt_names_its_connection(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    jgi.limits(window_bytes=jgi.all_but_one_byte(ids))
    jgi.fault("jdp", "stuck_pending", method="POST")
    first = jgi.run(project="grow", proposal_id=GROW, wait_hours=0.0001)
    assert (first.receipt["state"], jgi.verified("grow")) == ("handed_on", 0)
    jgi.servers["jdp"].call(lambda: [jgi.jdp.engine.release(one) for one in jgi.jdp.engine.requests.values()])
    jgi.servers["jdp"].call(jgi.jdp.run_until_idle)
    jgi.limits(**A_DAY_LATER)
    jgi.servers["jdp"].call(lambda: jgi.jdp.sessions.revoke_all())
    second = jgi.run()
    assert (second.state, second.receipt["state"]) == ("failed", "incomplete")
    assert "waybill_jdp" in second.receipt["remedy"] and "clear task restore" in second.receipt["remedy"]
    assert jgi.verified("grow") == len(jgi.requests()[0]) > 0, "what JDP had accepted before is moved"
    jgi.connections["waybill_jdp"]["password"] = jgi.servers["jdp"].call(lambda: jgi.jdp.sessions.login())
    jgi.limits()
    assert jgi.run().receipt["state"] == "complete"
    assert no_twins(jgi, *ids)


def test_a_project_that_fails_stops_no_other(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    jgi.limits(window_bytes=jgi.all_but_one_byte(ids))
    assert jgi.run(project="grow", proposal_id=GROW).receipt["state"] == "handed_on"
    jgi.limits(**A_DAY_LATER)
    run = jgi.run(project="nothing", proposal_id=999_999)
    assert (run.state, run.receipt["state"]) == ("failed", "incomplete")
    assert any("nothing" in line for line in run.receipt["problems"]), run.receipt["problems"]
    assert jgi.run().receipt["state"] == "complete" and jgi.verified("grow") == len(ids)


def test_a_file_larger_than_the_window_is_named_and_staged_once_the_window_is_raised(jgi: Jgi) -> None:
    ids = jgi.project(GROW, "grow")
    largest = max((jgi.catalog.files[one] for one in ids), key=lambda file: file.size)
    jgi.limits(window_bytes=largest.size - 1, **A_DAY_LATER)
    first = jgi.run(project="grow", proposal_id=GROW)
    assert (first.state, first.receipt["state"]) == ("failed", "incomplete")
    assert any(f"1 file OVERSIZE: {largest.name}" in line for line in first.receipt["problems"])
    assert "raise window_bytes" in first.receipt["remedy"] and jgi.verified("grow") == len(ids) - 1
    jgi.limits(window_bytes=largest.size)
    assert jgi.run().receipt["state"] == "complete"
    assert no_twins(jgi, *ids)


def test_a_dry_run_asks_for_nothing_and_its_receipt_has_the_forecast(jgi: Jgi, receipts_folder: Path) -> None:
    ids = jgi.project(GROW, "grow")
    run = jgi.run(project="grow", proposal_id=GROW, dry_run=True)
    assert (run.state, run.receipt["state"], jgi.requests()) == ("success", "handed_on", [])
    (forecast,) = (json.loads(path.read_text()) for path in receipts_folder.rglob("forecast.json"))
    assert sorted(forecast["requests"][0]["ids"]) == sorted(ids)
    assert next(jgi.tracking.files(states=(FileState.QUEUED,)), None) is None


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"projekt": "grow"}, "projekt"),
        ({"project": "grow", "proposal_id": 0}, "proposal_id"),
        ({"project": "a", "proposal_id": 1, "biosamples_uri": "s3://elsewhere/a.csv"}, "under an allowed prefix"),
    ],
)
def test_a_wrong_conf_is_refused_whole_before_any_call(jgi: Jgi, conf: dict[str, object], said: str) -> None:
    calls = [len(jgi.jdp.journal), len(jgi.globus.journal)]
    try:
        run = jgi.run(**conf)
    except Exception as error:  # Airflow's own: the form's schema refuses what it can
        assert said in str(error)
    else:
        assert run.state == "failed" and said in run.receipt["outcome"]
    assert calls == [len(jgi.jdp.journal), len(jgi.globus.journal)]


def test_without_mongodb_nothing_is_asked_for_and_the_receipt_says_what_is_away(jgi: Jgi) -> None:
    jgi.project(GROW, "grow")
    jgi.connections["waybill_mongo"] |= {
        "port": 9,
        "extra": {"directConnection": True, "serverSelectionTimeoutMS": 300},
    }
    jgi.give("waybill_mongo", json.dumps(jgi.connections["waybill_mongo"]))
    run = jgi.run(project="grow", proposal_id=GROW)
    assert (run.state, run.receipt["state"], jgi.requests()) == ("failed", "incomplete", [])
    assert "waybill_mongo" in run.receipt["outcome"] + run.receipt["remedy"] + " ".join(run.receipt["problems"])


def test_no_secret_is_found_in_what_a_run_leaves_behind(
    jgi: Jgi,
    tmp_path: Path,
    metadata_database: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    jgi.project(GROW, "grow")
    jgi.fault(
        "jdp", "status", method="POST", path="download_files|request_archived", code=400, body="Bad: {authorization}"
    )
    with caplog.at_level(logging.DEBUG):
        jgi.run(project="grow", proposal_id=GROW)
        jgi.run()
    printed = capfd.readouterr()
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "collections" not in path.parts]
    places = {path.name: path.read_bytes() for path in [*left, metadata_database]}
    places |= {"printed": (printed.out + printed.err).encode(), "logged": caplog.text.encode()}
    hidden = {"GOLD": DEFAULT_OFFLINE_TOKEN, "JDP": DEFAULT_SESSION.rpartition("/")[2], "Globus": DEFAULT_CLIENT_SECRET}
    assert len(left) > 5 and found_in(places, hidden) == []
