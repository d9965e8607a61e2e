"""What the HTTP client can send and take: methods, bodies, credentials, files, and answers that are no success."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from include.core.credentials import AwsSignature, Basic, Header
from include.core.errors import AuthError, Forbidden, NotFound, RemoteError, RequestError, TransientError, WaybillError
from include.core.http import Busy, Conflict, Credentials, HttpClient, HttpPolicy
from include.core.http_reply import parse_answer
from simulators.common import Answer, Call, RunningServer, Simulator, SimulatorSettings, serve

SECRET = "s3cr3t/with+odd=signs"
QUICK = HttpPolicy(timeout_seconds=20.0, backoff_seconds=0.001, read_attempts=3)


class Echo(Simulator):
    """Answers what it was asked, at any path; `/say/…` answers the bytes that a test has put there."""

    def __init__(self) -> None:
        super().__init__("echo", SimulatorSettings(), gzip=False)
        self.said: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.route_rest(self.answer, "/{path}")

    def answer(self, call: Call) -> Answer:
        self.calls.append(call)
        if call.path in self.said:
            return Answer(200, self.said[call.path], "application/octet-stream")
        return Answer(200, {"method": call.method, "path": call.path, "body": call.body.decode("latin-1")})


class World:
    """The running remote, and a client of it."""

    def __init__(self, server: RunningServer, echo: Echo):
        self.server, self.echo = server, echo

    def fault(self, fault: str, **rule: Any) -> None:
        self.server.call(lambda: self.echo.faults.add(fault=fault, **rule))

    def ask(self, work: Callable[[HttpClient], Any], credentials: Credentials | None = None, **options: Any) -> Any:
        async def main() -> Any:
            given = {"name": "waybill_echo", "policy": QUICK, **options}
            async with HttpClient(self.server.url + "/base", credentials, **given) as client:
                return await work(client)

        return asyncio.run(main())

    def failure(self, work: Callable[[HttpClient], Any], *args: Any, **options: Any) -> WaybillError:
        with pytest.raises(WaybillError) as caught:
            self.ask(work, *args, **options)
        return caught.value

    @property
    def last(self) -> Call:
        return self.echo.calls[-1]


@pytest.fixture
def world() -> Iterator[World]:
    echo = Echo()
    with serve(echo.app) as server:
        yield World(server, echo)


# -- methods and bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST", "OPTIONS"])
def test_any_method_is_sent(world: World, method: str):
    reply = world.ask(lambda client: client.send(method, "/thing", what="x", json={"a": 1}))
    assert reply.json() == {"method": method, "path": "/base/thing", "body": '{"a":1}'}


def test_head_brings_headers_and_no_body(world: World):
    world.echo.said["/base/file"] = b"x" * 1234
    reply = world.ask(lambda client: client.head("/file", what="x"))
    assert (reply.headers["content-length"], reply.content, world.last.method) == ("1234", b"", "HEAD")


def test_each_kind_of_body_says_what_it_is(world: World, tmp_path: Path):
    file = tmp_path / "body"
    file.write_bytes(b"from a file")
    for options, body, kind in [
        ({"json": {"é": 1}}, '{"é":1}'.encode(), "application/json"),
        ({"form": {"a": "1 2", "b": "&"}}, b"a=1+2&b=%26", "application/x-www-form-urlencoded"),
        ({"text": "plain é"}, "plain é".encode(), "text/plain; charset=utf-8"),
        ({"content": b"\x00\xff"}, b"\x00\xff", "application/octet-stream"),
        ({"file": file}, b"from a file", "application/octet-stream"),
        ({}, b"", None),
    ]:
        world.ask(lambda client, options=options: client.send("PUT", "/thing", what="x", **options))
        assert (world.last.body, world.last.headers.get("content-type")) == (body, kind)
    world.ask(lambda client: client.send("PUT", "/thing", what="x", file=file, headers={"content-type": "image/tiff"}))
    assert world.last.headers["content-type"] == "image/tiff"


def test_a_file_is_sent_with_its_length_and_is_not_held_in_memory(world: World, tmp_path: Path):
    file = tmp_path / "large"
    file.write_bytes(b"0123456789abcdef" * (3 << 16) + b"end")
    world.ask(lambda client: client.send("PUT", "/large", what="x", file=file))
    assert world.last.headers["content-length"] == str(file.stat().st_size)
    assert "transfer-encoding" not in world.last.headers
    assert world.last.body == file.read_bytes()


def test_a_file_that_is_not_there_sends_nothing(world: World, tmp_path: Path):
    error = world.failure(lambda client: client.send("PUT", "/x", what="storing it", file=tmp_path / "none"))
    assert isinstance(error, RequestError)
    assert "none" in str(error)
    assert world.echo.calls == []


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
def test_a_write_of_any_method_is_sent_once_and_a_lost_answer_proves_nothing(world: World, method: str):
    world.fault("drop_after_commit")
    error = world.failure(lambda client: client.send(method, "/thing", what="x", json={}))
    assert isinstance(error, TransientError)
    assert not error.no_effect
    assert len(world.echo.calls) == 1


def test_what_may_be_repeated_is_repeated(world: World):
    world.fault("drop_after_commit")
    world.ask(lambda client: client.send_again("PUT", "/thing", what="x", text="whole"))
    assert [call.body for call in world.echo.calls] == [b"whole", b"whole"]


def test_the_fence_is_called_right_before_each_sending_and_may_refuse_it(world: World, tmp_path: Path):
    def no() -> None:
        raise TransientError("lost", no_effect=True)

    (tmp_path / "body").write_bytes(b"x")
    for options in ({"json": {}}, {"file": tmp_path / "body"}, {"form": {"a": "b"}}):
        error = world.failure(lambda client, given=options: client.send("PUT", "/x", what="x", fence=no, **given))
        assert error.no_effect
    assert world.echo.calls == []


# -- answers that are no success --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 400, 401, 404, 406, 409, 422, 500])
def test_a_status_that_the_caller_names_is_an_answer(world: World, status: int):
    body = json.dumps({"message": "several"})
    world.fault("status", code=status, body=body, times=None)
    reply = world.ask(lambda client: client.send("POST", "/x", what="x", answers=(status,)))
    assert (reply.status, reply.json()) == (status, {"message": "several"})
    read = world.ask(lambda client: client.get("/x", what="x", answers=(status,)))
    assert read.status == status
    assert len(world.echo.journal.entries("request")) == 2  # and none of them was tried again
    assert isinstance(world.failure(lambda client: client.send("POST", "/x", what="x")), WaybillError)


def test_what_passes_at_first_is_final_after_the_number_of_tries_that_the_caller_names(world: World):
    world.fault("status", code=500, times=None)
    error = world.failure(lambda client: client.read("/x", what="reading it", final_after={500: 2}))
    assert type(error) is RemoteError
    assert "reading it answered 500" in str(error)
    assert "2 times" in str(error)
    assert len(world.echo.journal.entries("request")) == 2


def test_other_trouble_does_not_count_for_it_and_may_pass(world: World):
    world.fault("status", code=500)
    world.fault("status", code=503)
    world.ask(lambda client: client.read("/x", what="x", final_after={500: 2}))
    assert len(world.echo.journal.entries("request")) == 3


def test_final_after_more_tries_than_usual_means_more_tries(world: World):
    world.fault("status", code=500, times=None)
    error = world.failure(lambda client: client.read("/x", what="x", final_after={500: 6}))
    assert type(error) is RemoteError
    assert len(world.echo.journal.entries("request")) == 6


def test_a_redirect_is_a_login_page_before_the_remote_and_passes(world: World):
    class Portal(Echo):
        def answer(self, call: Call) -> Answer:
            headers = {"Location": "https://user:pw@sso.example/login?ticket=GEHEIM#x"}
            return Answer(302, None, headers=headers)

    with serve(Portal().app) as server:
        error = World(server, world.echo).failure(lambda client: client.write("/x", what="making it"))
    assert isinstance(error, TransientError)
    assert not error.no_effect
    assert "making it answered 302 to https://sso.example/login: a login page or proxy stands before" in str(error)
    assert "check connection waybill_echo (127.0.0.1:" in str(error)
    assert "GEHEIM" not in str(error)
    assert "pw@" not in str(error)


def test_a_page_in_place_of_a_document_says_that_a_proxy_may_stand_there(world: World):
    world.fault("non_json")
    assert "login page or proxy" in str(world.failure(lambda client: client.write("/x", what="x")))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda answer: answer["token"], "lacks “token”"),
        (lambda answer: int(answer["number"]), "not as the remote documents it"),
        (lambda answer: int(answer["infinite"]), "not as the remote documents it"),
        (lambda answer: answer["list"][5], "not as the remote documents it"),
        (lambda answer: answer["none"]["a"], "not as the remote documents it"),
        (lambda answer: answer["number"].strip, "not as the remote documents it"),
    ],
)
def test_a_document_without_what_is_needed_leaves_the_request_in_doubt(make: Callable[[Any], Any], words: str):
    answer = {"number": [SECRET], "infinite": float("inf"), "list": [], "none": None}
    with pytest.raises(TransientError) as caught:
        parse_answer(make, answer, "asking")
    assert words in str(caught.value)
    assert not caught.value.no_effect
    assert SECRET not in str(caught.value)


def test_a_retry_after_of_three_centuries_is_an_hour(world: World):
    world.fault("status", code=429, retry_after=9999999999, times=None)
    error = world.failure(lambda client: client.write("/x", what="x"))
    assert (type(error), getattr(error, "retry_after", None)) == (Busy, 3600.0)
    date = {"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}
    world.server.call(world.echo.faults.clear)
    world.fault("status", code=503, times=None, **date)
    assert getattr(world.failure(lambda client: client.read("/x", what="x")), "retry_after", None) == 3600.0


# -- credentials ------------------------------------------------------------------------------------------------------


def test_a_credential_may_stand_in_any_header(world: World):
    world.ask(lambda client: client.read("/x", what="x"), Header("Api-Key", SECRET))
    assert world.last.headers["api-key"] == SECRET
    for given in (SECRET, f"Bearer {SECRET}"):
        world.ask(lambda client: client.read("/x", what="x"), Header("Authorization", given, scheme="Bearer"))
        assert world.last.headers["authorization"] == f"Bearer {SECRET}"


def test_login_and_password_are_sent_as_basic(world: World):
    world.ask(lambda client: client.read("/x", what="x"), Basic("user", "pass wörd"))
    assert base64.b64decode(world.last.headers["authorization"].removeprefix("Basic ")).decode() == "user:pass wörd"


@pytest.mark.parametrize("white", ["\n", "\r\n", " ", "\t\n"])
def test_white_space_around_a_credential_is_removed(world: World, white: str):
    for credentials in (Header("Api-Key", white + SECRET + white), Basic("user" + white, SECRET + white)):
        world.ask(lambda client: client.read("/x", what="x"), credentials)
    assert world.echo.calls[0].headers["api-key"] == SECRET
    assert base64.b64decode(world.echo.calls[1].headers["authorization"][6:]).decode() == f"user:{SECRET}"


@pytest.mark.parametrize("secret", ["", " \n", "two\nlines", "a\x00b", "clé", "a\u2028b", "tab\there", "\ufeffkey"])
def test_a_credential_that_no_header_can_carry_is_refused_by_the_connections_name(world: World, secret: str):
    error = world.failure(lambda client: client.write("/x", what="x"), Header("Api-Key", secret))
    assert isinstance(error, AuthError)
    assert "connection waybill_echo (127.0.0.1:" in str(error)
    assert error.no_effect
    assert not secret.strip() or secret.strip() not in str(error)
    assert world.echo.calls == []


def test_a_401_is_asked_once_more_and_names_connection_and_host(world: World):
    world.fault("status", code=401, times=None)
    error = world.failure(lambda client: client.write("/x", what="asking"), Header("Api-Key", SECRET))
    assert isinstance(error, AuthError)
    assert "Check the credential of connection waybill_echo (127.0.0.1:" in str(error)
    assert len(world.echo.journal.entries("request")) == 2
    world.failure(lambda client: client.write("/x", what="asking"))
    assert len(world.echo.journal.entries("request")) == 3


def test_a_refused_connection_names_connection_and_reason(world: World):
    world.server.stop()
    error = world.failure(lambda client: client.write("/x", what="asking"))
    assert error.no_effect
    assert "asking: no connection to 127.0.0.1 (ConnectError" in str(error)
    assert "check connection waybill_echo" in str(error)


@pytest.mark.parametrize("status", [300, 302, 400, 401, 403, 404, 407, 409, 418, 422, 429, 500, 503])
@pytest.mark.parametrize("kind", ["header", "basic", "bearer", "call header", "query", "named"])
def test_a_remote_that_quotes_a_secret_is_not_quoted(world: World, status: int, kind: str):
    credentials: dict[str, Credentials] = {
        "header": Header("Api-Key", SECRET),
        "basic": Basic("user", SECRET),
        "bearer": Header("Authorization", SECRET, scheme="Bearer"),
    }
    options: dict[str, dict[str, Any]] = {
        "call header": {"headers": {"X-Key": SECRET}},
        "query": {"params": {"token": SECRET}, "secrets": [SECRET]},
        "named": {"json": {"password": SECRET}, "secrets": [SECRET]},
    }
    token = base64.b64encode(f"user:{SECRET}".encode()).decode()
    words = f"you sent {SECRET} and {quote(SECRET, safe='')} and {token if kind == 'basic' else ''}!"
    world.fault("status", code=status, body=json.dumps({"detail": words}), times=None)
    error = world.failure(lambda client: client.write("/x", what="x", **options.get(kind, {})), credentials.get(kind))
    for form in (SECRET, quote(SECRET, safe=""), token):
        assert form not in str(error)
        assert form not in repr(error.__context__)
    assert "you sent … and …" in str(error)


def test_no_log_line_holds_a_secret_of_a_request(world: World, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        world.ask(lambda client: client.read("/x", what="x", params={"token": SECRET}), Header("Api-Key", SECRET))
    assert SECRET not in caplog.text
    assert quote(SECRET, safe="") not in caplog.text


def test_the_credential_and_our_headers_go_to_the_remotes_own_host_alone(world: World):
    other = Echo()
    headers = {"X-Tenant": "ours"}
    with serve(other.app) as server:
        work = lambda client: client.get(server.url + "/signed?X-Amz-Signature=abc", what="x")  # noqa: E731
        world.ask(work, Header("Api-Key", SECRET), headers=headers)
    assert other.calls[0].target == "/signed?X-Amz-Signature=abc"
    assert not {"api-key", "x-tenant"} & set(other.calls[0].headers)
    same = world.server.url + "/elsewhere"
    world.ask(lambda client: client.get(same, what="x"), Header("Api-Key", SECRET), headers=headers)
    assert (world.last.path, world.last.headers["api-key"], world.last.headers["x-tenant"]) == (
        "/elsewhere",
        SECRET,
        "ours",
    )
    world.ask(lambda client: client.get("/x", what="x", signed=False), Header("Api-Key", SECRET), headers=headers)
    assert "api-key" not in world.last.headers


def verified_by_aws(call: Call, secret_key: str) -> bool:
    """Whether a request carries the right Signature Version 4, from AWS's description of it."""
    fields = dict(part.strip().split("=", 1) for part in call.headers["authorization"].split(" ", 1)[1].split(","))
    day, region, service, _ = fields["Credential"].split("/")[1:]
    names = fields["SignedHeaders"].split(";")
    path, _, query = call.target.partition("?")
    digest = hashlib.sha256(call.body).hexdigest()
    canonical = "\n".join(
        [call.method, quote(path, safe="/~"), "&".join(sorted(query.split("&"))),
         *(f"{name}:{call.headers[name]}" for name in names), "", ";".join(names), digest]
    )  # fmt: skip
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{call.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + secret_key.encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, text.encode(), "sha256").hexdigest() == fields["Signature"]


