"""From connection waybill_icav2 to a client: an API key, or the service user's JWT that AWS keeps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hooks.aws
import pytest
from airflow.sdk import BaseHook
from hooks.aws import fetch_secret
from hooks.icav2 import ICAv2Hook
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness.plates.servers import reset_moto
from include.core.errors import AuthError, RequestError, TransientError
from simulators.common import serve
from simulators.icav2 import DEFAULT_API_KEY
from tests.plugins.conftest import SOURCE, Connect, Ica

REGION, KEY_ID, KEY = "ap-southeast-2", "AKIATEST5ECRET", "aws-5ecret-key"
PARAMETER = "/icav2/umccr-prod/service-user-trial-jwt-token-secret-arn"


@pytest.fixture(scope="module")
def aws_url() -> Iterator[str]:
    """SSM and Secrets Manager on a loopback socket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


class Aws:
    """The service user's secret, as whoever keeps it stores and renews it."""

    def __init__(self, url: str):
        import boto3

        keys = {"region_name": REGION, "aws_access_key_id": KEY_ID, "aws_secret_access_key": KEY}
        self.secrets = boto3.client("secretsmanager", endpoint_url=url, **keys)
        self.ssm = boto3.client("ssm", endpoint_url=url, **keys)

    def keep(self, name: str, value: str) -> str:
        """Creates the secret, or renews it; its ARN goes into the SSM parameter."""
        try:
            arn = self.secrets.create_secret(Name=name, SecretString=value)["ARN"]
        except self.secrets.exceptions.ResourceExistsException:
            arn = self.secrets.put_secret_value(SecretId=name, SecretString=value)["ARN"]
        self.ssm.put_parameter(Name=PARAMETER, Value=arn, Type="String", Overwrite=True)
        return str(arn)


@pytest.fixture
def aws(aws_url: str, connect: Connect) -> Aws:
    reset_moto(aws_url)  # what moto holds belongs to the process, and other tests put things there too
    extra = {"region_name": REGION, "endpoint_url": aws_url}
    connect("waybill_aws", json.dumps({"conn_type": "aws", "login": KEY_ID, "password": KEY, "extra": extra}))
    return Aws(aws_url)


@pytest.fixture
def give(ica: Ica, connect: Connect) -> Callable[..., None]:
    """Connection waybill_icav2 with these fields beside the host."""

    def connection(**fields: Any) -> None:
        connect("waybill_icav2", json.dumps({"conn_type": "http", "host": ica.server.url, **fields}))

    return connection


def new_token(ica: Ica) -> str:
    """A token of the service user; all older ones stop working."""

    def renew(sim: Any) -> str:
        sim.tokens.revoke_all()
        return str(sim.tokens._make(sim.tokens.users["service"], from_key=False))

    return str(ica.call(renew))


async def look(client: Any) -> int:
    return len(await client.list_folder(SOURCE, "/"))


def look_once(*, in_trigger: bool = False) -> int:
    async def main() -> int:
        hook = ICAv2Hook()
        async with await hook.aclient() if in_trigger else hook.client() as client:
            return await look(client)

    return asyncio.run(main())


@pytest.mark.parametrize("in_trigger", [False, True])
def test_an_api_key_in_the_password_opens_ica(give: Callable[..., None], in_trigger: bool):
    give(password=DEFAULT_API_KEY)
    assert look_once(in_trigger=in_trigger) == 0


def test_a_wrong_api_key_is_told_without_it(give: Callable[..., None]):
    give(password="wr0ng-key")
    with pytest.raises(AuthError) as refused:
        look_once()
    assert "wr0ng-key" not in str(refused.value)


def test_a_connection_without_any_credential_names_the_three_ways(give: Callable[..., None]):
    give()
    with pytest.raises(AuthError, match="API key as password, or the extra ssm_parameter or secret_id"):
        look_once()


def test_a_connection_without_a_host_is_refused_with_an_example(connect: Connect):
    connect("waybill_icav2", json.dumps({"conn_type": "http", "password": DEFAULT_API_KEY}))
    with pytest.raises(RequestError, match=r"https://ica\.illumina\.com/ica/rest"):
        look_once()


@pytest.mark.parametrize("in_trigger", [False, True])
def test_the_token_is_found_by_the_arn_in_an_ssm_parameter(
    give: Callable[..., None], aws: Aws, ica: Ica, in_trigger: bool
):
    aws.keep("service-user", new_token(ica))
    give(extra={"ssm_parameter": PARAMETER})
    assert look_once(in_trigger=in_trigger) == 0


def test_the_token_may_be_one_field_of_a_json_secret_named_directly(give: Callable[..., None], aws: Aws, ica: Ica):
    arn = aws.keep("json-secret", json.dumps({"token": new_token(ica), "other": 1}))
    give(extra={"secret_id": arn, "json_key": "token"})
    assert look_once() == 0
    give(extra={"secret_id": "json-secret", "json_key": "token"})
    assert look_once() == 0


