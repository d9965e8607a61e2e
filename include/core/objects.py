"""Documents under an object-store prefix: receipts, plans, manifests, inputs. File systems and S3 look the same here.

Invariant: a prefix comes from a connection, a name from us or from a checked request; a URI
from outside must lie under a configured prefix, and no message quotes what a document holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, from_url

from include.core.errors import NotFound, RemoteError, RequestError, TransientError
from include.core.text import bare_uri, is_bare_uri

_OS_ERROR = re.compile(r"os error (\d+)")
_LASTING = (PermissionDeniedError, UnauthenticatedError, InvalidPathError)
_NOT_FOUND = (NotFoundError, FileNotFoundError)  # obstore raises either; where something is written: there is no bucket
_LASTING_NUMBERS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


@dataclass(frozen=True)
class Document:
    """Where a document lies, and its digest: what travels in XCom instead of the document."""

    uri: str
    sha256: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {"uri": self.uri, "sha256": self.sha256, "size_bytes": self.size_bytes}


class Objects:
    """One prefix of an object store (`file:///srv/waybill/receipts`, `s3://bucket/waybill`).

    `options` go to the store (endpoint, region, credential provider), `named_by` says in errors where the prefix comes from
    ("connection waybill_receipts"). Raises NotFound, TransientError, and RemoteError for what waiting does not mend.
    """

    def __init__(self, prefix: str, options: Mapping[str, Any] | None = None, *, named_by: str = ""):
        self._named_by = f"{named_by}: " if named_by else ""
        if not is_bare_uri(prefix) or (parts := urlsplit(prefix)).scheme not in ("file", "s3", "gs", "az"):
            raise RequestError(
                f"{self._named_by}the prefix {bare_uri(prefix)} is not understood: give file:///path or s3://bucket/prefix"
            )
        self.prefix = prefix.rstrip("/") + "/"
        if parts.scheme == "file":
            try:
                self._store: Any = LocalStore(Path(unquote(parts.path)), mkdir=True)
            except OSError as error:
                raise self._failure("", "written", error) from None
        else:
            self._store = from_url(prefix, **dict(options or {}))

    async def put(self, name: str, data: bytes) -> Document:
        """Writes a document whole: a reader sees the old one or the new one, never a part."""
        try:
            await obstore.put_async(self._store, name, data)
        except (BaseError, OSError) as error:
            raise self._failure(name, "written", error) from None
        return Document(self.prefix + name, hashlib.sha256(data).hexdigest(), len(data))

    async def get(self, name: str) -> bytes:
        try:
            return bytes(await (await obstore.get_async(self._store, name)).bytes_async())
        except _NOT_FOUND:
            raise NotFound(f"{self.prefix}{name} does not exist") from None
        except (BaseError, OSError) as error:
            raise self._failure(name, "read", error) from None

    async def size_of(self, name: str) -> int:
        try:
            return int((await obstore.head_async(self._store, name))["size"])
        except _NOT_FOUND:
            raise NotFound(f"{self.prefix}{name} does not exist") from None
        except (BaseError, OSError) as error:
            raise self._failure(name, "read", error) from None

    def _failure(self, name: str, verb: str, error: Exception) -> RemoteError | TransientError:
        """A file system's error is told by its number only: a store's own text may quote what it was given."""
        number = _OS_ERROR.search(str(error))
        why = os.strerror(int(number[1])) if number else type(error).__name__
        said = f"{self._named_by}{self.prefix}{name} cannot be {verb} ({why})"
        if isinstance(error, (*_LASTING, *_NOT_FOUND)) or (number and int(number[1]) in _LASTING_NUMBERS):
            return RemoteError(f"{said}: correct the prefix, or give the workers the right to it", no_effect=True)
        return TransientError(said)

    async def get_document(self, document: Mapping[str, Any]) -> bytes:
        """The bytes of a Document that XCom carries, checked against its digest."""
        data = await self.get(self.name_of(str(document["uri"])))
        if hashlib.sha256(data).hexdigest() != document["sha256"]:
            raise RequestError(f"{document['uri']} is not what it was when it was written: its sha256 differs")
        return data

    async def names(self, suffix: str, under: str = "") -> list[str]:
        """All names under the prefix, or under one folder of it, that end with `suffix`, sorted."""
        found: list[str] = []
        async for page in obstore.list(self._store, under or None):
            found += [str(meta["path"]) for meta in page if str(meta["path"]).endswith(suffix)]
        return sorted(found)

    def name_of(self, uri: str) -> str:
        """The name under this prefix. Raises RequestError for a URI outside of it."""
        if not uri.startswith(self.prefix) or ".." in uri.split("/"):
            raise RequestError(f"{bare_uri(uri)} does not lie under {self.prefix}")
        return uri[len(self.prefix) :]


async def read_input(uri: str, places: Sequence[Objects], *, limit_bytes: int) -> bytes:
    """An input document that a request names. It must lie under one of the configured prefixes (`waybill_inputs`).

    Raises RequestError where it does not, or is too large; NotFound, TransientError. No message quotes its content.
    """
    if "://" not in uri:
        raise RequestError(f"{bare_uri(uri)}: a URI begins with s3:// or file://; give the whole one")
    if not is_bare_uri(uri):
        raise RequestError(
            f"{bare_uri(uri)}: a URI with a query, a fragment or user information is refused; give the plain one"
        )
    for place in places:
        if uri.startswith(place.prefix):
            name = place.name_of(uri)
            size = await place.size_of(name)
            if size > limit_bytes:
                raise RequestError(f"{uri}: {size} bytes are more than the {limit_bytes} that are read; split it")
            return await place.get(name)
    allowed = ", ".join(place.prefix for place in places) or "none is configured in connection waybill_inputs"
    raise RequestError(f"{bare_uri(uri)} does not lie under an allowed prefix ({allowed}): copy it there")
