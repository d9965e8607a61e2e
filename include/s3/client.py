"""Calls an S3 store: one botocore client for everything, one obstore client per bucket for the bytes.

Invariant: botocore is imported inside functions only (Airflow imports this package at every parse), its
automatic checksums are off (other stores break on them, docs/protocols/s3.md 3.2; we send our own), and no message
carries a URL, a header or a credential.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from include.core.errors import AuthError, NotFound, RequestError, TransientError, WaybillError, error_for_status
from include.s3.errors import ColdObject, ConditionConflict, PreconditionFailed, Unsupported, UploadLost

_MISSING = {"NoSuchKey", "NoSuchVersion", "NotFound", "404"}
_UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "NotSupported", "501", "405"}


class S3Client:
    """One endpoint and one identity. `session` is a boto3 session (an Airflow hook's), None for the usual environment.

    Close it (or use it as an async context manager) to free its threads.
    """

    def __init__(
        self, *, session: Any = None, endpoint_url: str | None = None, region: str | None = None, threads: int = 8
    ):
        import boto3

        self._session = session or boto3.session.Session()
        self._region = region or self._session.region_name or "us-east-1"
        self._threads = threads
        self._given_endpoint = endpoint_url
        self.client = self._client(attempts=6)
        self._once: Any = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3")

    def _client(self, *, attempts: int) -> Any:
        # Making one costs a tenth of a second: twice only where the endpoint comes from the environment.
        given = self._given_endpoint
        if not given or _aws_host(given):
            client = self._make_client(attempts, "auto")
            if _is_aws(client):
                return client
        return self._make_client(attempts, "path")

    def _make_client(self, attempts: int, style: Literal["auto", "path"]) -> Any:
        from botocore.config import Config

        config = Config(
            connect_timeout=10,
            read_timeout=120,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=self._threads + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style, "payload_signing_enabled": False},
        )
        return self._session.client("s3", endpoint_url=self._given_endpoint, region_name=self._region, config=config)

    @property
    def endpoint(self) -> str:
        return str(self.client.meta.endpoint_url)

    def obstore(self, name: str) -> Any:
        """An obstore client of one bucket, for the bytes."""
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        if self._session.get_credentials() is None:
            raise AuthError("no AWS credentials were found: give a connection, a profile or the usual environment")
        options: dict[str, Any] = {} if _is_aws(self.client) else {"endpoint": self.endpoint}
        return S3Store(
            name,
            region=self._region,
            credential_provider=Boto3CredentialProvider(self._session),
            client_options={
                "allow_http": self.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=10),
                "timeout": timedelta(seconds=180),
            },
            retry_config={"max_retries": 6, "retry_timeout": timedelta(minutes=3)},
            **options,
        )

    async def call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """One botocore call in a thread. `what` is the subject of the error's sentence."""
        answer: dict[str, Any] = await self.in_thread(self._call, self.client, operation, what, parameters)
        return answer

    async def call_without_retry(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """The same without repeating: for asking whether a store can do something, where failing is an answer."""
        if self._once is None:
            self._once = self._client(attempts=1)
        answer: dict[str, Any] = await self.in_thread(self._call, self._once, operation, what, parameters)
        return answer

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *arguments))

    def _call(self, client: Any, operation: str, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        import botocore.exceptions as failures
        from botocore.parsers import ResponseParserError

        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except failures.ClientError as error:
            raise client_error(error.response, what) from None
        except (failures.NoCredentialsError, failures.CredentialRetrievalError):
            raise AuthError(f"{what}: no usable AWS credentials") from None
        except failures.ParamValidationError as error:
            raise RequestError(f"{what}: {type(error).__name__}, the store's rules forbid these values") from None
        except failures.BotoCoreError as error:
            raise TransientError(f"{what}: the store was not reached ({type(error).__name__})") from None
        except ResponseParserError:
            raise Unsupported(f"{what}: the store answers something else than was asked", no_effect=False) from None
        return answer

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def _is_aws(client: Any) -> bool:
    return _aws_host(str(client.meta.endpoint_url))


def _aws_host(url: str) -> bool:
    return (urlsplit(url).hostname or "").endswith(("amazonaws.com", "amazonaws.com.cn"))


def client_error(response: Mapping[str, Any], what: str) -> WaybillError:
    """One of our errors for botocore's ClientError."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    if code == "NoSuchUpload":
        return UploadLost(f"{what}: the multipart upload no longer exists")
    if code == "ConditionalRequestConflict":
        return ConditionConflict(f"{what}: another request was at it ({code})")
    if code in ("PreconditionFailed", "412") or status == 412:
        return PreconditionFailed(f"{what}: the condition did not hold ({code})")
    if code == "InvalidObjectState":
        return ColdObject(f"{what}: it lies in an archived storage class; request its restoration first")
    if code in _UNSUPPORTED or status in (405, 501):
        return Unsupported(f"{what}: the store does not support this ({code})", no_effect=True)
    if code in _MISSING or status == 404:
        return NotFound(f"{what}: not found ({code})")
    if code in ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable"):
        return TransientError(f"{what}: the store is busy ({code})")
    return error_for_status(status or 500, what, detail=code)


def obstore_error(error: Exception, what: str) -> WaybillError:
    """One of our errors for obstore's. Its text may quote the request, so only what we look for is taken from it."""
    from obstore import exceptions as failures

    text = str(error)
    if "InvalidObjectState" in text:
        return ColdObject(f"{what}: it lies in an archived storage class; request its restoration first")
    if "NotPartial" in text:
        return Unsupported(f"{what}: the store answers a range with the whole object, or says so", no_effect=True)
    if isinstance(error, failures.NotFoundError | FileNotFoundError):
        return NotFound(f"{what}: not found")
    if isinstance(error, failures.PreconditionError | failures.NotModifiedError):
        return PreconditionFailed(f"{what}: the condition did not hold")
    if isinstance(error, failures.PermissionDeniedError | failures.UnauthenticatedError):
        return AuthError(f"{what}: access is denied. Check the credential's rights on this key.")
    return TransientError(f"{what}: the read failed ({type(error).__name__})")
