"""From the connection `waybill_globus` to a client, and to the collections and folders that its extras name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import mask_secret

from include.core.errors import RequestError
from include.core.ledger import Ledger, Submission
from include.globus.client import GlobusClient
from include.globus.transfer import cancel

CONN_ID = "waybill_globus"
NEEDED = ("source_collection", "source_root", "destination_collection", "destination_root")


@dataclass(frozen=True)
class Collections:
    """What the connection's extras name. `mount`: where workers see the root of the destination collection, if they do."""

    source: str
    source_root: str
    destination: str
    destination_root: str
    mount: Path | None
    cancel_on_failure: bool


class GlobusHook(BaseHook):
    """Connection fields: login (client id), password (client secret), host (for rehearsals; else Globus' own); extras
    `source_collection`, `source_root`, `destination_collection`, `destination_root`, `mount`, `data_access` (a list of mapped
    collections that need this consent), `cancel_on_failure` (false: a task outlives the run that was marked failed)."""

    conn_name_attr = "globus_conn_id"
    default_conn_name = CONN_ID
    conn_type = "generic"
    hook_name = "Globus"

    def __init__(self, conn_id: str = CONN_ID):
        super().__init__()
        self.conn_id = conn_id

    def client(self) -> GlobusClient:
        """For tasks. Raises AuthError where login or password is missing."""
        return globus_client(self.get_connection(self.conn_id))

    async def aclient(self) -> GlobusClient:
        """For triggers."""
        connection = await self.aget_connection(self.conn_id)
        return await asyncio.to_thread(globus_client, connection)  # the SDK is slow to import

    def collections(self) -> Collections:
        """Raises RequestError that names every extra that is missing."""
        return collections_of(self.get_connection(self.conn_id))


def cancel_transfer(book: Ledger, row: Submission) -> str:
    """Ends the task of a row by its exact id, through the connection by which it was submitted."""
    client = GlobusHook(str(row.detail.get("connection") or CONN_ID)).client()
    try:
        return cancel(client, book, row)
    finally:
        client.close()


def globus_client(connection: Connection) -> GlobusClient:
    if connection.password:
        mask_secret(connection.password.strip())
    extra = connection.extra_dejson
    return GlobusClient(
        connection.login or "",
        connection.password or "",
        name=connection.conn_id,
        data_access=[str(one) for one in extra.get("data_access") or ()],
        base_url=connection.host or None,
    )


def collections_of(connection: Connection) -> Collections:
    extra = connection.extra_dejson
    missing = [name for name in NEEDED if not str(extra.get(name) or "").strip()]
    if missing:
        raise RequestError([f"connection {connection.conn_id}: the extra {name} is missing" for name in missing])
    mount = str(extra.get("mount") or "").strip()
    return Collections(
        source=str(extra["source_collection"]).strip(),
        source_root=_folder(extra["source_root"]),
        destination=str(extra["destination_collection"]).strip(),
        destination_root=_folder(extra["destination_root"]),
        mount=Path(mount) if mount else None,
        cancel_on_failure=str(extra.get("cancel_on_failure") or "").strip().lower() == "true",
    )


def _folder(text: object) -> str:
    """A folder as /a/b, from the collection's root."""
    return "/" + str(text).strip().strip("/")
