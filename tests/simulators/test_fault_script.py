"""Each kind of fault over a real socket: what the client sees, and what the simulator really did."""

from __future__ import annotations

import time

import httpx
import pytest
from ica_rehearsal import SOURCE, TARGET

COPY = "dataCopyBatch"


def script(ica, *rules: dict) -> None:
    answer = ica.control.post("/faults", json=list(rules))
    assert answer.status_code == 200, answer.text


def submit(ica, **more) -> httpx.Response:
    """A batch sent without checking the answer: faults break the schema on purpose."""
    body = {
        "items": [{"dataId": more.pop("data")}],
        "destinationFolderId": more.pop("folder"),
        "copyUserTags": True,
        "copyTechnicalTags": True,
        "copyInstrumentInfo": True,
        "actionOnExist": "SKIP",
    }
    return ica.http.post(f"/api/projects/{TARGET}/dataCopyBatch", json=body, **more)


@pytest.fixture
def ica(rehearse):
    rehearsal = rehearse(speed=1.0)
    rehearsal.job = {"data": rehearsal.seed("/a.txt"), "folder": rehearsal.folder("/in/")}
    return rehearsal


def accepted(ica) -> int:
    return len(ica.journal("job_accepted"))


def test_a_status_fault_answers_in_place_of_the_system(ica):
    rule = {"method": "POST", "path": COPY, "fault": "status", "code": 503, "retry_after": 7}
    script(ica, rule | {"problem": {"detail": "Closed for repair."}})
    answer = submit(ica, **ica.job)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["detail"] == "Closed for repair."
    assert accepted(ica) == 0
    assert submit(ica, **ica.job).status_code == 201


def test_a_rule_skips_the_first_matches_and_acts_so_many_times(ica):
    script(ica, {"path": r"/api/jobs$", "after": 1, "times": 2, "fault": "status", "code": 500})
    codes = [ica.http.get("/api/jobs").status_code for _ in range(5)]
    assert codes == [200, 500, 500, 200, 200]
    assert ica.http.get(f"/api/projects/{SOURCE}/data").status_code == 200
    rule = ica.control.get("/faults").json()["rules"][0]
    assert (rule["matched"], rule["fired"]) == (5, 2)


def test_a_rule_without_end_acts_until_it_is_cleared(ica):
    script(ica, {"path": "jobs", "times": None, "fault": "status", "code": 500})
    assert [ica.http.get("/api/jobs").status_code for _ in range(3)] == [500, 500, 500]
    ica.control.delete("/faults")
    assert ica.http.get("/api/jobs").status_code == 200


def test_of_two_rules_for_one_request_the_first_acts_and_the_second_is_kept(ica):
    script(ica, {"path": "jobs", "fault": "status", "code": 500}, {"path": "jobs", "fault": "status", "code": 502})
    assert [ica.http.get("/api/jobs").status_code for _ in range(3)] == [500, 502, 200]


def test_a_rule_can_look_for_text_in_the_body(ica):
    script(ica, {"contains": ica.job["data"], "fault": "status", "code": 500})
    assert submit(ica, data=ica.seed("/b.txt"), folder=ica.job["folder"]).status_code == 201
    assert submit(ica, **ica.job).status_code == 500


@pytest.mark.parametrize(("fault", "jobs"), [("drop_before_commit", 0), ("drop_after_commit", 1)])
def test_a_dropped_connection_leaves_the_client_without_an_answer(ica, fault, jobs):
    script(ica, {"method": "POST", "path": COPY, "fault": fault})
    with pytest.raises(httpx.RemoteProtocolError):
        submit(ica, **ica.job)
    assert accepted(ica) == jobs
    request = ica.journal("request")[-1]
    assert (request["status"], request["faults"]) == ("dropped", [fault])
    assert ica.http.get("/api/jobs").status_code == 200


def test_a_held_answer_comes_late_but_the_job_exists_at_once(ica):
    script(ica, {"path": COPY, "fault": "hold_after_commit", "seconds": 0.6})
    with pytest.raises(httpx.ReadTimeout):
        submit(ica, **ica.job, timeout=0.2)
    assert accepted(ica) == 1
    script(ica, {"path": COPY, "fault": "hold_after_commit", "seconds": 0.3})
    begin = time.monotonic()
    assert submit(ica, **ica.job).status_code == 201
    assert time.monotonic() - begin >= 0.3


