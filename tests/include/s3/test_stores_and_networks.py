"""What a store refuses is told for what it is; a bucket's region is found; an outage is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from harness.plates import servers
from harness.proxy import Answer, Call, ConnectionDropped, Forward, Front, key_of, proxied, refuse
from include.core.errors import AuthError, Forbidden, NotFound, TransientError
from include.core.patience import Patience
from include.s3.bucket import S3Access
from include.s3.client import region_of_environment, session_of_environment
from include.s3.errors import (
    BucketMissing,
    ClockWrong,
    ExpiredCredential,
    ObjectVanished,
    OtherRegion,
    RequesterPays,
)
from simulators.s3 import error_answer

HOME = "eu-central-1"


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with servers.moto() as url:
        yield url


@pytest.fixture
def front(moto_url: str) -> Iterator[Front]:
    client = servers.access(moto_url)
    for name in ("here", "there"):
        if name not in [b["Name"] for b in client.client.list_buckets()["Buckets"]]:
            client.client.create_bucket(Bucket=name)
    client.client.put_object(Bucket="there", Key="a.tiff", Body=b"0123456789")
    client.close()
    with proxied(moto_url) as made:
        yield made


def in_another_region(status: int, code: str, *, named: bool) -> Any:
    """A store that serves the bucket `there` only to those who sign for its region."""

    def rule(request: Call, forward: Forward) -> Answer | None:
        if not request.path.startswith("/there"):
            return None
        if f"/{HOME}/s3/" in request.headers.get("authorization", ""):
            answer = forward(request)
            if key_of(request) == "":
                answer.headers["x-amz-bucket-region"] = HOME
            return answer
        answer = error_answer(status, code, "wrong region")
        if named and request.method != "HEAD":
            answer.body = answer.content().replace(b"</Error>", f"<Region>{HOME}</Region></Error>".encode())
        if named:
            answer.headers["x-amz-bucket-region"] = HOME
        return answer

    return rule


def read(access: S3Access, *, etag: str | None = None) -> bytes:
    async def main() -> bytes:
        async with access:
            bucket = access.bucket("there")
            head = await bucket.head("a.tiff")
            assert head is not None
            return bytes(await bucket.read("a.tiff", 2, 3, etag=etag or head.etag, size=10))

    return asyncio.run(main())


@pytest.mark.parametrize(("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
def test_the_region_of_a_bucket_is_found_and_used(front: Front, status: int, code: str):
    front.add(in_another_region(status, code, named=True))
    assert read(servers.access(front.url)) == b"234"


def test_a_region_that_nobody_names_is_told(front: Front):
    front.add(in_another_region(301, "PermanentRedirect", named=False))
    with pytest.raises(OtherRegion, match="another region"):
        asyncio.run(_list(front))


async def _list(front: Front, **options: Any) -> list[Any]:
    async with servers.access(front.url, **options) as access:
        return [row async for row in access.bucket("there").objects_under("", versions=False)]


def test_aws_region_counts(monkeypatch: pytest.MonkeyPatch, front: Front):
    for name, value in servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("AWS_REGION", HOME)
    assert S3Access(endpoint_url=front.url).region == HOME
    monkeypatch.delenv("AWS_REGION")
    assert region_of_environment() == S3Access(endpoint_url=front.url).region == "us-west-2"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ExpiredToken", ExpiredCredential),
        (403, "RequestTimeTooSkewed", ClockWrong),
        (403, "InvalidAccessKeyId", AuthError),
        (403, "SignatureDoesNotMatch", AuthError),
        (403, "AccessDenied", Forbidden),
        (404, "NoSuchBucket", BucketMissing),
    ],
)
@pytest.mark.parametrize("verb", ["listing", "reading", "looking"])
def test_a_refusal_is_told_for_what_it_is(front: Front, status: int, code: str, kind: type[Exception], verb: str):
    if verb == "looking" and code == "NoSuchBucket":
        pytest.skip("404 in answer to HEAD is an object that is not there")
    front.add(refuse(None, "^/there", status, code))

    async def main() -> None:
        async with servers.access(front.url) as access:
            bucket = access.bucket("there")
            if verb == "listing":
                await bucket.folders("")
            elif verb == "reading":
                await bucket.read("a.tiff", 2, 3, etag="x", size=10)
            else:
                await bucket.head("a.tiff")

    with pytest.raises(kind) as told:
        asyncio.run(main())
    assert type(told.value) is kind, "a class of its own, by which a caller decides"


def requester_pays(request: Call, forward: Forward) -> Answer | None:
    if "requestPayment" in request.target:
        body = b"<RequestPaymentConfiguration><Payer>Requester</Payer></RequestPaymentConfiguration>"
        return Answer(200, body, "application/xml")
    paid = request.headers.get("x-amz-request-payer") == "requester"
    return None if paid else error_answer(403, "AccessDenied", "Access Denied")


def test_a_bucket_whose_requester_pays(front: Front):
    front.add(requester_pays)
    with pytest.raises(RequesterPays, match="--request-payer"):
        asyncio.run(_list(front))
    assert read(servers.access(front.url, request_payer=True)) == b"234"


def test_an_object_that_vanished_is_no_object_that_never_was(front: Front):
    async def main() -> None:
        async with servers.access(front.url) as access:
            with pytest.raises(NotFound):
                await access.bucket("there").read("gone.tiff", 0, 3, etag=None, size=10)
            with pytest.raises(ObjectVanished):
                await access.bucket("there").read("gone.tiff", 0, 3, etag="x", size=10)

    asyncio.run(main())


class Outage:
    """A store that drops every connection until it was asked so often."""

    def __init__(self, requests: int):
        self.left = requests

    def __call__(self, request: Call, forward: Forward) -> Answer | None:
        self.left -= 1
        if self.left >= 0:
            raise ConnectionDropped("an outage")
        return None


async def no_pause(_: float) -> None:
    return None


def patient(front: Front, lines: list[str]) -> S3Access:
    return servers.access(front.url, patience=Patience(600, say=lines.append, sleep=no_pause))


def test_an_outage_is_waited_for(front: Front):
    lines: list[str] = []
    front.add(Outage(12))
    assert read(patient(front, lines)) == b"234"
    assert "waiting for the store" in lines[0] and lines[-1] == "the store answers again"


def test_without_patience_an_outage_ends_the_call(front: Front):
    front.add(Outage(1000))
    with pytest.raises(TransientError):
        read(servers.access(front.url))


def test_a_part_is_sent_whole_after_an_outage(front: Front):
    front.add({"fault": "call", "hook": Outage(5), "method": "PUT", "times": None})

    async def main() -> bytes:
        async with patient(front, []) as access:
            bucket = access.bucket("here")
            await bucket.put("small.txt", b"whole")
            return await bucket.read_all("small.txt")

    assert asyncio.run(main()) == b"whole"


def test_a_deletion_is_not_repeated_after_a_wait(front: Front):
    """Between the look before it and its repetition, somebody may have written the object anew."""
    front.add({"fault": "call", "hook": Outage(1000), "method": "DELETE", "times": None})

    async def main() -> None:
        async with patient(front, []) as access:
            await access.bucket("there").delete_one("a.tiff")

    with pytest.raises(TransientError):
        asyncio.run(main())
    assert sum(one.method == "DELETE" and key_of(one) == "a.tiff" for one in front.requests) <= 2


@pytest.mark.parametrize("verb", ["HEAD", "GET"])
def test_a_store_that_hangs_outlasts_the_patience_by_one_request(
    front: Front, monkeypatch: pytest.MonkeyPatch, verb: str
):
    """A client that repeats by itself would hang again, each time for as long."""
    monkeypatch.setattr("include.s3.client._READ_SECONDS", 0.3)
    monkeypatch.setattr("include.s3.client._WHOLE_READ_SECONDS", 0.3)
    over, came = threading.Event(), list[Call]()

    def hang(request: Call, forward: Forward) -> Answer | None:
        came.append(request)
        over.wait(60)
        raise ConnectionDropped("it has hung")

    front.add({"fault": "call", "hook": hang, "method": verb, "path": "a.tiff", "times": None})

    async def main() -> None:
        async with servers.access(front.url, patience=Patience(0.1)) as access:
            bucket = access.bucket("there")
            await (bucket.head("a.tiff") if verb == "HEAD" else bucket.read("a.tiff", 0, 3, etag="x", size=10))

    with pytest.raises(TransientError):
        asyncio.run(main())
    over.set()
    assert len(came) == 1


def test_the_session_of_the_environment_makes_clients_of_other_services_too():
    """Credentials by a role or by single sign-on need them; a service that does not exist is still an error."""
    from botocore.exceptions import BotoCoreError

    session = session_of_environment("us-east-1")
    for service in ("sts", "sso", "sso-oidc"):
        assert session.client(service).meta.region_name == "us-east-1"
    with pytest.raises(BotoCoreError, match="no-such-service"):
        session.client("no-such-service")
