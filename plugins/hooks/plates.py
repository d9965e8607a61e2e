"""From the connection `waybill_aws` to open buckets, and the place where half-done work on plates is remembered.

The thing to know before changing it: journals outlive runs and workers. They lie under the receipts prefix, by archive
bucket, plate and digest, so that a retry, a cleared task and the next run all find the same one.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow.sdk import BaseHook, Connection
from hooks.waybill import RECEIPTS, prefixes_of

from include.core.objects import Objects
from include.plates.access import S3Access
from include.plates.journal import FileJournal, JournalFor, PartJournal

_READS_AT_ONCE = 32


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


def journals(*steps: str, conn_id: str = RECEIPTS) -> JournalFor:
    """Journals by name in the folder `plates/journals/<steps>` under the receipts prefix."""
    connection = BaseHook.get_connection(conn_id)
    place = prefixes_of(connection)[0].prefix + "/".join(["plates", "journals", *map(file_name, steps)]) + "/"
    parts = urlsplit(place)
    if parts.scheme == "file":  # all workers see this folder, or they would not share receipts either
        folder = Path(unquote(parts.path))
        return lambda name: FileJournal(folder / f"{file_name(name)}.jsonl")
    options = connection.extra_dejson.get("options")
    return lambda name: ObjectJournal(Objects(f"{place}{file_name(name)}", options))


def file_name(text: str) -> str:
    """Text as one step of a path; what is odd becomes `_`."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".") or "_"


class ObjectJournal(PartJournal):
    """A journal on an object store: one object per line, since objects cannot be appended to.

    Two writers of one journal (a killed worker's orphan and its successor) do not lose each other's lines.
    """

    def __init__(self, objects: Objects):
        self._objects = objects
        self._next: int | None = None
        self._lock = threading.Lock()

    def load(self) -> list[dict[str, Any]]:
        names, rows = asyncio.run(self._read())
        with self._lock:
            self._next = max([self._next or 0, *(int(name.split(".")[0]) + 1 for name in names)])
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        if self._next is None:
            self.load()
        with self._lock:
            number = self._next or 0
            self._next = number + 1
        name = f"{number:08d}.{uuid.uuid4().hex[:8]}.json"
        asyncio.run(self._objects.put(name, json.dumps(dict(row), ensure_ascii=False).encode()))

    async def _read(self) -> tuple[list[str], list[dict[str, Any]]]:
        names = await self._objects.names(".json")
        room = asyncio.Semaphore(_READS_AT_ONCE)

        async def one(name: str) -> dict[str, Any]:
            async with room:
                row: dict[str, Any] = json.loads(await self._objects.get(name))
                return row

        return names, list(await asyncio.gather(*(one(name) for name in names)))