def test_a_renewed_token_is_read_again_when_ica_refuses_the_old_one(give: Callable[..., None], aws: Aws, ica: Ica):
    aws.keep("service-user", new_token(ica))
    give(extra={"ssm_parameter": PARAMETER})

    async def main() -> None:
        async with ICAv2Hook().client() as client:
            await look(client)
            aws.keep("service-user", new_token(ica))
            await look(client)  # refused, read again, accepted
            new_token(ica)
            with pytest.raises(AuthError):  # refused, read again, still the old one
                await look(client)

    asyncio.run(main())
    refused = ica.call(lambda sim: sim.journal.statuses)["401"]
    assert refused == 3, "one 401 for the renewal, two where the keeper has not renewed it"


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"secret_id": "nobody-made-it"}, "ResourceNotFoundException"),
        ({"ssm_parameter": "/nobody/made/it"}, "ParameterNotFound"),
        ({"secret_id": "service-user", "json_key": "absent"}, "json_key"),
    ],
)
def test_a_secret_that_cannot_be_had_is_told_without_its_content(
    give: Callable[..., None], aws: Aws, extra: dict[str, str], told: str
):
    aws.keep("service-user", '{"token": "jwt-5ecret"}')
    give(extra=extra)
    with pytest.raises(AuthError, match=told) as failed:
        look_once()
    assert "jwt-5ecret" not in str(failed.value)
    assert failed.value.__cause__ is None


AWS_CONNECTION = {"conn_type": "aws", "login": KEY_ID, "password": KEY}
ONCE = {"retries": {"total_max_attempts": 1}}


def fetch() -> str:
    return fetch_secret(
        {"ssm_parameter": PARAMETER}, BaseHook.get_connection("waybill_aws"), purpose="the ICA credential"
    )


def test_an_aws_that_does_not_answer_is_a_passing_trouble(connect: Connect):
    extra = {"region_name": REGION, "endpoint_url": "http://127.0.0.1:1", "config_kwargs": ONCE}
    connect("waybill_aws", json.dumps({**AWS_CONNECTION, "extra": extra}))
    with pytest.raises(TransientError) as failed:
        fetch()
    assert KEY not in str(failed.value)


def test_an_aws_in_trouble_passes_too(connect: Connect):
    async def broken(_request: Any) -> Response:
        return Response("{}", status_code=503)

    with serve(Starlette(routes=[Route("/", broken, methods=["POST"])])) as server:
        extra = {"region_name": REGION, "endpoint_url": server.url, "config_kwargs": ONCE}
        connect("waybill_aws", json.dumps({**AWS_CONNECTION, "extra": extra}))
        with pytest.raises(TransientError):
            fetch()


def test_an_aws_connection_without_a_region_is_not_called_a_passing_trouble(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    connect("waybill_aws", json.dumps(AWS_CONNECTION))
    with pytest.raises(AuthError, match="region_name"):
        fetch()


def test_the_endpoint_may_be_given_for_one_service(give: Callable[..., None], connect: Connect, aws_url: str, ica: Ica):
    services = {name: {"endpoint_url": aws_url} for name in ("ssm", "secretsmanager")}
    extra = {"region_name": REGION, "service_config": services}
    connect("waybill_aws", json.dumps({**AWS_CONNECTION, "extra": extra}))
    Aws(aws_url).keep("service-user", new_token(ica))
    give(extra={"ssm_parameter": PARAMETER})
    assert look_once() == 0


def test_a_refusal_whose_own_words_quote_our_header_is_told_without_it(connect: Connect):
    async def token(_request: Any) -> Response:
        return JSONResponse({"token": "jwt-5ecret"})

    async def refuse(request: Any) -> Response:
        detail = f"not allowed: {request.headers['authorization']}"
        return JSONResponse({"detail": detail}, 403, media_type="application/problem+json")

    routes = [Route("/api/tokens", token, methods=["POST"]), Route("/{path:path}", refuse)]
    with serve(Starlette(routes=routes)) as server:
        connect("waybill_icav2", json.dumps({"conn_type": "http", "host": server.url, "password": "k"}))
        with pytest.raises(AuthError) as refused:
            look_once()
    assert "jwt-5ecret" not in str(refused.value)


def test_a_session_is_made_in_one_place_for_buckets_and_secrets_alike():
    plugins = Path(hooks.aws.__file__).parents[1]
    made = [path.name for path in plugins.rglob("*.py") if "BaseSessionFactory(" in path.read_text()]
    assert made == ["aws.py"]
    assert Path(hooks.aws.__file__).read_text().count("BaseSessionFactory(") == 1
