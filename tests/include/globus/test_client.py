"""The client against the simulator over a socket: errors by class, tokens, pages, secrets, and that every call ends."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress

import pytest

from include.core.errors import AuthError, Forbidden, NotFound, RemoteError, RequestError, TransientError
from include.core.http import Conflict
from include.globus.client import GlobusClient
from simulators.globus import DEFAULT_CLIENT_SECRET, DESTINATION_COLLECTION, JGI_COLLECTION
from tests.include.globus.conftest import ROOT, START, World, run


def test_the_clock_is_that_of_globus(world: World) -> None:
    world.client.collection(JGI_COLLECTION)
    assert world.client.remote_now == START


def test_a_wrong_secret_names_the_connection_and_not_itself(world: World) -> None:
    client = world.new_client(secret="opens-nothing-17")
    with pytest.raises(AuthError, match="connection waybill_globus") as caught:
        client.submission_id()
    assert "opens-nothing-17" not in str(caught.value)


def test_a_token_that_has_ended_is_replaced_also_where_nothing_is_repeated(world: World) -> None:
    item, client = world.item("a"), world.new_client(read_retries=1)
    client.submission_id()
    world.on(world.sim.tokens.revoke_all)
    world.fault("status", code=401, method="POST", path="/transfer$", times=1)
    row = run(world.transfers(client=client).submit(world.batch(item)))
    assert [row.external_id] == [one["task_id"] for one in world.accepted()]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, RemoteError),
        (403, Forbidden),
        (404, NotFound),
        (409, TransientError),
        (429, TransientError),
        (502, TransientError),
    ],
)
def test_errors_by_status(world: World, code: int, kind: type[Exception]) -> None:
    world.client.submission_id()
    world.fault("status", code=code, path="/endpoint/", times=None)
    with pytest.raises(kind) as caught:
        world.client.collection(JGI_COLLECTION)
    assert type(caught.value) is kind


def test_a_consent_that_is_missing_is_named_with_its_remedy(world: World) -> None:
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, needs_data_access=True))
    with pytest.raises(AuthError, match=f"data_access.*{DESTINATION_COLLECTION}|{DESTINATION_COLLECTION}.*data_access"):
        world.client.listing(DESTINATION_COLLECTION, "/")
    client = world.new_client(data_access=[DESTINATION_COLLECTION])
    assert client.listing(DESTINATION_COLLECTION, "/") == []


def test_a_login_by_a_person_cannot_be_given(world: World) -> None:
    asked = {"session_required_mfa": True, "session_message": "MFA"}
    world.on(lambda: world.sim.change_endpoint(DESTINATION_COLLECTION, authorization_parameters=asked))
    with pytest.raises(AuthError, match="guest collection"):
        world.client.listing(DESTINATION_COLLECTION, "/")


def test_a_page_of_somebody_else_is_no_answer(world: World) -> None:
    world.client.submission_id()
    world.fault("status", code=200, body="<html>Sign in</html>", times=None)
    for ask in (
        lambda: world.client.collection(JGI_COLLECTION),
        lambda: world.client.task("1"),
        lambda: world.client.tasks_of("batch-1"),
        lambda: world.client.stat(JGI_COLLECTION, "/x"),
        world.client.submission_id,
    ):
        with pytest.raises(TransientError, match="not one of Globus'") as caught:
            ask()
        assert not caught.value.no_effect


def test_no_connection_proves_that_nothing_was_done() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with (
            GlobusClient("id", "secret", read_retries=0, base_url=url) as client,
            pytest.raises(TransientError) as caught,
        ):
            client._client.authorizer = None
            client.submission_id()
    assert caught.value.no_effect


def test_silence_ends(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and answers nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            GlobusClient("id", "secret", timeout_seconds=0.2, read_retries=0, base_url=url) as client,
            pytest.raises(TransientError) as caught,
        ):
            client._client.authorizer = None
            client.submission_id()
    assert not caught.value.no_effect


def test_a_trickle_ends() -> None:
    """Each byte comes in time, and the answer would take minutes."""
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):  # the client may have gone
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
            while not over.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=[server])
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        try:
            with (
                GlobusClient("id", "secret", timeout_seconds=0.5, read_retries=0, base_url=url) as client,
                pytest.raises(TransientError) as caught,
            ):
                client._client.authorizer = None
                client.submission_id()
        finally:
            over.set()
            thread.join()
    assert not caught.value.no_effect


def test_identical_paths_are_told_from_too_many_tasks(world: World) -> None:
    item = world.item("a")
    document = {**world.batch(item).document(), "submission_id": world.client.submission_id()}
    world.client.submit(document, lambda: None)  # type: ignore[arg-type]
    again = {**document, "submission_id": world.client.submission_id()}
    with pytest.raises(Conflict):
        world.client.submit(again, lambda: None)  # type: ignore[arg-type]
    world.on(lambda: world.sim.change_settings(max_pending_tasks=1))
    other = {**world.batch(world.item("b")).document(), "submission_id": world.client.submission_id()}
    with pytest.raises(TransientError) as caught:
        world.client.submit(other, lambda: None)  # type: ignore[arg-type]
    assert caught.value.no_effect


def test_the_sdk_does_not_repeat_a_submission(world: World) -> None:
    client = world.new_client(read_retries=4)
    world.fault("status", code=503, method="POST", path="/transfer$", times=None)
    document = {**world.batch(world.item("a")).document(), "submission_id": client.submission_id()}
    with pytest.raises(TransientError):
        client.submit(document, lambda: None)  # type: ignore[arg-type]
    asked = [entry.details for entry in world.sim.journal.entries("request")]
    assert [one["status"] for one in asked if one["path"].endswith("/transfer")] == [503]


@pytest.mark.globus(page_size=2)
def test_all_pages_are_read(world: World) -> None:
    batch = world.batch(*(world.item(f"f{number}") for number in range(5)))
    row = run(world.transfers().submit(batch))
    world.advance(3600)
    assert len(world.client.moved(str(row.external_id))) == 5
    world.fault("status", code=500, path="successful_transfers", query="marker", times=1)
    with pytest.raises(TransientError):
        world.client.moved(str(row.external_id))


def test_no_secret_is_logged_at_debug_either(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        run(world.transfers().submit(world.batch(world.item("a"))))
        world.fault("status", code=500, times=1)
        with pytest.raises(TransientError):
            world.client.task("1")
    for secret in (DEFAULT_CLIENT_SECRET, *world.sim.tokens.issued()):
        assert secret not in caplog.text


# -- small files over HTTPS -------------------------------------------------------------------------------------------


def _with_https(world: World) -> None:
    place = f"{world.server.url}/https/{JGI_COLLECTION}"
    world.on(lambda: world.sim.change_endpoint(JGI_COLLECTION, https_server=place))


def test_a_small_file_is_read_over_https_also_with_a_token_that_has_ended(world: World) -> None:
    _with_https(world)
    item = world.item("a b#1.csv", b"id,name\n")
    client = world.new_client(read_retries=1)
    assert client.read(JGI_COLLECTION, item.source, limit_bytes=100) == b"id,name\n"
    world.on(world.sim.tokens.revoke_all)
    assert client.read(JGI_COLLECTION, item.source, limit_bytes=100) == b"id,name\n"


def test_what_cannot_be_read_over_https_says_why(world: World) -> None:
    item = world.item("a")
    with pytest.raises(RequestError, match="extra mount"):
        world.client.read(JGI_COLLECTION, item.source, limit_bytes=100)
    _with_https(world)
    with pytest.raises(NotFound):
        world.client.read(JGI_COLLECTION, f"{ROOT}/none", limit_bytes=100)
    with pytest.raises(RemoteError, match="more than 3 bytes"):
        world.client.read(JGI_COLLECTION, item.source, limit_bytes=3)
    world.fault("status", code=302, path="/https/", times=1)
    with pytest.raises(TransientError):
        world.client.read(JGI_COLLECTION, item.source, limit_bytes=100)
