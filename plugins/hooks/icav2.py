"""From the connection `waybill_icav2` to a client: an API key, or the SOP's way (a JWT in Secrets Manager, its ARN in SSM)."""

from __future__ import annotations

import asyncio

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret
from hooks.aws import fetch_secret
from hooks.waybill import base_url

from include.core.errors import AuthError, RequestError
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
    return ICAv2Client(base_url(connection), _credentials(connection, aws), name=connection.conn_id)


def _credentials(connection: Connection, aws: Connection | None) -> Credentials:
    extra = connection.extra_dejson
    if aws is not None:
        return KeptToken(lambda: asyncio.to_thread(fetch_secret, extra, aws, purpose="the ICA credential"))
    if not connection.password:
        raise AuthError(
            f"connection {connection.conn_id} holds no credential: give the API key as password, or the extra "
            "ssm_parameter or secret_id"
        )
    mask_secret(connection.password)
    return ApiKey(connection.password, extra.get("tenant"))
