"""From the connections `waybill_gold` and `waybill_jdp` to clients; what JDP allows stands in the second one's extras, out of
callers' reach."""

from __future__ import annotations

from typing import Any, cast

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret
from hooks.client import ClientHook
from hooks.waybill import base_url

from include.core.errors import AuthError, RequestError
from include.core.text import printable
from include.jgi.gold import GoldClient, OfflineToken
from include.jgi.jdp import JdpClient, SessionToken
from include.jgi.models import Limits
from include.jgi.restoring import JdpAccount

GOLD, JDP = "waybill_gold", "waybill_jdp"
WHOLE = ("window_bytes", "request_ids", "max_attempts")
NUMBERS = (*WHOLE, "window_seconds", "margin_seconds", "disk_life_days")


class GoldHook(ClientHook[GoldClient]):
    """Connection fields: host (https://gold-ws.jgi.doe.gov), password (the offline token)."""

    conn_name_attr = "gold_conn_id"
    default_conn_name = GOLD
    conn_type = "http"
    hook_name = "GOLD"

    def connect(self, connection: Connection, *_others: Connection) -> GoldClient:
        return GoldClient(base_url(connection), OfflineToken(_secret(connection)), name=connection.conn_id)


class JdpHook(ClientHook[JdpClient]):
    """Connection fields: host (https://files.jgi.doe.gov), login (the JDP user, whose window is counted), password (the session
    token); extras `globus_user` (with whom JGI shares), `mail_to`, and the limits of `include.jgi.models.Limits` by name."""

    conn_name_attr = "jdp_conn_id"
    default_conn_name = JDP
    conn_type = "http"
    hook_name = "JGI Data Portal"

    def connect(self, connection: Connection, *_others: Connection) -> JdpClient:
        return JdpClient(base_url(connection), SessionToken(_secret(connection)), name=connection.conn_id)

    def account(self) -> JdpAccount:
        """Raises RequestError that names every extra that is wrong."""
        return jdp_account(BaseHook.get_connection(self.conn_id))


def jdp_account(connection: Connection) -> JdpAccount:
    """Whose window it is, and how large. Raises RequestError naming connection and extra."""
    extra = connection.extra_dejson
    problems = []
    if not (connection.login or "").strip():
        problems.append("login: it is empty; give the JDP user, whose window is counted")
    if not str(extra.get("globus_user") or "").strip():
        problems.append("extra globus_user: it is empty; give the Globus user with whom JGI shares what it restores")
    problems += [
        f"extra {name}: {why}" for name in NUMBERS if name in extra and (why := _wrong_number(name, extra[name]))
    ]
    if problems:
        raise RequestError([f"connection {connection.conn_id}: {problem}" for problem in problems])
    given = {name: int(extra[name]) if name in WHOLE else float(extra[name]) for name in NUMBERS if name in extra}
    limits = Limits(**cast(Any, given))
    return JdpAccount(
        (connection.login or "").strip(),
        str(extra["globus_user"]).strip(),
        str(extra.get("mail_to") or "").strip(),
        limits,
    )


def _wrong_number(name: str, value: Any) -> str:
    try:
        number = float("no number" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        return f"{printable(value, 40)} is no number"
    least = 0 if name == "margin_seconds" else 1e-9
    if not least <= number < float("inf"):
        return f"{printable(value, 40)} is not more than 0"
    return f"{printable(value, 40)} is no whole number" if name in WHOLE and number != int(number) else ""


def _secret(connection: Connection) -> str:
    if not (connection.password or "").strip():
        raise AuthError(f"connection {connection.conn_id} holds no credential: give the token as password")
    secret = str(connection.password).strip()
    mask_secret(secret)
    mask_secret(secret.rpartition(" ")[2])
    return secret
