"""Mail, by Airflow's own connection to a server (type smtp).

Invariant: a mail that cannot be sent stops nothing; what it says stands in the receipt.
"""

from __future__ import annotations

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

CONN_ID = "waybill_smtp"


def send_mail(subject: str, page: str) -> str:
    """Sends a page to the people of the connection's extra `to`. Returns what came of it, as a sentence; without a connection
    "" and nothing is sent."""
    try:
        connection = BaseHook.get_connection(CONN_ID)
    except AirflowNotFoundException:
        return ""
    people = connection.extra_dejson.get("to") or []
    people = [people] if isinstance(people, str) else list(people)
    if not people:
        return f"no mail was sent: connection {CONN_ID} has no extra to, a list of addresses"
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    try:
        with SmtpHook(CONN_ID) as hook:
            hook.send_email_smtp(to=people, subject=subject, html_content=page)
    except Exception as error:  # whatever the server or its library raises; its text may hold a secret
        return f"no mail was sent: {type(error).__name__}; see connection {CONN_ID}"
    return f"mail was sent to {', '.join(people)}"
