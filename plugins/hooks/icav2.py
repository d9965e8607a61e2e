"""From the connection `waybill_icav2` to a client: an API key, or the SOP's way (a JWT in Secrets Manager, its ARN in SSM)."""

from __future__ import annotations

import asyncio

from airflow.sdk import Connection
from airflow.sdk.log import mask_secret
from hooks.aws import fetch_secret
from hooks.client import ClientHook
from hooks.waybill import base_url

from include.core.errors import AuthError, RequestError
from include.core.http import Credentials
from include.icav2.client import ICAv2Client
from include.icav2.credentials import ApiKey, KeptToken


class ICAv2Hook(ClientHook[ICAv2Client]):
    """Connection fields: host (as https://ica.illumina.com/ica/rest), password (API key), extras `tenant`; or, instead of
    a password, the extras `ssm_parameter` (its value names the secret) or `secret_id`, `json_key` (where the secret is a
    JSON object) and `aws_conn_id` (default waybill_aws)."""

    conn_name_attr = "icav2_conn_id"
    default_conn_name = "waybill_icav2"
    conn_type = "http"
    hook_name = "ICAv2"

    def others_of(self, connection: Connection) -> list[str]:
        extra = connection.extra_dejson
        kept_elsewhere = extra.get("ssm_parameter") or extra.get("secret_id")
        return [str(extra.get("aws_conn_id") or "waybill_aws")] if kept_elsewhere else []

    def connect(self, connection: Connection, *others: Connection) -> ICAv2Client:
        if not connection.host:
            raise RequestError(f"connection {connection.conn_id} has no host: give https://ica.illumina.com/ica/rest")
        return ICAv2Client(base_url(connection), _credentials(connection, *others), name=connection.conn_id)


def _credentials(connection: Connection, aws: Connection | None = None) -> Credentials:
    extra = connection.extra_dejson
    if aws is not None:
        return KeptToken(lambda: asyncio.to_thread(fetch_secret, extra, aws, purpose="the ICA credential"))
    if not connection.password:
        raise AuthError(
            f"connection {connection.conn_id} holds no credential: give the API key as password, or the extra "
            "ssm_parameter or secret_id"
        )
    mask_secret(connection.password.strip())  # as it is sent: a copied key may end with a line break
    return ApiKey(connection.password, extra.get("tenant"))
