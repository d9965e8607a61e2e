"""Where the ICA token comes from: an API key, or a service user's JWT that somebody else keeps.

Invariant: a token lives in memory only. A JWT made from an API key cannot be refreshed: a
new one is made. A kept JWT is fetched again when ICA refuses it, since its keeper renews it (docs/protocols/icav2.md 1.2, 1.3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from include.core.credentials import Header
from include.core.errors import AuthError, Forbidden
from include.core.http import Credential, HttpClient, usable_secret
from include.core.http_reply import parse_answer

MEDIA_TYPE = "application/vnd.illumina.v3+json"


@dataclass
class ApiKey:
    """Exchanges an API key for a JWT. `tenant` is needed only by users of several tenants."""

    key: str = field(repr=False)
    tenant: str | None = None

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        what = "POST /api/tokens"
        params = {"tenant": self.tenant} if self.tenant else None
        headers = {"X-API-Key": usable_secret(self.key, client.where)}
        try:
            made = await client.write(
                "/api/tokens", what=what, params=params, headers=headers, secrets=[self.key.strip()], signed=False
            )
        except Forbidden:  # concerns one thing only; without a token nothing can be done
            raise AuthError(f"{what} answered 403. Check the credential of {client.where}.") from None
        token = parse_answer(lambda answer: str(answer["token"]), made, what)
        return await Header("Authorization", token, "Bearer").credential(client, refresh=refresh)


@dataclass
class KeptToken:
    """A JWT kept elsewhere (as in the SOP: Secrets Manager, its ARN in an SSM parameter). `fetch` reads it anew."""

    fetch: Callable[[], Awaitable[str]]

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        token = await self.fetch()
        if not token.strip():
            raise AuthError(f"the secret that {client.where} names is empty: store the service user's JWT there")
        return await Header("Authorization", token, "Bearer").credential(client, refresh=refresh)
