"""The mail that a run of jgi_staging sends, to a server of the test."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string, policy

import pytest

from harness.fixtures import Connect


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """An SMTP server for one mail: its port, and what it got."""
    got: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        worker = threading.Thread(target=_serve, args=(listening, got), daemon=True)
        worker.start()
        yield listening.getsockname()[1], got
        worker.join(60)


def _serve(listening: socket.socket, got: list[str]) -> None:
    connection, _ = listening.accept()
    with connection, connection.makefile("rw", newline="\r\n", encoding="utf-8") as stream:

        def say(line: str) -> None:
            stream.write(line + "\n")
            stream.flush()

        say("220 test")
        while line := stream.readline():
            word = line[:4].upper()
            if word == "DATA":
                say("354 go on")
                got.append("".join(iter(stream.readline, ".\r\n")))
            say("221 bye" if word == "QUIT" else "250 well")


def connect_to(connect: Connect, port: int, **extra: object) -> None:
    facts = {"from_email": "waybill@example.org", "disable_ssl": True, "disable_tls": True, "timeout": 30, **extra}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": port, "extra": facts}
    connect("waybill_smtp", json.dumps(connection))


def test_a_page_goes_to_the_people_of_the_connection(connect: Connect) -> None:
    from hooks.mail import send_mail

    with mail_server() as (port, got):
        connect_to(connect, port, to=["night@example.org"])
        assert send_mail("Waybill jgi_staging: handed on", "<p>3 files</p>") == "mail was sent to night@example.org"
    mail = message_from_string(got[0].replace("\r\n", "\n"), policy=policy.default)
    assert (mail["to"], mail["subject"]) == ("night@example.org", "Waybill jgi_staging: handed on")
    assert "3 files" in "".join(part.get_content() for part in mail.walk() if part.get_content_type() == "text/html")


def test_without_a_connection_nothing_is_sent_and_nothing_is_said() -> None:
    from hooks.mail import send_mail

    assert send_mail("subject", "page") == ""


@pytest.mark.parametrize(("extra", "said"), [({}, "has no extra to"), ({"to": "a@b", "retry_limit": 0}, "Refused")])
def test_a_mail_that_cannot_be_sent_stops_nothing(connect: Connect, extra: dict[str, object], said: str) -> None:
    from hooks.mail import send_mail

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    connect_to(connect, port, **extra)
    assert said in send_mail("subject", "page")
