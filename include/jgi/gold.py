"""GOLD's web services: biosamples of a proposal, analysis projects of a biosample (docs/protocols/jgi.md 1).

Invariant: the offline token travels in a query string, so it is named as a secret of that request, and of no other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from include.core.errors import AuthError, Forbidden, RemoteError
from include.core.http import Credential, HttpClient, usable_secret
from include.core.http_reply import parse_answer

KINDS = ("Metagenome Analysis", "Metatranscriptome Analysis")


@dataclass(frozen=True)
class OfflineToken:
    """Exchanges GOLD's offline token (made in a browser, dead after a year without use) for an access token of 12 hours."""

    token: str = field(repr=False)

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        token = usable_secret(self.token, client.where)
        what = "GET /exchange"
        try:
            reply = await client.get(
                "/exchange", what=what, params={"offlineToken": token}, secrets=[token], signed=False
            )
        except (AuthError, RemoteError) as error:
            kind = "may not be used" if isinstance(error, Forbidden) else "is not accepted"
            raise AuthError(
                f"{what}: the offline token of {client.where} {kind}: get a new one at gold-ws.jgi.doe.gov "
                "and enter it as the connection's password"
            ) from None
        access = reply.text.strip()
        if not access or not access.isprintable() or any(mark in access for mark in ' <>{"'):
            raise AuthError(f"{what} of {client.where} answered something that is no access token: look at the host")
        return Credential({"Authorization": f"Bearer {access}"}, (token, access))


@dataclass(frozen=True, slots=True)
class Analysis:
    """One analysis project of GOLD, as far as staging needs it. `biosample` is the one that was asked for."""

    ap_gold_id: str
    its_ap_id: int
    kind: str
    biosample: str


class GoldClient(HttpClient):
    """Typed calls of GOLD. An answer of 404 is "no such thing", 403 an error: that is not the same as no data."""

    async def biosamples(self, proposal_id: int) -> list[str]:
        """The GOLD ids (`Gb…`) of a proposal's biosamples."""
        what = f"biosamples of proposal {proposal_id}"
        rows = await self._rows("/api/v1/biosamples", {"itsProposalId": str(proposal_id)}, what)
        return sorted({parse_answer(lambda given: str(given["biosampleGoldId"]), row, what) for row in rows})

    async def analyses(self, biosample: str, kinds: Collection[str] = KINDS) -> list[Analysis]:
        """The analysis projects of a biosample that are of these kinds."""
        what = f"analysis projects of {biosample}"
        rows = await self._rows("/api/v1/analysis_projects", {"biosampleGoldId": biosample}, what)
        wanted = [row for row in rows if row.get("apType") in kinds]
        return [parse_answer(lambda given: _analysis(given, biosample), row, what) for row in wanted]

    async def _rows(self, path: str, params: dict[str, str], what: str) -> list[dict[str, Any]]:
        reply = await self.get(path, what=what, params=params, answers=(404,), headers={"Accept": "application/json"})
        if reply.status == 404:
            return []
        return parse_answer(_rows_of, reply.json(), what)


def _rows_of(answer: Any) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise TypeError("a list of objects was expected")
    return answer


def _analysis(row: dict[str, Any], biosample: str) -> Analysis:
    return Analysis(str(row["apGoldId"]), int(row["itsApId"]), str(row["apType"]), biosample)