@pytest.mark.parametrize("body", [{"json": {"a": [1]}}, {"content": b"\x00"}, {"file": True}, {}])
def test_a_request_is_signed_for_aws(world: World, tmp_path: Path, body: dict[str, Any]):
    from botocore.credentials import Credentials as Keys

    if "file" in body:
        (tmp_path / "body").write_bytes(b"file" * 1000)
        body = {"file": tmp_path / "body"}
    signer = AwsSignature(lambda: Keys("AKIDEXAMPLE", "SECRETKEY/1", "session-token"), "execute-api", "us-west-2")
    work = lambda client: client.send("PUT", "/v1/a%20b", what="x", params={"z": "1 2", "a": "é"}, **body)  # noqa: E731
    world.ask(work, signer)
    assert verified_by_aws(world.last, "SECRETKEY/1")
    assert not verified_by_aws(world.last, "SECRETKEY/2")
    assert world.last.headers["x-amz-security-token"] == "session-token"


def test_keys_that_aws_does_not_give_prove_that_nothing_was_sent(world: World):
    from botocore.exceptions import ClientError, EndpointConnectionError

    def fails(error: Exception) -> Callable[[], Any]:
        def fetch() -> Any:
            raise error

        return fetch

    for fetch, kind in (
        (lambda: None, AuthError),
        (fails(EndpointConnectionError(endpoint_url="http://169.254.169.254")), TransientError),
        (fails(ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole")), TransientError),
    ):
        error = world.failure(lambda client: client.write("/x", what="x"), AwsSignature(fetch, "execute-api", "r"))
        assert isinstance(error, kind)
        assert error.no_effect
        assert "connection waybill_echo" in str(error)
    assert world.echo.calls == []


def test_a_remote_that_quotes_a_signature_or_session_token_is_not_quoted(world: World):
    from botocore.credentials import Credentials as Keys

    class Quoting(Echo):
        def answer(self, call: Call) -> Answer:
            return Answer(
                403, {"message": " ".join([call.headers["authorization"], call.headers["x-amz-security-token"]])}
            )

    signer = AwsSignature(lambda: Keys("AKIDEXAMPLE", "SECRETKEY/1", "session-token"), "execute-api", "us-west-2")
    with serve(Quoting().app) as server:
        error = World(server, world.echo).failure(lambda client: client.read("/x", what="x"), signer)
    assert isinstance(error, Forbidden)
    assert "Signature=" not in str(error)
    assert "session-token" not in str(error)


@pytest.mark.parametrize(
    ("host", "words"),
    [("", "not a URL"), ("ica.illumina.com", "not a URL"), ("http://" + "a" * 70, "not a URL"), ("ftp://h", "http or https"),
     ("https://", "http or https"), ("https://user:pw@host", "in their own fields"), ("http://h:port", "not a URL")],
)  # fmt: skip
def test_a_host_that_is_no_url_is_refused_by_the_connections_name(host: str, words: str):
    with pytest.raises(RequestError, match="connection waybill_echo") as caught:
        HttpClient(host, name="waybill_echo")
    assert words in str(caught.value)
    assert "pw" not in str(caught.value)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_body_is_written_to_a_file_with_its_digest(world: World, tmp_path: Path):
    body = bytes(range(256)) * 9000
    world.echo.said["/base/file"] = body
    target = tmp_path / "file"
    got = world.ask(
        lambda client: client.download("/file", target, what="x", limit_bytes=len(body), size_bytes=len(body))
    )
    assert target.read_bytes() == body
    assert (got.path, got.size_bytes, got.sha256) == (target, len(body), hashlib.sha256(body).hexdigest())
    assert list(tmp_path.iterdir()) == [target]
    assert world.last.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("limit", "size", "kind"), [(999, None, RemoteError), (5000, 999, TransientError), (5000, 1001, TransientError)]
)
def test_a_body_that_is_too_long_or_not_as_long_as_announced_leaves_no_file(
    world: World, tmp_path: Path, limit: int, size: int | None, kind: type[WaybillError]
):
    world.echo.said["/base/file"] = b"x" * 1000
    target = tmp_path / "file"
    target.write_bytes(b"of before")
    error = world.failure(lambda client: client.download("/file", target, what="x", limit_bytes=limit, size_bytes=size))
    assert type(error) is kind
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"of before")]


