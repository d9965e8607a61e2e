"""Who calls JDP: session tokens as people copy them from its web page, and the form that JGI's partners use.

Invariant: a token is sent with its scheme, as the page gives it. A value without `Bearer` or `Token` is none.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable

from simulators.common import Agenda, Call, ProblemError
from simulators.jgi.settings import JdpSettings

DEFAULT_SESSION = "Bearer /api/sessions/0123456789abcdef0123456789abcdef"  # opens nothing but a simulator
PARTNER_SECRET = "rehearsal-partner"
DEFAULT_USER = "wrangler"
NO_CREDENTIALS = "Authentication credentials were not provided."
_PARTNER = re.compile(r"Token (\d{4}-\d{4}-\d{4}-\d{3}[\dX])_(.+)")


class Sessions:
    """Issues and checks session tokens; `DEFAULT_SESSION` is issued at the start."""

    def __init__(self, agenda: Agenda, settings: JdpSettings, hex32: Callable[[], str]) -> None:
        self._agenda = agenda
        self._settings = settings
        self._hex32 = hex32
        self._issued: dict[str, tuple[str, float]] = {}
        self.login(DEFAULT_USER, DEFAULT_SESSION)

    def login(self, user: str = DEFAULT_USER, token: str | None = None) -> str:
        """A person logs in and copies the token: `Bearer /api/sessions/<32 hex>`. One that is given is issued anew."""
        value = token or f"Bearer /api/sessions/{self._hex32()}"
        self._issued[value] = (user, self._agenda.time)
        return value

    def revoke_all(self) -> int:
        """End every session and return how many there were."""
        count = len(self._issued)
        self._issued.clear()
        return count

    def caller(self, call: Call) -> str:
        """Whose token this request has. Raises `ProblemError` 401."""
        user = self.caller_or_none(call)
        if user is None:
            raise ProblemError(401, "Unauthorized", NO_CREDENTIALS)
        return user

    def caller_or_none(self, call: Call) -> str | None:
        """Whose token this request has; None without one, or with one that is not good (GOLD's, an old one)."""
        value = call.headers.get("authorization", "")
        user, since = self._issued.get(value, ("", float("-inf")))
        life = self._settings.session_seconds
        if user and (life is None or self._agenda.time < since + life):
            return user
        partner = _PARTNER.fullmatch(value)
        if partner and hmac.compare_digest(partner[2].encode(), PARTNER_SECRET.encode()):
            return partner[1]
        return None
