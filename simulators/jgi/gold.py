"""GOLD: the exchange of a person's offline token for an access token, and lists of samples, projects and analyses.

Invariant: every list is complete, and an empty one is an answer: GOLD says 200 and `[]` of what it does not know.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from simulators.common import Answer, Call, Clock, ProblemError, Simulator
from simulators.common.wire import Operation
from simulators.jgi.catalog import Analysis, Biosample, Catalog
from simulators.jgi.generate import DATA
from simulators.jgi.settings import GoldSettings

DEFAULT_OFFLINE_TOKEN = "rehearsal-offline-token"  # opens nothing but a simulator


class GoldWorld(Simulator):
    """GOLD without a way in: `simulators.jgi.GoldSimulator` has its API too. It reads the catalog and changes nothing."""

    settings: GoldSettings

    def __init__(self, catalog: Catalog, clock: Clock | None = None, settings: GoldSettings | None = None) -> None:
        chosen = settings or GoldSettings()
        super().__init__("gold", chosen, clock)
        self.catalog = catalog
        self.offline_tokens = {DEFAULT_OFFLINE_TOKEN}
        self._draws = random.Random(f"gold|{chosen.seed}")
        self._issued: dict[str, float] = {}

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        return Answer(status, {"status": status, "error": title, "message": detail} | (fields or {}))

    def describe(self, call: Call) -> dict[str, Any]:
        """The offline token travels in the query: the journal has it not."""
        return {"query": "offlineToken=***"} if call.path == "/exchange" else {}

    def issue(self) -> str:
        """An access token that is good from now on."""
        token = f"eyJhbGciOiJIUzI1NiJ9.{self._draws.randbytes(24).hex()}.{self._draws.randbytes(16).hex()}"
        self._issued[token] = self.agenda.time + self.settings.token_seconds
        return token

    def revoke_all(self, offline_too: bool = False) -> int:
        """End every access token, and on demand the offline tokens; how many access tokens there were."""
        count = len(self._issued)
        self._issued.clear()
        if offline_too:
            self.offline_tokens.clear()
        return count

    def check(self, call: Call) -> None:
        """Raises `ProblemError` 401 without a good access token, 403 for what is not this user's."""
        scheme, _, token = call.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or self._issued.get(token, 0.0) <= self.agenda.time:
            raise ProblemError(401, "Unauthorized", "Full authentication is required to access this resource")
        if any(value in self.settings.forbidden for value in call.query.values()):
            raise ProblemError(403, "Forbidden", "Access Denied")


def add_routes(sim: GoldWorld) -> None:
    """Register every operation."""
    catalog = sim.catalog
    routes: list[tuple[str, Operation]] = [
        ("/exchange", _exchange(sim)),
        (
            "/api/v1/biosamples",
            _listing(sim, {"itsProposalId": lambda value: _biosamples(catalog, _integer(value))}),
        ),
        (
            "/api/v1/analysis_projects",
            _listing(
                sim,
                {
                    "biosampleGoldId": lambda value: _analyses(catalog, lambda each: each.biosample == value),
                    "itsProposalId": lambda value: _analyses(catalog, _of_proposal(_integer(value))),
                    "projectGoldId": lambda value: _analyses(catalog, lambda each: each.project == value),
                },
            ),
        ),
        ("/api/v1/projects", _listing(sim, {"biosampleGoldId": lambda value: _projects(catalog, value)})),
    ]
    for template, operation in routes:
        sim.route("GET", template, operation)
    sim.route("GET", "/{rest:path}", _nothing_there)


def _nothing_there(call: Call) -> Answer:
    raise ProblemError(404, "Not Found", f"No such endpoint: {call.path}")


def _exchange(sim: GoldWorld) -> Operation:
    def exchange(call: Call) -> Answer:
        """The access token as plain text."""
        if call.query.get("offlineToken") not in sim.offline_tokens:
            return Answer(401, b"Invalid offline token", "text/plain;charset=UTF-8")
        return Answer(200, sim.issue().encode(), "text/plain;charset=UTF-8")

    return exchange


def _listing(sim: GoldWorld, ways: dict[str, Callable[[str], Iterable[dict[str, Any]]]]) -> Operation:
    """A list by whichever of these parameters is given."""

    def listing(call: Call) -> Answer:
        sim.check(call)
        for name, look in ways.items():
            if call.query.get(name):
                return Answer(200, list(look(call.query[name])))
        raise ProblemError(400, "Bad Request", f"Give one of {', '.join(ways)}.")

    return listing


def _integer(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ProblemError(400, "Bad Request", "itsProposalId must be an integer.")
    return int(value)


def _of_proposal(number: int) -> Callable[[Analysis], bool]:
    return lambda each: each.proposal_id == number


def _biosamples(catalog: Catalog, proposal_id: int) -> list[dict[str, Any]]:
    return [
        {"biosampleGoldId": each.gold_id, "biosampleName": each.name, "itsProposalId": each.proposal_id}
        for each in catalog.biosamples.values()
        if each.proposal_id == proposal_id
    ]


def _projects(catalog: Catalog, biosample: str) -> list[dict[str, Any]]:
    return [_project_json(each) for each in catalog.biosamples.values() if each.gold_id == biosample]


def _project_json(sample: Biosample) -> dict[str, Any]:
    return {
        "projectGoldId": sample.project,
        "projectName": sample.name,
        "biosampleGoldId": sample.gold_id,
        "itsSpid": sample.its_sp_id,
        "itsProposalId": sample.proposal_id,
    }


def _analyses(catalog: Catalog, wanted: Callable[[Analysis], bool]) -> list[dict[str, Any]]:
    return [_analysis_json(each) for each in catalog.analyses.values() if wanted(each)]


@cache
def _published() -> dict[str, Any]:
    """The published record of an analysis project."""
    text = (DATA / "gold_analysis_projects_by_project.json").read_text(encoding="utf-8")
    record: dict[str, Any] = json.loads(text)[0]
    return record


def _analysis_json(analysis: Analysis) -> dict[str, Any]:
    return _published() | {
        "apGoldId": analysis.gold_id,
        "referenceApGoldId": analysis.reference,
        "apName": analysis.name,
        "apType": analysis.type,
        "studyId": analysis.study,
        "itsApId": analysis.its_ap_id,
        "imgSubmissionId": analysis.submission,
        "imgTaxonOid": analysis.taxon,
        "projects": [analysis.project],
    }
