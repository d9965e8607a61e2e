"""Who is calling: API keys, Basic credentials, JWTs.

Invariant: clients read `exp` and `aud` without checking the signature (docs/protocols/icav2.md 1.3), so both are
real; `exp` is in
simulated time, which a client with its own clock only shares while the simulator runs at speed 1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json

from simulators.common import Agenda, Call, ProblemError
from simulators.icav2.model import Ids, User
from simulators.icav2.settings import Settings

DEFAULT_API_KEY = "rehearsal-key"  # opens nothing but a simulator


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Tokens:
    """Issues and checks JWTs. `users` is by name; the first one, `service`, has the key `DEFAULT_API_KEY`."""

    def __init__(self, agenda: Agenda, settings: Settings, ids: Ids) -> None:
        self._agenda = agenda
        self._settings = settings
        self._ids = ids
        self._secret = ids.hex32().encode()
        self._issued: dict[str, tuple[User, float, bool]] = {}
        self.tenant_id = ids.uuid()
        self.users: dict[str, User] = {}
        self.add_user("service", DEFAULT_API_KEY, "rehearsal-password")

    def add_user(self, name: str, api_key: str, password: str = "") -> User:
        """Add a caller, or change the credentials of one."""
        user = User(name, api_key, password, self.users[name].id if name in self.users else self._ids.uuid())
        self.users[name] = user
        return user

    def issue(self, call: Call) -> str:
        """A token for the key or the Basic credentials of the request. Raises `ProblemError` 401."""
        key = call.headers.get("x-api-key")
        user = self._by_key(key) if key else self._by_basic(call.headers.get("authorization", ""))
        if user is None:
            raise ProblemError(401, "Unauthorized", "The API key or the user name and password are not valid.")
        return self._make(user, from_key=bool(key))

    def refresh(self, call: Call) -> str:
        """A new token for a valid one that was not made from an API key (docs/protocols/icav2.md 1.2). Raises 401 or 403."""
        user, _, from_key = self._check(call.headers.get("authorization", ""))
        if from_key:
            raise ProblemError(403, "Forbidden", "A token made from an API key cannot be refreshed.")
        return self._make(user, from_key=False)

    def caller(self, call: Call) -> User:
        """Who sent this request. Raises `ProblemError` 401."""
        key = call.headers.get("x-api-key")
        if key:
            user = self._by_key(key)
            if user is None:
                raise ProblemError(401, "Unauthorized", "The API key is not valid.")
            return user
        return self._check(call.headers.get("authorization", ""))[0]

    def issued(self) -> list[str]:
        """Every token that was issued and not revoked."""
        return list(self._issued)

    def revoke_all(self) -> int:
        """Make every token issued so far invalid and return how many there were."""
        count = len(self._issued)
        self._issued.clear()
        return count

    def _by_key(self, key: str) -> User | None:
        return next((user for user in self.users.values() if hmac.compare_digest(user.api_key, key)), None)

    def _by_basic(self, header: str) -> User | None:
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        user = self.users.get(name)
        return user if user and user.password and hmac.compare_digest(user.password, password) else None

    def _make(self, user: User, from_key: bool) -> str:
        now = self._agenda.time
        expires = now + self._settings.token_lifetime_seconds
        claims = {
            "aud": ["ica"],
            "iss": "waybill-simulator",
            "sub": user.id,
            "uid": user.name,
            "tid": self.tenant_id,
            "iat": int(now),
            "exp": int(expires),
            "jti": self._ids.uuid(),
        }
        parts = [_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
        signature = hmac.new(self._secret, ".".join(parts).encode(), hashlib.sha256).digest()
        token = ".".join([*parts, _encode(signature)])
        self._issued[token] = (user, expires, from_key)
        return token

    def _check(self, header: str) -> tuple[User, float, bool]:
        scheme, _, token = header.partition(" ")
        known = self._issued.get(token.strip()) if scheme.lower() == "bearer" else None
        if known is None or known[1] <= self._agenda.time:
            raise ProblemError(401, "Unauthorized", "The token is missing, expired or not valid.")
        return known