def test_a_delayed_commit_happens_after_the_client_has_gone_and_at_its_own_time(ica):
    script(ica, {"path": COPY, "fault": "commit_delayed", "seconds": 30, "hold": 0.2})
    with pytest.raises(httpx.RemoteProtocolError):
        submit(ica, **ica.job)
    assert ica.get("/api/jobs")["items"] == []
    begin = ica.control.get("/clock").json()["now"]
    ica.advance(25)
    assert ica.get("/api/jobs")["items"] == []
    ica.advance(100)
    assert [job["status"] for job in ica.get("/api/jobs")["items"]] == ["SUCCEEDED"]
    entry = ica.control.get("/journal", params={"kind": "job_accepted"}).json()["entries"][0]
    assert abs(entry["time"] - begin - 30) < 5


def test_an_error_after_the_commit_hides_a_job_that_exists(ica):
    script(ica, {"path": COPY, "fault": "error_after_commit"})
    assert ica.submit([ica.job["data"]], ica.job["folder"]).status_code == 500
    assert accepted(ica) == 1


def test_a_slow_request_commits_late(ica):
    script(ica, {"path": COPY, "fault": "slow", "seconds": 0.3})
    begin = time.monotonic()
    assert submit(ica, **ica.job).status_code == 201
    assert time.monotonic() - begin >= 0.3
    assert len(ica.get("/api/jobs")["items"]) == 1


def test_a_slow_body_trickles(ica):
    script(ica, {"path": "jobs", "fault": "slow_body", "seconds": 0.5, "chunks": 5})
    submit(ica, **ica.job)
    begin, arrivals = time.monotonic(), []
    with ica.http.stream("GET", "/api/jobs") as answer:
        for _ in answer.iter_raw():
            arrivals.append(time.monotonic() - begin)
    assert len(arrivals) >= 4
    assert arrivals[0] < 0.3 < 0.45 < arrivals[-1]


def test_an_answer_can_be_a_page_instead_of_json(ica):
    script(ica, {"path": COPY, "fault": "non_json"})
    answer = submit(ica, **ica.job)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<html>")
    assert accepted(ica) == 0


def test_a_hidden_job_is_missing_everywhere_for_a_while(ica):
    script(ica, {"path": COPY, "fault": "hide_job", "seconds": 60}, {"path": COPY, "fault": "drop_after_commit"})
    with pytest.raises(httpx.RemoteProtocolError):
        submit(ica, **ica.job)
    job = ica.journal("job_accepted")[0]
    batch = f"/api/projects/{TARGET}/dataCopyBatch/{job['batch_id']}"
    places = (f"/api/jobs/{job['job_id']}", batch, f"{batch}/items")
    assert ica.get("/api/jobs")["items"] == []
    assert {ica.call("GET", place).status_code for place in places} == {404}
    ica.advance(61)
    assert len(ica.get("/api/jobs")["items"]) == 1
    assert {ica.call("GET", place).status_code for place in places} == {200}


def test_an_outage_refuses_everything_until_it_is_over_and_spares_the_side_channel(ica):
    script(ica, {"path": COPY, "fault": "outage", "seconds": 120, "retry_after": 30})
    assert ica.http.get("/api/jobs").status_code == 200
    assert submit(ica, **ica.job).status_code == 503
    answer = ica.call("GET", "/api/jobs")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert accepted(ica) == 0
    ica.advance(121)
    assert ica.call("GET", "/api/jobs").status_code == 200


@pytest.mark.parametrize(
    "rule",
    [{"fault": "nonsense"}, {"fault": "slow", "colour": 1}, {"fault": "slow", "path": "("}, {"seconds": 1}],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(ica, rule):
    assert ica.control.post("/faults", json=rule).status_code == 400
    assert ica.control.get("/faults").json()["rules"] == []


@pytest.mark.parametrize(("retry_after", "header"), [(None, None), (3, "3")])
def test_the_rate_limit_is_a_bucket_that_refills(rehearse, retry_after, header):
    ica = rehearse(rate_limit_retry_after=retry_after)
    ica.control.patch("/settings", json={"rate_limit_per_second": 2, "rate_limit_burst": 3})
    ica.advance(10)
    answers = [ica.call("GET", "/api/jobs") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].headers.get("retry-after") == header
    ica.advance(1)
    assert [ica.call("GET", "/api/jobs").status_code for _ in range(3)] == [200, 200, 429]


def test_a_setting_with_a_wrong_name_or_value_changes_nothing(ica):
    for change in ({"failure_rat": 1}, {"failure_rate": 2}, {"failure_rate": 0.9, "same_project": "perhaps"}):
        assert ica.control.patch("/settings", json=change).status_code == 400
    assert ica.control.get("/settings").json()["failure_rate"] == 0
