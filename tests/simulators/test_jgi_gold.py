"""GOLD over a real socket: the exchange, the five lists, what it refuses, and that no token is written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from jgi_rehearsal import HOUR, PROPOSAL, Gold

from simulators.jgi import DEFAULT_OFFLINE_TOKEN, Catalog, add_published
from simulators.jgi.generate import DATA


@pytest.fixture
def rehearse_gold() -> Iterator[Callable[..., Gold]]:
    made: list[Gold] = []

    def start(**settings: Any) -> Gold:
        catalog = Catalog()
        add_published(catalog, PROPOSAL, "grow", biosamples=3, scale=1e-7)
        made.append(Gold(catalog, **settings))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def gold(rehearse_gold: Callable[..., Gold]) -> Gold:
    return rehearse_gold()


def advance(gold: Gold, seconds: float) -> None:
    gold.http.post("/_sim/clock", json={"advance": seconds}).raise_for_status()


def test_the_exchange_answers_with_plain_text(gold: Gold) -> None:
    answer = gold.exchange()
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.count(".") == 2
    assert gold.exchange("another").status_code == 401


def test_an_access_token_lasts_twelve_hours(gold: Gold) -> None:
    advance(gold, 12 * HOUR - 1)
    assert gold.list("biosamples", itsProposalId=PROPOSAL)
    advance(gold, 1)
    assert gold.http.get("/api/v1/biosamples", params={"itsProposalId": PROPOSAL}).status_code == 401
    gold.http.headers["Authorization"] = f"Bearer {gold.exchange().text}"
    assert gold.list("biosamples", itsProposalId=PROPOSAL)


def test_samples_analyses_and_sequencing_projects_lead_to_each_other(gold: Gold) -> None:
    samples = [each["biosampleGoldId"] for each in gold.list("biosamples", itsProposalId=PROPOSAL)]
    assert len(samples) == 3
    of_samples = [each for sample in samples for each in gold.list("analysis_projects", biosampleGoldId=sample)]
    assert of_samples == gold.list("analysis_projects", itsProposalId=PROPOSAL)
    kept = [each for each in of_samples if each["apType"] in ("Metagenome Analysis", "Metatranscriptome Analysis")]
    assert len(kept) == 3 < len(of_samples)
    mapping = next(each for each in of_samples if each["apType"] == "Metatranscriptome mapping (self)")
    (project,) = gold.list("projects", biosampleGoldId=samples[2])
    of_project = gold.list("analysis_projects", projectGoldId=project["projectGoldId"])
    assert {each["apGoldId"] for each in of_project} == {mapping["apGoldId"], mapping["referenceApGoldId"]}


def test_an_analysis_has_the_fields_of_the_published_record(gold: Gold) -> None:
    published = json.loads((DATA / "gold_analysis_projects_by_project.json").read_text("utf-8"))[0]
    assert set(gold.list("analysis_projects", itsProposalId=PROPOSAL)[0]) == set(published)


def test_what_is_not_known_is_an_empty_list(gold: Gold) -> None:
    assert gold.list("biosamples", itsProposalId=1) == []
    assert gold.list("projects", biosampleGoldId="Gb0") == []


def test_what_is_not_this_users_is_forbidden(rehearse_gold: Callable[..., Gold]) -> None:
    gold = rehearse_gold(forbidden=["Gb0300001"])
    answer = gold.http.get("/api/v1/analysis_projects", params={"biosampleGoldId": "Gb0300001"})
    assert answer.status_code == 403
    assert gold.list("analysis_projects", biosampleGoldId="Gb0300002")


@pytest.mark.parametrize("code", [404, 429])
def test_the_fault_script_refuses(gold: Gold, code: int) -> None:
    rule = {"fault": "status", "path": "/api/v1/biosamples", "code": code, "retry_after": 7}
    gold.http.post("/_sim/faults", json=rule).raise_for_status()
    answer = gold.http.get("/api/v1/biosamples", params={"itsProposalId": PROPOSAL})
    assert (answer.status_code, answer.headers["retry-after"]) == (code, "7")
    assert gold.list("biosamples", itsProposalId=PROPOSAL)


def test_a_slow_answer_is_felt_by_the_client(rehearse_gold: Callable[..., Gold]) -> None:
    gold = rehearse_gold()
    gold.http.post("/_sim/faults", json={"fault": "slow", "path": "/api/v1", "seconds": 60}).raise_for_status()
    with pytest.raises(httpx.ReadTimeout):  # its clock stands still: the answer never comes
        gold.http.get("/api/v1/biosamples", params={"itsProposalId": PROPOSAL}, timeout=0.2)


def test_no_token_is_in_the_journal(gold: Gold) -> None:
    access = gold.http.headers["Authorization"].removeprefix("Bearer ")
    gold.list("biosamples", itsProposalId=PROPOSAL)
    text = gold.http.get("/_sim/journal").text
    assert DEFAULT_OFFLINE_TOKEN not in text
    assert access not in text
    assert "offlineToken=***" in text


def test_revoked_tokens_open_nothing(gold: Gold) -> None:
    assert gold.http.post("/_sim/tokens/revoke", json={"offline_too": True}).json() == {"revoked": 1}
    assert gold.http.get("/api/v1/biosamples", params={"itsProposalId": PROPOSAL}).status_code == 401
    assert gold.exchange().status_code == 401
