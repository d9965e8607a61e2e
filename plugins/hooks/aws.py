"""From the connection `waybill_aws` to what AWS, or a store that speaks S3, offers: open buckets, and secrets kept there.

Invariant: one session per connection, made in one place, so that role, profile, region and endpoint hold for every service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret

from include.core.errors import AuthError, TransientError, WaybillError
from include.core.patience import Patience
from include.s3.bucket import S3Access
from include.s3.client import region_of_environment


class AwsHook(BaseHook):
    """Connection of type aws: the usual fields (key, role, profile, region); the extra `endpoint_url` names another store,
    the extra `request_payer` (true) agrees to pay for reading buckets whose owners do not."""

    conn_name_attr = "aws_conn_id"
    default_conn_name = "waybill_aws"
    conn_type = "aws"
    hook_name = "Waybill AWS"

    def __init__(self, aws_conn_id: str = default_conn_name):
        super().__init__()
        self.aws_conn_id = aws_conn_id

    def access(self, *, patience_minutes: float = 0) -> S3Access:
        """Buckets, for tasks; a store that is out of reach is waited for so long. Use as an async context manager."""
        return s3_access(self.get_connection(self.aws_conn_id), Patience(patience_minutes * 60))

    async def aaccess(self, *, patience_minutes: float = 0) -> S3Access:
        """The same for triggers."""
        connection = await self.aget_connection(self.aws_conn_id)
        return await asyncio.to_thread(s3_access, connection, Patience(patience_minutes * 60))


@dataclass(frozen=True)
class AwsSession:
    """A boto3 session by a connection, and what the connection says besides. Raises botocore's errors."""

    wrapper: Any
    session: Any

    @classmethod
    def of(cls, connection: Connection) -> AwsSession:
        from airflow.providers.amazon.aws.hooks.base_aws import BaseSessionFactory
        from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

        wrapper = AwsConnectionWrapper(conn=connection)
        region = wrapper.region_name or region_of_environment()
        return cls(wrapper, BaseSessionFactory(conn=wrapper, region_name=region).create_session())

    def endpoint(self, service: str) -> str | None:
        found: str | None = self.wrapper.get_service_endpoint_url(service)
        return found

    def client(self, service: str) -> Any:
        config, verify = self.wrapper.botocore_config, self.wrapper.verify
        return self.session.client(service, endpoint_url=self.endpoint(service), config=config, verify=verify)


def s3_access(connection: Connection, patience: Patience | None = None) -> S3Access:
    """The store of a connection. Nothing is asked of it yet."""
    aws = AwsSession.of(connection)
    return S3Access(
        session=aws.session,
        endpoint_url=aws.endpoint("s3"),
        region=aws.wrapper.region_name,
        patience=patience,
        request_payer=str(aws.wrapper.extra_config.get("request_payer", "")).lower() in ("true", "requester", "1"),
    )


def fetch_secret(extra: Mapping[str, Any], aws: Connection, *, purpose: str) -> str:
    """The secret that the extras name (`secret_id`, or `ssm_parameter` whose value names it; `json_key` where it is a JSON
    object), read now.

    `purpose` stands in messages, as "the ICA credential". Raises AuthError or TransientError, never with its content.
    """
    from botocore import exceptions as boto

    try:
        session = AwsSession.of(aws)
        secret_id = extra.get("secret_id")
        if not secret_id:
            with closing(session.client("ssm")) as ssm:
                secret_id = ssm.get_parameter(Name=extra["ssm_parameter"], WithDecryption=True)["Parameter"]["Value"]
        with closing(session.client("secretsmanager")) as secrets:
            value = str(secrets.get_secret_value(SecretId=secret_id)["SecretString"])
    except boto.ClientError as error:
        raise _refused(error.response, aws, purpose) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise TransientError(f"AWS cannot be reached for {purpose} ({type(error).__name__})") from None
    except (boto.BotoCoreError, KeyError) as error:
        raise AuthError(
            f"AWS cannot be asked for {purpose} ({type(error).__name__}): check {aws.conn_id}, also its region_name, and "
            "that the secret is text"
        ) from None
    if extra.get("json_key"):
        try:
            value = str(json.loads(value)[extra["json_key"]])
        except (ValueError, KeyError, TypeError):
            raise AuthError(f"the secret holds no JSON key {extra['json_key']}: correct the extra json_key") from None
    mask_secret(value)
    return value


def _refused(answer: Mapping[str, Any], aws: Connection, purpose: str) -> WaybillError:
    """The error for an AWS answer: busy and broken services pass, the rest needs a person."""
    code = answer.get("Error", {}).get("Code", "refused")
    if "Throttl" in code or answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400) >= 500:
        return TransientError(f"AWS does not give {purpose} now ({code})")
    return AuthError(f"AWS does not give {purpose} ({code}): check {aws.conn_id} and the extras' names")
