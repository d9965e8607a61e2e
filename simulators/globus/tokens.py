"""Globus Auth: access tokens for confidential clients, and the consents that a token carries.

Invariant: a token is good for its lifetime in simulated time; `expires_in` says the same in seconds, which a client counts
by its own clock. So at a high speed a client meets 401 with a token that it thinks good, as with a revoked one.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

from simulators.common import Agenda, Answer, Call, ProblemError
from simulators.globus.model import Client, Endpoint, Ids
from simulators.globus.settings import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    TRANSFER_SCOPE,
    TRANSFER_SERVER,
    Settings,
)

_HTTPS = re.compile(r"https://auth\.globus\.org/scopes/([0-9a-f-]{36})/https")
_CONSENT = re.compile(r"https://auth\.globus\.org/scopes/([0-9a-f-]{36})/data_access")


@dataclass(frozen=True)
class Token:
    """What an access token stands for."""

    client: Client
    expires: float
    consents: frozenset[str]
    https: str | None = None
    """The collection that it reads over HTTPS; it is then good for nothing else."""


class Tokens:
    """Issues and checks access tokens. `clients` is by id; the first has the id and secret of `settings.py`."""

    def __init__(self, agenda: Agenda, settings: Settings, ids: Ids, endpoints: dict[str, Endpoint]) -> None:
        self._agenda = agenda
        self._settings = settings
        self._ids = ids
        self._endpoints = endpoints
        self._issued: dict[str, Token] = {}
        self.clients: dict[str, Client] = {}
        self.add_client(DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET)

    def add_client(self, client_id: str, secret: str) -> Client:
        """Add a client, or change its secret."""
        self.clients[client_id] = Client(client_id, secret)
        return self.clients[client_id]

    def grant(self, call: Call) -> Answer:
        """`POST /v2/oauth2/token` with client_credentials; errors have the form of OAuth 2."""
        client = self._client(call.headers.get("authorization", ""))
        if client is None:
            return Answer(401, {"error": "invalid_client"})
        form = {name: values[0] for name, values in parse_qs(call.body.decode("latin-1")).items()}
        if form.get("grant_type") != "client_credentials":
            return Answer(400, {"error": "unsupported_grant_type"})
        scope = form.get("scope", TRANSFER_SCOPE)
        if match := _HTTPS.fullmatch(scope):
            return self._issue(Token(client, self._expiry(), frozenset(), match[1]), match[1], scope)
        if TRANSFER_SCOPE not in scope:
            return Answer(400, {"error": "unknown_scope", "error_description": f"only {TRANSFER_SCOPE} is known here"})
        consents = frozenset(_CONSENT.findall(scope))
        unknown = [one for one in sorted(consents) if not self._has_data_access(one)]
        if unknown:
            return Answer(400, {"error": "unknown_scope", "error_description": f"no data_access scope: {unknown[0]}"})
        return self._issue(Token(client, self._expiry(), consents), TRANSFER_SERVER, TRANSFER_SCOPE)

    def _expiry(self) -> float:
        return self._agenda.time + self._settings.token_lifetime_seconds

    def _issue(self, token: Token, resource_server: str, scope: str) -> Answer:
        text = f"Ag{self._ids.hex32()}{self._ids.hex32()}"
        self._issued[text] = token
        body = {
            "access_token": text,
            "expires_in": int(self._settings.token_lifetime_seconds),
            "token_type": "Bearer",
            "resource_server": resource_server,
            "scope": scope,
            "other_tokens": [],
        }
        return Answer(200, body)

    def caller(self, call: Call, https: str | None = None) -> Token:
        """Who sent this request, with which consents; `https`: to which collection's own address. Raises `ProblemError` 401."""
        scheme, _, text = call.headers.get("authorization", "").partition(" ")
        token = self._issued.get(text.strip()) if scheme.lower() == "bearer" else None
        if token is None or token.expires <= self._agenda.time or token.https != https:
            raise ProblemError(401, "AuthenticationFailed", "Token is not active")
        return token

    def issued(self) -> list[str]:
        """Every token that was issued and not revoked."""
        return list(self._issued)

    def revoke_all(self) -> int:
        """Make every token issued so far invalid and return how many there were."""
        count = len(self._issued)
        self._issued.clear()
        return count

    def _has_data_access(self, endpoint_id: str) -> bool:
        endpoint = self._endpoints.get(endpoint_id)
        return endpoint is not None and endpoint.needs_data_access

    def _client(self, header: str) -> Client | None:
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        client = self.clients.get(unquote(name))
        return client if client and hmac.compare_digest(client.secret, unquote(secret)) else None