def test_a_body_that_breaks_off_is_read_again(world: World, tmp_path: Path):
    world.echo.said["/base/file"] = b"x" * 1000
    world.fault("drop_after_commit")
    world.ask(lambda client: client.download("/file", tmp_path / "file", what="x", limit_bytes=5000))
    assert (tmp_path / "file").read_bytes() == b"x" * 1000


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, Conflict), (302, TransientError)])
def test_a_refused_download_raises_as_any_read_and_leaves_no_file(
    world: World, tmp_path: Path, status: int, kind: type[WaybillError]
):
    world.fault("status", code=status, times=None)
    error = world.failure(
        lambda client: client.download("/file", tmp_path / "file", what="x", limit_bytes=5000, answers=(status,))
    )
    assert type(error) is kind
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_this_machines_trouble(world: World, tmp_path: Path):
    error = world.failure(
        lambda client: client.download("/x", tmp_path / "none" / "file", what="fetching", limit_bytes=5000)
    )
    assert "fetching: cannot be written into" in str(error)
    assert urlsplit(world.server.url).hostname not in str(error)


def test_an_answer_in_memory_is_bounded_too(world: World):
    world.echo.said["/base/file"] = b"x" * 1001
    policy = HttpPolicy(body_limit_bytes=1000)
    error = world.failure(lambda client: client.get("/file", what="x"), policy=policy)
    assert type(error) is RemoteError
    assert "longer than" in str(error)
