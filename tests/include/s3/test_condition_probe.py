"""Which guard a store is seen to honour: only a refusal by precondition proves one, and any other answer proves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import Bench, new_bench, run
from harness.proxy import HONOUR_BATCH_ETAGS, proxied
from harness.store_faults import fail_one_key
from include.s3.condition_probe import Probed, detect_conditional_delete
from include.s3.guarded_delete import DeleteGuard
from tests.include.plates.test_archive import through

KEY = "x/condition_probe"
BATCH = {"method": "POST", "query": "^delete"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with servers.moto() as url:
        made = new_bench(url, tmp_path_factory.mktemp("j"))
        yield made
        made.access.close()


def probed(bench: Bench, *rules: Any) -> Probed:
    with proxied(bench.url) as front:
        front.add(*rules)
        return run(detect_conditional_delete(through(bench, front).source, KEY, b"probe", pause=0.0))


def answers(body: bytes, *, times: int | None = None) -> proxy.RuleDict:
    return proxy.call(lambda *_: proxy.Answer(200, body, "application/xml"), times=times, **BATCH)


IGNORED = proxy.ignore_headers("if-match")
NOTHING_SAID = b"<DeleteResult></DeleteResult>"
DENIED = f"<DeleteResult><Error><Key>{KEY}</Key><Code>AccessDenied</Code></Error></DeleteResult>".encode()
OTHER_KEY = b"<DeleteResult><Error><Key>other</Key><Code>PreconditionFailed</Code></Error></DeleteResult>"


@pytest.mark.parametrize("body", [NOTHING_SAID, DENIED, OTHER_KEY], ids=["nothing said", "denied", "another key"])
def test_a_probe_that_survives_for_another_reason_proves_nothing(bench: Bench, body: bytes):
    assert probed(bench, answers(body), IGNORED).guard is DeleteGuard.HEAD


@pytest.mark.parametrize("code", ["InternalError", "SlowDown", "AccessDenied", "ServiceUnavailable"])
def test_one_error_of_the_key_is_asked_again_and_the_store_ignores_etags(bench: Bench, code: str):
    assert probed(bench, proxy.call(lambda q, f: fail_one_key(q, f, code), times=1, **BATCH), IGNORED).guard is (
        DeleteGuard.HEAD
    )


def test_one_error_of_the_key_is_asked_again_and_the_store_honours_etags(bench: Bench):
    once = proxy.call(lambda q, f: fail_one_key(q, f), times=1, **BATCH)
    assert probed(bench, once, HONOUR_BATCH_ETAGS).guard is DeleteGuard.BATCH_ETAG


@pytest.mark.parametrize("status", [409, 403])
def test_a_delete_that_is_answered_409_or_403_proves_nothing(bench: Bench, status: int):
    code = {409: "ConditionalRequestConflict", 403: "AccessDenied"}[status]
    found = probed(bench, answers(NOTHING_SAID), proxy.refuse("DELETE", KEY, status, code, times=3))
    assert found.guard is DeleteGuard.HEAD


def test_a_refusal_by_precondition_of_an_object_that_is_gone_proves_nothing(bench: Bench):
    refusal = f"<DeleteResult><Error><Key>{KEY}</Key><Code>PreconditionFailed</Code></Error></DeleteResult>".encode()

    def lying(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        forward(request)
        return proxy.Answer(200, refusal, "application/xml")

    assert probed(bench, proxy.call(lying, **BATCH), IGNORED).guard is DeleteGuard.HEAD


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "MalformedXML"), (400, "InvalidRequest"), (400, "MissingContentMD5")],
)
def test_a_store_without_batches_may_still_honour_if_match(bench: Bench, status: int, code: str):
    refused = {"fault": "status", "code": status, "problem": {"code": code}, "times": None, **BATCH}
    assert probed(bench, refused) == Probed(DeleteGuard.SINGLE_ETAG)


def test_a_probe_that_cannot_be_removed_is_named(bench: Bench):
    assert probed(bench, HONOUR_BATCH_ETAGS, proxy.refuse("DELETE", KEY, 403, "AccessDenied")).left == KEY
    assert probed(bench, HONOUR_BATCH_ETAGS).left is None and bench.keys(bench.live) == set()
