"""From connection `waybill_archives` to where tarballs lie, and to the index that finds files in them.

Invariant: what is searched, listed or read by schedule lies under a prefix that an operator has configured here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from hooks.aws import AwsHook

from include.core.errors import RequestError
from include.core.text import is_bare_uri
from include.plates.file_index import FileIndex, store_of

ARCHIVES = "waybill_archives"
_EXAMPLE = '{"prefixes": ["s3://imaging-platform-cold/imaging_analysis/"], "index": "/srv/waybill-data/index.sqlite"}'


@dataclass(frozen=True)
class Archives:
    """The prefixes of tarballs, those of checksum reports, and the file of the index (None: none is kept)."""

    prefixes: tuple[str, ...]
    reports: tuple[str, ...]
    index: Path | None


def archives() -> Archives:
    """Raises RequestError where the connection does not exist, or names no prefix."""
    found = archives_if_any()
    if found is None:
        raise RequestError(f"connection {ARCHIVES} does not exist: create it with the extra {_EXAMPLE}")
    return found


def archives_if_any() -> Archives | None:
    """None where the connection does not exist. Raises RequestError where it names no prefix."""
    try:
        extra = BaseHook.get_connection(ARCHIVES).extra_dejson
    except AirflowNotFoundException:
        return None
    prefixes, reports = _prefixes(extra, "prefixes"), _prefixes(extra, "reports")
    index = extra.get("index")
    if not prefixes or not (index is None or (isinstance(index, str) and Path(index).is_absolute())):
        raise RequestError(f"connection {ARCHIVES}: give the extra {_EXAMPLE}; index is the absolute path of a file")
    return Archives(prefixes, reports, Path(index) if index else None)


def _prefixes(extra: dict[str, Any], name: str) -> tuple[str, ...]:
    given = extra.get(name) or []
    if not isinstance(given, list) or not all(
        isinstance(uri, str) and uri.startswith("s3://") and is_bare_uri(uri) for uri in given
    ):
        raise RequestError(f"connection {ARCHIVES}: {name} is a list of s3://bucket/prefix/")
    return tuple(given)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key, or prefix."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def endpoint_of(aws_conn_id: str = AwsHook.default_conn_name) -> str | None:
    """The endpoint that the connection names, without opening anything; None for AWS itself."""
    try:
        found: str | None = BaseHook.get_connection(aws_conn_id).extra_dejson.get("endpoint_url")
    except AirflowNotFoundException:
        return None
    return found


@contextmanager
def file_index(place: Archives, *, read_only: bool = False) -> Iterator[FileIndex]:
    """The configured index; where none is configured, one that is thrown away afterwards."""
    store = store_of(endpoint_of())
    if place.index is not None:
        with FileIndex(place.index, store, read_only=read_only) as index:
            yield index
        return
    with (
        tempfile.TemporaryDirectory(prefix="waybill-index-") as folder,
        FileIndex(Path(folder) / "file", store) as index,
    ):
        yield index
