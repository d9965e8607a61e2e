"""Documents under a prefix: written whole, read by digest, and nothing from outside the prefix."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from include.core.errors import NotFound, RemoteError, RequestError
from include.core.objects import Objects, read_input
from simulators.common import serve

SECRET = b'{"password": "correct horse"}'


def run(work: Any) -> Any:
    return asyncio.run(work)


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return Objects(f"file://{tmp_path}/in")


def test_a_document_comes_back_by_its_uri_and_digest(store):
    document = run(store.put("a/run 1:+x/plan.json", b"[1]"))
    assert document.to_dict() == {
        "uri": f"{store.prefix}a/run 1:+x/plan.json",
        "sha256": hashlib.sha256(b"[1]").hexdigest(),
        "size_bytes": 3,
    }
    assert run(store.get_document(document.to_dict())) == b"[1]"


def test_a_document_that_was_changed_is_refused_without_quoting_it(store):
    document = run(store.put("plan.json", b"[1]"))
    run(store.put("plan.json", SECRET))
    with pytest.raises(RequestError, match="is not what it was") as caught:
        run(store.get_document(document.to_dict()))
    assert "horse" not in str(caught.value)


def test_a_second_writing_replaces_the_first_and_names_are_listed_in_order(store):
    for name in ("b/receipt.json", "a/receipt.json", "a/page.html", "a/receipt.json"):
        run(store.put(name, name.encode()))
    assert run(store.names("/receipt.json")) == ["a/receipt.json", "b/receipt.json"]
    assert run(store.size_of("a/page.html")) == 11


def test_what_is_not_there_is_not_found(store):
    for call in (store.get("no.json"), store.size_of("no.json")):
        with pytest.raises(NotFound, match=r"no\.json does not exist"):
            run(call)


@pytest.mark.parametrize(
    "prefix", ["/srv/x", "ftp://h/x", "s3://u:secret@b/x", "s3://b/x?y=secret", "s3://[secret", ""]
)
def test_a_prefix_that_is_not_understood_is_refused_without_its_secrets(prefix):
    with pytest.raises(RequestError) as caught:
        Objects(prefix)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (403, "AccessDenied", "PermissionDeniedError"),
        (401, "Unauthorized", "UnauthenticatedError"),
        (404, "NoSuchBucket", "FileNotFoundError"),
    ],
)
def test_a_store_that_refuses_to_be_written_is_named_and_not_waited_for(status: int, code: str, why: str):
    body = f"<Error><Code>{code}</Code><Message>correct horse</Message></Error>"

    async def refuse(_: Request) -> Response:
        return Response(body, status, media_type="application/xml")

    with serve(Starlette(routes=[Route("/{path:path}", refuse, methods=["PUT", "GET", "HEAD"])])) as server:
        options = {
            "endpoint": server.url, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1",
            "client_options": {"allow_http": True},
        }  # fmt: skip
        store = Objects("s3://receipts/waybill", options, named_by="connection waybill_receipts")
        with pytest.raises(RemoteError, match=rf"cannot be written \({why}\)") as caught:
            run(store.put("a.json", b"{}"))
    assert str(caught.value).startswith("connection waybill_receipts: s3://receipts/waybill/a.json ")
    assert "horse" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named_and_not_waited_for():
    with pytest.raises(RemoteError, match="connection c: file:///etc/hostname/in/ cannot be written") as caught:
        Objects("file:///etc/hostname/in", named_by="connection c")
    assert "Not a directory" in str(caught.value)


def read(uri: str, *places: Objects, limit: int = 1000) -> bytes:
    return run(read_input(uri, places, limit_bytes=limit))


def refusal(uri: str, *places: Objects, limit: int = 1000) -> str:
    with pytest.raises((RequestError, NotFound)) as caught:
        read(uri, *places, limit=limit)
    assert "horse" not in str(caught.value)
    return str(caught.value)


def test_an_input_is_read_from_under_its_prefix_only(store, tmp_path):
    other = Objects(f"file://{tmp_path}/other")
    run(store.put("m.json", b"{}"))
    run(other.put("m.json", b"[]"))
    (tmp_path / "secret.json").write_bytes(SECRET)
    assert read(f"{store.prefix}m.json", other, store) == b"{}"
    assert "does not lie under an allowed prefix" in refusal(f"file://{tmp_path}/secret.json", store)
    assert "does not lie under an allowed prefix" in refusal(f"file://{tmp_path}/input/m.json", store)
    assert "none is configured" in refusal(f"{store.prefix}m.json")
    assert "does not exist" in refusal(f"{store.prefix}n.json", store)


@pytest.mark.parametrize("step", ["../secret.json", "a/../../secret.json", "%2e%2e/secret.json", "..%2fsecret.json"])
def test_no_spelling_leads_out_of_the_prefix(store, tmp_path, step):
    (tmp_path / "secret.json").write_bytes(SECRET)
    run(store.put("m.json", b"{}"))
    refusal(store.prefix + step, store)


@pytest.mark.parametrize("tail", ["?X-Amz-Signature=secret", "#secret"])
def test_an_input_uri_with_anything_secret_in_it_is_refused_without_repeating_it(store, tail):
    said = refusal(f"{store.prefix}m.json{tail}", store)
    assert "give the plain one" in said
    assert "secret" not in said
    assert "secret" not in refusal("s3://user:secret@bucket/m.json", store)
    assert "secret" not in refusal("s3://[secret/m.json", store)


def test_an_input_that_is_too_large_is_refused_by_its_size(store):
    run(store.put("m.json", SECRET))
    assert "29 bytes are more than the 10 that are read" in refusal(f"{store.prefix}m.json", store, limit=10)
