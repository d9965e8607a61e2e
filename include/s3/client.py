"""Calls an S3 store: one botocore client for everything, one obstore client per bucket for the bytes.

Invariant: botocore is imported inside functions only (Airflow imports this package at every parse), its
automatic checksums are off (other stores break on them, docs/protocols/s3.md 3.2; we send our own), and no message
carries a URL, a header or a credential. A call that deletes is never repeated here after a wait: who deletes looks first.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from include.core.errors import (
    AuthError,
    Forbidden,
    NotFound,
    RequestError,
    TransientError,
    WaybillError,
    error_for_status,
)
from include.core.patience import Patience
from include.s3.errors import (
    BucketMissing,
    ClockWrong,
    ColdObject,
    ConditionConflict,
    ExpiredCredential,
    OtherRegion,
    PreconditionFailed,
    RequesterPays,
    Unsupported,
    UploadLost,
)

_MISSING = {"NoSuchKey", "NoSuchVersion", "NotFound", "404"}
_UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "NotSupported", "501", "405"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId", "AuthFailure"}
_SKEWED = {"RequestTimeTooSkewed", "RequestInTheFuture"}
_REGION = {"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "301", "307"}
_BUSY = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"}
_NOT_REPEATED = {"delete_object", "delete_objects"}  # between the look before it and its repetition anything may happen
_READ_SECONDS, _WHOLE_READ_SECONDS = 120, 180  # without a byte; and of a read by obstore from its begin to its end
_PAYER_HEADER = "x-amz-request-payer"


class S3Client:
    """One endpoint and one identity. `session` is a boto3 session (an Airflow hook's), None for the usual environment.

    `patience` waits for a store that is out of reach (None: it is not waited for); a store that hangs outlasts it by the
    timeout of one request at most. `request_payer`: agrees to pay for reading buckets whose owners do not. Close it (or use
    it as an async context manager) to free its threads.
    """

    def __init__(
        self,
        *,
        session: Any = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        threads: int = 8,
        patience: Patience | None = None,
        request_payer: bool = False,
    ):
        self._session = session or session_of_environment(region)
        self._region = region or self._session.region_name or region_of_environment() or "us-east-1"
        self._threads = threads
        self._given_endpoint = endpoint_url
        self._request_payer = request_payer
        self._payers: dict[str, bool] = {}
        self.patience = patience or Patience(0)
        # Who is patient asks again anyway, and a store that hangs costs two minutes each time.
        self.client = self._client(attempts=1 if self.patience.seconds else 6)
        self._once: Any = None
        self._twice: Any = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="s3")

    def _client(self, *, attempts: int) -> Any:
        # Making one takes time: twice only where the endpoint comes from the environment.
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
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=self._threads + 2,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style, "payload_signing_enabled": False},
        )
        client = self._session.client("s3", endpoint_url=self._given_endpoint, region_name=self._region, config=config)
        if self._request_payer:
            client.meta.events.register("before-sign.s3", _agree_to_pay)
        return client

    @property
    def endpoint(self) -> str:
        return str(self.client.meta.endpoint_url)

    @property
    def region(self) -> str:
        """Where buckets are taken to lie until a store says otherwise."""
        return self._region

    def obstore(self, name: str, region: str | None = None) -> Any:
        """An obstore client of one bucket, for the bytes."""
        from obstore.auth.boto3 import Boto3CredentialProvider
        from obstore.store import S3Store

        if self._session.get_credentials() is None:
            raise AuthError("no AWS credentials were found: give a connection, a profile or the usual environment")
        options: dict[str, Any] = {} if _is_aws(self.client) else {"endpoint": self.endpoint}
        return S3Store(
            name,
            region=region or self._region,
            request_payer=self._request_payer,
            credential_provider=Boto3CredentialProvider(self._session),
            client_options={
                "allow_http": self.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=10),
                "timeout": timedelta(seconds=_WHOLE_READ_SECONDS),
            },
            retry_config={"max_retries": 0 if self.patience.seconds else 6, "retry_timeout": timedelta(minutes=3)},
            **options,
        )

    async def call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """One botocore call in a thread. `what` is the subject of the error's sentence.

        A store that is out of reach is waited for, except by what deletes: that is tried twice.
        """
        if operation in _NOT_REPEATED and self.patience.seconds:
            self._twice = self._twice or self._client(attempts=2)
            return await self._in_thread(self._twice, operation, what, parameters)
        return await self.patience.call(lambda: self._in_thread(self.client, operation, what, parameters))

    async def call_without_waiting(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """The same without patience: for asking whether a store can do something, where failing is an answer."""
        return await self._in_thread(self.client, operation, what, parameters)

    async def call_without_retry(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        """The same, sent once at most: for what must not be done twice. It may need a client of its own, which takes time."""
        if self.patience.seconds:
            return await self._in_thread(self.client, operation, what, parameters)
        self._once = self._once or self._client(attempts=1)
        return await self._in_thread(self._once, operation, what, parameters)

    async def _in_thread(self, client: Any, operation: str, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self.in_thread(self._call, client, operation, what, parameters)
        return answer

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, functools.partial(function, *arguments))

    def _call(self, client: Any, operation: str, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        import botocore.exceptions as failures
        from botocore.parsers import ResponseParserError

        body = parameters.get("Body")
        if body is not None and hasattr(body, "seek"):
            body.seek(0)  # an earlier try may have read it
        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except failures.ClientError as error:
            raise self._explained(client_error(error.response, what), operation, what, parameters) from None
        except RecursionError:  # botocore asks for the region by a call that is redirected in turn, and so on
            raise _other_region("301", what, None) from None
        except (failures.NoCredentialsError, failures.CredentialRetrievalError):
            raise AuthError(f"{what}: no usable AWS credentials") from None
        except failures.ParamValidationError as error:
            raise RequestError(f"{what}: {type(error).__name__}, the store's rules forbid these values") from None
        except failures.BotoCoreError as error:
            raise TransientError(f"{what}: the store was not reached ({type(error).__name__})") from None
        except ResponseParserError:
            raise Unsupported(f"{what}: the store answers something else than was asked", no_effect=False) from None
        return answer

    def _explained(self, error: WaybillError, operation: str, what: str, parameters: Mapping[str, Any]) -> WaybillError:
        """A refusal told for what it is. The answer to HEAD says nothing but a status, so the bucket is listed besides."""
        from botocore.exceptions import BotoCoreError, ClientError

        name = parameters.get("Bucket")
        if name is None or isinstance(error, _TELLING) or not isinstance(error, Forbidden | _Bodiless):
            return error
        if operation.startswith("head_"):
            try:
                self.client.list_objects_v2(Bucket=name, MaxKeys=1)
            except ClientError as found:
                told = client_error(found.response, what)
                if isinstance(told, _TELLING) or type(told) is AuthError:
                    return told
            except BotoCoreError:
                return error
        return self._payer_error(name, what) if self._asks_payer(name) else error

    def _asks_payer(self, name: str) -> bool:
        """Whether the requester pays for this bucket, and has not agreed to. False where the store does not tell."""
        if self._request_payer:
            return False
        if name not in self._payers:
            try:
                self._payers[name] = self.client.get_bucket_request_payment(Bucket=name).get("Payer") == "Requester"
            except Exception:  # most often refused, too: only the owner may ask
                self._payers[name] = False
        return self._payers[name]

    @staticmethod
    def _payer_error(name: str, what: str) -> WaybillError:
        return RequesterPays(
            f"{what}: who reads the bucket {name} pays for it, and you have not agreed to. Say --request-payer, or set the "
            "extra request_payer of the connection to true."
        )

    async def region_of(self, name: str) -> str | None:
        """The region of a bucket, as the store itself says; None where it does not."""
        return await self.patience.call(lambda: self.in_thread(self._region_of, name))

    def _region_of(self, name: str) -> str | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self.client.head_bucket(Bucket=name)
        except ClientError as error:
            answer = error.response
        except RecursionError:
            return None
        except BotoCoreError as error:
            raise TransientError(f"HEAD s3://{name}: the store was not reached ({type(error).__name__})") from None
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region: str | None = headers.get("x-amz-bucket-region") or answer.get("BucketRegion")
        return region

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class _EveryService(list[str]):
    """botocore looks through the folders of all its 400 services before it opens one. A service that is not there is found
    missing when its model is read."""

    def __contains__(self, name: object) -> bool:
        return True


def session_of_environment(region: str | None) -> Any:
    """A boto3 session by the usual environment."""
    import boto3
    import botocore.session
    from botocore.loaders import create_loader

    core = botocore.session.get_session()
    loader = create_loader(core.get_config_variable("data_path"))
    setattr(loader, "list_available_services", lambda *_, **__: _EveryService())  # noqa: B010
    core.register_component("data_loader", loader)
    return boto3.session.Session(botocore_session=core, region_name=region or region_of_environment())


def _is_aws(client: Any) -> bool:
    return _aws_host(str(client.meta.endpoint_url))


def _aws_host(url: str) -> bool:
    return (urlsplit(url).hostname or "").endswith(("amazonaws.com", "amazonaws.com.cn"))


def region_of_environment() -> str | None:
    """The region by AWS_REGION, which the newer tools read first, or AWS_DEFAULT_REGION, which boto3 alone reads."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _agree_to_pay(request: Any, **_: Any) -> None:
    request.headers[_PAYER_HEADER] = "requester"


class _Bodiless(WaybillError):
    """400 in answer to HEAD: whatever the reason, it was not told."""

    no_effect = True


def client_error(response: Mapping[str, Any], what: str) -> WaybillError:
    """One of our errors for botocore's ClientError."""
    told = response.get("Error", {})
    code = str(told.get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0) or 0)
    region = told.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
    known = _identity_error(code, what, told.get("ServerTime")) or _region_error(code, what, region)
    if known is not None:
        return known
    if (refused := _condition_error(code, what, status)) is not None:
        return refused
    if code == "NoSuchUpload":
        return UploadLost(f"{what}: the multipart upload no longer exists")
    if code == "InvalidObjectState":
        return _cold(what)
    if code in _UNSUPPORTED or status in (405, 501):
        return Unsupported(f"{what}: the store does not support this ({code})", no_effect=True)
    if code == "NoSuchBucket":
        return _no_bucket(what)
    if code in _MISSING or status == 404:
        return NotFound(f"{what}: not found ({code})")
    if code in _BUSY:
        return TransientError(f"{what}: the store is busy ({code})")
    if code == "400":
        return _Bodiless(f"{what}: the store refuses it and does not say why (400)")
    return error_for_status(status or 500, what, detail=code)


