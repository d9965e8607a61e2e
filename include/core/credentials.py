"""Credentials of HTTP services: a header of any name, a login with its password, or a signature of each request.

Invariant: a credential lives in memory only, and what is secret of it is named to the client, which keeps it out of messages.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from include.core.errors import AuthError, TransientError
from include.core.http import Credential, HttpClient, usable_secret


@dataclass(frozen=True)
class Header:
    """A secret in a header, as `Header("Api-Key", key)`, `Header("Authorization", token, scheme="Bearer")`.

    A secret that already begins with the scheme is taken as it is.
    """

    name: str
    secret: str = field(repr=False)
    scheme: str = ""

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        secret = usable_secret(self.secret, client.where)
        if self.scheme:
            secret = secret.removeprefix(f"{self.scheme} ").lstrip()
        return Credential({self.name: f"{self.scheme} {secret}".lstrip()}, (secret,))


@dataclass(frozen=True)
class Basic:
    """Login and password in each request (RFC 7617, UTF-8)."""

    login: str
    password: str = field(repr=False)

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        password = usable_secret(self.password, client.where, ascii_only=False)
        token = base64.b64encode(f"{self.login.strip()}:{password}".encode()).decode()
        return Credential({"Authorization": f"Basic {token}"}, (password, token))


@dataclass(frozen=True)
class AwsSignature:
    """Signs each request by AWS Signature Version 4, for services behind IAM.

    `fetch` gives botocore's credentials, or None; it is called again when they are refused: those of a role expire.
    """

    fetch: Callable[[], Any] = field(repr=False)
    service: str
    region: str

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        return await asyncio.to_thread(
            self._credential, client.where
        )  # botocore is slow to load, and may ask a service for its keys

    def _credential(self, where: str) -> Credential:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self.fetch()
            keys = found.get_frozen_credentials() if found is not None else None
        except (BotoCoreError, ClientError) as error:
            raise TransientError(
                f"AWS gives no keys for {where} now ({type(error).__name__})", no_effect=True
            ) from None
        if keys is None:
            raise AuthError(f"there are no AWS keys for {where}: give the connection a key, a role or a profile")
        signer = SigV4Auth(keys, self.service, self.region)

        def sign(request: httpx.Request, body: bytes | Path) -> dict[str, str]:
            # Only the host is handed over and signed: a proxy may change other headers.
            asked = AWSRequest(request.method, str(request.url), headers={"Host": request.headers["host"]}, data=b"")
            asked.headers["X-Amz-Content-SHA256"] = _sha256(body)
            signer.add_auth(asked)
            return {name: value for name, value in asked.headers.items() if name != "Host"}

        return Credential({}, (keys.access_key, keys.secret_key, keys.token or ""), sign)


def _sha256(body: bytes | Path) -> str:
    if isinstance(body, bytes):
        return hashlib.sha256(body).hexdigest()
    with body.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
