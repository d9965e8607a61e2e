"""From the connection `waybill_aws` to open buckets, and the place where half-done work on plates is remembered.

The thing to know before changing it: journals outlive runs and workers. They lie under the receipts prefix, by archive
bucket, plate and digest, so that a retry, a cleared task and the next run all find the same one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret

from include.core.errors import AuthError, TransientError, WaybillError
from include.s3.client import S3Access


class PlatesHook(BaseHook):
    """Connection of type aws: the usual fields (key, role, profile, region); the extra `endpoint_url` names another store."""

    conn_name_attr = "aws_conn_id"
    default_conn_name = "waybill_aws"
    conn_type = "aws"
    hook_name = "Waybill plates"

    def __init__(self, aws_conn_id: str = default_conn_name):
        super().__init__()
        self.aws_conn_id = aws_conn_id

    def access(self) -> S3Access:
        """For tasks. Use as an async context manager."""
        return _access(self.get_connection(self.aws_conn_id))

    async def aaccess(self) -> S3Access:
        """For triggers."""
        connection = await self.aget_connection(self.aws_conn_id)
        return await asyncio.to_thread(_access, connection)


def _access(connection: Connection) -> S3Access:
    from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    wrapper = AwsConnectionWrapper(conn=connection)
    session = BaseSessionFactory(conn=wrapper, region_name=wrapper.region_name).create_session()
    endpoint = wrapper.get_service_endpoint_url("s3")
    return S3Access(session=session, endpoint_url=endpoint, region=wrapper.region_name)


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