def _condition_error(code: str, what: str, status: int) -> WaybillError | None:
    if code == "ConditionalRequestConflict":
        return ConditionConflict(f"{what}: another request was at it ({code})")
    if code in ("PreconditionFailed", "412") or status == 412:
        return PreconditionFailed(f"{what}: the condition did not hold ({code})")
    return None


_TELLING = (ExpiredCredential, ClockWrong, RequesterPays, OtherRegion, BucketMissing)


def _identity_error(code: str, what: str, server_time: str | None = None) -> WaybillError | None:
    if code in _EXPIRED:
        return ExpiredCredential(
            f"{what}: the session of the credential is over ({code}). Log in again, then run again: it goes on where it "
            "stopped."
        )
    if code in _SKEWED:
        theirs = f"; the store's says {server_time}" if server_time else ""
        return ClockWrong(
            f"{what}: this machine's clock is too far from the store's ({code}){theirs}. Set the clock, then run again."
        )
    if code in _UNKNOWN:
        return AuthError(f"{what}: the store does not know this credential ({code}). Check its key, secret and token.")
    return None


def _region_error(code: str, what: str, region: str | None) -> WaybillError | None:
    malformed = code == "AuthorizationHeaderMalformed" or (code == "400" and region)
    if code not in _REGION and not (malformed and region):
        return None
    return _other_region(code, what, region)


