"""From the connection `waybill_icav2` to a client: an API key, or the SOP's way (a JWT in Secrets Manager, its ARN in SSM)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret
from hooks.waybill import base_url

from include.core.errors import AuthError, RequestError, TransientError, WaybillError
from include.core.http import Credentials
from include.icav2.client import ICAv2Client
from include.icav2.credentials import ApiKey, KeptToken


class ICAv2Hook(BaseHook):
    """Connection fields: host (as https://ica.illumina.com/ica/rest), password (API key), extras `tenant`; or, instead of
    a password, the extras `ssm_parameter` (its value names the secret) or `secret_id`, `json_key` (where the secret is a
    JSON object) and `aws_conn_id` (default waybill_aws)."""

    conn_name_attr = "icav2_conn_id"
    default_conn_name = "waybill_icav2"
    conn_type = "http"
    hook_name = "ICAv2"

    def __init__(self, icav2_conn_id: str = default_conn_name):
        super().__init__()
        self.icav2_conn_id = icav2_conn_id

    def client(self) -> ICAv2Client:
        """For tasks. Use as an async context manager."""
        connection = self.get_connection(self.icav2_conn_id)
        aws = self.get_connection(aws_conn_id(connection)) if kept_elsewhere(connection) else None
        return _client(connection, aws)

    async def aclient(self) -> ICAv2Client:
        """For triggers."""
        connection = await self.aget_connection(self.icav2_conn_id)
        aws = await self.aget_connection(aws_conn_id(connection)) if kept_elsewhere(connection) else None
        return _client(connection, aws)


def kept_elsewhere(connection: Connection) -> bool:
    extra = connection.extra_dejson
    return bool(extra.get("ssm_parameter") or extra.get("secret_id"))


def aws_conn_id(connection: Connection) -> str:
    return str(connection.extra_dejson.get("aws_conn_id") or "waybill_aws")


def _client(connection: Connection, aws: Connection | None) -> ICAv2Client:
    if not connection.host:
        raise RequestError(f"connection {connection.conn_id} has no host: give https://ica.illumina.com/ica/rest")
    return ICAv2Client(base_url(connection), _credentials(connection, aws))


def _credentials(connection: Connection, aws: Connection | None) -> Credentials:
    extra = connection.extra_dejson
    if aws is not None:
        return KeptToken(lambda: asyncio.to_thread(fetch_secret, extra, aws))
    if not connection.password:
        raise AuthError(
            f"connection {connection.conn_id} holds no credential: give the API key as password, or the extra "
            "ssm_parameter or secret_id"
        )
    mask_secret(connection.password)
    return ApiKey(connection.password, extra.get("tenant"))


def fetch_secret(extra: dict[str, Any], aws: Connection) -> str:
    """The secret that the extras name, read now. Raises AuthError or TransientError, never with its content."""
    from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    from botocore import exceptions as boto

    wrapper = AwsConnectionWrapper(conn=aws)

    def client(service: str) -> Any:
        endpoint = wrapper.get_service_endpoint_url(service)
        return session.client(service, endpoint_url=endpoint, config=wrapper.botocore_config, verify=wrapper.verify)

    secret_id = extra.get("secret_id")
    try:
        session = BaseSessionFactory(conn=wrapper, region_name=wrapper.region_name).create_session()
        if not secret_id:
            stored = client("ssm").get_parameter(Name=extra["ssm_parameter"], WithDecryption=True)
            secret_id = stored["Parameter"]["Value"]
        value = str(client("secretsmanager").get_secret_value(SecretId=secret_id)["SecretString"])
    except boto.ClientError as error:
        raise _refused(error.response, aws) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise TransientError(f"AWS cannot be reached for the ICA credential ({type(error).__name__})") from None
    except (boto.BotoCoreError, KeyError) as error:
        raise AuthError(
            f"AWS cannot be asked for the ICA credential ({type(error).__name__}): check {aws.conn_id}, also its "
            "region_name, and that the secret is text"
        ) from None
    if extra.get("json_key"):
        try:
            value = str(json.loads(value)[extra["json_key"]])
        except (ValueError, KeyError, TypeError):
            raise AuthError(f"the secret holds no JSON key {extra['json_key']}: correct the extra json_key") from None
    mask_secret(value)
    return value


def _refused(answer: Mapping[str, Any], aws: Connection) -> WaybillError:
    """The error for an AWS answer: busy and broken services pass, the rest needs a person."""
    code = answer.get("Error", {}).get("Code", "refused")
    if "Throttl" in code or answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500:
        return TransientError(f"AWS does not give the ICA credential now ({code})")
    return AuthError(f"AWS does not give the ICA credential ({code}): check {aws.conn_id} and the extras' names")
