"""Where the ICA token comes from: an API key, or a service user's JWT that somebody else keeps.

Invariant: a token lives in memory only. A JWT made from an API key cannot be refreshed: a
new one is made. A kept JWT is fetched again when ICA refuses it, since its keeper renews it (docs/protocols/icav2.md 1.2, 1.3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from include.core.errors import AuthError, TransientError, error_for_status

MEDIA_TYPE = "application/vnd.illumina.v3+json"


@dataclass
class ApiKey:
    """Exchanges an API key for a JWT. `tenant` is needed only by users of several tenants."""

    key: str = field(repr=False)
    tenant: str | None = None

    async def authorization(self, http: httpx.AsyncClient, *, refresh: bool) -> str:
        what = "POST /api/tokens"
        params = {"tenant": self.tenant} if self.tenant else None
        headers = {"X-API-Key": self.key, "Accept": MEDIA_TYPE}
        try:
            answer = await http.post("/api/tokens", headers=headers, params=params)
        except httpx.TransportError as error:
            raise TransientError(f"{what}: no answer ({type(error).__name__})") from None
        if (
            answer.status_code == 403
        ):  # not `Forbidden`, which concerns one thing only: without a token nothing can be done
            raise AuthError(f"{what} answered 403. Check the connection's credential.")
        if not answer.is_success:
            raise error_for_status(answer.status_code, what)
        try:
            return f"Bearer {answer.json()['token']}"
        except (ValueError, KeyError, TypeError):
            raise TransientError(f"{what} answered without a token") from None


@dataclass
class KeptToken:
    """A JWT kept elsewhere (as in the SOP: Secrets Manager, its ARN in an SSM parameter). `fetch` reads it anew."""

    fetch: Callable[[], Awaitable[str]]

    async def authorization(self, http: httpx.AsyncClient, *, refresh: bool) -> str:
        token = (await self.fetch()).strip()
        if not token:
            raise AuthError(
                "the secret that connection waybill_icav2 names is empty: store the service user's JWT there"
            )
        return f"Bearer {token}"