def _other_region(code: str, what: str, region: str | None) -> OtherRegion:
    where = f"in the region {region}" if region else "in another region, which the store does not name"
    return OtherRegion(
        f"{what}: the bucket lies {where} ({code}). Set AWS_REGION, or the connection's region_name, to it.", region
    )


def _no_bucket(what: str) -> WaybillError:
    return BucketMissing(f"{what}: there is no such bucket. Check its name, and the endpoint.")


def _cold(what: str) -> WaybillError:
    return ColdObject(f"{what}: it lies in an archived storage class; request its restoration first")


def obstore_error(error: Exception, what: str) -> WaybillError:
    """One of our errors for obstore's. Its text may quote the request, so only what we look for is taken from it."""
    from obstore import exceptions as failures

    text = str(error)
    code, region, time = (_element(name, text) for name in ("Code", "Region", "ServerTime"))
    if code is None and "redirect without LOCATION" in text:
        code = "301"
    known = _identity_error(code or "", what, time) or _region_error(code or "", what, region)
    if known is not None:
        return known
    if code == "NoSuchBucket":
        return _no_bucket(what)
    if "InvalidObjectState" in text:
        return _cold(what)
    if "NotPartial" in text:
        return Unsupported(f"{what}: the store answers a range with the whole object, or says so", no_effect=True)
    if isinstance(error, failures.NotFoundError | FileNotFoundError):
        return NotFound(f"{what}: not found")
    if isinstance(error, failures.PreconditionError | failures.NotModifiedError):
        return PreconditionFailed(f"{what}: the condition did not hold")
    if isinstance(error, failures.PermissionDeniedError | failures.UnauthenticatedError):
        return Forbidden(f"{what}: access is denied. Check the credential's rights on this key.")
    return TransientError(f"{what}: the read failed ({type(error).__name__})")


def _element(name: str, text: str) -> str | None:
    found = re.search(rf"<{name}>([\w:.+-]+)</{name}>", text)
    return found[1] if found else None
